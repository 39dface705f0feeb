import subprocess
import sys

import torch

from spherescan.ops.constant import constant_in_graphs


def test_the_compiler_of_torch_is_loaded_by_those_who_compile():
    """It takes a second of every start."""
    code = (
        "import sys, torch, spherescan.cli, spherescan.estimators, spherescan.train\n"
        "from spherescan import ops\n"
        "x = torch.ones(1, 2, 3, requires_grad=True)\n"
        "sum(y.sum() for y in ops.add_rms_norm(x, x, torch.ones(3))).backward()\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_it_marks_a_function_as_torch_does():
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(constant_in_graphs(ours)) == vars(torch.compiler.assume_constant_result(theirs))
    assert vars(ours)

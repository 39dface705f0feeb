import subprocess
import sys

import torch

from spherescan.ops.constant import constant_in_graphs


def test_the_compiler_of_torch_is_loaded_by_those_who_compile(tmp_path):
    """It takes a second of every start, and sympy half of that."""
    code = (
        "import sys, torch, spherescan.cli, spherescan.estimators, spherescan.train\n"
        "from spherescan import ops\n"
        "x = torch.ones(1, 2, 3, requires_grad=True)\n"
        "sum(y.sum() for y in ops.add_rms_norm(x, x, torch.ones(3))).backward()\n"
        "run = sys.argv[1]\n"
        "data = 'sample:JapaneseVowels_TRAIN.ts'\n"
        "learn = ['--run.steps', '2', '--run.dir', run, '--model.n-convolutions', '1']\n"
        "assert spherescan.cli.main(['train', '--data.train', data, *learn]) == 0\n"
        "assert spherescan.cli.main(['predict', run, data]) == 0\n"
        "learn = ['--run.steps', '2', '--run.dir', run + 's', '--data.source', 'tokens']\n"
        "tokens = ['--data.train', sys.argv[2], '--data.extension', 'txt']\n"
        "size = ['--data.vocab-size', '5', '--data.seq-len', '8', '--data.batch-size', '1']\n"
        "assert spherescan.cli.main(['train', *learn, *tokens, *size]) == 0\n"
        "assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()"
    )
    (tmp_path / "tokens.txt").write_text("1 2 3 4 " * 6)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run", tmp_path], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_it_marks_a_function_as_torch_does():
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(constant_in_graphs(ours)) == vars(torch.compiler.assume_constant_result(theirs))
    assert vars(ours)

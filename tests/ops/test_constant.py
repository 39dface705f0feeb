import subprocess
import sys


def test_the_compiler_of_torch_is_loaded_by_those_who_compile():
    """It takes a second of every start."""
    code = (
        "import sys, spherescan.cli, spherescan.estimators, spherescan.train\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()

import shutil
import sys

import pytest

from tests.torture.faults import preloaded_environment


@pytest.fixture(scope="session")
def preload(tmp_path_factory):
    """The environment of a process under faults.c."""
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    return preloaded_environment(tmp_path_factory.mktemp("faults"))

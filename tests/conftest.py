"""Every unit test runs on one thread: on a busy machine more of them cost more than they bring."""

import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.torture.faults import preloaded_environment

# Coverage makes Python twice as slow. These train or parse much, and what they run others run too.
UNTRACED = (
    "data/test_formats_fuzz.py",
    "data/test_order_of_a_run.py",
    "data/test_order_properties.py",
    "estimators/test_conventions.py",
    "estimators/test_familiarity.py",
    "estimators/test_networks.py",
    "inference/test_stream.py",
    "nn/test_placement.py",
    "ops/test_native_equality.py",
    "surgery/test_contract.py",
    "surgery/test_torchjd.py",
    "test_config_properties.py",
    "test_security.py",
    "train/test_hybrid.py",
    "train/test_non_finite.py",
    "train/test_rust_trainer.py",
    "train/test_situations.py",
)

settings.register_profile("spherescan", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("spherescan")


def pytest_collection_modifyitems(items):
    untraced = {Path(__file__).parent / name for name in UNTRACED}
    for item in items:
        if item.path in untraced:
            item.add_marker("no_cover")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive():
    """A shell has what it runs in the background ignore them, and children inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Text is imported into a cache; that of the user is not for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPHERESCAN_CACHE", str(tmp_path_factory.mktemp("cache", numbered=True)))
        yield


@pytest.fixture(scope="session")
def preload(tmp_path_factory):
    """The environment of a process under `torture/faults.c`."""
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    return preloaded_environment(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)

"""Every unit test runs on one thread: on a busy machine more of them cost more than they bring."""

import shutil
import signal
import sys

import jaxtyping
import pytest
import torch
from hypothesis import settings

from tests.torture.faults import preloaded_environment

settings.register_profile("spherescan", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("spherescan")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Run what is marked so, and the pages, without the tracer of coverage and checks of shapes.

    Each makes Python nearly twice as slow, and other tests run nearly all of what these run.
    """
    if item.get_closest_marker("unwatched") is None and not item.nodeid.endswith(".md"):
        return (yield)
    tracer = sys.gettrace()
    if type(tracer).__module__.partition(".")[0] == "coverage":  # a debugger stays
        sys.settrace(None)
    unchecked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", unchecked)
        sys.settrace(tracer)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    torch.set_num_threads(1)  # whatever the test before has set


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

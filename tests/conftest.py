"""Every unit test runs on one thread: on a busy machine more of them cost more than they bring."""

import shutil
import signal
import sys

import pytest
import torch
from hypothesis import settings

from tests.torture.faults import preloaded_environment

# The tracer of coverage makes Python twice as slow. These train or parse much, and nearly all of
# what they run is run by others too.
UNTRACED = (
    "bench/test_bench.py::test_the_command_prints_and_writes_the_same_figures",
    "data/test_formats_fuzz.py",
    "data/test_order_of_a_run.py",
    "data/test_order_properties.py",
    "estimators/test_conventions.py",
    "estimators/test_familiarity.py",
    "estimators/test_missing.py::test_what_scikit_learn_expects",
    "estimators/test_networks.py::test_a_stream_says_unknown_where_the_classifier_does",
    "estimators/test_networks.py::test_few_series_get_no_networks_unless_they_are_to_be_streamed",
    "estimators/test_networks.py::test_networks_and_fixed_features_answer_together",
    "estimators/test_tokens.py::test_networks_learn_an_order_that_no_n_gram_has",
    "inference/test_stream.py::test_a_state_restored_at_every_position_goes_on_bit_for_bit",
    "inference/test_stream.py::test_any_chunks_equal_the_whole",
    "inference/test_stream.py::test_memory_does_not_grow",
    "nn/test_mixers.py::test_gradcheck",
    "ops/test_native_equality.py",
    "report/test_of_run.py::test_a_name_with_braces_is_a_name",
    "report/test_of_run.py::test_the_command_makes_the_same_run_again",
    "runs/test_container.py::TestDamage::test_every_flipped_bit_is_refused",
    "surgery/test_contract.py",
    "surgery/test_torchjd.py",
    "test_config_properties.py",
    "test_security.py",
    "train/test_hybrid.py::test_a_run_that_grows_and_freezes_resumes_bit_for_bit",
    "train/test_hybrid.py::test_every_mode_trains_and_resumes_bit_for_bit",
    "train/test_hybrid.py::test_mergers_grow_with_the_model",
    "train/test_hybrid.py::test_the_classes_are_learned",
    "train/test_non_finite.py",
    "train/test_rust_trainer.py::test_fifty_steps_equal_the_reference",
    "train/test_situations.py",
    "train/test_training.py::test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one",
)

settings.register_profile("spherescan", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("spherescan")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    tracer = sys.gettrace()
    traced = type(tracer).__module__.partition(".")[0] == "coverage"
    if not (traced and item.nodeid.startswith(tuple(f"tests/{name}" for name in UNTRACED))):
        return (yield)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


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

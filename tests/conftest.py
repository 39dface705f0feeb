"""Every unit test runs on one thread: on a busy machine more of them cost more than they bring."""

import shutil
import signal
import sys

import jaxtyping
import pytest
import torch
from hypothesis import settings

from tests.torture.faults import preloaded_environment

# The tracer of coverage makes Python twice as slow, and so do the checks of shapes and types. These
# train or parse much, as do the pages in docs, and others run nearly all of what they run.
UNWATCHED = (
    "data/test_formats_fuzz.py",
    "data/test_order.py",
    "data/test_order_of_a_run.py",
    "data/test_order_properties.py",
    "estimators/test_conventions.py",
    "estimators/test_familiarity.py",
    "estimators/test_frames.py::test_single_numbers_and_labels_are_asked_for",
    "estimators/test_missing.py::test_what_scikit_learn_expects",
    "estimators/test_more_classes.py",
    "estimators/test_networks.py::test_a_stream_says_unknown_where_the_classifier_does",
    "estimators/test_networks.py::test_classes_and_series_can_be_added",
    "estimators/test_networks.py::test_few_series_get_no_networks_unless_they_are_to_be_streamed",
    "estimators/test_networks.py::test_networks_and_fixed_features_answer_together",
    "estimators/test_networks.py::test_progress_is_told_when_it_is_asked_for",
    "estimators/test_networks.py::test_the_same_seed_gives_the_same_bits",
    "estimators/test_numbers.py",
    "estimators/test_regressor.py::test_a_series_left_out_gets_nearly_what_a_fit_without_it_says",
    "estimators/test_regressor.py::test_intervals_hold_the_value_as_often_as_promised",
    "estimators/test_tokens.py::test_networks_learn_an_order_that_no_n_gram_has",
    "features/test_convolutions.py::test_neither_padding_nor_the_batch_changes_the_features",
    "inference/test_stream.py",
    "nn/test_mixers.py::test_gradcheck",
    "nn/test_placement.py",
    "nn/test_streaming.py",
    "ops/test_native_equality.py",
    "report/test_of_run.py::test_a_name_with_braces_is_a_name",
    "report/test_of_run.py::test_the_command_makes_the_same_run_again",
    "runs/test_container.py::TestDamage::test_every_flipped_bit_is_refused",
    "runs/test_container.py::TestForgedHeaders::test_it_is_refused_fast_and_says_why[100-000-tensors]",
    "surgery/test_contract.py",
    "surgery/test_torchjd.py",
    "test_config_properties.py",
    "test_security.py",
    "train/test_hybrid.py::test_a_run_starts_from_the_weights_of_another",
    "train/test_hybrid.py::test_a_run_that_grows_and_freezes_resumes_bit_for_bit",
    "train/test_hybrid.py::test_every_mode_trains_and_resumes_bit_for_bit",
    "train/test_hybrid.py::test_goodness_learns_to_tell_real_from_negative",
    "train/test_hybrid.py::test_mergers_grow_with_the_model",
    "train/test_hybrid.py::test_the_classes_are_learned",
    "train/test_in_memory.py",
    "train/test_non_finite.py",
    "train/test_rust_trainer.py::test_a_run_of_the_preset_resumes_bit_for_bit",
    "train/test_rust_trainer.py::test_fifty_steps_equal_the_reference",
    "train/test_rust_trainer.py::test_one_layer_of_six_learns_as_in_that_program",
    "train/test_situations.py",
    "train/test_training.py::test_a_regression_learns_its_numbers",
    "train/test_training.py::test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one",
    "train/test_training.py::test_counting_tokens_are_learned",
)

settings.register_profile("spherescan", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("spherescan")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if not item.nodeid.startswith(("docs/", *(f"tests/{name}" for name in UNWATCHED))):
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

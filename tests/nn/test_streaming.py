"""A model that reads position by position answers as if it had read everything at once."""

import copy
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from spherescan.nn import (
    MIXERS,
    POOLING_NAMES,
    ModelDescription,
    Pooling,
    StreamedModel,
)
from spherescan.nn.one_position import takes_one_position
from spherescan.nn.running import extend_pool, pooled, start_pool
from spherescan.ops import native
from tests.tolerances import assert_close

pytestmark = pytest.mark.unwatched


@st.composite
def models(draw) -> dict[str, object]:
    """Draw a value for every field, so that a new one is not forgotten in a stream."""
    crate, series = draw(st.booleans()), draw(st.booleans())
    d_model, n_layers = draw(st.sampled_from([1, 4, 9])), draw(st.integers(1, 3))
    averaged = draw(st.booleans()) and not crate
    local_heads = draw(st.lists(st.integers(0, n_layers - 1), unique=True))
    values = {
        "vocab_size": None if series else 7,
        "n_channels": 3 if series else None,
        "d_model": d_model,
        "n_layers": n_layers,
        "mixer": draw(st.sampled_from(sorted(MIXERS))),
        "d_state": draw(st.integers(1, 5)),
        "d_conv": draw(st.integers(1, 5)),
        "expand": draw(st.integers(1, 2)),
        "dt_rank": draw(st.sampled_from([None, 1, 2])),
        "gate": draw(st.booleans()),
        "bidirectional": False,
        # The layout of that program has no projection, so only one pooling fits its prototypes.
        "pooling": ()
        if not series
        else ("mean",)
        if crate
        else tuple(draw(st.lists(st.sampled_from(POOLING_NAMES), min_size=1, unique=True))),
        "n_pool_heads": draw(st.integers(1, 3)),
        "n_prototypes": 4,
        "prototype_dim": d_model if crate else 3,
        "prototype_init": draw(st.sampled_from(["random", "rust_trainer"])),
        "learnable_prototypes": draw(st.booleans()),
        "local_heads": tuple(local_heads),
        "n_local_outputs": None if averaged else draw(st.sampled_from([None, 4])),
        "averaged": averaged,
        "form": "rust_trainer" if crate else "standard",
        "dropout": draw(st.sampled_from([0.0, 0.5])),
        "n_convolutions": draw(st.integers(0, 2)) if series and d_model % 4 == 0 else 0,
        # The layout of that program draws the weights of its own layers.
        "selective": crate or draw(st.booleans()),
    }
    assert set(values) == {field.name for field in fields(ModelDescription)}
    return values


SERIES: dict[str, object] = {
    "vocab_size": None, "n_channels": 3, "d_model": 8, "n_layers": 2, "mixer": "mamba",
    "d_state": 3, "d_conv": 4, "expand": 2, "dt_rank": None, "gate": True, "bidirectional": False,
    "pooling": ("attention", "mean"), "n_pool_heads": 2, "n_prototypes": 4, "prototype_dim": 3,
    "prototype_init": "random", "learnable_prototypes": False,
}  # fmt: skip


def made(values: dict[str, object], seed: int = 0):
    """Return the model in float64 with weights that all matter, and input for it."""
    description = ModelDescription(**values)
    generator = torch.Generator().manual_seed(seed)
    model = description.build(generator=generator).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    if description.vocab_size is not None:
        return model, torch.randint(description.vocab_size, (2, 12), generator=generator)
    return model, torch.randn(2, 12, 3, generator=generator, dtype=torch.float64)


@settings(max_examples=40)
@given(models(), st.lists(st.integers(1, 12), max_size=5, unique=True))
def test_any_parts_of_any_model_equal_the_whole(values, cuts):
    model, x = made(values)
    streamed = StreamedModel(model)
    state = streamed.start(batch=2)
    begin = 0
    with torch.no_grad():
        for end in sorted({*cuts, 12}):
            state = streamed.extend(state, x[:, begin:end])
            whole = model.embed(x[:, :end])
            whole = whole if model.pool is not None else whole[:, -1]
            assert_close(streamed.read_out(state), whole)
            begin = end


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@settings(max_examples=25)
@given(values=models())
def test_single_positions_of_any_model_equal_the_whole(mode, values):
    model, x = made(values, seed=1)
    streamed = StreamedModel(model)
    with mode():
        state = streamed.start(batch=2)
        whole = model.embed(x)
        for t in range(12):
            state = streamed.extend(state, x[:, t : t + 1])
        found = streamed.read_out(state)
    assert_close(found, whole if model.pool is not None else whole[:, -1])


@settings(max_examples=25)
@given(models())
def test_the_tensors_of_a_state_make_an_equal_state_and_have_always_the_same_sizes(values):
    model, x = made(values)
    streamed = StreamedModel(model)
    start = streamed.start(batch=2)
    with torch.no_grad():
        state = streamed.extend(start, x[:, :5])
        again = start.with_tensors(state.tensors())
        assert again.tensors().keys() == start.tensors().keys()
        sizes = {name: (t.shape, t.dtype) for name, t in start.tensors().items()}
        assert {name: (t.shape, t.dtype) for name, t in state.tensors().items()} == sizes
        expected = streamed.read_out(streamed.extend(state, x[:, 5:6]))
        assert torch.equal(streamed.read_out(streamed.extend(again, x[:, 5:6])), expected)


def assert_the_short_way_is_the_long_one(streamed, state, x):
    """Read a position both ways, compare all bits, and return the state after it."""
    with torch.inference_mode():
        short = streamed.extend(state, x)
    with torch.no_grad():  # takes the modules
        long = StreamedModel(streamed._model).extend(state, x)
    expected = long.tensors()
    for name, tensor in short.tensors().items():
        assert torch.equal(tensor, expected[name]), name
    return short


needs_kernels = pytest.mark.skipif(
    native.unavailable() is not None, reason="without kernels there is no short way"
)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=40)
@given(values=models())
def test_the_short_way_of_any_model_has_the_bits_of_its_modules(dtype, values):
    model, x = made(values)
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    assert takes_one_position(model) == (not model.averaged and values["form"] == "standard")
    streamed = StreamedModel(model)
    state = streamed.start(batch=2)
    for t in range(4):
        state = assert_the_short_way_is_the_long_one(streamed, state, x[:, t : t + 1])


def in_place(parameter, value):
    with torch.no_grad():
        parameter.copy_(value)


def behind_the_version(parameter, value):
    parameter.data.copy_(value)


def elsewhere(parameter, value):
    parameter.data = value.clone()


@needs_kernels
@pytest.mark.parametrize("change", [in_place, behind_the_version, elsewhere])
@pytest.mark.parametrize("convolutions", [0, 1])
def test_weights_that_change_count_from_the_next_position_on(change, convolutions, generator):
    description = ModelDescription(**SERIES, n_convolutions=convolutions)
    model = description.build(generator=generator).eval()
    streamed = StreamedModel(model)
    x = torch.randn(1, 1, 3, generator=generator)
    with torch.inference_mode():
        state = streamed.extend(streamed.start(batch=1), x)
    for name, tensor in model.state_dict(keep_vars=True).items():
        before = assert_the_short_way_is_the_long_one(streamed, state, x)
        change(tensor, 1.5 * tensor.detach() + 0.1)
        after = assert_the_short_way_is_the_long_one(streamed, state, x)
        read = not name.startswith(("projection.", "head."))
        changed = any(not torch.equal(t, after.tensors()[n]) for n, t in before.tensors().items())
        assert changed == read, name


@needs_kernels
def test_a_change_of_the_form_or_of_the_threads_counts_too(monkeypatch):
    model, x = made(SERIES)
    streamed = StreamedModel(model)
    state = streamed.start(batch=2)
    for change in (
        lambda: None,
        lambda: monkeypatch.setattr(native._Process, "forked", True),
        lambda: monkeypatch.setattr(native._Process, "simd", 0),
        lambda: monkeypatch.setenv("SPHERESCAN_OPS", "torch"),
    ):
        change()
        state = assert_the_short_way_is_the_long_one(streamed, state, x[:, :1])


@needs_kernels
@pytest.mark.parametrize("part", ["conv", "ssm"])
def test_a_state_that_does_not_fit_never_reaches_a_kernel(part):
    model, x = made(SERIES)
    streamed = StreamedModel(model)
    state = streamed.start(batch=2)

    def with_first(make):
        first, *others = state.mixers
        mixers = (first._replace(**{part: make(getattr(first, part))}), *others)
        return state._replace(mixers=mixers)

    for wrong in (Tensor.float, lambda t: t[:, :-1]):
        with torch.inference_mode(), pytest.raises((TypeError, ValueError, TypeCheckError)):
            streamed.extend(with_first(wrong), x[:, :1])
    elsewhere = with_first(lambda t: torch.ones_like(t).mT.contiguous().mT)
    assert_the_short_way_is_the_long_one(streamed, elsewhere, x[:, :1])


@pytest.mark.parametrize("length", [1, 2])
def test_series_of_another_type_than_the_weights_are_refused_alone_and_in_chunks(length):
    model, x = made(SERIES)
    streamed = StreamedModel(model.float())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="dtype"):
        streamed.extend(streamed.start(batch=2), x[:, :length].double())


def test_a_copy_of_a_stream_goes_on_alike():
    model, x = made(SERIES)
    streamed = StreamedModel(model)
    with torch.inference_mode():
        state = streamed.extend(streamed.start(batch=2), x[:, :1])
        expected = streamed.read_out(streamed.extend(state, x[:, 1:2]))
        for copied in (streamed, copy.deepcopy(streamed)):
            assert torch.equal(copied.read_out(copied.extend(state, x[:, 1:2])), expected)


@pytest.mark.parametrize("kind", POOLING_NAMES)
def test_a_pooling_that_grows_keeps_what_float32_would_lose(kind, generator):
    """200 000 values near 1: added one by one in float32, the sum alone would be off by 1e-3."""
    pool = Pooling(2, [kind], n_heads=2, generator=generator)
    if pool.attention is not None:
        torch.nn.init.normal_(pool.attention.query.weight, generator=generator)
    x = 1 + 0.01 * torch.randn(1, 200_000, 2, generator=generator)
    running = start_pool(pool, batch=1, d_model=2, dtype=torch.float32)
    with torch.no_grad():
        for part in x.split(100, dim=1):
            running = extend_pool(pool, running, part)
        expected = pool.double()(x.double())
    assert_close(pooled(running, torch.float32), expected.float())


def test_scores_of_any_size_do_not_overflow():
    pool = Pooling(1, ["attention"], n_heads=1)
    torch.nn.init.ones_(pool.attention.query.weight)
    x = torch.tensor([-1e4, 1e4, 3e4, 2e4, -3e4]).reshape(1, 5, 1)
    running = start_pool(pool, batch=1, d_model=1, dtype=torch.float32)
    with torch.no_grad():
        for part in x.split(1, dim=1):
            running = extend_pool(pool, running, part)
        assert_close(pooled(running, torch.float32), pool(x))


def test_a_model_that_reads_from_the_end_has_no_stream():
    description = ModelDescription(
        vocab_size=None, n_channels=1, d_model=4, n_layers=1, mixer="mamba", d_state=2, d_conv=2,
        expand=1, dt_rank=None, gate=True, bidirectional=True, pooling=("mean",), n_pool_heads=1,
        n_prototypes=2, prototype_dim=2, prototype_init="random", learnable_prototypes=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="bidirectional"):
        StreamedModel(description.build())


@pytest.mark.parametrize("convolutions", [0, 1])
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2])
def test_series_of_other_channels_are_refused_alone_and_in_chunks(convolutions, channels, length):
    model, x = made(SERIES | {"n_convolutions": convolutions})
    streamed = StreamedModel(model)
    other = x[:, :length, :1].expand(-1, -1, channels)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), pytest.raises(ValueError, match=rf"{length}, {channels}\).* 3 channels"):
            streamed.extend(streamed.start(batch=2), other)


def test_a_stream_goes_on_by_one_position_at_least():
    model, x = made(SERIES)
    streamed = StreamedModel(model)
    with torch.no_grad(), pytest.raises(ValueError, match="no position was given"):
        streamed.extend(streamed.start(batch=2), x[:, :0])

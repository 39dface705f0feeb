import functools
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from spherescan.nn import (
    POOLING_NAMES,
    Mamba,
    ModelDescription,
    Pooling,
    PrototypeHead,
    SequenceModel,
    load_published,
)
from tests.tolerances import assert_close

SMALL = functools.partial(Mamba, d_state=3)


def series_model(generator, **options) -> SequenceModel:
    head = PrototypeHead(3, 3)
    return SequenceModel(
        head=head, n_channels=2, d_model=8, n_layers=2, mixer=SMALL, generator=generator, **options
    )


def token_model(generator, **options) -> SequenceModel:
    return SequenceModel(
        head=PrototypeHead(7, 8),
        vocab_size=7,
        d_model=8,
        n_layers=2,
        mixer=SMALL,
        pooling=(),
        generator=generator,
        **options,
    )


@pytest.mark.unwatched
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", [("last",), ("mean", "max"), ("attention",)])
@pytest.mark.parametrize("n_convolutions", [0, 2])
def test_a_ragged_batch_equals_its_sequences_alone(
    generator, bidirectional, pooling, n_convolutions
):
    model = series_model(
        generator, bidirectional=bidirectional, pooling=pooling, n_convolutions=n_convolutions
    ).double()
    lengths = [1, 4, 9]
    x = torch.randn(3, 9, 2, generator=generator, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    together = model(x * mask[:, :, None], mask=mask)
    for row, length in enumerate(lengths):
        assert_close(together[row : row + 1], model(x[row : row + 1, :length]))


def test_a_packed_row_of_tokens_equals_its_documents_alone(generator):
    model = token_model(generator).double()
    tokens = torch.randint(0, 7, (1, 10), generator=generator)
    reset = torch.zeros(1, 10, dtype=torch.bool)
    reset[0, [0, 4]] = True
    apart = [model(tokens[:, :4]), model(tokens[:, 4:])]
    assert_close(model(tokens, reset=reset), torch.cat(apart, 1))


@pytest.mark.parametrize("n_convolutions", [0, 1, 2])
def test_every_parameter_gets_a_gradient(generator, n_convolutions):
    model = series_model(
        generator,
        bidirectional=True,
        pooling=("attention", "mean"),
        n_convolutions=n_convolutions,
    )
    cosines = model(torch.randn(4, 6, 2, generator=generator))
    cosines[:, 0].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_output_projections_start_smaller_the_deeper_the_model():
    def largest(n_layers):
        generator = torch.Generator().manual_seed(0)
        model = SequenceModel(
            head=PrototypeHead(3, 3),
            n_channels=1,
            d_model=32,
            n_layers=n_layers,
            generator=generator,
        )
        return model.layers[0].mixer.out_proj.weight.abs().max()

    assert_close(largest(4), largest(1) / 2)


def test_series_are_standardised_by_the_statistics_of_the_training_data(generator):
    model = series_model(generator)
    x = torch.randn(2, 5, 2, generator=generator)
    plain = model(x)
    mean, std = torch.tensor([3.0, -7.0]), torch.tensor([0.1, 40.0])
    model.embedding.set_statistics(mean, std)
    assert_close(model(x * std + mean), plain)
    with pytest.raises(ValueError, match="positive"):
        model.embedding.set_statistics(mean, torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"n_channels": 2, "vocab_size": 3}, "exactly one"),
        ({"n_channels": 2, "n_layers": 0}, "n_layers is 0"),
        ({"vocab_size": 3, "bidirectional": True, "pooling": ()}, "sees the positions"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SequenceModel(head=PrototypeHead(3, 3), **options)


def published_state(model: SequenceModel, layout: str) -> dict[str, torch.Tensor]:
    """Return random weights under the names of the public checkpoints."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith(("projection.", "head.")):
            continue
        published = name.replace("embedding.", "embeddings.") if layout == "hf" else name
        state[f"backbone.{published}"] = torch.randn(value.shape, generator=generator)
    state["lm_head.weight"] = torch.randn(7, 8, generator=generator)
    return state


PUBLISHED_MIXER = (
    "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias",
    "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "out_proj.weight",
)  # fmt: skip


@pytest.mark.parametrize("layout", ["original", "hf"])
def test_a_file_with_the_published_names_loads(generator, tmp_path, layout):
    model = token_model(generator)
    embedding = "embeddings" if layout == "hf" else "embedding"
    names = {f"backbone.{embedding}.weight", "backbone.norm_f.weight", "lm_head.weight"}
    for layer in range(2):
        names.add(f"backbone.layers.{layer}.norm.weight")
        names |= {f"backbone.layers.{layer}.mixer.{name}" for name in PUBLISHED_MIXER}
    state = published_state(model, layout)
    assert state.keys() == names
    save_file(state, tmp_path / "model.safetensors")
    unused = load_published(model, load_file(tmp_path / "model.safetensors"))
    assert unused == ["lm_head.weight"]
    assert torch.equal(
        model.layers[1].mixer.x_proj.weight, state["backbone.layers.1.mixer.x_proj.weight"]
    )
    assert torch.equal(model.embedding.weight, state[f"backbone.{embedding}.weight"])
    assert torch.equal(model.norm_f.weight, state["backbone.norm_f.weight"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("backbone.layers.0.mixer.D"), "layers.0.mixer.D is missing"),
        (lambda state: state.update({"backbone.x": torch.ones(1)}), "x is unknown"),
        (lambda state: state.update({"backbone.norm_f.weight": torch.ones(9)}), r"shape \(9,\)"),
        (lambda state: state.clear(), "and 19 more"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(generator, damage, message):
    model = token_model(generator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = published_state(model, "original")
    damage(state)
    with pytest.raises(ValueError, match=message):
        load_published(model, state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


DESCRIPTION = ModelDescription(
    vocab_size=None, n_channels=2, d_model=8, n_layers=1, mixer="mamba", d_state=3, d_conv=4,
    expand=1, dt_rank=None, gate=True, bidirectional=True, pooling=("mean", "attention"),
    n_pool_heads=2, n_prototypes=4, prototype_dim=4, prototype_init="separated",
    learnable_prototypes=False,
)  # fmt: skip


def test_a_description_survives_json_and_builds_the_same_model():
    import json

    again = ModelDescription.from_json(json.loads(json.dumps(DESCRIPTION.to_json())))
    assert again == DESCRIPTION
    models = [d.build(generator=torch.Generator().manual_seed(1)) for d in (again, DESCRIPTION)]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_description_older_than_a_field_is_read():
    import dataclasses

    old = DESCRIPTION.to_json()
    del old["dropout"]
    assert ModelDescription.from_json(old) == DESCRIPTION
    new = dataclasses.replace(DESCRIPTION, dropout=0.25)
    assert ModelDescription.from_json(new.to_json()).build().dropout == 0.25


def test_a_description_of_something_else_is_refused():
    import dataclasses

    with pytest.raises(ValueError, match="unknown mixer 'lstm'; choose from mamba"):
        dataclasses.replace(DESCRIPTION, mixer="lstm").build()
    with pytest.raises(ValueError, match="extra: Unexpected keyword"):
        ModelDescription.from_json(DESCRIPTION.to_json() | {"extra": 1})
    old = DESCRIPTION.to_json()
    del old["pooling"]
    with pytest.raises(ValueError, match="pooling: Field required"):
        ModelDescription.from_json(old)
    with pytest.raises(ValueError, match="d_model: Input should be a valid integer"):
        ModelDescription.from_json(DESCRIPTION.to_json() | {"d_model": "64"})


def test_a_model_that_no_machine_holds_is_refused_before_anything_is_allocated():
    import dataclasses

    sizes = (
        "n_channels", "d_model", "n_layers", "d_state", "d_conv", "expand", "dt_rank",
        "n_pool_heads", "n_prototypes", "prototype_dim", "n_convolutions",
    )  # fmt: skip
    for size in sizes:
        with pytest.raises(ValueError, match="more than half of this machine's memory"):
            dataclasses.replace(DESCRIPTION, **{size: 2**40}).build()
    usual = dataclasses.replace(DESCRIPTION, d_model=64, d_state=16, local_heads=(0,))
    found = sum(parameter.numel() for parameter in usual.build().parameters())
    assert usual.n_weights() == pytest.approx(found, rel=0.05)


@pytest.mark.unwatched
@pytest.mark.parametrize("shape", [(4, 6, 1), (4, 6, 3), (4, 2), (6, 2)])
def test_series_of_other_channels_are_refused_by_name(generator, shape):
    """One channel would be broadcast to both."""
    with pytest.raises(ValueError, match=rf"shape \({', '.join(map(str, shape))}\).* 2 channels"):
        series_model(generator)(torch.zeros(shape))


@pytest.mark.unwatched
@pytest.mark.parametrize(
    ("bidirectional", "pooling"), [(False, ()), (False, POOLING_NAMES), (True, POOLING_NAMES)]
)
@pytest.mark.parametrize("n_convolutions", [0, 2])
@pytest.mark.parametrize("padding", [torch.nan, torch.inf, 99.0, 3e38])
def test_nothing_in_the_padding_reaches_outputs_or_gradients(
    generator, bidirectional, pooling, n_convolutions, padding
):
    model = series_model(
        generator, bidirectional=bidirectional, pooling=pooling, n_convolutions=n_convolutions
    )
    model.embedding.set_statistics(torch.tensor([0.3, -2.0]), torch.tensor([0.1, 5.0]))
    x = torch.randn(3, 9, 2, generator=generator)
    mask = torch.arange(9) < torch.tensor([[1], [4], [9]])
    found = []
    for value in (0.0, padding):
        model.zero_grad()
        series = x.masked_fill(~mask[:, :, None], value).requires_grad_()
        cosines = model(series, mask=mask)
        cosines = cosines if pooling else cosines[mask]
        cosines.square().sum().backward()
        found.append([cosines, series.grad, *(p.grad for p in model.parameters())])
    for plain, padded in zip(*found, strict=True):
        assert padded.isfinite().all()
        assert torch.equal(padded, plain)
    assert not found[1][1][~mask].any()


@pytest.mark.parametrize("length", [1, 4])
def test_a_sequence_without_a_real_position_is_refused(generator, length):
    model = series_model(generator)
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match=r"1 of 3 sequences have no real position, .* row 1"):
        model(torch.zeros(3, length, 2), mask=mask)
    for none in (None, torch.ones(3, 0, dtype=torch.bool)):
        with pytest.raises(ValueError, match="3 of 3 sequences have no real position"):
            model(torch.zeros(3, 0, 2), mask=none)
    assert model(torch.zeros(0, 4, 2)).shape == (0, 3)


def test_tensors_without_values_are_pooled():
    pooling, x = Pooling(4, ("mean", "max")), torch.ones(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert pooling.to("meta")(x.to("meta"), mask.to("meta")).shape == (2, 8)
    with FakeTensorMode() as mode:
        assert pooling(mode.from_tensor(x), mode.from_tensor(mask)).shape == (2, 8)
    traced = make_fx(Pooling(4, ("mean", "max")))(x, mask)
    assert torch.equal(traced(x, mask), torch.ones(2, 8))


def test_a_model_is_traced_whole_although_empty_sequences_are_refused():
    code = "from tests.nn import test_model; test_model.compile_whole()"
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=300, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def compile_whole() -> None:
    """Called in a process of its own: the type checks of the tests cannot be traced."""
    generator = torch.Generator().manual_seed(0)
    model = series_model(generator)
    x = torch.randn(2, 5, 2, generator=generator)
    mask = torch.arange(5) < torch.tensor([[2], [5]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, mask=mask), model(x, mask=mask))
    each = torch.vmap(lambda x, mask: model(x[None], mask=mask[None])[0])
    assert_close(each(x, mask), model(x, mask=mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"bidirectional": True, "n_convolutions": 1, "local_heads": (0,)}, {"form": "rust_trainer"}],
)
def test_all_weights_have_the_default_type(generator, dtype, learnable, options):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = SequenceModel(
            head=PrototypeHead(3, 8, learnable=learnable),
            n_channels=2,
            d_model=8,
            mixer=SMALL,
            generator=generator,
            **options,
        )
        assert {value.dtype for value in model.state_dict().values()} == {dtype}
        cosines = model(torch.randn(2, 5, 2, generator=generator))
        cosines.sum().backward()
        assert cosines.dtype == dtype
    finally:
        torch.set_default_dtype(before)

import pytest
import torch

from spherescan.nn import PrototypeHead, SequenceModel, insert_blocks
from spherescan.nn.dropout import dropped
from tests.tolerances import assert_close


def model_of(*, dropout=0.4, n_layers=3, bidirectional=True, **more):
    return SequenceModel(
        n_channels=2, head=PrototypeHead(3, 3), d_model=8, n_layers=n_layers, dropout=dropout,
        bidirectional=bidirectional, generator=torch.Generator().manual_seed(0), **more,
    ).double()  # fmt: skip


@pytest.fixture
def inputs(generator):
    return torch.randn(4, 9, 2, generator=generator, dtype=torch.float64)


def gradients(model, inputs):
    model.zero_grad()
    model.embed(inputs).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_seed_and_a_block_say_what_is_dropped_and_nothing_else_does():
    x = torch.ones(50, 20)
    once = dropped(x, p=0.5, seed=3, block=1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert torch.equal(dropped(x, p=0.5, seed=3, block=1), once)
    assert torch.equal(torch.random.get_rng_state(), before)
    # Neighbours have nothing in common, also where seed + block, or the lower half, is the same.
    for seed, block in ((4, 1), (3, 2), (4, 0), (2, 2), (1, 3), (3 + 2**32, 1)):
        other = dropped(x, p=0.5, seed=seed, block=block)
        assert 0.4 < float((other == once).double().mean()) < 0.6


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_mean_stays_and_what_is_kept_is_scaled(p, dtype, generator):
    x = torch.rand(100_000, generator=generator).to(dtype) + 1
    y = dropped(x, p=p, seed=0, block=0)
    assert y.dtype == dtype
    kept = y != 0
    assert torch.equal(y[kept], (x / (1 - p))[kept])
    # Five standard deviations of the share of 100 000 draws.
    share = float(kept.double().mean())
    assert abs(share - (1 - p)) < 5 * (p * (1 - p) / len(x)) ** 0.5
    assert abs(float(y.double().mean() / x.double().mean()) - 1) < 0.06


def test_predictions_do_not_depend_on_it(inputs):
    with_it, without = model_of().eval(), model_of(dropout=0.0).eval()
    assert torch.equal(with_it(inputs), without(inputs))
    without.train()
    assert torch.equal(with_it(inputs), without(inputs))
    with_it.train().dropout_seed = 1
    assert not torch.equal(with_it(inputs), without(inputs))


def test_without_a_seed_nothing_is_drawn_from_anywhere_else(inputs):
    model = model_of()
    for run in (model, model.features, model.embed):
        with pytest.raises(ValueError, match=r"dropout of 0\.4 .* set its dropout_seed"):
            run(inputs)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=r"dropout is .*; it must be at least 0 and below 1"):
        model_of(dropout=p)


def test_each_block_has_a_mask_of_its_own_whichever_blocks_run_together(inputs):
    model = model_of()
    model.dropout_seed = 7
    x = model.begin(inputs)
    alone = [model.through([i], x)[1] == 0 for i in range(3)]
    for index, zeros in enumerate(alone):
        assert 0.2 < float(zeros.double().mean()) < 0.6
        assert not torch.equal(zeros, alone[index - 1])
    stream, update = model.through([0], x)
    stream, update = model.through([1, 2], stream, update)
    assert torch.equal(model.through(range(3), x)[0], stream)
    assert torch.equal(update == 0, alone[2])
    model.dropout_seed = 8
    assert not torch.equal(model.through([0], x)[1] == 0, alone[0])


def test_it_is_the_same_when_a_block_is_computed_again(inputs):
    model = model_of()
    model.dropout_seed = 7
    plain = gradients(model, inputs)
    model.recompute = True
    again = gradients(model, inputs)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert_close(again[name], gradient, what=name)  # recomputing adds in another order
    for name, gradient in gradients(model, inputs).items():
        assert torch.equal(again[name], gradient), name


def test_with_one_sum_per_tensor_computing_again_gives_the_same_bits(inputs):
    model = model_of(n_layers=1, bidirectional=False)
    model.dropout_seed = 7
    plain = gradients(model, inputs)
    model.recompute = True
    for name, gradient in gradients(model, inputs).items():
        assert torch.equal(plain[name], gradient), name


def test_an_inserted_block_adds_nothing_and_learns_with_dropout_too(inputs):
    model = model_of(n_layers=2)
    model.dropout_seed = 7
    insert_blocks(model, [2], generator=torch.Generator().manual_seed(1))
    x = model.begin(inputs)
    assert not bool(model.through([2], x)[1].any())
    assert bool(gradients(model, inputs)["layers.2.mixer.out_proj.weight"].any())

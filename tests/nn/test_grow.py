import copy

import numpy as np
import pytest
import torch

from spherescan.nn import PrototypeHead, SequenceModel, freeze, insert_blocks
from tests.tolerances import assert_close

PLACEMENTS = [(2,), (0,), (1, 2), (1, 3, 4, 5), (0, 1, 2, 3, 4, 5, 6, 7)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(*, bidirectional=True, heads=(0,), seed=0, **more):
    head = PrototypeHead(3, 3)
    return SequenceModel(
        head=head, n_channels=2, d_model=8, bidirectional=bidirectional, local_heads=heads,
        generator=generator(seed), **({"n_layers": 2} | more),
    )  # fmt: skip


def inputs(dtype=torch.float64, length=7):
    x = torch.randn(4, length, 2, generator=generator(1), dtype=dtype)
    mask = torch.arange(length) < torch.tensor([length, length, max(1, length - 3), 1])[:, None]
    return x, mask


def train(model, *, steps=2, parameters=None):
    optimizer = torch.optim.AdamW(parameters or model.parameters(), lr=1e-3)
    x, mask = inputs()
    moved = set()
    for _ in range(steps):
        optimizer.zero_grad()
        (1 - model(x, mask=mask)[:, 1]).square().mean().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.any()):
                moved.add(name)
        optimizer.step()
    return moved


@pytest.mark.unwatched
@pytest.mark.parametrize("at", PLACEMENTS)
@pytest.mark.parametrize("trained", [False, True])
def test_a_grown_model_computes_the_same_bit_for_bit_and_all_of_it_learns(at, trained):
    model = model_of().double()
    if trained:
        train(model, steps=3)
    x, mask = inputs()
    before = model(x, mask=mask)
    insert_blocks(model, at, generator=generator(2))
    assert len(model.layers) == 2 + len(at)
    assert torch.equal(model(x, mask=mask), before)
    moved = train(model, steps=2)
    new = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(tuple(f"layers.{i}." for i in at))
    }
    assert new <= moved, sorted(new - moved)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_in_float32_it_computes_the_same_to_rounding(length):
    model = model_of(bidirectional=False)
    x, mask = inputs(torch.float32, length)
    before = model(x, mask=mask)
    insert_blocks(model, [0, 2], generator=generator(2))
    assert_close(model(x, mask=mask), before)


def test_blocks_and_heads_move_with_their_parameters():
    model = model_of(heads=(0,))
    first, last, head = model.layers[0], model.layers[1], model.local_heads["0"]
    insert_blocks(model, [0, 2, 4], local_heads=[0, 1, 2, 3], generator=generator())
    assert model.layers[1] is first
    assert model.layers[3] is last
    assert model.local_heads["1"] is head
    # What was the last block gets a head that reads as the model itself did.
    assert torch.equal(model.local_heads["3"].projection.weight, model.projection.weight)
    # A new block adds nothing yet: what reads the block below reads it too.
    assert torch.equal(model.local_heads["2"].projection.weight, head.projection.weight)
    assert model.local_heads["2"] is not head
    # Below the first head there is none: the next one above.
    assert torch.equal(model.local_heads["0"].projection.weight, head.projection.weight)


@pytest.mark.parametrize(
    ("n_layers", "n_local_outputs", "of", "at", "wanted", "stays", "copy"),
    [
        pytest.param(4, None, 1, 0, [1, 3], 1, 3, id="its group ends elsewhere"),
        pytest.param(2, 5, 0, 2, [0, 1], 0, 1, id="the read-out does not fit"),
    ],
)
def test_a_new_head_reads_as_the_one_below(n_layers, n_local_outputs, of, at, wanted, stays, copy):
    model = model_of(heads=(of,), n_layers=n_layers, n_local_outputs=n_local_outputs)
    head = model.local_heads[str(of)]
    insert_blocks(model, [at], local_heads=wanted, generator=generator())
    assert model.local_heads[str(stays)] is head
    copied = model.local_heads[str(copy)]
    assert copied is not head
    assert torch.equal(copied.projection.weight, head.projection.weight)
    assert list(map(int, model.local_heads)) == wanted


@pytest.mark.parametrize(("blocks", "frozen"), [([1], False), ([0], False), ([0, 1], True)])
def test_a_head_learns_while_a_block_of_its_group_does(blocks, frozen):
    model = model_of(heads=(1,), n_layers=3)
    freeze(model, blocks=blocks)
    assert all(p.requires_grad is not frozen for p in model.local_heads["1"].parameters())


def test_zero_blocks_never_learn():
    """Why the preset's initialisation is not ours."""
    model = model_of(bidirectional=False).double()
    insert_blocks(model, [1], init="rust_trainer", generator=generator())
    train(model, steps=5)
    for name, parameter in model.layers[1].named_parameters():
        # A weight decay of zero moves nothing either.
        assert bool((parameter == 0).all()), name


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([], "no position"),
        ([3, 3], "names? a block twice"),
        ([-1], "at -1"),
        ([4, 1], r"at 4; the grown model has 0\.\.3"),
    ],
)
def test_impossible_positions_are_refused_and_change_nothing(at, message):
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        insert_blocks(model, at, generator=generator())
    assert model.state_dict().keys() == before.keys()


def test_an_unknown_init_is_refused():
    with pytest.raises(ValueError, match="unknown init 'zero'; choose from identity, rust_trainer"):
        insert_blocks(model_of(), [0], init="zero")


@pytest.mark.parametrize(
    ("what", "prefixes"),
    [
        ({"blocks": [0]}, ("layers.0.", "local_heads.0.")),
        ({"blocks": [1]}, ("layers.1.",)),
        ({"embedding": True}, ("embedding.",)),
        ({"prototypes": True}, ("head.",)),
        ({"blocks": [0], "embedding": True}, ("layers.0.", "local_heads.0.", "embedding.")),
    ],
)
def test_what_is_frozen_keeps_its_bits_and_the_rest_moves(what, prefixes):
    model = model_of().double()
    model.head = PrototypeHead(3, 3, learnable=True).double()
    freeze(model, **what)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(prefixes)}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, parameters=[p for p in model.parameters() if p.requires_grad])
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, before[name]), name
        elif not name.startswith("local_heads."):
            assert not torch.equal(parameter, before[name]), name
    freeze(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_backward_pass_ends_at_the_lowest_trained_parameter():
    model = model_of(heads=())
    freeze(model, blocks=[0], embedding=True)
    x, mask = inputs(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        stream = model.begin(x)
        lower, update = model.through([0], stream, mask=mask)
        assert saved == []
        model.through([1], lower, update, mask=mask)
    assert not stream.requires_grad
    assert not lower.requires_grad
    assert saved


@pytest.mark.parametrize(
    ("blocks", "message"),
    [([2], r"block 2 is to be frozen; the model has blocks 0\.\.1"), ([0, 1], "all 2")],
)
def test_freezing_what_there_is_not_or_everything_is_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        freeze(model_of(), blocks=blocks)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_recomputing_gives_the_same_outputs_and_gradients_and_keeps_less(bidirectional, reset):
    model = model_of(bidirectional=bidirectional, heads=(0,)).double()
    x, mask = inputs()
    resets = torch.rand(4, 7, generator=generator(3)) < 0.3 if reset else None
    results, kept = [], []
    for recompute in (False, True):
        model.recompute = recompute
        model.zero_grad()
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            stream = model.begin(x)
            stream, update = model.through([0], stream, mask=mask, reset=resets)
            local = model.read_out_local(0, stream + update, mask=mask)
            stream, update = model.through([1], stream, update, mask=mask, reset=resets)
            z = model.read_out(stream, update, mask=mask)
        kept.append(sum(sizes.values()))
        (z.square().sum() + local.sin().sum()).backward()
        results.append([z, local, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for plain, again in zip(*results, strict=True):
        assert_close(again, plain)
    # One of two blocks, or one of four directions, is kept: its gradient comes next anyway.
    assert kept[1] < (0.45 if bidirectional else 0.6) * kept[0]


def test_the_average_of_heads_is_the_mean_of_their_cosines():
    model = model_of(heads=(0,), averaged=True)
    x, mask = inputs(torch.float32)
    stream, update = model.through([0], model.begin(x), mask=mask)
    first = model.head(model.read_out_local(0, stream + update, mask=mask))
    stream, update = model.through([1], stream, update, mask=mask)
    last = model.head(model.read_out(stream, update, mask=mask))
    found = model.embed(x, mask=mask) @ model.head.prototypes.T
    assert_close(found, (first + last) / 2)


@pytest.mark.parametrize("wanted", [[9], [0, -1], [4]])
def test_an_impossible_local_head_is_refused_and_changes_nothing(wanted):
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    with pytest.raises(ValueError, match=rf"block {wanted[-1]} is wanted.* has 0\.\.2"):
        insert_blocks(model, [0], local_heads=wanted, generator=generator())
    assert list(model.modules()) == modules
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_fails_on_the_way_leaves_the_model_unchanged():
    model = model_of()
    modules = list(model.modules())

    def failing(**_):
        raise RuntimeError("no memory")

    model.make_local_head = failing
    with pytest.raises(RuntimeError, match="no memory"):
        insert_blocks(model, [0], local_heads=[0, 1], generator=generator())
    assert list(model.modules()) == modules


@pytest.mark.unwatched
@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, iter])
def test_positions_may_be_of_any_kind_of_sequence(kind):
    model, expected = model_of(), model_of()
    insert_blocks(model, kind([0, 2]), local_heads=kind([1, 3]), generator=generator())
    insert_blocks(expected, [0, 2], local_heads=[1, 3], generator=generator())
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.unwatched
@pytest.mark.parametrize("wrong", [[0.0], np.array([1.0]), 1])
def test_positions_that_are_no_whole_numbers_are_refused(wrong):
    with pytest.raises(TypeError, match=r"at is .*; give a list of whole numbers"):
        insert_blocks(model_of(), wrong)
    with pytest.raises(TypeError, match=r"local_heads is .*; give a list of whole numbers"):
        insert_blocks(model_of(), [0], local_heads=wrong)
    with pytest.raises(ValueError, match="no position"):
        insert_blocks(model_of(), np.array([], dtype=int))

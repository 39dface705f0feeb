"""Make a model deeper without changing what it computes, and keep parts of it as they are."""

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from spherescan.nn.model import SequenceModel

INITS = ("identity", "rust_trainer")


def insert_blocks(
    model: SequenceModel,
    at: Iterable[int],
    *,
    local_heads: Iterable[int] | None = None,
    init: str = "identity",
    generator: Generator | None = None,
) -> None:
    """Insert blocks that add nothing yet.

    A new block has random weights and an output projection of zeros: the output of the model stays
    what it was, bit for bit (x + 0 = x), its projection has a gradient at once, and all else in it
    as soon as the projection has moved. Modules that stay keep their parameters, so an optimiser
    keeps its state for them. The head of a block moves with it. A block that had none and needs
    one reads as the model did there: as the nearest head below, which sees the same stream where
    only new blocks lie between, or above where there is none; the read-out of the model counts as
    the head of its last block. A head whose block needs none any more takes such a place itself.

    Args:
        model: Changed in place.
        at: Positions of the new blocks in the model as it will be, ascending.
        local_heads: Blocks of the grown model that have a local head; those that had one keep it,
            and no other gets one, when missing.
        init: "identity", or "rust_trainer": all weights zero, as that program did. Such a block
            never adds anything: no gradient reaches a weight that could change that.
        generator: Source of the new weights.

    Raises:
        TypeError: Positions or local heads that are no whole numbers.
        ValueError: No position, one given twice or out of range, a local head of a block that there
            will not be, or an unknown init. The model is unchanged after any of these.

    References:
        Zhang, Dauphin, Ma, "Fixup Initialization", 2019, arXiv:1901.09321: residual branches that
        start at zero through their last weight train.
    """
    at = _whole_numbers("at", at)
    depth = len(model.layers) + len(at)
    _check_positions(at, depth)
    if local_heads is not None:
        local_heads = _whole_numbers("local_heads", local_heads)
        _check_heads(local_heads, depth)
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}; choose from {', '.join(INITS)}")
    example = model.head.weight
    kept = [index for index in range(depth) if index not in at]
    blocks = dict(zip(kept, model.layers, strict=True))
    for index in sorted(at):
        blocks[index] = _new_block(model, init=init, generator=generator).to(example)

    old_heads = {kept[int(key)]: head for key, head in model.local_heads.items()}
    wanted = sorted(old_heads) if local_heads is None else local_heads
    heads = _placed_heads(model, old_heads, wanted, last=kept[-1], generator=generator)
    model.layers = nn.ModuleList(blocks[index] for index in range(depth))
    model.local_heads = heads


def freeze(
    model: SequenceModel,
    *,
    blocks: Collection[int] = (),
    embedding: bool = False,
    prototypes: bool = False,
) -> None:
    """Set which parameters are trained: all but those named here.

    A backward pass ends at the lowest trained parameter by itself. A local head is frozen when all
    blocks that learn by it are: its own and those below it, down to the next head. Calling this
    again with less unfreezes the rest.

    Args:
        model: Changed in place.
        blocks: Indices from 0.
        embedding: Whether the embedding is frozen.
        prototypes: Whether learnable prototypes are frozen.

    Raises:
        ValueError: A block that there is not, or all of them.
    """
    depth = len(model.layers)
    for index in blocks:
        if not 0 <= index < depth:
            raise ValueError(f"block {index} is to be frozen; the model has blocks 0..{depth - 1}")
    if len(set(blocks)) == depth:
        raise ValueError(f"all {depth} blocks are to be frozen; leave at least one to train")
    model.requires_grad_(True)
    model.embedding.requires_grad_(not embedding)
    model.head.requires_grad_(not prototypes)
    for index in blocks:
        model.layers[index].requires_grad_(False)
    lowest = 0
    for index in sorted(map(int, model.local_heads)):
        if set(range(lowest, index + 1)) <= set(blocks):
            model.local_heads[str(index)].requires_grad_(False)
        lowest = index + 1


def _whole_numbers(name: str, numbers: Iterable[int]) -> list[int]:
    try:
        return [operator.index(number) for number in numbers]
    except TypeError:
        raise TypeError(f"{name} is {numbers!r}; give a list of whole numbers") from None


def _check_heads(local_heads: Sequence[int], depth: int) -> None:
    for index in local_heads:
        if not 0 <= index < depth:
            raise ValueError(
                f"a local head of block {index} is wanted; the grown model has 0..{depth - 1}"
            )


def _check_positions(at: Sequence[int], depth: int) -> None:
    if not at:
        raise ValueError("there is no position to insert a block at; give at least one")
    for position in at:
        if not 0 <= position < depth:
            raise ValueError(
                f"a block is to be inserted at {position}; the grown model has 0..{depth - 1}"
            )
    if len(set(at)) < len(at):
        raise ValueError(f"positions {list(at)} name a block twice; give each once")


def _new_block(model: SequenceModel, *, init: str, generator: Generator | None) -> nn.Module:
    block: nn.Module = model.make_block(generator=generator)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if init == "rust_trainer" or name.endswith("out_proj.weight"):
                parameter.zero_()
    return block


def _placed_heads(
    model: SequenceModel,
    old: Mapping[int, nn.Module],
    wanted: Sequence[int],
    *,
    last: int,
    generator: Generator | None,
) -> nn.ModuleDict:
    """Return the local heads of the grown model, whose blocks have other numbers than before."""
    fresh: dict[int, nn.Module] = {
        index: model.make_local_head(generator=generator).to(model.head.weight)
        for index in wanted
        if index not in old
    }
    known = {index: head.state_dict() for index, head in old.items()}
    read_out = _read_out_as_head(model)
    if any(_shapes(read_out) == _shapes(head.state_dict()) for head in fresh.values()):
        known.setdefault(last, read_out)
    left = {index: head for index, head in old.items() if index not in wanted}
    heads = {**old, **fresh}
    for index, head in fresh.items():
        below = [at for at in known if at <= index]
        nearest = max(below, default=min(known, default=None))
        if nearest in left:
            heads[index] = left.pop(nearest)
        elif nearest is not None:
            head.load_state_dict(known[nearest])
    return nn.ModuleDict({str(index): heads[index] for index in wanted})


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _read_out_as_head(model: SequenceModel) -> dict[str, Tensor]:
    """Return the state of a head that reads the last block as the model does."""
    parts = {"norm": model.norm_f, "pool": model.pool, "projection": model.projection}
    return {
        f"{part}.{name}": value
        for part, module in parts.items()
        if module is not None
        for name, value in module.state_dict().items()
    }

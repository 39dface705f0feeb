"""Make a model deeper without changing what it computes, and keep parts of it as they are."""

from collections.abc import Collection, Sequence

import torch
from torch import Generator, nn

from spherescan.nn.model import SequenceModel

INITS = ("identity", "rust_trainer")


def insert_blocks(
    model: SequenceModel,
    at: Sequence[int],
    *,
    local_heads: Sequence[int] | None = None,
    init: str = "identity",
    generator: Generator | None = None,
) -> None:
    """Insert blocks that add nothing yet.

    A new block has random weights and an output projection of zeros: the output of the model stays
    what it was, bit for bit (x + 0 = x), its projection has a gradient at once, and all else in it
    as soon as the projection has moved. Modules that stay keep their parameters, so an optimiser
    keeps its state for them. The head of a block moves with it; a block that had none and needs
    one gets a fresh one, the former last block a copy of how the model itself reads out.

    Args:
        model: Changed in place.
        at: Positions of the new blocks in the model as it will be, ascending.
        local_heads: Blocks of the grown model that have a local head; those that had one keep it,
            and no other gets one, when missing.
        init: "identity", or "rust_trainer": all weights zero, as that program did. Such a block
            never adds anything: no gradient reaches a weight that could change that.
        generator: Source of the new weights.

    Raises:
        ValueError: No position, one given twice or out of range, or an unknown init; the model is
            then unchanged.

    References:
        Zhang, Dauphin, Ma, "Fixup Initialization", 2019, arXiv:1901.09321: residual branches that
        start at zero through their last weight train.
    """
    depth = len(model.layers) + len(at)
    _check_positions(at, depth)
    if init not in INITS:
        raise ValueError(f"unknown init {init!r}; choose from {', '.join(INITS)}")
    example = model.head.weight
    kept = [index for index in range(depth) if index not in at]
    blocks = dict(zip(kept, model.layers, strict=True))
    for index in sorted(at):
        blocks[index] = _new_block(model, init=init, generator=generator).to(example)
    model.layers = nn.ModuleList(blocks[index] for index in range(depth))

    old_heads = {kept[int(key)]: head for key, head in model.local_heads.items()}
    wanted = sorted(old_heads) if local_heads is None else local_heads
    assert all(0 <= index < depth for index in wanted)
    heads = nn.ModuleDict()
    for index in wanted:
        if index in old_heads:
            heads[str(index)] = old_heads[index]
            continue
        fresh = model.make_local_head(generator=generator).to(example)
        if index == kept[-1]:
            _copy_read_out(model, fresh)
        heads[str(index)] = fresh
    model.local_heads = heads


def freeze(
    model: SequenceModel,
    *,
    blocks: Collection[int] = (),
    embedding: bool = False,
    prototypes: bool = False,
) -> None:
    """Set which parameters are trained: all but those named here.

    A backward pass ends at the lowest trained parameter by itself. The head of a frozen block is
    frozen with it. Calling this again with less unfreezes the rest.

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
        if str(index) in model.local_heads:
            model.local_heads[str(index)].requires_grad_(False)


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


def _copy_read_out(model: SequenceModel, fresh: nn.Module) -> None:
    """Start the head of what was the last block as the read-out that was trained on it."""
    own = {
        f"{part}.{name}": value
        for part, module in (
            ("norm", model.norm_f),
            ("pool", model.pool),
            ("projection", model.projection),
        )
        if module is not None
        for name, value in module.state_dict().items()
    }
    given = fresh.state_dict()
    if {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in given.items()}:
        fresh.load_state_dict(own)

"""The depth of a model over a run: where it starts from, when it grows, what is frozen when."""

from pathlib import Path

import torch

from spherescan.config import RunConfig
from spherescan.data.order import derived_seed
from spherescan.errors import CheckpointError, RunDirectoryError
from spherescan.nn import SequenceModel, freeze, insert_blocks
from spherescan.runs import Checkpoint, RunStore, expect_state, read_checkpoint

_LOCAL_HEADS = "local_heads."


def grow(model: SequenceModel, config: RunConfig) -> None:
    """Insert the blocks that the configuration asks for."""
    seed = derived_seed(config.run.seed, "grown")
    insert_blocks(
        model,
        config.new_positions(),
        local_heads=config.local_heads(config.n_layers_grown),
        init=config.grow.init,
        generator=torch.Generator().manual_seed(seed),
    )


def set_frozen(model: SequenceModel, config: RunConfig, step: int) -> None:
    """Set what is trained in the step after so many steps."""
    frozen = config.is_frozen_at(step)
    freeze(
        model,
        blocks=config.frozen_blocks() if frozen else (),
        embedding=frozen and config.freeze.embedding,
        prototypes=frozen and config.freeze.prototypes,
    )


def read_base(path: Path) -> Checkpoint:
    """Read the checkpoint that a model starts from: a file, or the best one of a run.

    Raises:
        CheckpointError: It is damaged.
        RunDirectoryError: There is neither.
    """
    if path.is_file():
        base = read_checkpoint(path)
        try:
            expect_state(base.state)
        except ValueError as error:
            raise CheckpointError(f"{path}: is not a checkpoint of a run: {error}") from None
        return base
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: there is no such run or checkpoint to start from")
    return RunStore.open(path).load_best()


def load_base(model: SequenceModel, base: Checkpoint, path: Path, *, local_loss: str) -> None:
    """Load the weights of another run into the model.

    Local heads that it lacks, or that learned by another loss, stay fresh.

    Raises:
        CheckpointError: It is of another model.
    """
    weights = base.below("model/")
    if base.state["config"]["local"]["loss"] != local_loss:
        weights = {n: value for n, value in weights.items() if not n.startswith(_LOCAL_HEADS)}
    own = model.state_dict()
    kept = {name: value for name, value in own.items() if name.startswith(_LOCAL_HEADS)}
    found = {
        name: value
        for name, value in weights.items()
        if name in own or not name.startswith(_LOCAL_HEADS)
    }
    for name in sorted(own.keys() | found.keys()):
        here = own[name].shape if name in own else None
        there = found[name].shape if name in found else None
        if here != there and not (there is None and name in kept):
            raise CheckpointError(
                f"{path}: is of another model: {name} has shape "
                f"{None if there is None else tuple(there)} there and "
                f"{None if here is None else tuple(here)} here; grow.base needs the model that "
                "model.* describes, before it grows"
            )
    model.load_state_dict(kept | found)

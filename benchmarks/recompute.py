"""What recomputing costs: our way against torch.utils.checkpoint, on a model for series.

    python benchmarks/recompute.py

Forward and backward of four bidirectional blocks of width 64 in turns, on one thread; medians of
the processor time and of the ratio to keeping everything.
"""

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spherescan.nn import Mamba, PrototypeHead, SequenceModel

ROUNDS = 25


def step(model: SequenceModel, x: Tensor, run: Callable[[SequenceModel, Tensor], Tensor]) -> float:
    """Return the processor seconds of a forward and a backward pass."""
    model.zero_grad()
    began = time.process_time()
    run(model, x).square().mean().backward()
    return time.process_time() - began


def kept(model: SequenceModel, x: Tensor) -> Tensor:
    """Keep the inside of every block."""
    model.recompute = False
    return model.embed(x)


def ours(model: SequenceModel, x: Tensor) -> Tensor:
    """Compute one direction of a block at a time again."""
    model.recompute = True
    return model.embed(x)


def torchs(model: SequenceModel, x: Tensor) -> Tensor:
    """Compute every block again, as torch does it."""
    stream = model.begin(x)
    for block in model.layers:
        update = checkpoint(lambda s, block=block: block(s)[1], stream, use_reentrant=False)
        stream = stream + update
    return model.read_out(stream)


def torchs_by_direction(model: SequenceModel, x: Tensor) -> Tensor:
    """Compute one direction of a block at a time again, as torch does it."""
    stream = model.begin(x)
    for block in model.layers:
        ways = [functools.partial(block.one_way, backward=backward) for backward in (False, True)]
        updates = [checkpoint(way, stream, use_reentrant=False) for way in ways]
        stream = stream + (updates[0] + updates[1])
    return model.read_out(stream)


def main() -> None:
    """Print a line per way and shape."""
    torch.set_num_threads(1)
    ways = {
        "kept": kept,
        "recomputed by direction": ours,
        "torch.utils.checkpoint by direction": torchs_by_direction,
        "torch.utils.checkpoint by block": torchs,
    }
    for batch, length in ((16, 20), (32, 40), (16, 400)):
        generator = torch.Generator().manual_seed(0)
        model = SequenceModel(
            head=PrototypeHead(10, 10),
            n_channels=1,
            d_model=64,
            n_layers=4,
            mixer=functools.partial(Mamba, expand=1),
            bidirectional=True,
            generator=generator,
        )
        x = torch.randn(batch, length, 1, generator=generator)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, run in ways.items():
                times[name].append(step(model, x, run))
        for name, values in times.items():
            ratio = statistics.median(a / b for a, b in zip(values, times["kept"], strict=True))
            print(
                f"batch {batch}, length {length}, {name}: "
                f"{1e3 * statistics.median(values):.1f} ms, {ratio:.2f} of kept"
            )


if __name__ == "__main__":
    main()

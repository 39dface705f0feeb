"""T6: a checkpoint with any damage is found out, and the one before it takes its place."""

import random
from collections.abc import Iterator
from pathlib import Path

from spherescan.runs import Checkpoint, RunStore, read_checkpoint, write_checkpoint
from tests.torture import small
from tests.torture.faults import Faults
from tests.torture.report import Report

PAGE = 4096


def bit_rot(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Damage the newest of two checkpoints in every way, and recover.

    The count is that of random flips in data; at a tenth of 20 000 or less, of the header and of
    the truncations too only a sample is tried.
    """
    rng = random.Random(seed)
    small.go(root / "run", 2)
    store = RunStore.open(root / "run")
    store.lock()
    newest = store.checkpoint_path(2)
    good, other = _larger(newest, rng), store.checkpoint_path(0).read_bytes()
    report.facts["bytes of the checkpoint"] = len(good)
    share = min(1.0, count / 20_000)
    for kind, number, damaged in _damages(good, other, rng, count, share):
        report.count += 1
        report.add(kind)
        if damaged == good:
            report.failures.append(f"{kind} {number}: changes nothing; the test is wrong")
            continue
        newest.write_bytes(damaged)
        failure = _survives(store)
        if failure:
            report.failures.append(f"{kind} {number}, seed {seed}: {failure}")
            (root / f"{kind}-{number}").write_bytes(damaged)
        newest.unlink(missing_ok=True)
        for bad in newest.parent.glob("bad-*"):
            bad.unlink()
    newest.write_bytes(good)
    report.expect(store.recover().state["step"] == 2, "the undamaged file was refused too")
    store.close()


def _survives(store: RunStore) -> str | None:
    try:
        found = store.recover()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"{type(error).__name__}: {error}"
    if found.state["step"] != 0:
        return f"was believed, as step {found.state['step']}"
    return None if _is_first(found) else "step 0 came back with other bits"


def _is_first(found: Checkpoint) -> bool:
    return small.bits_of(found.tensors) == small.bits_of(small.tensors_of(0))


def _larger(path: Path, rng: random.Random) -> bytes:
    """Replace a checkpoint by one of the same state with some pages of data."""
    import torch

    checkpoint = read_checkpoint(path)
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    more = {f"model/{n}": torch.randn(700, generator=generator) for n in range(4)}
    path.unlink()
    write_checkpoint(path, {**checkpoint.tensors, **more}, checkpoint.state)
    return path.read_bytes()


def _damages(
    good: bytes, other: bytes, rng: random.Random, count: int, share: float
) -> Iterator[tuple[str, int, bytes]]:
    header = 8 + int.from_bytes(good[:8], "little")
    for bit in _some(range(header * 8), rng, share):
        yield "header bit", bit, _flipped(good, bit)
    for _ in range(count):
        bit = rng.randrange(header * 8, len(good) * 8)
        yield "data bit", bit, _flipped(good, bit)
    for length in _some(range(len(good)), rng, share):
        yield "truncation to", length, good[:length]
    for number in range(max(1, int(1000 * share))):
        tail = rng.randbytes(rng.choice([1, 2, 7, 8, 32, 512, PAGE]))
        yield "append", number, good + rng.choice([tail, bytes(len(tail)), good[: len(tail)]])
    yield from _moved(good, other, rng)


def _moved(good: bytes, other: bytes, rng: random.Random) -> Iterator[tuple[str, int, bytes]]:
    for size in (512, PAGE):
        blocks = [good[begin : begin + size] for begin in range(0, len(good), size)]
        for number in range(len(blocks)):
            changed = [*blocks]
            changed[number] = bytes(len(blocks[number]))
            yield "zeroed block", size * number, b"".join(changed)
            target = rng.choice([n for n in range(len(blocks)) if n != number])
            changed = [*blocks]
            changed[number], changed[target] = changed[target], changed[number]
            yield "block swap", size * number, b"".join(changed)
            yield "block lost", size * number, b"".join(blocks[:number] + blocks[number + 1 :])
        for begin in range(0, min(len(good), len(other)), size):
            if begin:
                yield "glued", begin, other[:begin] + good[begin:]
                yield "glued", -begin, good[:begin] + other[begin:]
    yield "two files", 0, good + other
    yield "two files", 1, good + good
    yield "empty", 0, b""


def _some(numbers: range, rng: random.Random, share: float) -> list[int]:
    return rng.sample(numbers, max(1, int(len(numbers) * share))) if share < 1 else [*numbers]


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)

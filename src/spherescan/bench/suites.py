"""What is measured: one function per table."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from spherescan.bench.contenders import (
    CONTENDERS,
    D_INNER,
    D_MODEL,
    D_STATE,
    Contender,
    copy_weights,
    forward,
    installed,
    matrix_products,
    train_step,
)
from spherescan.bench.matrix import PUBLISHED, reduced_model_step
from spherescan.bench.measure import Timing, interleave, peak_memory
from spherescan.ops import native, selective_scan
from spherescan.ops.native_scan import ScanInputs, scan_backward, scan_forward

Shape = tuple[int, int]

STEP_SHAPES: tuple[Shape, ...] = ((16, 128), (8, 64), (8, 1024), (1, 8192))
# Beyond this many tokens, four layers of a peer take minutes per step.
_MOST_PEER_TOKENS = 8192


@dataclass(slots=True)
class Result:
    """One table: a title, columns, and rows of values by column."""

    title: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Options:
    """How thoroughly to measure.

    Attributes:
        repeats: Rounds of each comparison.
        seconds: Seconds after which a comparison stops.
        quick: Small shapes only, to see that everything works.
    """

    repeats: int = 7
    seconds: float = 30.0
    quick: bool = False

    def run(self, contenders: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        """Time contenders in turns."""
        return interleave(contenders, repeats=self.repeats, seconds=self.seconds)


def step(options: Options) -> Iterator[Result]:
    """Training step of 1, 2 and 4 blocks against everyone, and against its matrix products."""
    shapes = ((2, 32),) if options.quick else STEP_SHAPES
    for n_layers in (1,) if options.quick else (1, 2, 4):
        for shape in shapes if n_layers < 4 else shapes[:2]:
            yield _step(options, shape, n_layers)


def _step(options: Options, shape: Shape, n_layers: int) -> Result:
    batch, length = shape
    torch.manual_seed(0)
    x = torch.randn(batch, length, D_MODEL, requires_grad=True)
    y_grad = torch.randn(batch, length, D_MODEL)
    ours = CONTENDERS["spherescan"].make(n_layers)
    runs: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    exact = forward(CONTENDERS["spherescan"], ours, x).detach()
    for name, contender in CONTENDERS.items():
        if not _takes_part(name, contender, shape, n_layers):
            continue
        model = contender.make(n_layers)
        copy_weights(ours, model)
        y = forward(contender, model, x).detach()
        errors[name] = float((y - exact).abs().max() / exact.abs().max())
        runs[name] = train_step(contender, model, x, y_grad)
    products = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for kind, dtype in products.items():
        runs[f"matrix products {kind}"] = matrix_products(batch * length, n_layers, dtype)
    times = options.run(runs)
    result = Result(
        f"training step, ({batch}, {length}), {n_layers} layer{'s' * (n_layers > 1)}",
        ("contender", "ms", "min ms", "runs", "tokens/s", "times ours", "peak GB", "difference"),
    )
    base = times["spherescan"].median
    for name, timing in times.items():
        result.rows.append(
            {
                "contender": name,
                "ms": timing.median * 1e3,
                "min ms": timing.minimum * 1e3,
                "runs": timing.repeats,
                "tokens/s": batch * length / timing.median,
                "times ours": timing.median / base,
                "peak GB": _step_memory(name, shape, n_layers) if name in errors else None,
                "difference": errors.get(name),
            }
        )
    for kind, name in (("fp32", "spherescan"), ("bf16", "spherescan bf16")):
        ratio = times[name].median / times[f"matrix products {kind}"].median
        result.notes.append(f"overhead ratio {kind} (step / its matrix products): {ratio:.2f}")
    return result


def _takes_part(name: str, contender: Contender, shape: Shape, n_layers: int) -> bool:
    batch, length = shape
    small = batch * length * n_layers <= _MOST_PEER_TOKENS or not contender.peer
    return installed(name) and length <= contender.longest and small


def _step_memory(name: str, shape: Shape, n_layers: int) -> float | None:
    code = f"""
import torch
from spherescan.bench.contenders import CONTENDERS, train_step
torch.set_num_threads({torch.get_num_threads()})
contender = CONTENDERS[{name!r}]
x = torch.randn({shape[0]}, {shape[1]}, {D_MODEL}, requires_grad=True)
train_step(contender, contender.make({n_layers}), x, torch.randn_like(x))()
"""
    return peak_memory(code)


def scan(options: Options) -> Iterator[Result]:
    """Scan alone: ns per element, and the fraction of what its arithmetic takes at least."""
    result = Result(
        "selective scan with softplus and gate, float32 and bfloat16 values",
        (
            *("batch", "length", "type", "simd", "threads"),
            *("forward ns", "backward ns", "forward roofline", "backward roofline"),
        ),
    )
    shapes = ((2, 32),) if options.quick else ((16, 128), (8, 1024))
    before = torch.get_num_threads()
    for batch, length in shapes:
        for threads in sorted({1, before}):
            torch.set_num_threads(threads)
            for level in range(native.best_simd() + 1):
                for dtype in (torch.float32, torch.bfloat16):
                    result.rows.append(_scan(options, batch, length, dtype, level))
    torch.set_num_threads(before)
    result.notes.append(
        "roofline: the vector arithmetic of the kernel alone, each at the rate of multiply-adds "
        "in registers; loads, stores and memory are free in it"
    )
    yield result


# Vector arithmetic instructions per vector of (position, channel, state): delta A, exp2 (8 with
# 512 bits, 12 without), the two of h, and that of y; back, the same but y, and 9 more. And per
# vector of (position, channel): softplus, silu and what surrounds them, forward and back.
_EXP2 = {0: 12, 1: 12, 2: 8}
_FORWARD_STATE, _BACKWARD_STATE = 4, 12
_FORWARD_CHANNEL, _BACKWARD_CHANNEL = 56, 76


def _scan(
    options: Options, batch: int, length: int, dtype: torch.dtype, level: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    d, n = D_INNER, D_STATE
    inputs = ScanInputs(
        normal(batch, length, d).to(dtype),
        normal(batch, length, d).sub(3).to(dtype),
        -torch.arange(1.0, n + 1).repeat(d, 1),
        normal(batch, length, n).to(dtype),
        normal(batch, length, n).to(dtype),
        normal(d),
        normal(d) - 1,
        normal(batch, length, d).to(dtype),
        None,
        None,
        delta_softplus=True,
        simd=level,
    )
    y, _, checkpoints = scan_forward(inputs, keep=True)
    times = options.run(
        {
            "forward": lambda: scan_forward(inputs, keep=True),
            "backward": lambda: scan_backward(inputs, checkpoints, y, None),
        }
    )
    elements = batch * length * d * n
    threads = torch.get_num_threads()
    with native.forced_simd(level):
        peak = _vector_rate() * threads
    width = (16 << level) // 4
    least = {
        "forward": _EXP2[level] + _FORWARD_STATE + _FORWARD_CHANNEL / n,
        "backward": _EXP2[level] + _BACKWARD_STATE + _BACKWARD_CHANNEL / n,
    }
    row: dict[str, Any] = {
        "batch": batch,
        "length": length,
        "type": str(dtype).removeprefix("torch."),
        "simd": native.SIMD_LEVELS[level],
        "threads": threads,
    }
    for name, instructions in least.items():
        row[f"{name} ns"] = times[name].median / elements * 1e9
        row[f"{name} roofline"] = elements / width * instructions / peak / times[name].median
    return row


def _vector_rate() -> float:
    """Return vector multiply-adds per second of one core."""
    times = interleave({"peak": lambda: native.multiply_add(1_000_000)}, repeats=5)
    return 12e6 / times["peak"].minimum


def shapes(options: Options) -> Iterator[Result]:
    """Scan over odd shapes: is there a cliff?"""
    result = Result(
        "selective scan, forward and backward, float32, over shapes of about 4 million elements",
        ("N", "D", "L", "batch", "ns per element", "least ns", "times least"),
    )
    stream = _stream_rate()
    rates = {}
    for level in range(native.best_simd() + 1):
        with native.forced_simd(level):
            rates[level] = _vector_rate() * torch.get_num_threads()
    for n in (1, 16) if options.quick else (1, 4, 8, 16, 24, 64, 256):
        for d in (7, 64) if options.quick else (1, 7, 64, 96, 1000, 1536):
            for length in (1, 16) if options.quick else (1, 2, 15, 16, 17, 1000):
                batch = max(1, math.ceil(4e6 / (n * d * length)))
                row = _shape(options, batch, length, d, n)
                level = native.simd_for(d, n, torch.float32)
                least = _least_seconds(n, d, length, stream, rates[level], level) * 1e9
                row |= {"least ns": least, "times least": row["ns per element"] / least}
                result.rows.append(row)
    best = min(row["ns per element"] for row in result.rows)
    worst = max(row["times least"] for row in result.rows)
    result.notes.append(f"best shape {best:.3f} ns per element")
    result.notes.append(
        "least: the larger of the arithmetic of one element and the bytes that must move for it "
        f"({stream / 1e9:.1f} GB/s here); worst over all shapes {worst:.1f}"
    )
    yield result


def _shape(options: Options, batch: int, length: int, d: int, n: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "u": (batch, length, d),
        "delta": (batch, length, d),
        "A": (d, n),
        "B": (batch, length, n),
        "C": (batch, length, n),
        "D": (d,),
    }
    values = {k: torch.randn(shape, generator=generator) for k, shape in tensors.items()}
    values["A"] = -values["A"].abs()
    values["delta"] = values["delta"].abs()
    leaves = [v.requires_grad_() for v in values.values()]
    ones = torch.ones(batch, length, d)

    def both() -> None:
        y, _ = selective_scan(*leaves)
        torch.autograd.grad(y, leaves, ones)

    timing = interleave({"scan": both}, repeats=min(5, options.repeats), seconds=2.0)["scan"]
    elements = batch * length * d * n
    return {
        "N": n,
        "D": d,
        "L": length,
        "batch": batch,
        "ns per element": timing.median / elements * 1e9,
    }


def _least_seconds(n: int, d: int, length: int, stream: float, peak: float, level: int) -> float:
    """Return the seconds of an element, forward and back, when either bound were met."""
    instructions = 2 * _EXP2[level] + _FORWARD_STATE + _BACKWARD_STATE + 30 / n
    # Forward: u, delta, y. Backward: u, delta, dy, du, ddelta. What is written is read first. The
    # final state and the checkpoints: one state each per chunk and sequence, written and read.
    values = (4 + 7) * 4 / n
    states = (4 + 4 + 4) * 4 / min(length, native.chunk())
    # B and C, read twice, and their gradients: shared by the channels.
    maps = (2 + 2 + 2 * 2) * 4 / d
    width = 4 << level
    return max(instructions / width / peak, (values + states + maps) / stream)


def _stream_rate() -> float:
    """Return bytes per second that are read and written by all threads."""
    source, target = torch.ones(1 << 25), torch.ones(1 << 25)
    times = interleave({"copy": lambda: target.copy_(source)}, repeats=5)
    return 3 * 4 * source.numel() / times["copy"].minimum


def length(options: Options) -> Iterator[Result]:
    """Forward pass of one block, whole and in parts with carried state: cost against length."""
    contender = CONTENDERS["spherescan"]
    model = contender.make(1)
    (block,) = model.get_submodule("blocks").children()
    norm, mixer = block.get_submodule("norm"), block.get_submodule("mixer")
    lengths = (128, 1024) if options.quick else (128, 512, 2048, 8192, 32768, 131072)
    rounds = {n: max(1, 8192 // n) for n in lengths}

    def whole(x: torch.Tensor) -> None:
        with torch.inference_mode():
            for _ in range(rounds[x.shape[1]]):
                forward(contender, model, x)

    def in_parts(x: torch.Tensor) -> None:
        with torch.inference_mode():
            for _ in range(rounds[x.shape[1]]):
                state = None
                for part in torch.split(x, 128, dim=1):
                    normed, _ = norm(part)
                    _, state = mixer(normed, state)

    runs: dict[str, Callable[[], object]] = {}
    for n in lengths:
        x = torch.randn(1, n, D_MODEL)
        runs[f"whole {n}"] = partial(whole, x)
        runs[f"parts {n}"] = partial(in_parts, x)
    times = options.run(runs)
    result = Result(
        "time per token of a forward pass, one block, one sequence, whole and in parts of 128",
        ("length", "whole us", "whole min us", "parts us", "parts min us"),
    )
    for n in lengths:
        row: dict[str, Any] = {"length": n}
        for name in ("whole", "parts"):
            timing = times[f"{name} {n}"]
            row[f"{name} us"] = timing.median / rounds[n] / n * 1e6
            row[f"{name} min us"] = timing.minimum / rounds[n] / n * 1e6
        result.rows.append(row)
    for column in result.columns[1:]:
        values = [row[column] for row in result.rows]
        result.notes.append(f"{column}: largest / smallest {max(values) / min(values):.2f}")
    yield result


def threads(options: Options) -> Iterator[Result]:
    """Training step and scan over numbers of threads."""
    result = Result("thread scaling, training step of one block", ("threads", "ms", "speed-up"))
    batch, n = (2, 32) if options.quick else (16, 128)
    x = torch.randn(batch, n, D_MODEL, requires_grad=True)
    contender = CONTENDERS["spherescan"]
    run = train_step(contender, contender.make(1), x, torch.randn_like(x))
    before = torch.get_num_threads()
    count = 1
    while count <= before:
        torch.set_num_threads(count)
        median = options.run({"step": run})["step"].median
        first = result.rows[0]["ms"] / 1e3 if result.rows else median
        result.rows.append({"threads": count, "ms": median * 1e3, "speed-up": first / median})
        count *= 2
    torch.set_num_threads(before)
    yield result


def decay(options: Options) -> Iterator[Result]:
    """Scan of a state that decays towards zero: do subnormal numbers slow it down?"""
    result = Result("a state that decays for 1000 steps", ("input", "ms", "times steady"))
    u = torch.zeros(4, 1000, 256)
    u[:, 0] = 1.0
    ones, D = torch.ones(4, 1000, D_STATE), torch.zeros(256)
    A = -torch.ones(256, D_STATE)
    runs: dict[str, Callable[[], object]] = {
        "steady": lambda: selective_scan(torch.ones_like(u), torch.ones_like(u), A, ones, ones, D),
        "decaying": lambda: selective_scan(u, torch.ones_like(u), A, ones, ones, D),
    }
    times = options.run(runs)
    for name, timing in times.items():
        ratio = timing.median / times["steady"].median
        result.rows.append({"input": name, "ms": timing.median * 1e3, "times steady": ratio})
    yield result


def matrix(options: Options) -> Iterator[Result]:
    """Run the published matrix of the Rust program: tokens per second of whole training steps."""
    result = Result(
        "reduced layer, vocabulary 8192, AdamW, backprop on every step, median of 120 steps",
        ("batch", "length", "d_model", "layers", "fp32", "bf16", "published", "times published"),
    )
    cells = list(PUBLISHED.items())[:1] if options.quick else list(PUBLISHED.items())
    steps = 3 if options.quick else 120
    for (batch, n, d_model, n_layers), published in cells:
        rates = {}
        for kind in ("fp32", "bf16"):
            run = reduced_model_step(batch, n, d_model, n_layers, autocast=kind == "bf16")
            run()
            timing = interleave({"step": run}, repeats=steps, seconds=math.inf)["step"]
            rates[kind] = batch * n / timing.median
        result.rows.append(
            {
                "batch": batch,
                "length": n,
                "d_model": d_model,
                "layers": n_layers,
                **rates,
                "published": published,
                "times published": rates["fp32"] / published,
            }
        )
    result.notes.append(
        "published: a laptop with 22 threads, backprop on one step in 32; another machine, so no "
        "like-for-like comparison"
    )
    yield result


SUITES: dict[str, Callable[[Options], Iterator[Result]]] = {
    "step": step,
    "scan": scan,
    "shapes": shapes,
    "length": length,
    "threads": threads,
    "decay": decay,
    "matrix": matrix,
}

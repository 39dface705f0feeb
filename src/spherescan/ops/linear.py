"""Matrix products of linear layers, by the library of torch that multiplies float32 faster here.

torch multiplies float32 matrices with MKL. On processors of AMD, MKL leaves half of a 512-bit
vector unused; oneDNN, which torch carries too, does not.

Letters: r rows, i inputs, o outputs.
"""

import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spherescan.ops import native
from spherescan.ops.constant import constant_in_graphs
from spherescan.ops.form import selected_form
from spherescan.ops.operator import operator

# Below so many multiply-adds, calling an operator costs more than it saves.
SMALLEST = 1 << 23
# oneDNN wants one factor of a weight gradient transposed. So many rows of it stay in the cache.
_ROWS = 2048
# Side of the matrices whose products are timed: a fraction of a millisecond in float32.
_TIMED = 256


def linear(x: Float[Tensor, "*r i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "*r o"]:
    """Multiply by a weight: y = x weight^T.

    Args:
        x: Input.
        weight: One row per output.
    """
    autocast = torch.is_autocast_enabled("cpu")
    if autocast or not _by_onednn(x.numel() * weight.shape[0], x, weight):
        return functional.linear(x, weight)
    y: Tensor = _operator(x, weight)
    return y


def product(x: Float[Tensor, "*r i"], weight: Float[Tensor, "o i"]) -> Float[Tensor, "*r o"]:
    """Return x weight^T; nothing is recorded for a gradient."""
    if _by_onednn(x.numel() * weight.shape[0], x, weight):
        return _onednn(x, weight)
    return functional.linear(x, weight)


def input_gradient(
    y_grad: Float[Tensor, "*r o"], weight: Float[Tensor, "o i"]
) -> Float[Tensor, "*r i"]:
    """Return y_grad weight."""
    return product(y_grad, weight.t())


def add_input_gradient(
    total: Float[Tensor, "r i"], y_grad: Float[Tensor, "r o"], weight: Float[Tensor, "o i"]
) -> Float[Tensor, "r i"]:
    """Return total + y_grad weight; `total` may be overwritten."""
    if _by_onednn(total.numel() * weight.shape[0], total, y_grad, weight):
        return _onednn_add(total, y_grad, weight.t())
    return torch.addmm(total, y_grad, weight, out=total)


def weight_gradient(y_grad: Float[Tensor, "r o"], x: Float[Tensor, "r i"]) -> Float[Tensor, "o i"]:
    """Return y_grad^T x."""
    if not _by_onednn(y_grad.numel() * x.shape[1], y_grad, x):
        return y_grad.t() @ x
    if x.shape[1] < y_grad.shape[1]:
        return _summed(x, y_grad).t().contiguous()
    return _summed(y_grad, x)


# A compiled graph keeps the library it was traced with.
@constant_in_graphs
def onednn_is_faster() -> bool:
    """Return whether large float32 products go to oneDNN: on AVX-512 processors of AMD.

    The processor alone decides, so that a run computes the same bits when it is resumed.
    """
    return (
        selected_form() == "native"
        and native.processor_is_amd()
        and native.best_simd() == len(native.SIMD_LEVELS) - 1
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        # "medium" may round to bfloat16; torch then chooses by itself.
        and torch.get_float32_matmul_precision() == "highest"
    )


def bfloat16_cost() -> float:
    """Return the time of bfloat16 products relative to float32, those of a training step, here.

    Below 1 where the processor multiplies bfloat16 (AMX, AVX-512 BF16), 10 and more with AVX2
    alone. It is measured, which takes milliseconds to tenths of a second.
    """
    matrices = torch.randn(2, _TIMED, _TIMED, generator=torch.Generator().manual_seed(0))
    return _seconds(*matrices.bfloat16()) / _seconds(*matrices)


def _seconds(x: Tensor, weight: Tensor) -> float:
    """Return how long an output and both gradients take, each in the better of two tries."""
    total = 0.0
    for left, right in ((x, weight.t()), (x, weight), (x.t(), weight)):
        tries = []
        for _ in range(2):
            began = time.perf_counter()
            torch.matmul(left, right)
            tries.append(time.perf_counter() - began)
        total += min(tries)
    return total


def _by_onednn(multiply_adds: int, *tensors: Tensor) -> bool:
    fits = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return fits and multiply_adds >= SMALLEST and onednn_is_faster()


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y


def _onednn_add(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, total, weight, None, "add")
    return y


def _summed(turned: Tensor, other: Tensor) -> Tensor:
    """Return turned^T other, a block of rows at a time."""
    total: Tensor | None = None
    for a, b in zip(torch.split(turned, _ROWS), torch.split(other, _ROWS), strict=True):
        factor = a.t().contiguous()
        total = _onednn(factor, b.t()) if total is None else _onednn_add(total, factor, b.t())
    assert total is not None
    return total


def _shapes(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _backward(y_grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor]:
    gradients = []
    if wanted[0]:
        gradients.append(input_gradient(y_grad, weight))
    if wanted[1]:
        rows = y_grad.reshape(-1, y_grad.shape[-1]), x.reshape(-1, x.shape[-1])
        gradients.append(weight_gradient(*rows))
    return gradients


def _backward_shapes(_: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t, want in zip((x, weight), wanted, strict=True) if want]


_backward_operator = operator(
    "linear_backward",
    "(Tensor y_grad, Tensor x, Tensor weight, bool[] wanted) -> Tensor[]",
    _backward,
    _backward_shapes,
)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, y_grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:2])
    found = iter(_backward_operator(y_grad, *ctx.saved_tensors, wanted))
    return tuple(next(found) if want else None for want in wanted)


_operator = operator(
    "linear",
    "(Tensor x, Tensor weight) -> Tensor",
    product,
    _shapes,
    gradients=_gradients,
    remember=_remember,
)

"""The native fixed convolutions: calls of their kernels, which record no gradient.

Letters: b batch, c channels, l length, k kernels or groups of kernels, s most channels of one,
q biases of each kernel, f features.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherescan.ops import native
from spherescan.ops.form import form_for, only_operators, records_gradient

_KERNELS, _IN_GROUP, _TAPS = 84, 8, 9
# Positions times features that one thread reads in a tenth of a millisecond or two.
_LEAST_SHARED = 1 << 18


def has_kernel(x: Tensor, parameters: Tensor) -> bool:
    """Return whether the kernels describe these series, as the form of the ops says.

    They are no operators of torch: what is compiled, transformed or needs a gradient takes the
    torch form.
    """
    if only_operators() or records_gradient(x, parameters):
        return False
    both_float32 = x.dtype == parameters.dtype == torch.float32
    return both_float32 and form_for(x, parameters) == "native"


def minirocket(
    x: Float[Tensor, "b c l"],
    lengths: Int[Tensor, " b"],
    channels: Int[Tensor, "k s"],
    n_summed: Int[Tensor, " k"],
    biases: Float[Tensor, "k q"],
    *,
    dilation: int,
    odd: bool,
    out: Float[Tensor, "b f"],
) -> None:
    """Write the features of MiniRocket at one dilation.

    Args:
        x: Series, float32.
        lengths: How many positions of each are real; they come first.
        channels: Which channels each of the 84 kernels sees the sum of.
        n_summed: How many of these.
        biases: Of each kernel.
        dilation: Distance between taps.
        odd: Whether kernels 0, 2, 4, ... look only where they lie wholly within the series, rather
            than 1, 3, 5, ...
        out: Where features go, f = k q; its last axis is contiguous.

    Raises:
        TypeError: The wrong type or device.
        ValueError: The wrong shape or strides, or a number beyond what it counts.
    """
    call = _call(x, lengths, channels, n_summed, dilation, out, kernels=_KERNELS)
    count = biases.shape[1]
    native.positive(biases=count)
    call.count, call.odd = count, odd
    call.parameters = native.dense("biases", biases, (_KERNELS, count), torch.float32)
    call.out = native.rows("out", out[None], (1, len(x), _KERNELS * count), torch.float32)
    native.call("spherescan_minirocket", call)


def hydra(
    x: Float[Tensor, "b c l"],
    lengths: Int[Tensor, " b"],
    channels: Int[Tensor, "k s"],
    n_summed: Int[Tensor, " k"],
    weights: Float[Tensor, "k 8 9"],
    *,
    dilation: int,
    out: Float[Tensor, "b f"],
) -> None:
    """Write the sums and counts of Hydra at one dilation, before their root is taken.

    Args:
        x: Series, float32.
        lengths: How many positions of each are real; they come first.
        channels: Which channels each group of kernels sees the sum of.
        n_summed: How many of these.
        weights: Of the kernels.
        dilation: Distance between taps.
        out: Where features go, f = 16 k; its last axis is contiguous.

    Raises:
        TypeError: The wrong type or device.
        ValueError: The wrong shape or strides, or a number beyond what it counts.
    """
    groups = len(channels)
    call = _call(x, lengths, channels, n_summed, dilation, out, kernels=groups)
    call.parameters = native.dense("weights", weights, (groups, _IN_GROUP, _TAPS), torch.float32)
    call.out = native.rows("out", out[None], (1, len(x), groups * _IN_GROUP * 2), torch.float32)
    native.call("spherescan_hydra", call)


def _call(
    x: Tensor,
    lengths: Tensor,
    channels: Tensor,
    n_summed: Tensor,
    dilation: int,
    out: Tensor,
    *,
    kernels: int,
) -> native.Fixed:
    """Check what both read and fill in where it lies."""
    b, c, length = x.shape
    most = channels.shape[1]
    native.positive(
        batch=b, channels=c, length=length, kernels=kernels, sums=most, dilation=dilation
    )
    call = native.Fixed(
        batch=b,
        channels=c,
        length=length,
        kernels=kernels,
        most_picked=most,
        dilation=min(dilation, length),  # the taps at the sides see nothing in either case
        threads=native.threads() if out.numel() * length >= _LEAST_SHARED else 1,
        simd=native.simd(),
        x=native.dense("x", x, (b, c, length), torch.float32),
        lengths=native.dense("lengths", lengths, (b,), torch.int64),
        picked=native.dense("channels", channels, (kernels, most), torch.int64),
        n_picked=native.dense("n_summed", n_summed, (kernels,), torch.int64),
    )
    _expect_between("lengths", lengths, 0, length)
    _expect_between("channels", channels, 0, c - 1)
    _expect_between("n_summed", n_summed, 1, most)
    native.disjoint(
        {"out": out}, {"x": x, "lengths": lengths, "channels": channels, "n_summed": n_summed}
    )
    return call


def _expect_between(name: str, numbers: Tensor, low: int, high: int) -> None:
    least, most = (int(number) for number in torch.aminmax(numbers))
    if least < low or most > high:
        raise ValueError(f"{name} go from {least} to {most}; expected {low} to {high}")

"""What losses and calibration both refuse of classes."""

import torch
from jaxtyping import Int
from torch import Tensor

from spherescan.ops.argument import expect_shape


def check_target(
    target: Int[Tensor, "*batch"], n_classes: int, shape: tuple[int, ...], *, of: str
) -> None:
    """Refuse targets that are not one class per sample.

    Args:
        target: Classes.
        n_classes: How many there are.
        shape: That of the samples.
        of: What there is one of for each class.

    Raises:
        TypeError: Targets that are no integers: as integers they would be rounded.
        ValueError: A target outside the classes, or not one per sample.
    """
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(
            f"targets are {target.dtype}; classes are integers, counted from 0: pass "
            "target.long() if these are"
        )
    expect_shape("target", target, shape)
    if target.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(target))
    if low < 0 or high >= n_classes:
        raise ValueError(
            f"targets span {low}..{high}; with {n_classes} {of} they must lie in 0..{n_classes - 1}"
        )

"""What losses and calibration both refuse of classes."""

import torch
from jaxtyping import Int
from torch import Tensor


def check_target(target: Int[Tensor, "*batch"], n_classes: int, *, of: str) -> None:
    """Refuse a class that there is not.

    Args:
        target: Classes.
        n_classes: How many there are.
        of: What there is one of for each class.

    Raises:
        ValueError: A target outside the classes.
    """
    if target.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(target))
    if low < 0 or high >= n_classes:
        raise ValueError(
            f"targets span {low}..{high}; with {n_classes} {of} they must lie in 0..{n_classes - 1}"
        )

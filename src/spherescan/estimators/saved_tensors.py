"""What a tensor of a saved estimator has to be, which may come from anyone."""

import torch
from torch import Tensor

# Larger numbers would not stay finite in what follows.
_LARGEST = torch.finfo(torch.float32).max


def expect_tensor(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    *,
    fits: str,
    largest: float = _LARGEST,
) -> None:
    """Check a tensor of a file.

    Args:
        name: What it is called.
        tensor: What the file has.
        dtype: The type it must have.
        shape: The shape it must have.
        fits: What gives it this shape.
        largest: Absolute value that none is above.

    Raises:
        ValueError: Another type or shape, or a value that is not finite or too large.
    """
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, which does not fit {fits}"
        )
    strange = tensor[~tensor.isfinite() | (tensor.abs() > largest)]
    if strange.numel():
        raise ValueError(
            f"{name} holds a value that cannot be: {strange[0]} is not finite or too large; wanted "
            f"-{largest}..{largest}"
        )

"""What every room of calibration refuses.

Letters: n samples, d dimensions.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Rounding to bfloat16 passes as a unit vector; features that nobody normalised do not.
_LENGTH_TOLERANCE = 1e-2


def checked(
    values: Float[Tensor, "*shape"], shape: tuple[int | None, ...], *, of: str
) -> Float[Tensor, "*shape"]:
    """Return the values in float64, without their gradient.

    Args:
        values: What is to be computed with.
        shape: Their shape, in which None is any size: broadcasting would hide another one.
        of: What they are, in the plural.

    Raises:
        ValueError: Another shape, there are none, or one of them is not finite.
    """
    fits = (size in {None, here} for here, size in zip(values.shape, shape, strict=False))
    if values.ndim != len(shape) or not all(fits):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"the {of} have the shape {tuple(values.shape)}; expected ({wanted})")
    if values.numel() == 0:
        raise ValueError(f"the {of} have the shape {tuple(values.shape)}; give at least one")
    finite = values.isfinite()
    if not finite.all():
        place = tuple(int(i) for i in (~finite).nonzero()[0])
        raise ValueError(f"the {of} hold {values[place].item()} at {place}; they must be finite")
    return values.detach().double()


def unit_rows(rows: Float[Tensor, "n d"], *, of: str) -> Float[Tensor, "n d"]:
    """Return unit vectors in float64, their rounding removed.

    Args:
        rows: Vectors of length 1.
        of: What they are, in the plural.

    Raises:
        ValueError: There are none, or a row is not finite or not of length 1.
    """
    rows = checked(rows, (None, None), of=of)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    row = int((lengths - 1).abs().argmax())
    if (lengths[row] - 1).abs() > _LENGTH_TOLERANCE:
        raise ValueError(
            f"row {row} of the {of} has length {lengths[row].item():.4g}; "
            "divide every row by its length"
        )
    unit: Tensor = rows / lengths
    return unit


def check_share(share: float, *, of: str) -> None:
    """Refuse what is not strictly between nothing and everything.

    Raises:
        ValueError: No number within 0..1, or at an end.
    """
    try:
        within = bool(0 < share < 1)
    except (TypeError, ValueError):
        within = False
    if not within:
        raise ValueError(f"{of} is {share!r}; it must lie between 0 and 1, both excluded")


def check_positive(value: float, *, of: str) -> None:
    """Refuse what is not a positive, finite number.

    Raises:
        ValueError: Zero, negative, infinite or not a number.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{of} is {value}; it must be positive and finite")

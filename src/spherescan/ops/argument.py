"""What every op refuses of its arguments: what is no tensor, no real number, or misshapen."""

import torch
from torch import Tensor


def sizes(name: str, value: Tensor, axes: str) -> torch.Size:
    """Return the sizes of an argument that decides those of others.

    Args:
        name: The argument.
        value: What was given.
        axes: What its axes are, separated by commas.

    Raises:
        TypeError: Not a tensor of real floating-point numbers.
        ValueError: Another number of axes.
    """
    expect_numbers(name, value)
    shape = value.shape
    expected = axes.count(",") + 1
    if len(shape) != expected:
        raise ValueError(
            f"{name} has shape {tuple(shape)}; expected {expected} axes ({axes}): "
            "unsqueeze adds one of size 1"
        )
    return shape


def expect(
    name: str, value: Tensor | None, shape: tuple[int, ...], *, dtype: torch.dtype | None = None
) -> None:
    """Refuse an argument that is not as it must be; it may be missing.

    Args:
        name: The argument.
        value: What was given.
        shape: What its shape must be.
        dtype: What its type must be; of real floating-point numbers when missing.

    Raises:
        TypeError: Not a tensor, or one of another type.
        ValueError: Another shape.
    """
    if value is None:
        return
    expect_numbers(name, value, dtype=dtype)
    expect_shape(name, value, shape)


def expect_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse another shape, which broadcasting might take.

    Raises:
        ValueError: Another shape.
    """
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {tuple(shape)}")


def expect_numbers(name: str, value: Tensor, *, dtype: torch.dtype | None = None) -> None:
    """Refuse what has another type than this, or when none is given, what is not real numbers.

    Casts would make whole numbers of other arguments, or drop imaginary parts.

    Raises:
        TypeError: Not a tensor, or one of another type.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is of type {type(value).__name__}; expected a tensor: "
            "torch.as_tensor makes one of arrays and lists"
        )
    if dtype is None and not value.is_floating_point():
        raise TypeError(
            f"{name} has dtype {value.dtype}; expected real floating-point numbers: "
            f"pass {name}.float(), of complex numbers their real or imaginary part"
        )
    if dtype is not None and value.dtype != dtype:
        raise TypeError(
            f"{name} has dtype {value.dtype}; expected {dtype}: pass {name}.to({dtype})"
        )

"""What all losses over classes share.

Letters: k classes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from spherescan.ops.argument import expect_shape
from spherescan.ops.targets import check_target


def check_classes(
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
    check_target(target, n_classes, of=of)


def cross_entropy(
    logits: Float[Tensor, "*batch k"], target: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return -log softmax(logits)_target for any shape, unreduced."""
    flat = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), target.long().reshape(-1), reduction="none"
    )
    return flat.reshape(target.shape)

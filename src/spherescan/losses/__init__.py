"""Losses: plain functions with one value per sample."""

from collections.abc import Callable

from torch import Tensor

from spherescan.losses.prototype import prototype_cosine_loss, prototype_softmax_loss
from spherescan.losses.regression import from_cosine, sphere_regression_loss, to_cosine

PROTOTYPE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": prototype_softmax_loss,
    "squared_cosine": prototype_cosine_loss,
}

__all__ = [
    "PROTOTYPE_LOSSES",
    "from_cosine",
    "prototype_cosine_loss",
    "prototype_softmax_loss",
    "sphere_regression_loss",
    "to_cosine",
]

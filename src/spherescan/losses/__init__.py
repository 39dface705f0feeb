"""Losses: plain functions with one value per sample."""

from collections.abc import Callable

from torch import Tensor

from spherescan.losses.local import (
    goodness,
    goodness_loss,
    local_cross_entropy,
    rust_trainer_loss,
    symmetric_goodness_loss,
)
from spherescan.losses.prototype import (
    hpn_rust_trainer_loss,
    prototype_cosine_loss,
    prototype_softmax_loss,
)
from spherescan.losses.regression import from_cosine, sphere_regression_loss, to_cosine

PROTOTYPE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": prototype_softmax_loss,
    "squared_cosine": prototype_cosine_loss,
    "rust_trainer": hpn_rust_trainer_loss,
}

__all__ = [
    "PROTOTYPE_LOSSES",
    "from_cosine",
    "goodness",
    "goodness_loss",
    "hpn_rust_trainer_loss",
    "local_cross_entropy",
    "prototype_cosine_loss",
    "prototype_softmax_loss",
    "rust_trainer_loss",
    "sphere_regression_loss",
    "symmetric_goodness_loss",
    "to_cosine",
]

"""Surgery: many gradients in, one direction out.

An aggregator is a function of the gradients; a weighting has state. Letters: t objectives,
p parameters.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from spherescan.surgery import rust_trainer
from spherescan.surgery.aligned_mtl import aligned_mtl, aligned_mtl_weights
from spherescan.surgery.cagrad import cagrad, cagrad_weights
from spherescan.surgery.gradnorm import EqualWeights, GradNorm
from spherescan.surgery.gradvac import GradVac
from spherescan.surgery.gram import gram_matrix
from spherescan.surgery.imtl_g import imtl_g, imtl_g_weights
from spherescan.surgery.mgda import mgda, mgda_weights
from spherescan.surgery.nash_mtl import nash_mtl, nash_mtl_weights
from spherescan.surgery.pcgrad import pcgrad, pcgrad_weights
from spherescan.surgery.rust_trainer import rust_cagradstep, rust_gradnorm, rust_pcgrad
from spherescan.surgery.uniform import mean_gradient, sum_gradients
from spherescan.surgery.upgrad import upgrad, upgrad_weights

Aggregator = Callable[[Float[Tensor, "t p"]], Float[Tensor, " p"]]

# Both have state_dict and load_state_dict.
Weighting = EqualWeights | GradNorm

AGGREGATORS: dict[str, Callable[..., Any]] = {
    "aligned_mtl": aligned_mtl,
    "cagrad": cagrad,
    "gradvac": GradVac,
    "imtl_g": imtl_g,
    "mean": mean_gradient,
    "mgda": mgda,
    "nash_mtl": nash_mtl,
    "pcgrad": pcgrad,
    "rust_cagradstep": rust_cagradstep,
    "rust_gradnorm": rust_gradnorm,
    "rust_pcgrad": rust_pcgrad,
    "sum": sum_gradients,
    "upgrad": upgrad,
}

WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "gradnorm": GradNorm,
    "none": EqualWeights,
}


def make_aggregator(name: str, **options: Any) -> Aggregator:
    """Look an aggregator up and set its options.

    Args:
        name: A key of `AGGREGATORS`.
        options: Keyword arguments of that method.

    Raises:
        ValueError: An unknown name, or an option that the method does not have.

    Example:
        >>> import torch
        >>> make_aggregator("cagrad", c=0.0)(torch.tensor([[2.0, 0.0], [0.0, 4.0]])).tolist()
        [1.0, 2.0]
    """
    method = _find("surgery method", AGGREGATORS, name, options)
    return method(**options) if isinstance(method, type) else functools.partial(method, **options)


def make_weighting(name: str, **options: Any) -> Weighting:
    """Look a weighting up in `WEIGHTINGS` and begin it; otherwise as `make_aggregator`."""
    weighting: Weighting = _find("weighting", WEIGHTINGS, name, options)(**options)
    return weighting


def _find(
    kind: str, known: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, object]
) -> Callable[..., Any]:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; choose one of {', '.join(sorted(known))}")
    parameters = inspect.signature(known[name]).parameters.values()
    accepted = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"{kind} {name!r} has no option {option!r}; it has {', '.join(accepted) or 'none'}"
            )
    return known[name]


__all__ = [
    "AGGREGATORS",
    "WEIGHTINGS",
    "Aggregator",
    "EqualWeights",
    "GradNorm",
    "GradVac",
    "Weighting",
    "aligned_mtl",
    "aligned_mtl_weights",
    "cagrad",
    "cagrad_weights",
    "gram_matrix",
    "imtl_g",
    "imtl_g_weights",
    "make_aggregator",
    "make_weighting",
    "mean_gradient",
    "mgda",
    "mgda_weights",
    "nash_mtl",
    "nash_mtl_weights",
    "pcgrad",
    "pcgrad_weights",
    "rust_cagradstep",
    "rust_gradnorm",
    "rust_pcgrad",
    "rust_trainer",
    "sum_gradients",
    "upgrad",
    "upgrad_weights",
]

"""Kernels as operators of torch, which can be traced, exported and differentiated."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

_NAMESPACE = "spherescan"
_LIBRARY: Any = torch.library.Library(_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(
    name: str,
    schema: str,
    run: Callable[..., Any],
    shapes: Callable[..., Any],
    *,
    gradients: Callable[..., Any] | None = None,
    remember: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Register an operator that returns new tensors and writes to none of its arguments.

    This is what `torch.library.custom_op` sets up, but for its guard of every call against torch's
    compiler: that guard imports the compiler, a second of every process that computes.

    Args:
        name: Its name in the namespace of this package.
        schema: Arguments and results, as torch writes them.
        run: What it computes; called with the arguments in order, never in forward mode.
        shapes: The same for tensors without values: returns empty tensors like the results.
        gradients: Backward pass, as `torch.library.register_autograd` takes it; when missing, the
            results have no gradient, and asking for one is an error.
        remember: What that pass needs, kept as `setup_context` of the same.
    """
    full_name = f"{_NAMESPACE}::{name}"
    way_out = "set SPHERESCAN_OPS=torch before the model is called, compiled or exported"

    def refuse(*_: Any) -> None:
        raise RuntimeError(f"{full_name} has no gradient of its own; {way_out}")

    def run_without_tangents(*arguments: Any) -> Any:
        # Ops take their torch form by themselves; an exported program cannot, nor the backward
        # pass of what was computed before. Without a tangent of its own a result would count as
        # constant.
        if forward_ad._current_level >= 0 and any(map(_has_tangent, arguments)):
            raise RuntimeError(f"{full_name} has no forward-mode derivative; {way_out}")
        return run(*arguments)

    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run_without_tangents, "CompositeExplicitAutograd")
    torch.library.register_fake(full_name, shapes, lib=_LIBRARY)
    torch.library.register_autograd(
        full_name, gradients or refuse, setup_context=remember, lib=_LIBRARY
    )
    found: Callable[..., Any] = getattr(torch.ops.spherescan, name).default
    return found


def _has_tangent(argument: Any) -> bool:
    # The level is that of the process: another thread may have opened it.
    if not isinstance(argument, torch.Tensor):
        return False
    dual = forward_ad.unpack_dual(argument)  # type: ignore[no-untyped-call]
    return dual.tangent is not None

"""Which form of an op runs: the plain reference, the fast torch form or the native kernels."""

import os
from typing import Literal

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from spherescan.errors import ConfigError
from spherescan.ops import native
from spherescan.ops.constant import constant_in_graphs

Form = Literal["reference", "torch", "native"]

ENVIRONMENT_VARIABLE = "SPHERESCAN_OPS"


# A compiled graph keeps the form it was traced with.
@constant_in_graphs
def selected_form() -> Form:
    """Return the form that `SPHERESCAN_OPS` forces, or the fastest one there is.

    Where derivatives are taken that kernels do not have, it is torch in place of native.

    Raises:
        ConfigError: The variable names a form that does not exist here.
    """
    form = _wanted_form()
    return "torch" if form == "native" and _beyond_gradients() else form


def _wanted_form() -> Form:
    name = os.environ.get(ENVIRONMENT_VARIABLE, "")
    match name:
        case "":
            return "torch" if native.unavailable() else "native"
        case "torch":
            return "torch"
        case "reference":
            return "reference"
        case "native":
            if reason := native.unavailable():
                raise ConfigError(
                    f"{ENVIRONMENT_VARIABLE}=native, but there are no native kernels: {reason}; "
                    "install with a C++ compiler, or use torch or reference"
                )
            return "native"
        case _:
            raise ConfigError(
                f"{ENVIRONMENT_VARIABLE}={name!r} is not a form of the ops; "
                "use native, torch or reference, or unset it"
            )


def form_for(*tensors: Tensor | None) -> Form:
    """Return the form that computes with these: the selected one, or torch where kernels cannot."""
    form = selected_form()
    return "torch" if form == "native" and not native.supports(*tensors) else form


def _beyond_gradients() -> bool:
    """Return whether derivatives are taken in a way that operators of ours cannot take part in.

    They know the backward pass of autograd alone: in forward mode their outputs would have no
    tangent, which counts as zero, and torch refuses them to `torch.func.grad` and its like. Plain
    `torch.vmap` takes no derivative.
    """
    # torch has no public name for either; both are read in a tenth of a microsecond.
    if forward_ad._current_level >= 0:
        return True
    if not _are_functorch_transforms_active():
        return False
    differentiating = {TransformType.Grad, TransformType.Jvp}
    return any(level.key() in differentiating for level in get_interpreter_stack() or ())


def only_operators() -> bool:
    """Return whether torch must see every call: while it compiles, and in its transforms.

    Elsewhere a kernel may be called past torch, which costs less.
    """
    return torch.compiler.is_compiling() or _are_functorch_transforms_active()


def records_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

"""Which form of an op runs: the plain reference, the fast torch form or the native kernels."""

import os
from typing import Literal

import torch
from torch import Tensor

from spherescan.errors import ConfigError
from spherescan.ops import native
from spherescan.ops.constant import constant_in_graphs

Form = Literal["reference", "torch", "native"]

ENVIRONMENT_VARIABLE = "SPHERESCAN_OPS"


# A compiled graph keeps the form it was traced with.
@constant_in_graphs
def selected_form() -> Form:
    """Return the form that `SPHERESCAN_OPS` forces, or the fastest one there is.

    Raises:
        ConfigError: The variable names a form that does not exist here.
    """
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


def records_gradient(*tensors: Tensor | None) -> bool:
    """Return whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

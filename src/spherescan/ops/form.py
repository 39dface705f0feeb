"""Which form of an op runs: the plain reference or the fast torch form."""

import os
from typing import Literal

from spherescan.errors import ConfigError

Form = Literal["reference", "torch"]

ENVIRONMENT_VARIABLE = "SPHERESCAN_OPS"


def selected_form() -> Form:
    """Return the form that `SPHERESCAN_OPS` forces, or the fastest one there is.

    Raises:
        ConfigError: The variable names a form that does not exist here.
    """
    name = os.environ.get(ENVIRONMENT_VARIABLE, "")
    match name:
        case "" | "torch":
            return "torch"
        case "reference":
            return "reference"
        case _:
            raise ConfigError(
                f"{ENVIRONMENT_VARIABLE}={name!r} is not a form of the ops; "
                "use reference or torch, or unset it"
            )

"""From cosines to what a person asked for.

Letters: n sequences, k classes.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherescan.data import Task
from spherescan.losses import from_cosine


def decide(
    task: Task, cosines: Float[Tensor, "n k"]
) -> list[str] | NDArray[np.float64] | NDArray[np.int64]:
    """Return the class name, the number or the next token of each sequence."""
    match task.kind:
        case "classification":
            return [task.class_names[i] for i in cosines.argmax(1)]
        case "regression":
            # In float64: a range may be narrow beside the size of its values.
            return from_cosine(cosines[:, 0].double(), lower=task.lower, upper=task.upper).numpy()
        case "next_token":
            return cosines.argmax(1).numpy()

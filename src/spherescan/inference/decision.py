"""From cosines to what a person asked for.

Letters: n sequences, k classes.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from spherescan.data import Task
from spherescan.errors import DataError
from spherescan.losses import from_cosine
from spherescan.nn import SequenceModel
from spherescan.nn.embedding import SeriesEmbedding

# In standard deviations of the training data.
_FAR = 1e15


def expect_moderate(
    model: SequenceModel,
    inputs: Float[Tensor, "n l c"] | Int[Tensor, "n l"],
    of: str,
    first: int = 0,
) -> None:
    """Check that values are not so large that their squares overflow inside the network.

    Args:
        model: Knows level and spread of the training data.
        inputs: Series, or tokens, which never are.
        of: Name of a series, in which {} stands for its number.
        first: Number of the first one.

    Raises:
        DataError: A value more than 1e15 times the spread of its channel away.
    """
    embedding = model.embedding
    if not isinstance(embedding, SeriesEmbedding) or inputs.numel() == 0:
        return
    far = ((inputs - embedding.mean) / embedding.std).abs().amax((1, 2))
    lost = ~(far < _FAR)
    if bool(lost.any()):
        name = of.format(first + int(lost.nonzero()[0]))
        raise DataError(
            f"{name} has values too large for the model; rescale them as in training, and leave "
            "out what stands for a missing one"
        )


def decide(
    task: Task, cosines: Float[Tensor, "n k"]
) -> list[str] | NDArray[np.float64] | NDArray[np.int64]:
    """Return the class name, the number or the next token of each sequence.

    Raises:
        DataError: Cosines that are not finite.
    """
    if not bool(cosines.isfinite().all()):
        raise DataError("the answer is not finite; look for values that are too large")
    match task.kind:
        case "classification":
            return [task.class_names[i] for i in cosines.argmax(1)]
        case "regression":
            # In float64: a range may be narrow beside the size of its values.
            return from_cosine(cosines[:, 0].double(), lower=task.lower, upper=task.upper).numpy()
        case "next_token":
            return cosines.argmax(1).numpy()

"""From cosines to what a person asked for.

Letters: n sequences, k classes.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from spherescan.data import Task
from spherescan.errors import DataError
from spherescan.losses import from_cosine
from spherescan.nn import SequenceModel
from spherescan.nn.embedding import SeriesEmbedding

# In standard deviations of the training data: the first layer may make a hundred times as much of
# it, and the sum of a thousand squares of that must stay below 3e38.
_FAR = 1e15


def expect_moderate(
    model: SequenceModel,
    inputs: Float[Tensor, "n l c"] | Int[Tensor, "n l"],
    mask: Bool[Tensor, "n l"] | None = None,
    *,
    of: str,
    first: int = 0,
) -> None:
    """Check that values are not so large that squares may overflow inside the network.

    Args:
        model: Knows level and spread of the training data.
        inputs: Series, or tokens, which never are.
        mask: True on real positions; all are when it is missing.
        of: Name of a series, in which {} stands for its number.
        first: Number of the first one.

    Raises:
        DataError: A value too far away, with its place.
    """
    embedding = model.embedding
    if not isinstance(embedding, SeriesEmbedding) or inputs.numel() == 0:
        return
    far = ~(embedding.standardised(inputs).abs() < _FAR)
    if mask is not None:
        far &= mask[:, :, None]
    if bool(far.any()):
        row, position, channel = far.nonzero()[0].tolist()
        raise DataError(
            f"{of.format(first + row)} has {inputs[row, position, channel]:.4g} at position "
            f"{position} of channel {channel}, too large for the model; rescale it as in training, "
            "and leave out what stands for a missing value"
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


def confidences(
    task: Task, cosines: Float[Tensor, "n k"], *, scale: float | None
) -> Float[Tensor, " n"] | None:
    """Return how sure each decision is: the largest probability, or else the largest cosine.

    Args:
        task: What is predicted; of a number there is none.
        cosines: With every prototype.
        scale: Of the softmax that the model was trained with, if it was.
    """
    if task.kind == "regression":
        return None
    return (cosines if scale is None else (scale * cosines).softmax(1)).amax(1)

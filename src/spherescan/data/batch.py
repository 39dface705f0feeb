"""What a training step receives.

Letters: b batch, l length, c series channels.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

# The target of a position that is not scored: padding, or the last token of a document.
NO_TARGET = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded at the end to a common length.

    Attributes:
        inputs: Token ids, or series.
        targets: A class or a number for each sequence, or the next token at each position
            (`NO_TARGET` where there is none).
        mask: True on real positions; they come first in each row.
        reset: True where a new document starts; None when every row is one document.
    """

    inputs: Int[Tensor, "b l"] | Float[Tensor, "b l c"]
    targets: Int[Tensor, " b"] | Float[Tensor, " b"] | Int[Tensor, "b l"]
    mask: Bool[Tensor, "b l"]
    reset: Bool[Tensor, "b l"] | None = None

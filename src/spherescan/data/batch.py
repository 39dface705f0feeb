"""What a training step receives, and what it is made from.

Letters: b batch, l length, c series channels.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


@runtime_checkable
class Source(Protocol):
    """Makes any batch of a run alone: nothing in it changes from one batch to the next."""

    def __len__(self) -> int:
        """Return the samples of an epoch, at least 1."""

    def batch(self, start: int, count: int) -> Batch:
        """Return samples `start` to `start + count` of the run; epochs follow each other."""

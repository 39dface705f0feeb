"""What a model answered, and what was right.

Letters: n sequences, k classes, d dimensions of the sphere.
"""

import html
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """How much sequences are like those of a class.

    Attributes:
        score: Of each sequence, the higher the more.
        without_own: What it would be if the class of the sequence had not been there.
        what: The score in words.
    """

    score: Float[Tensor, " n"]
    without_own: Float[Tensor, " n"]
    what: str


@dataclass(frozen=True, slots=True, eq=False)
class ClassAnswers:
    """Answers about classes.

    Attributes:
        source: What was asked, in words: "370 series of X".
        names: Of the classes.
        cosines: Of each sequence with each class.
        target: The class of each sequence.
        embeddings: Where on the sphere each sequence lies, unit rows.
        prototypes: Unit rows, one per class; classes that were added later may have none.
        scale: Of the cosines whose softmax are probabilities; None where there are none.
        items: What is classified: "series", "tokens".
        caution: A sentence about what was fitted to the same items, with a space before it.
        known: How much each sequence is like those of a class; by the largest cosine when missing.
    """

    source: str
    names: tuple[str, ...]
    cosines: Float[Tensor, "n k"]
    target: Int[Tensor, " n"]
    embeddings: Float[Tensor, "n d"]
    prototypes: Float[Tensor, "p d"]
    scale: float | None
    items: str = "series"
    caution: str = ""
    known: Known | None = None

    @property
    def predicted(self) -> Int[Tensor, " n"]:
        """The class of the largest cosine of each sequence."""
        return self.cosines.argmax(1)

    @property
    def accuracy(self) -> float:
        """Share of sequences that are given their class."""
        return float((self.predicted == self.target).double().mean())


@dataclass(frozen=True, slots=True, eq=False)
class NumberAnswers:
    """Answers that are numbers.

    Attributes:
        source: What was asked, in words.
        predicted: The number of each sequence.
        target: The true one.
        embeddings: Where on the sphere each sequence lies, unit rows.
        pole: The unit vector whose cosine the number is read from.
        half_width: Of intervals that hold nine of ten; None where nobody measured it.
        caution: A sentence about what was fitted to the same items, with a space before it.
    """

    source: str
    predicted: Float[Tensor, " n"]
    target: Float[Tensor, " n"]
    embeddings: Float[Tensor, "n d"]
    pole: Float[Tensor, " d"]
    half_width: float | None = None
    caution: str = ""

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return float((self.predicted - self.target).square().mean().sqrt())


def without_own(cosines: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """Return cosines with the class of each sequence opposite to it."""
    own = torch.nn.functional.one_hot(target, cosines.shape[1]).bool()
    return cosines.masked_fill(own, -1.0)


def plain(name: object) -> str:
    """Write a name so that plotly shows it as it is, instead of reading tags in it."""
    return html.escape(" ".join(str(name).split()) or " ", quote=False)


def thinned(n: int, most: int) -> Int[Tensor, " m"]:
    """Return at most so many of n indices, evenly spread, in order."""
    if n <= most:
        return torch.arange(n)
    return torch.linspace(0, n - 1, most, dtype=torch.float64).round().long()

"""How much a series is like those that were learned: how near its class, and how near one of them.

Letters: n training series, m series, f features, g of them kept, k classes.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherescan.calibration import auroc, largest_score
from spherescan.estimators.description import SeriesFeatures
from spherescan.features import FixedFeatures, ridge, seen_from_below
from spherescan.nn import separated_prototypes

OF_FAMILIARITY = ("rows", "weights", "left_out")  # tensors that a file holds

# Of a group of features so many are kept at most; the others say much the same.
_MOST_KEPT = 256
# What the distances may weigh, each in units of deviation, against the cosine.
_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
# Of two classes none can be left out to find the weights.
_UNTRIED = (1.0, 1.0)
# More series do not tell weights apart any better, and each part of the classes takes a fit.
_ENOUGH, _MOST_PARTS = 500, 10
# Series whose distances are taken at once.
_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Which of the features distances are taken in; none of tokens.

    Attributes:
        columns: Their indices; those of the statistics of channels are the last.
        stretch: What each is multiplied by, so that a group weighs as much as all of it would.
        n_statistics: How many are statistics of channels.
    """

    columns: Int[Tensor, " g"]
    stretch: Float[Tensor, " g"]
    n_statistics: int

    @classmethod
    def of(cls, features: SeriesFeatures) -> "Kept":
        """Spread them evenly over each group of fixed features.

        Where networks alone describe a series, they are the statistics that follow.
        """
        fixed = features.fixed
        columns, stretch, first = [], [], 0 if fixed else features.n_features
        *convolutions, n_statistics = (
            fixed.sizes if isinstance(fixed, FixedFeatures) else (features.n_statistics,)
        )
        for size in convolutions:
            n = min(size, _MOST_KEPT)
            columns.append(first + torch.arange(n) * size // n)
            stretch.append(torch.full((n,), (size / n) ** 0.5, dtype=torch.float64))
            first += size
        columns.append(first + torch.arange(n_statistics))
        stretch.append(torch.ones(n_statistics, dtype=torch.float64))
        return cls(torch.cat(columns), torch.cat(stretch), n_statistics)

    def __call__(self, described: Float[Tensor, "m f"]) -> Float[Tensor, "m g"]:
        """Return them of series that are described."""
        return described[:, self.columns]

    def distances(
        self,
        x: Float[Tensor, "m g"],
        nearest: Int[Tensor, " m"],
        rows: Float[Tensor, "n g"],
        target: Int[Tensor, " n"],
        *,
        same: bool = False,
    ) -> Float[Tensor, "m 2"]:
        """Return how far each series is from the nearest one of its nearest class.

        Args:
            x: The series.
            nearest: The class that each is nearest to.
            rows: Training series.
            target: Their classes.
            same: Whether `x` are the training series; each is then without itself, and where its
                class has no other, the nearest of all counts.

        Returns:
            The distance in statistics of channels, and that in all kept features.
        """
        found = torch.zeros(len(x), 2, dtype=torch.float64)
        every = torch.arange(len(rows))
        wide, all_rows = x * self.stretch, rows * self.stretch

        def take(asked: Int[Tensor, " a"], among: Int[Tensor, " b"]) -> None:
            for part in torch.split(asked, _AT_ONCE):
                squares = _squares(wide[part], all_rows[among], self.n_statistics)
                if same:
                    squares.masked_fill_(part[:, None] == among, torch.inf)
                found[part] = squares.amin(2).sqrt().T

        for index in torch.unique(nearest):
            take((nearest == index).nonzero()[:, 0], every[target == index])
        take(found.isinf().all(1).nonzero()[:, 0], every)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Familiarity:
    """Scores of series, the higher the more a series is like one that was learned.

        largest cosine - weights[0] |s - s_i| - weights[1] |x - x_j|

    s are statistics of channels and x all kept features; s_i and x_j are those of the training
    series of the nearest class that is nearest by each.

    Attributes:
        kept: Which features these are.
        rows: What they are of the training series.
        target: Classes of the training series.
        weights: None is below 0.
        left_out: Score of each training series, left out.
    """

    kept: Kept
    rows: Float[Tensor, "n g"]
    target: Int[Tensor, " n"]
    weights: Float[Tensor, " 2"]
    left_out: Float[Tensor, " n"]

    @classmethod
    def of(
        cls,
        features: SeriesFeatures,
        described: Float[Tensor, "n f"],
        target: Int[Tensor, " n"],
        cosines: Float[Tensor, "n k"],
        weights: Float[Tensor, " 2"] | None = None,
    ) -> "Familiarity":
        """Score training series, each left out.

        Args:
            features: Those of the series.
            described: The training series.
            target: Their classes.
            cosines: What each has with each class, left out.
            weights: When missing, those that tell series of classes that are left out in turn best
                from all others.
        """
        kept = Kept.of(features)
        rows = kept(described)
        distances = kept.distances(rows, cosines.argmax(1), rows, target, same=True)
        if weights is None:
            units = _units(cosines, distances)
            weights = units * _relative_weights(kept, features.for_ridge(described), rows, target)
        return cls(kept, rows, target, weights, largest_score(cosines) - distances @ weights)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], kept: Kept, target: Int[Tensor, " n"]
    ) -> "Familiarity":
        """Make it again from its tensors, which may come from anyone.

        Raises:
            ValueError: Another shape or type than fits, a value that is not finite, or a weight
                below 0.
            KeyError: A tensor is missing.
        """
        n = len(target)
        sizes = {
            "rows": (torch.float32, (n, len(kept.columns))),
            "weights": (torch.float64, (2,)),
            "left_out": (torch.float64, (n,)),
        }
        for name, (dtype, shape) in sizes.items():
            tensor = state[name]
            if tensor.dtype != dtype or tensor.shape != shape:
                raise ValueError(
                    f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, which does not fit "
                    f"{n} series and {len(kept.columns)} features"
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} holds a value that is not finite")
        if bool((state["weights"] < 0).any()):
            raise ValueError("weights holds a value below 0")
        return cls(kept, state["rows"], target, state["weights"], state["left_out"])

    def score(self, cosines: Float[Tensor, "m k"], x: Float[Tensor, "m g"]) -> Float[Tensor, " m"]:
        """Return the scores of new series.

        Args:
            cosines: With each class.
            x: What is kept of their features.
        """
        distances = self.kept.distances(x, cosines.argmax(1), self.rows, self.target)
        return largest_score(cosines) - distances @ self.weights


def _squares(
    x: Float[Tensor, "m g"], rows: Float[Tensor, "n g"], n_last: int
) -> Float[Tensor, "2 m n"]:
    """Return squared distances in the last columns, and in all.

    Pair by pair: a product of matrices rounds by what else is in them, and cancels digits.
    """
    split = x.shape[1] - n_last
    mode = "donot_use_mm_for_euclid_dist"
    first, last = (
        torch.cdist(a, b, compute_mode=mode).square()
        for a, b in ((x[:, :split], rows[:, :split]), (x[:, split:], rows[:, split:]))
    )
    return torch.stack([last, first + last])


def _units(cosines: Float[Tensor, "n k"], distances: Float[Tensor, "n 2"]) -> Float[Tensor, " 2"]:
    """Return how many deviations of the cosine go into one of each distance, 0 where none does."""
    spread = distances.std(0, correction=0)
    return torch.where(spread > 0, largest_score(cosines).std(correction=0) / spread, 0.0)


def _relative_weights(
    kept: Kept,
    described: Float[Tensor, "n f"],
    rows: Float[Tensor, "n g"],
    target: Int[Tensor, " n"],
) -> Float[Tensor, " 2"]:
    """Find weights, in deviations, by leaving classes out: how well are these then told apart?"""
    some = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))[:_ENOUGH]
    classes, target = torch.unique(target[some], return_inverse=True)
    k = len(classes)
    if not len(kept.columns) or k < 3:
        return torch.tensor(_UNTRIED, dtype=torch.float64)
    rows = rows[some]
    # Coordinates with the same inner products: n of them instead of f.
    wide = described[some]
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    x = vectors * values.clamp(min=0).sqrt()
    tried = list(itertools.product(_WEIGHTS, _WEIGHTS))
    grid = torch.tensor(tried, dtype=torch.float64)
    total = torch.zeros(len(grid), dtype=torch.float64)
    n_parts = min(k, _MOST_PARTS)
    for part in range(n_parts):
        out = target % n_parts == part
        left, own = torch.unique(target[~out], return_inverse=True)
        points = separated_prototypes(len(left), len(left) - 1).points
        fitted = ridge(x[~out], points[own])
        prototypes = seen_from_below(points)
        known, strange = (
            seen_from_below(z) @ prototypes.T for z in (fitted.left_out, fitted(x[out]))
        )
        at = rows[~out]
        near = kept.distances(at, known.argmax(1), at, own, same=True)
        away = kept.distances(rows[out], strange.argmax(1), at, own)
        weights = grid * _units(known, near)
        for i, weight in enumerate(weights):
            scores = largest_score(known) - near @ weight
            total[i] += auroc(scores, largest_score(strange) - away @ weight)
    return grid[total.argmax()]

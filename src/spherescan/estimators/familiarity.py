"""How much a series is like those that were learned: how near its class, and how near one of them.

Letters: n training series, m or b series, f features of a ridge, g with the statistics that follow,
q of those kept, k classes.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spherescan.calibration import auroc, largest_score
from spherescan.estimators.description import SeriesFeatures
from spherescan.estimators.saved_tensors import expect_tensor
from spherescan.features import FixedFeatures, ridge, seen_from_below
from spherescan.nn import separated_prototypes
from spherescan.ops.threads import one_thread, side_by_side

OF_FAMILIARITY = ("rows", "stretch", "weights", "left_out")  # tensors that a file holds

# Of a group of features so many are kept at most; the others say much the same.
_MOST_KEPT = 256
# What the distances may weigh against the cosine, each in units of its spread.
_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
# Where no class can be left out to find them: there are two, or networks have learned them all.
_UNTRIED = (0.5, 0.5)
# Weights that tell classes apart as well as the best, but for rounding: the nearest to those win.
_ROUNDING = 1e-9
# More series do not tell weights apart any better, and each part of the classes takes a fit.
_ENOUGH, _MOST_PARTS = 500, 10
# Series that vary within their class as all do, beside those that are there: few series say little.
_AS_IF = 5
# Of a sum of squares less what one series says so much is rounding.
_ROUNDED = 1e-12
# Series whose distances are taken at once.
_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Which of the features distances are taken in; none of tokens.

    Attributes:
        columns: Their indices: some of each group of convolutions, then statistics of channels.
        stretch: What each is multiplied by: so that a group weighs as much as all of it would, and
            the more, the better it tells classes apart.
        n_statistics: How many are statistics of channels.
    """

    columns: Int[Tensor, " q"]
    stretch: Float[Tensor, " q"]
    n_statistics: int

    @classmethod
    def of(cls, features: SeriesFeatures) -> "Kept":
        """Spread them evenly over each group of convolutions."""
        columns, stretch, first = [], [], 0
        fixed, n_statistics = features.fixed, features.n_statistics
        for size in fixed.sizes[:-1] if isinstance(fixed, FixedFeatures) else ():
            n = min(size, _MOST_KEPT)
            columns.append(first + torch.arange(n) * size // n)
            stretch.append(torch.full((n,), (size / n) ** 0.5, dtype=torch.float64))
            first += size
        columns.append(features.n_features + torch.arange(n_statistics))
        stretch.append(torch.ones(n_statistics, dtype=torch.float64))
        return cls(torch.cat(columns), torch.cat(stretch), n_statistics)

    def __call__(self, described: Float[Tensor, "m g"]) -> Float[Tensor, "m q"]:
        """Return them of series that are described."""
        return described[:, self.columns]

    def distances(
        self,
        x: Float[Tensor, "m q"],
        nearest: Int[Tensor, " m"],
        rows: Float[Tensor, "n q"],
        target: Int[Tensor, " n"],
    ) -> Float[Tensor, "m 2"]:
        """Return how far each series is from the nearest one of its nearest class.

        Args:
            x: The series.
            nearest: The class that each is nearest to.
            rows: Training series.
            target: Their classes.

        Returns:
            The distance in statistics of channels, and that in all kept features; 0 where there are
            no convolutions, of which it would repeat the first.
        """
        found = torch.zeros(len(x), 2, dtype=torch.float64)
        for index in torch.unique(nearest):
            others = rows[target == index] * self.stretch
            for part in torch.split((nearest == index).nonzero()[:, 0], _AT_ONCE):
                squares = _squares(x[part] * self.stretch, others, self.n_statistics)
                found[part] = squares.amin(2).sqrt().T
        return self.without_repeated(found)

    def without_repeated(self, found: Float[Tensor, "m 2"]) -> Float[Tensor, "m 2"]:
        """Return distances with those in all features 0, where these are statistics alone."""
        if len(self.columns) == self.n_statistics:
            found[:, 1] = 0
        return found


class _Telling:
    """How much kept features tell classes apart, of all training series or of all but one.

        r = T / ((S + 5 T) / (n - k + 5))

    T is the variance of a feature among n series and S the sum of squared departures from the means
    of k classes, to which five more series are added that depart as T says. A statistic that never
    varied is the most telling: its first move is a strong sign; a convolution that never varied has
    r = 1. Each feature is then multiplied by r / c, with one c for convolutions and one for
    statistics that leave their variance together as it was.

    Args:
        kept: The features as they are stretched so far.
        rows: Training series.
        target: Their classes.
    """

    def __init__(self, kept: Kept, rows: Float[Tensor, "n q"], target: Int[Tensor, " n"]) -> None:
        self._kept, self._rows, self._target = kept, rows.double(), target
        _, self._own, self._sizes = torch.unique(target, return_inverse=True, return_counts=True)
        means = [self._rows[self._own == index].mean(0) for index in range(len(self._sizes))]
        self._mean, self._means = self._rows.mean(0), torch.stack(means)
        self._apart = (self._rows - self._mean).square().sum(0)
        self._inside = (self._rows - self._means[self._own]).square().sum(0)
        self._varies = (rows != rows[0]).any(0)

    def kept(self) -> Kept:
        """Return the features, each stretched by how much it tells classes apart."""
        n, freedom = len(self._rows), torch.tensor([[len(self._rows) - len(self._sizes)]])
        sums = (self._apart[None], self._inside[None], self._varies[None])
        return replace(self._kept, stretch=self._stretch(*sums, n, freedom)[0])

    def left_out(self, nearest: Int[Tensor, " n"]) -> Float[Tensor, "n 2"]:
        """Return what `kept` and `Kept.distances` say of each training series without it.

        Where its nearest class has no other series, the nearest of all counts.
        """
        found = torch.zeros(len(nearest), 2, dtype=torch.float64)
        alone = torch.tensor(True).expand(len(nearest))
        for index in torch.unique(nearest):
            others = self._target == index
            some = (nearest == index) & (others.sum() > others.long())
            alone = alone & ~some
            self._fill(found, some, others)
        self._fill(found, alone, torch.ones_like(alone))
        return self._kept.without_repeated(found)

    def _fill(
        self, found: Float[Tensor, "n 2"], some: Bool[Tensor, " n"], others: Bool[Tensor, " n"]
    ) -> None:
        """Set distances of some training series to the nearest of others than themselves.

        Products of matrices find which one that is; they cancel digits, so how far it is comes from
        the difference.
        """
        of = others.nonzero()[:, 0]
        rows = self._rows[of] - self._mean
        squared = rows.square()
        first = len(self._kept.columns) - self._kept.n_statistics
        for part in torch.split(some.nonzero()[:, 0], _AT_ONCE):
            x = self._rows[part] - self._mean
            weights = self._without(part).square()
            itself = part[:, None] == of
            for column, columns in enumerate((slice(first, None), slice(None))):
                w, z, r = weights[:, columns], x[:, columns], rows[:, columns]
                squares = w @ squared[:, columns].T - 2 * (w * z) @ r.T
                near = squares.masked_fill(itself, torch.inf).argmin(1)
                found[part, column] = (w * (z - r[near]).square()).sum(1).sqrt()

    def _without(self, part: Int[Tensor, " b"]) -> Float[Tensor, "b q"]:
        """Return what each feature is multiplied by, as if one series was not there, for each."""
        n, own = len(self._rows), self._own[part]
        x, size = self._rows[part], self._sizes[own][:, None].double()
        apart = self._apart - (x - self._mean).square() * (n / (n - 1))
        inside = self._inside - (x - self._means[own]).square() * (size / (size - 1).clamp(min=1))
        varies = self._varies & (apart > _ROUNDED * self._apart)
        freedom = n - 1 - len(self._sizes) + (size == 1).long()
        return self._stretch(apart, inside, varies, n - 1, freedom)

    def _stretch(
        self,
        apart: Float[Tensor, "b q"],
        inside: Float[Tensor, "b q"],
        varies: Bool[Tensor, "b q"],
        n: int,
        freedom: Int[Tensor, "b 1"],
    ) -> Float[Tensor, "b q"]:
        """Return what each feature is multiplied by.

        Args:
            apart: Sum of squared departures from the mean.
            inside: The same from the means of classes.
            varies: Whether there are departures.
            n: How many series there are.
            freedom: The same, less classes.
        """
        variance = torch.where(varies, apart / n, 0.0)
        within = (inside.clamp(min=0) + _AS_IF * variance) / (freedom + _AS_IF)
        ratio = torch.where(varies, variance / within, 1.0)
        first = ratio.shape[1] - self._kept.n_statistics
        if self._kept.n_statistics:
            most = ratio[:, first:].amax(1, keepdim=True)
            ratio[:, first:] = torch.where(varies[:, first:], ratio[:, first:], most)
        variance = variance * self._kept.stretch.square()
        for part in (slice(0, first), slice(first, None)):
            whole = variance[:, part].sum(1, keepdim=True)
            leaves = (variance[:, part] * ratio[:, part].square()).sum(1, keepdim=True)
            ratio[:, part] /= torch.where(whole > 0, leaves / whole, 1.0).sqrt()
        return self._kept.stretch * ratio


@dataclass(frozen=True, slots=True, eq=False)
class Familiarity:
    """Scores of series, the higher the more a series is like one that was learned.

        largest cosine - weights[0] |s - s_i| - weights[1] |x - x_j|

    s are statistics of channels and x all kept features; s_i and x_j are those of the training
    series of the nearest class that is nearest by each. The better a feature tells classes apart,
    the more it counts.

    Weights are found by leaving classes out in turn: those that tell their series best from those
    of the others. Networks have learned all classes, so their features take no part in that; where
    they alone describe series, or there are two classes, each distance weighs half as much as the
    cosine.

    Attributes:
        kept: Which features these are.
        rows: What they are of the training series.
        target: Classes of the training series.
        weights: None is below 0.
        left_out: Score of each training series, left out.
    """

    kept: Kept
    rows: Float[Tensor, "n q"]
    target: Int[Tensor, " n"]
    weights: Float[Tensor, " 2"]
    left_out: Float[Tensor, " n"]

    @classmethod
    def of(
        cls,
        features: SeriesFeatures,
        described: Float[Tensor, "n g"],
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
            weights: To be found when missing.
        """
        plain = Kept.of(features)
        rows = plain(described)
        telling = _Telling(plain, rows, target)
        distances = telling.left_out(cosines.argmax(1))
        if weights is None:
            n_fixed = 0 if features.fixed is None else features.fixed.n_features
            relative = _relative_weights(plain, described[:, :n_fixed], rows, target)
            weights = _units(cosines, distances) * relative
        left_out = largest_score(cosines) - distances @ weights
        return cls(telling.kept(), rows, target, weights, left_out)

    @classmethod
    def of_state(
        cls, state: Mapping[str, Tensor], kept: Kept, target: Int[Tensor, " n"]
    ) -> "Familiarity":
        """Make it again from its tensors, which may come from anyone.

        Raises:
            ValueError: A tensor is missing, of another shape or type than fits, or holds a value
                that cannot be.
        """
        n, q = len(target), len(kept.columns)
        shapes = {"rows": (n, q), "stretch": (q,), "weights": (2,), "left_out": (n,)}
        for name, shape in shapes.items():
            if name not in state:
                raise ValueError(
                    f"no {name} of known scores; if an earlier version saved it, fit it again"
                )
            dtype = torch.float32 if name == "rows" else torch.float64
            fits = f"{n} series and {q} features"
            expect_tensor(f"{name} of known scores", state[name], dtype, shape, fits=fits)
        for name in ("weights", "stretch"):
            if bool((state[name] < 0).any()):
                raise ValueError(f"{name} of known scores holds a value below 0")
        kept = replace(kept, stretch=state["stretch"])
        return cls(kept, state["rows"], target, state["weights"], state["left_out"])

    @property
    def stretch(self) -> Float[Tensor, " q"]:
        """What each kept feature is multiplied by."""
        return self.kept.stretch

    @property
    def in_words(self) -> str:
        """What a score is."""
        if not bool(self.weights.any()):
            return "largest cosine"
        return (
            "known score (its largest cosine, less how far the nearest training series of that "
            "class is)"
        )

    def score(self, cosines: Float[Tensor, "m k"], x: Float[Tensor, "m q"]) -> Float[Tensor, " m"]:
        """Return the scores of new series.

        Args:
            cosines: With each class.
            x: What is kept of their features.
        """
        distances = self.kept.distances(x, cosines.argmax(1), self.rows, self.target)
        return largest_score(cosines) - distances @ self.weights


def _squares(
    x: Float[Tensor, "m q"], rows: Float[Tensor, "n q"], n_last: int
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
    """Return the spread of the cosine in that of each distance; 0 of a distance without one."""
    spread = _spread(distances)
    return torch.where(spread > 0, _spread(largest_score(cosines)) / spread, 0.0)


def _spread(values: Float[Tensor, "n ..."]) -> Float[Tensor, "..."]:
    """Return how far apart quartiles are, which a few strange values do not change."""
    return values.quantile(0.75, dim=0) - values.quantile(0.25, dim=0)


def _relative_weights(
    kept: Kept,
    x: Float[Tensor, "n f"],
    rows: Float[Tensor, "n q"],
    target: Int[Tensor, " n"],
) -> Float[Tensor, " 2"]:
    """Find weights in units of spread."""
    some = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))[:_ENOUGH]
    classes, target = torch.unique(target[some], return_inverse=True)
    k = len(classes)
    untried = torch.tensor(_UNTRIED, dtype=torch.float64)
    if not len(kept.columns) or not x.shape[1] or k < 3:
        return untried
    rows, wide = rows[some], x[some].double()
    # Coordinates with the same inner products: n of them instead of f.
    inner = wide @ wide.T
    with one_thread():
        values, vectors = torch.linalg.eigh(inner)
    x = vectors * values.clamp(min=0).sqrt()
    grid = torch.tensor(list(itertools.product(_WEIGHTS, _WEIGHTS)), dtype=torch.float64)
    n_parts = min(k, _MOST_PARTS)

    def areas(part: int) -> Float[Tensor, " w"]:
        out = target % n_parts == part
        left, own = torch.unique(target[~out], return_inverse=True)
        points = separated_prototypes(len(left), len(left) - 1).points
        fitted = ridge(x[~out], points[own])
        prototypes = seen_from_below(points)
        known, strange = (
            seen_from_below(z) @ prototypes.T for z in (fitted.left_out, fitted(x[out]))
        )
        telling = _Telling(kept, rows[~out], own)
        near = telling.left_out(known.argmax(1))
        away = telling.kept().distances(rows[out], strange.argmax(1), rows[~out], own)
        found = []
        for weights in grid * _units(known, near):
            scores = largest_score(known) - near @ weights
            found.append(auroc(scores, largest_score(strange) - away @ weights))
        return torch.tensor(found, dtype=torch.float64)

    mean = torch.stack(side_by_side([partial(areas, part) for part in range(n_parts)])).mean(0)
    as_good = grid[mean >= mean.max() - _ROUNDING]
    return as_good[(as_good - untried).square().sum(1).argmin()]

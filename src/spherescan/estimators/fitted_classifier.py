"""What a classifier of series has found when it is fitted, and what it computes from it.

Letters: n and m series, f features of the ridge, g with the statistics that may follow, e
dimensions of the ridge's outputs, d = e + 1, k classes, a of them added, c = k + a.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from spherescan.calibration import fit_scale, laplace_smoothing, probabilities
from spherescan.estimators.description import SeriesFeatures
from spherescan.estimators.familiarity import Familiarity
from spherescan.estimators.saved_tensors import expect_tensor
from spherescan.estimators.stream import ClassAnswer
from spherescan.features import added_cosine, seen_from_below
from spherescan.ops.threads import one_thread

TENSORS = (
    "weight", "bias", "prototypes", "left_out", "target", "added_weight", "added_bias",
    "added_reach",
)  # fmt: skip

# That a file has of series that thresholds were taken from.
OF_CALIBRATION = ("cosines", "target", "known")

# That a cosine is, but for rounding.
_LARGEST_COSINE = 1 + 1e-9

# Smallest singular value of prototypes that span the sphere; those of a fit have at least 0.7.
_LEAST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What series got from which thresholds come: cosines, classes, and how much each is known."""

    cosines: Float[Tensor, "m c"]
    target: Int[Tensor, " m"]
    known: Float[Tensor, " m"]

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], n_classes: int) -> "Calibration | None":
        """Make it again from its tensors, which may come from anyone; None where there are none.

        Raises:
            ValueError: A tensor is missing, of another shape or type, or holds a value that cannot
                be.
        """
        if not state:
            return None
        missing = set(OF_CALIBRATION) - set(state)
        if missing:
            raise ValueError(f"no {min(missing)} of calibration")
        cosines, target = state["cosines"], state["target"]
        n = max(1, target.numel())  # no series tell nothing
        shapes = {"cosines": (n, n_classes), "target": (n,), "known": (n,)}
        for name, shape in shapes.items():
            dtype = torch.int64 if name == "target" else torch.float64
            fits = f"{n} series and {n_classes} classes"
            expect_tensor(f"{name} of calibration", state[name], dtype, shape, fits=fits)
        in_range = (target >= 0) & (target < n_classes)
        if not bool((cosines.abs() <= _LARGEST_COSINE).all() & in_range.all()):
            raise ValueError("calibration holds a value that cannot be")
        return cls(**{name: state[name] for name in OF_CALIBRATION})


@dataclass(frozen=True, slots=True, eq=False)
class FittedClassifier:
    """What fitting found.

    `classes` are the labels, those of the a classes that were added last. `left_out` are the
    cosines of training series, `target` their classes, and `described` their features; none where
    they were not saved. `familiarity` says how much a series is like those of training.
    `calibration` is of series that fitting did not see; none before `calibrate`.
    """

    classes: NDArray[Any]
    features: SeriesFeatures
    weight: Float[Tensor, "f e"]
    bias: Float[Tensor, " e"]
    prototypes: Float[Tensor, "k d"]
    left_out: Float[Tensor, "n c"]
    target: Int[Tensor, " n"]
    added_weight: Float[Tensor, "a f"]
    added_bias: Float[Tensor, " a"]
    added_reach: Float[Tensor, " a"]
    scale: float
    described: Float[Tensor, "n g"] | None
    familiarity: Familiarity
    calibration: Calibration | None = None

    @property
    def judged(self) -> Calibration:
        """What thresholds come from: series that fitting did not see, or else those left out."""
        if self.calibration is not None:
            return self.calibration
        return Calibration(self.left_out, self.target, self.familiarity.left_out)

    def points(self, described: Float[Tensor, "m g"]) -> Float[Tensor, "m e"]:
        """Return where series lie among the corners, before they are seen from below."""
        return self.features.for_ridge(described) @ self.weight + self.bias

    def cosines(self, described: Float[Tensor, "m g"]) -> Float[Tensor, "m c"]:
        """Return how near series are to all classes."""
        x = self.features.for_ridge(described)
        z = self.points(x)
        found = seen_from_below(z) @ self.prototypes.T
        if not len(self.added_bias):
            return found
        # One by one: a product of another width may round in another way.
        t = torch.stack([x @ weight for weight in self.added_weight], 1) + self.added_bias
        squared = z.square().sum(1, keepdim=True).expand_as(t)
        return torch.cat([found, added_cosine(t, squared, self.added_reach)], 1)

    def answer(
        self,
        threshold: float,
        unknown_label: Any,
        n_steps: int,
        described: Float[Tensor, "1 g"],
    ) -> ClassAnswer:
        """Answer for a stream.

        Args:
            threshold: Of how much a series is like those of a class; below it, it is unknown.
            unknown_label: What is then said.
            n_steps: Samples of the stream.
            described: Features of what it had.
        """
        cosines = self.cosines(described)
        known = float(self.familiarity.score(cosines, self.familiarity.kept(described)))
        shares = probabilities(cosines, self.scale)[0].numpy()
        best = int(cosines[0].argmax())
        label = unknown_label if known < threshold else self.classes[best]
        return ClassAnswer(n_steps, label, float(shares[best]), shares, cosines[0].numpy(), known)

    def left_out_squared(self, cosines: Float[Tensor, "m c"]) -> Float[Tensor, " m"]:
        """Return the square of how far from the middle series lie, from their cosines."""
        seen = torch.linalg.solve(self.prototypes, cosines[:, : len(self.prototypes)].T)
        return seen[-1].clamp(min=1e-12) ** -2 - 1


def expect_sound(
    tensors: Mapping[str, Tensor | None], features: SeriesFeatures, n_classes: int, scale: float
) -> None:
    """Check what came from a file.

    Raises:
        ValueError: Shapes that do not fit each other, or a value that cannot be.
    """
    there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    target, n_features = there["target"], features.n_features
    # One series at least, and two classes that were not added.
    n, added = max(1, target.numel()), min(there["added_bias"].numel(), n_classes - 2)
    k = n_classes - added
    shapes = {
        "weight": (n_features, k - 1),
        "bias": (k - 1,),
        "prototypes": (k, k),
        "left_out": (n, n_classes),
        "target": (n,),
        "added_weight": (added, n_features),
        "added_bias": (added,),
        "added_reach": (added,),
        "described": (n, n_features + features.n_statistics),
    }
    types = {"target": torch.int64, "described": torch.float32}
    fits = f"{n_classes} classes and {n_features} features"
    for name, tensor in there.items():
        expect_tensor(name, tensor, types.get(name, torch.float64), shapes[name], fits=fits)
    if not bool((there["added_reach"] > 0).all()):
        raise ValueError("added_reach holds a value that is not above 0")
    if not bool((there["left_out"].abs() <= _LARGEST_COSINE).all()):
        raise ValueError("left_out holds a value that is no cosine")
    _expect_spread(there["prototypes"])
    if not bool(((target >= 0) & (target < n_classes)).all()) or not 0 <= scale < math.inf:
        raise ValueError(f"a class outside 0..{n_classes - 1}, or the scale {scale}")
    if len(torch.unique(target)) < n_classes:
        raise ValueError("a class without training series")


def _expect_spread(prototypes: Float[Tensor, "k d"]) -> None:
    """Check the rows.

    Raises:
        ValueError: They are no unit vectors, or not as many directions as there are rows.
    """
    if not torch.allclose(prototypes.norm(dim=1), torch.ones(1, dtype=torch.float64)):
        raise ValueError("prototypes holds rows that are no unit vectors")
    if float(torch.linalg.svdvals(prototypes).min()) < _LEAST_SPREAD:
        raise ValueError("prototypes holds rows that depend on each other")


def scale_of(left_out: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> float:
    """Fit the scale of probabilities to series that were left out."""
    with one_thread():  # some ten steps, each of which takes no time
        return fit_scale(left_out, target, smoothing=laplace_smoothing(*left_out.shape))

"""A classifier of series after scikit-learn's habits.

Letters: n series, f features, e dimensions of the ridge's outputs, d = e + 1, k classes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional

from spherescan.calibration import (
    fit_scale,
    known_threshold,
    lac_scores,
    largest_score,
    prediction_sets,
    probabilities,
    set_threshold,
)
from spherescan.errors import CheckpointError
from spherescan.estimators.saved import SavedClassifier, label_type, saved_of
from spherescan.estimators.sequences import checked_labels, described, fitted_features, padded
from spherescan.features import FixedFeatures, ridge
from spherescan.nn import separated_prototypes
from spherescan.paths import user_path
from spherescan.runs import read_checkpoint, write_checkpoint

_TENSORS = ("weight", "bias", "prototypes", "left_out", "target")


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """What fitting found; `left_out` are the cosines of training series, `target` their classes."""

    features: FixedFeatures
    weight: Float[Tensor, "f e"]
    bias: Float[Tensor, " e"]
    prototypes: Float[Tensor, "k d"]
    left_out: Float[Tensor, "n k"]
    target: Int[Tensor, " n"]
    scale: float

    def expect_sound(self, n_classes: int) -> None:
        """Check what came from a file.

        Raises:
            ValueError: Shapes that do not fit each other, or a value that cannot be.
        """
        n, e, k = self.target.numel(), self.bias.numel(), n_classes
        shapes = {
            "weight": (self.features.n_features, e),
            "bias": (e,),
            "prototypes": (k, e + 1),
            "left_out": (n, k),
            "target": (n,),
        }
        for name in _TENSORS:
            tensor = getattr(self, name)
            wanted = torch.int64 if name == "target" else torch.float64
            if tensor.shape != shapes[name] or tensor.dtype != wanted or n == 0:
                raise ValueError(
                    f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, which does not fit "
                    f"{k} classes and {self.features.n_features} features"
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} holds a value that is not finite")
        if not torch.allclose(self.prototypes.norm(dim=1), torch.ones(k, dtype=torch.float64)):
            raise ValueError("prototypes holds rows that are no unit vectors")
        if (
            not bool(((self.target >= 0) & (self.target < k)).all())
            or not 0 <= self.scale < math.inf
        ):
            raise ValueError(f"a class outside 0..{k - 1}, or the scale {self.scale}")


class SequenceClassifier(
    ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator
):
    """Classify series by fixed convolutions and a closed-form map onto the sphere.

    Each class is a corner of a regular simplex of radius 1, at height 1 above the origin. A ridge
    regression takes convolution features to the corner of the class; seen from the origin, the
    corners are the prototypes and the output is the embedding. So a series has the largest cosine
    where it should be, and less on both sides: close to the middle of the simplex, where features
    say nothing, and far out, where no training series was. What each training series would have
    got had it been left out of the regression comes with its solution, and sets probabilities and
    thresholds.

    Args:
        n_features: About how many convolution features of the series, at least 84, and as many of
            its differences; Hydra's come on top.
        random_state: Seed of the kernels; see scikit-learn's glossary.

    Attributes:
        classes_: The labels, sorted, of shape (k,).
        n_channels_: Channels of a series.
        n_features_in_: Length of the series, where X had two axes.
        prototypes_: Points of the classes, unit rows, of shape (k, d) with d = k.
        left_out_cosines_: Of each training series with each prototype, left out, of shape (n, k).
        scale_: Scale of the cosines whose softmax is `predict_proba`.

    References:
        Dempster, Schmidt, Webb, 2021, arXiv:2012.08791 (MiniRocket) and 2023, arXiv:2203.13652
        (Hydra), whose classifiers are ridge regressions on their features too.

    Example:
        >>> import numpy as np
        >>> t = np.linspace(0, 6, 60)
        >>> rng = np.random.default_rng(0)
        >>> X = [np.sin(f * t) + 0.1 * rng.standard_normal(60) for f in [2] * 8 + [3] * 8]
        >>> y = ["slow"] * 8 + ["fast"] * 8
        >>> classifier = SequenceClassifier(random_state=0).fit(X, y)
        >>> classifier.predict([np.sin(2.9 * t[:40]), np.sin(2.1 * t)]).tolist()
        ['fast', 'slow']
    """

    n_features: int
    random_state: int | np.random.RandomState | None
    classes_: NDArray[Any]
    _fitted: _Fitted

    @no_type_check  # scikit-learn's convention: values are looked at in `fit`
    def __init__(
        self, *, n_features: int = 5040, random_state: int | np.random.RandomState | None = None
    ) -> None:
        self.n_features = n_features
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "SequenceClassifier":
        """Fit to labelled series.

        Args:
            X: An array of shape (n_cases, n_channels, n_timepoints) or (n_cases, n_timepoints), or
                a list of arrays (n_channels, n_timepoints) or (n_timepoints,) of any lengths.
            y: Labels of shape (n_cases,).

        Raises:
            ValueError: X or y that scikit-learn would refuse, a single class, or too few features.
            TypeError: A number of features that is no whole number.
        """
        self.__dict__.pop("_fitted", None)  # what fails from here on leaves nothing fitted
        batch = padded(self, X, reset=True)
        labels = checked_labels(batch, y)
        self.classes_, indices = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has the one class {self.classes_[0]!r}; a classifier needs at least two classes"
            )
        target = torch.from_numpy(indices)
        features, of_series, generator = fitted_features(self, batch)
        k = len(self.classes_)
        points = separated_prototypes(k, max(1, k - 1), generator=generator).points
        fitted = ridge(of_series, points[target])
        prototypes = _seen_from_below(points)
        left_out = _seen_from_below(fitted.left_out) @ prototypes.T
        # Laplace's rule of right and wrong: never certain, however separable the series are.
        scale = fit_scale(left_out, target, smoothing=k / ((k - 1) * (len(target) + 2)))
        return self._keep(
            _Fitted(features, fitted.weight, fitted.bias, prototypes, left_out, target, scale)
        )

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class whose prototype is nearest, for each series; shape (n_cases,)."""
        nearest = self._cosines(X).argmax(1).numpy()
        return self.classes_[nearest]

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return cosines with the prototypes, of shape (n_cases, k).

        Of two classes, as scikit-learn has it, what the second has more, of shape (n_cases,).
        """
        cosines = self._cosines(X).numpy()
        return cosines[:, 1] - cosines[:, 0] if len(self.classes_) == 2 else cosines

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, calibrated on left-out series; (n_cases, k)."""
        cosines = self._cosines(X)
        return probabilities(cosines, self._fitted.scale).numpy()

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Return where on the sphere each series lies: unit rows of shape (n_cases, d)."""
        return self._embeddings(X).numpy()

    def predict_open(
        self, X: Any, *, rejection: float = 0.05, unknown_label: Any = "unknown"
    ) -> NDArray[np.object_]:
        """Predict as `predict` does, but say when a series is like no class.

        A series is unknown when its largest cosine is below that which a share of `rejection` of
        the training series had when they were left out.

        Args:
            X: Series.
            rejection: Share of series of known classes one is ready to call unknown.
            unknown_label: What they are called.

        Returns:
            Labels as objects, of shape (n_cases,).

        Raises:
            ValueError: Too few training series for such a rate, or a label that is a class.
        """
        check_is_fitted(self)
        if unknown_label in self.classes_.tolist():
            raise ValueError(f"{unknown_label!r} is a class; choose another unknown_label")
        threshold = known_threshold(largest_score(self._fitted.left_out), rejection=rejection)
        cosines = self._cosines(X)
        found = self.classes_[cosines.argmax(1).numpy()].astype(object)
        found[(largest_score(cosines) < threshold).numpy()] = unknown_label
        return found

    def predict_set(
        self, X: Any, *, coverage: float = 0.9, never_empty: bool = False
    ) -> NDArray[np.bool_]:
        """Return for each series the set of classes that holds the true one with a probability.

        Args:
            X: Series.
            coverage: That probability, on the average over training and new series.
            never_empty: Whether the nearest class is always inside. An empty set, which is wrong,
                says that no class fits; without any, sets hold the truth more often than asked
                for where the classifier is right more often than that.

        Returns:
            Whether a class is in the set of a series, of shape (n_cases, k).

        Raises:
            ValueError: A coverage outside 0..1.
        """
        check_is_fitted(self)
        fitted = self._fitted
        scores = lac_scores(probabilities(fitted.left_out, fitted.scale))
        threshold = set_threshold(scores, fitted.target, coverage=coverage)
        found = lac_scores(probabilities(self._cosines(X), fitted.scale))
        return prediction_sets(found, threshold, never_empty=never_empty).numpy()

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether `fit` has come to its end."""
        return "_fitted" in self.__dict__

    def save(self, path: str | Path) -> None:
        """Write everything that predictions need to one new safetensors file.

        Raises:
            CheckpointError: Another file has the name.
            StorageError: The disk refused.
            ValueError: Labels of a type that a file cannot hold.
        """
        check_is_fitted(self)
        fitted = self._fitted
        saved = SavedClassifier(
            **SavedClassifier.common(self, fitted.features),
            label_type=label_type(self.classes_),
            labels=tuple(self.classes_.tolist()),
            scale=fitted.scale,
        )
        tensors = {name: getattr(fitted, name) for name in _TENSORS}
        features = fitted.features.state_dict(prefix="features.")
        write_checkpoint(user_path(path), tensors | features, saved.state(type(self).__name__))

    @classmethod
    def load(cls, path: str | Path) -> "SequenceClassifier":
        """Read what `save` wrote, by whoever: no code in it is run.

        Raises:
            CheckpointError: The file is missing, damaged, or of another kind.
        """
        checkpoint = read_checkpoint(user_path(path))
        try:
            saved = saved_of(SavedClassifier, checkpoint.state, cls.__name__)
            tensors = {name: checkpoint.tensors[name] for name in _TENSORS}
            stored = checkpoint.below("features.")
            features = FixedFeatures.of_state(stored, saved.length)
            fitted = _Fitted(features, **tensors, scale=saved.scale)
            labels = saved.classes()
            fitted.expect_sound(len(labels))
        except (ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} holds no {cls.__name__}: {reason}") from error
        made = cls(n_features=saved.n_features, random_state=saved.random_state)
        made.classes_ = labels
        saved.restore(made, features)
        return made._keep(fitted)

    def _keep(self, fitted: _Fitted) -> "SequenceClassifier":
        self._fitted = fitted
        self.prototypes_, self.scale_ = fitted.prototypes.numpy(), fitted.scale
        self.left_out_cosines_ = fitted.left_out.numpy()
        self._n_features_out = self.prototypes_.shape[1]
        return self

    def _cosines(self, X: Any) -> Float[Tensor, "n k"]:
        embeddings = self._embeddings(X)
        return embeddings @ self._fitted.prototypes.T

    def _embeddings(self, X: Any) -> Float[Tensor, "n d"]:
        check_is_fitted(self)
        features = described(self, self._fitted.features, X)
        return _seen_from_below(features @ self._fitted.weight + self._fitted.bias)


def _seen_from_below(z: Float[Tensor, "n e"]) -> Float[Tensor, "n d"]:
    """Lift points to height 1 and return the directions in which they lie."""
    return functional.normalize(functional.pad(z, (0, 1), value=1.0), dim=1)

"""A classifier of series after scikit-learn's habits.

Letters: n series, f features, e dimensions of the ridge's outputs, d = e + 1, k classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from sklearn.utils import estimator_html_repr
from sklearn.utils.validation import check_is_fitted
from torch import Generator, Tensor
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
from spherescan.estimators.pages import Clock, page_of_classifier, short_form
from spherescan.estimators.saved import SavedClassifier, label_type, saved_of
from spherescan.estimators.sequences import (
    checked_labels,
    described,
    expect_whole,
    fitted_features,
    padded,
)
from spherescan.features import FixedFeatures, added_cosine, class_column, ridge
from spherescan.nn import separated_prototypes
from spherescan.paths import user_path
from spherescan.report import ClassAnswers, page_path, write_page
from spherescan.runs import read_checkpoint, write_checkpoint

_TENSORS = (
    "weight", "bias", "prototypes", "left_out", "target", "added_weight", "added_bias",
    "added_reach",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """What fitting found.

    `left_out` are the cosines of training series, `target` their classes, and `described` their
    features; none where they were not saved. The a classes that were added come last.
    """

    features: FixedFeatures
    weight: Float[Tensor, "f e"]
    bias: Float[Tensor, " e"]
    prototypes: Float[Tensor, "k d"]
    left_out: Float[Tensor, "n c"]
    target: Int[Tensor, " n"]
    added_weight: Float[Tensor, "a f"]
    added_bias: Float[Tensor, " a"]
    added_reach: Float[Tensor, " a"]
    scale: float
    described: Float[Tensor, "n f"] | None

    def points(self, described: Float[Tensor, "m f"]) -> Float[Tensor, "m e"]:
        """Return where series lie among the corners, before they are seen from below."""
        return described @ self.weight + self.bias

    def cosines(self, described: Float[Tensor, "m f"]) -> Float[Tensor, "m c"]:
        """Return how near series are to all classes."""
        z = self.points(described)
        found = _seen_from_below(z) @ self.prototypes.T
        if not len(self.added_bias):
            return found
        # One by one: a product of another width may round in another way.
        t = torch.stack([described @ weight for weight in self.added_weight], 1) + self.added_bias
        squared = z.square().sum(1, keepdim=True).expand_as(t)
        return torch.cat([found, added_cosine(t, squared, self.added_reach)], 1)

    def left_out_squared(self, cosines: Float[Tensor, "m c"]) -> Float[Tensor, " m"]:
        """Return the square of how far from the middle series lie, from their cosines."""
        seen = torch.linalg.solve(self.prototypes, cosines[:, : len(self.prototypes)].T)
        return seen[-1].clamp(min=1e-12) ** -2 - 1


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
        reserve_classes: How many classes what is saved keeps room for, see `add_classes`: until
            so many were added, `save` writes the features of the training series too, 4 bytes
            each. In memory there is always room.
        random_state: Seed of the kernels; see scikit-learn's glossary.

    Attributes:
        classes_: The labels, sorted, of shape (k,); behind them those that were added.
        n_channels_: Channels of a series.
        n_features_in_: Length of the series, where X had two axes.
        prototypes_: Points of the classes, unit rows, of shape (k, d) with d = k; classes that were
            added have none.
        left_out_cosines_: Of each training series with each class, left out, of shape (n, k).
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
    reserve_classes: int
    random_state: int | np.random.RandomState | None
    classes_: NDArray[Any]
    _fitted: _Fitted

    @no_type_check  # scikit-learn's convention: values are looked at in `fit`
    def __init__(
        self,
        *,
        n_features: int = 5040,
        reserve_classes: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_features = n_features
        self.reserve_classes = reserve_classes
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "SequenceClassifier":
        """Fit to labelled series.

        Args:
            X: An array of shape (n_cases, n_channels, n_timepoints) or (n_cases, n_timepoints), or
                a list of arrays (n_channels, n_timepoints) or (n_timepoints,) of any lengths.
            y: Labels of shape (n_cases,).

        Raises:
            ValueError: X or y that scikit-learn would refuse, a single class, or too few features.
            TypeError: A setting that is no whole number.
        """
        self.__dict__.pop("_fitted", None)  # what fails from here on leaves nothing fitted
        batch = padded(self, X, reset=True)
        labels = checked_labels(batch.x, y)
        self._expect_settings()
        classes, indices = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y has the one class {classes.tolist()[0]!r}; a classifier needs at least two "
                "classes"
            )
        features, rows, generator = fitted_features(self, batch)
        return self._fit_rows(
            features, rows.float(), classes, torch.from_numpy(indices), generator=generator
        )

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "SequenceClassifier":
        """Fit to these series and all that were given before, exactly and in closed form.

        Kernels, biases and standardisation are those of the first call, so let it be typical: it
        needs two classes at least.

        Args:
            X: Series.
            y: Their labels; new ones are new classes.
            classes: What labels may be in this call, as scikit-learn has it. One without series is
                none of `classes_`: nothing can be learnt of it.

        Raises:
            ValueError: What `fit` refuses, a label that `classes` of this call does not have, or a
                classifier that was saved without room.
            TypeError: A setting that is no whole number.
        """
        if classes is not None and y is not None:
            unknown = set(np.ravel(y).tolist()) - set(np.ravel(classes).tolist())
            if unknown:
                raise ValueError(f"y has the label {min(unknown)!r}, which classes does not have")
        if not self.__sklearn_is_fitted__():
            return self.fit(X, y)
        self._expect_settings()
        fitted, before = self._fitted, self._described()
        more = described(self, fitted.features, X)
        labels = self._like_classes(checked_labels(more, y))
        all_labels = np.concatenate([self.classes_[fitted.target.numpy()], labels])
        every, indices = np.unique(all_labels, return_inverse=True)
        rows = torch.cat([before, more.float()])
        return self._fit_rows(fitted.features, rows, every, torch.from_numpy(indices))

    def add_classes(self, X: Any, y: Any) -> "SequenceClassifier":
        """Learn classes that were not there, from a few series each, without training again.

        What was decided between the classes there are stays as it is, bit for bit; see
        `class_column` for how a new one is placed. Several in one call are placed in the order of
        their labels, each beside those before it.

        Args:
            X: Series of new classes; five each are enough to begin with.
            y: Their labels.

        Raises:
            ValueError: X or y that `fit` would refuse, a label that is a class already, or a
                classifier that was saved without room.
        """
        check_is_fitted(self)
        fitted, before = self._fitted, self._described()
        more = described(self, fitted.features, X)
        labels = self._like_classes(checked_labels(more, y))
        new, indices = np.unique(labels, return_inverse=True)
        known = np.isin(new, self.classes_)
        if known.any():
            raise ValueError(
                f"{new[known].tolist()[0]!r} is a class already; partial_fit learns more of what "
                "is known"
            )
        n_before = len(self.classes_)
        rows = torch.cat([before, more.float()])
        target = torch.cat([fitted.target, n_before + torch.from_numpy(indices)])
        left_out = torch.cat([fitted.left_out, fitted.cosines(more)])
        apart = float(fitted.prototypes[0] @ fitted.prototypes[1])
        weights, biases, reach = [fitted.added_weight], [fitted.added_bias], [fitted.added_reach]
        squared = fitted.left_out_squared(left_out)
        for index in range(n_before, n_before + len(new)):
            rival = left_out.max(1).values
            column = class_column(rows.double(), target == index, rival, squared, apart=apart)
            weights.append(column.weight[None])
            biases.append(column.bias[None])
            reach.append(column.reach[None])
            left_out = torch.cat([left_out, column.left_out[:, None]], 1)
        self.classes_ = np.concatenate([self.classes_, new])
        return self._keep(
            replace(
                fitted,
                left_out=left_out,
                target=target,
                added_weight=torch.cat(weights),
                added_bias=torch.cat(biases),
                added_reach=torch.cat(reach),
                scale=_scale(left_out, target),
                described=rows,
            )
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
        check_is_fitted(self)
        rows = described(self, self._fitted.features, X)
        return _seen_from_below(self._fitted.points(rows)).numpy()

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

    def report(
        self, path: str | Path, X: Any = None, y: Any = None, *, unknown: Any = None
    ) -> Path:
        """Write one HTML page: confusions, the sphere, how sure it is, known or unknown.

        Args:
            path: The file; a page that has the name is replaced.
            X: Series to be asked about. When missing, it is each training series, left out.
            y: Their labels.
            unknown: Series of no class.

        Returns:
            The path.

        Raises:
            ValueError: Series or labels that `score` refuses, or labels that are no class.
            ConfigError: No such folder, another file has the name, or the extra `report` is not
                installed.
            StorageError: The disk refused.
        """
        check_is_fitted(self)
        place = page_path(path)
        fitted = self._fitted
        left_out = self._answers(
            f"{len(fitted.target)} training series, each left out", fitted.left_out, fitted.target
        )
        clock = Clock()
        answers = left_out
        if X is not None or y is not None:
            rows = described(self, fitted.features, X)
            clock.look("features")
            cosines = fitted.cosines(rows)
            clock.look("cosines")
            target = self._indices(checked_labels(rows, y))
            answers = self._answers(f"{len(rows)} series", cosines, target)
        page = page_of_classifier(
            self,
            answers,
            unknown=None if unknown is None else self._cosines(unknown),
            left_out=left_out,
            seconds=clock.seconds,
        )
        write_page(page, place)
        return place

    def _answers(
        self, source: str, cosines: Float[Tensor, "n c"], target: Int[Tensor, " n"]
    ) -> ClassAnswers:
        fitted = self._fitted
        k = len(fitted.prototypes)
        # Cosines with as many independent directions as there are dimensions say where it lies.
        places = torch.linalg.solve(fitted.prototypes, cosines[:, :k].T).T
        return ClassAnswers(
            source,
            tuple(map(str, self.classes_.tolist())),
            cosines,
            target,
            functional.normalize(places, dim=1),
            fitted.prototypes,
            scale=fitted.scale,
        )

    def _indices(self, labels: NDArray[Any]) -> Int[Tensor, " n"]:
        """Return which class each label is.

        Raises:
            ValueError: One is no class.
        """
        place = {label: index for index, label in enumerate(self.classes_.tolist())}
        strange = [label for label in labels.tolist() if label not in place]
        if strange:
            raise ValueError(
                f"y has the label {strange[0]!r}, which is none of the classes; give series of no "
                "class as unknown"
            )
        return torch.tensor([place[label] for label in labels.tolist()])

    def _html_repr(self) -> str:
        """Return what a notebook shows: scikit-learn's diagram, and what fitting found."""
        shown: str = estimator_html_repr(self)
        if not self.__sklearn_is_fitted__():
            return shown
        fitted = self._fitted
        right = fitted.left_out.argmax(1) == fitted.target
        facts = {
            "training series": str(len(right)),
            "classes": ", ".join(map(str, self.classes_.tolist())),
            "accuracy on training series, each left out": f"{right.double().mean():.3f}",
            "more": f"{type(self).__name__}.report(path) writes a page",
        }
        return shown + short_form(facts)

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether `fit` has come to its end."""
        return "_fitted" in self.__dict__

    def save(self, path: str | Path) -> None:
        """Write everything that predictions need to one new safetensors file.

        Raises:
            CheckpointError: Another file has the name.
            StorageError: The disk refused.
            ValueError: Labels of a type that a file cannot hold, or a setting that `fit` refuses.
            TypeError: A setting that is no whole number.
        """
        check_is_fitted(self)
        self._expect_settings()
        expect_whole("n_features", self.n_features)
        fitted = self._fitted
        saved = SavedClassifier(
            **SavedClassifier.common(self, fitted.features),
            reserve_classes=int(self.reserve_classes),
            label_type=label_type(self.classes_),
            labels=tuple(self.classes_.tolist()),
            scale=fitted.scale,
        )
        tensors = {name: getattr(fitted, name) for name in _TENSORS}
        if fitted.described is not None and len(fitted.added_bias) < self.reserve_classes:
            tensors["described"] = fitted.described
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
            tensors: dict[str, Any] = {name: checkpoint.tensors[name] for name in _TENSORS}
            stored = checkpoint.below("features.")
            features = FixedFeatures.of_state(stored, saved.length)
            tensors["described"] = checkpoint.tensors.get("described")
            labels = saved.classes()
            _expect_sound(tensors, features.n_features, len(labels), saved.scale)
            fitted = _Fitted(features, **tensors, scale=saved.scale)
            made = cls(
                n_features=saved.n_features,
                reserve_classes=saved.reserve_classes,
                random_state=saved.random_state,
            )
            saved.restore(made, features)
        except (ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} holds no {cls.__name__}: {reason}") from error
        made.classes_ = labels
        return made._keep(fitted)

    def _fit_rows(
        self,
        features: FixedFeatures,
        rows: Float[Tensor, "n f"],
        classes: NDArray[Any],
        target: Int[Tensor, " n"],
        *,
        generator: Generator | None = None,
    ) -> "SequenceClassifier":
        k = len(classes)
        points = separated_prototypes(k, k - 1, generator=generator).points
        fitted = ridge(rows.double(), points[target])
        prototypes = _seen_from_below(points)
        left_out = _seen_from_below(fitted.left_out) @ prototypes.T
        self.classes_ = classes
        return self._keep(
            _Fitted(
                features,
                fitted.weight,
                fitted.bias,
                prototypes,
                left_out,
                target,
                added_weight=fitted.weight.new_zeros(0, len(fitted.weight)),
                added_bias=fitted.bias.new_zeros(0),
                added_reach=fitted.bias.new_ones(0),
                scale=_scale(left_out, target),
                described=rows,
            )
        )

    def _described(self) -> Float[Tensor, "n f"]:
        """Return the features of the training series.

        Raises:
            ValueError: They were not saved.
        """
        if self._fitted.described is None:
            raise ValueError(
                "this classifier was saved without the features of its training series; fit it "
                "with a larger reserve_classes before saving"
            )
        return self._fitted.described

    def _expect_settings(self) -> None:
        expect_whole("reserve_classes", self.reserve_classes)
        if self.reserve_classes < 0:
            raise ValueError(f"reserve_classes is {self.reserve_classes}; it must not be negative")

    def _like_classes(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return labels in the type of the classes; texts may be longer.

        Raises:
            ValueError: They have another value in it.
        """
        before = self.classes_
        texts = [each.dtype.kind in "UO" for each in (before, labels)]
        if all(texts):
            return labels.astype(object if before.dtype.kind == "O" else str)
        if not any(texts) and (before.dtype.kind == "b") == (labels.dtype.kind == "b"):
            with np.errstate(all="ignore"):
                same = labels.astype(before.dtype)
                kept = (same == labels).all() and (same.astype(labels.dtype) == labels).all()
            if kept:
                return same
        raise ValueError(
            f"y has labels of type {labels.dtype} that are none of the type of the classes, "
            f"{before.dtype}; give the same kind of labels"
        )

    def _keep(self, fitted: _Fitted) -> "SequenceClassifier":
        self._fitted = fitted
        self.prototypes_, self.scale_ = fitted.prototypes.numpy(), fitted.scale
        self.left_out_cosines_ = fitted.left_out.numpy()
        self._n_features_out = self.prototypes_.shape[1]
        return self

    def _cosines(self, X: Any) -> Float[Tensor, "n c"]:
        check_is_fitted(self)
        return self._fitted.cosines(described(self, self._fitted.features, X))


def _expect_sound(
    tensors: Mapping[str, Tensor | None], n_features: int, n_classes: int, scale: float
) -> None:
    """Check what came from a file.

    Raises:
        ValueError: Shapes that do not fit each other, or a value that cannot be.
    """
    prototypes, target = tensors["prototypes"], tensors["target"]
    added_bias = tensors["added_bias"]
    assert prototypes is not None
    assert target is not None
    assert added_bias is not None
    n, k, added = target.numel(), n_classes - added_bias.numel(), added_bias.numel()
    shapes = {
        "weight": (n_features, k - 1),
        "bias": (k - 1,),
        "prototypes": (k, k),
        "left_out": (n, n_classes),
        "target": (n,),
        "added_weight": (added, n_features),
        "added_bias": (added,),
        "added_reach": (added,),
        "described": (n, n_features),
    }
    types = {"target": torch.int64, "described": torch.float32}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        wanted = types.get(name, torch.float64)
        if tensor.shape != shapes[name] or tensor.dtype != wanted or n == 0 or k < 2:
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, which does not fit "
                f"{n_classes} classes and {n_features} features"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds a value that is not finite")
        if name == "added_reach" and not bool((tensor > 0).all()):
            raise ValueError("added_reach holds a value that is not above 0")
        if name == "left_out" and not bool((tensor.abs() <= 1 + 1e-9).all()):
            raise ValueError("left_out holds a value that is no cosine")
        if not bool((tensor.abs() <= torch.finfo(torch.float32).max).all()):
            raise ValueError(f"{name} holds a value that is too large")
    if not torch.allclose(prototypes.norm(dim=1), torch.ones(k, dtype=torch.float64)):
        raise ValueError("prototypes holds rows that are no unit vectors")
    if not bool(((target >= 0) & (target < n_classes)).all()) or not 0 <= scale < math.inf:
        raise ValueError(f"a class outside 0..{n_classes - 1}, or the scale {scale}")


def _scale(left_out: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> float:
    """Fit the scale of probabilities; by Laplace's rule of right and wrong it is never certain."""
    c = left_out.shape[1]
    return fit_scale(left_out, target, smoothing=c / ((c - 1) * (len(target) + 2)))


def _seen_from_below(z: Float[Tensor, "n e"]) -> Float[Tensor, "n d"]:
    """Lift points to height 1 and return the directions in which they lie."""
    return functional.normalize(functional.pad(z, (0, 1), value=1.0), dim=1)

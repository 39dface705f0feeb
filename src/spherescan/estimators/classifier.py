"""A classifier of series after scikit-learn's habits.

Letters: n series, f features, e dimensions of the ridge's outputs, d = e + 1, k classes.
"""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional

from spherescan.calibration import (
    known_threshold,
    lac_scores,
    prediction_sets,
    probabilities,
    set_threshold,
)
from spherescan.estimators.base import CURVES, FEATURES, SeriesEstimator
from spherescan.estimators.clock import Clock
from spherescan.estimators.copies import warn_of_copies
from spherescan.estimators.description import SeriesFeatures
from spherescan.estimators.familiarity import OF_FAMILIARITY, Familiarity, Kept
from spherescan.estimators.fitted_classifier import (
    OF_CALIBRATION,
    TENSORS,
    Calibration,
    FittedClassifier,
    expect_sound,
    scale_of,
)
from spherescan.estimators.pages import page_of_classifier
from spherescan.estimators.saved import SavedClassifier, label_type, saved_of
from spherescan.estimators.sequences import (
    checked_labels,
    class_indices,
    described,
    described_in_parts,
    labels_like,
    padded,
)
from spherescan.estimators.settings import expect_whole
from spherescan.estimators.stream import ClassAnswer, SeriesStream
from spherescan.features import class_column, ridge, seen_from_below
from spherescan.nn import separated_prototypes
from spherescan.paths import user_path
from spherescan.report import ClassAnswers, Known, page_path, without_own, write_page
from spherescan.runs import read_checkpoint

# What begins the names of what a file holds of `Familiarity`, and of `Calibration`.
_NEAR, _CALIBRATION = "near.", "calibration."


class SequenceClassifier(ClassifierMixin, SeriesEstimator):
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
        n_networks: How many state-space models describe the series too, see `Networks`; 0 for none,
            otherwise at least 2, and no more than there are series. A ridge on both weighs them;
            where fixed features do better alone, models are dropped. "auto" is 6 for 500 series or
            more, or a causal classifier, and 0 for fewer: on training sets of up to 270 series
            models made no difference, on 500 they did. For sequences of tokens it is 6 from 2000
            on, by the same measure.
        causal: Whether models read one way and describe the series without fixed features, so that
            `stream` can answer while a series comes in.
        selective: Whether the scan of the models depends on their input.
        max_steps: Most training steps of each model; by the number of series when None.
        time_budget: Seconds from the beginning of `fit` to the end of the training of models: they
            get what fixed features leave of it, at least one step each, and what they have learned
            by then counts; results then depend on the machine. Fixed features and the ridge take as
            long as they do, so a warning says when these features alone took longer, or no model is
            trained. No limit when None.
        early_stopping: Whether a tenth of the series of each model, dealt out class by class and
            not learned from, ends its training when their loss no longer falls. A model of fewer
            than 20 series keeps none apart.
        verbose: Whether to write to the standard error what is done, and how far it is: fixed
            features, models, the ridge and what decisions need.
        reserve_classes: How many classes what is saved keeps room for, see `add_classes`: until
            so many were added, `save` writes all features of the training series, 4 bytes each. In
            memory there is always room. (A few hundred features of each, by which `known_score`
            goes, are in every file.)
        vocab_size: How many tokens there are, whole numbers from 0, when X is sequences of them; of
            texts the tokens are bytes: 256. Fixed features are then `NGrams`: runs of one to four
            tokens, those that occur in the most sequences, at most `n_features` of each length.
        missing: What to do with NaN and masked values: "refuse" them, or "mask", which reads over
            them by straight lines between the values that there are. A channel that is missing
            altogether gets its mean over the training series.
        random_state: Seed of kernels and models; see scikit-learn's glossary.

    Attributes:
        classes_: The labels, sorted, of shape (k,); behind them those that were added.
        n_channels_: Channels of a series; 1 of tokens.
        n_features_in_: Length of the series, where X had two axes.
        prototypes_: Points of the classes, unit rows, of shape (k, d) with d = k; classes that were
            added have none.
        left_out_cosines_: Of each training series with each class, left out, of shape (n, k).
        left_out_known_scores_: Of each training series, left out, see `known_score`; shape (n,).
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

    reserve_classes: int
    classes_: NDArray[Any]
    _fitted: FittedClassifier

    @no_type_check  # scikit-learn's convention: values are looked at in `fit`
    def __init__(
        self,
        *,
        n_features: int = 5040,
        n_networks: int | str = "auto",
        causal: bool = False,
        selective: bool = True,
        max_steps: int | None = None,
        time_budget: float | None = None,
        early_stopping: bool = False,
        reserve_classes: int = 0,
        verbose: bool | int = False,
        vocab_size: int | None = None,
        missing: str = "refuse",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_features = n_features
        self.n_networks = n_networks
        self.causal = causal
        self.selective = selective
        self.max_steps = max_steps
        self.time_budget = time_budget
        self.early_stopping = early_stopping
        self.verbose = verbose
        self.reserve_classes = reserve_classes
        self.vocab_size = vocab_size
        self.missing = missing
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "SequenceClassifier":
        """Fit to labelled series; when that fails or is interrupted, an earlier fit stays.

        Args:
            X: An array of shape (n_cases, n_channels, n_timepoints) or (n_cases, n_timepoints), or
                a list of arrays (n_channels, n_timepoints) or (n_timepoints,) of any lengths. With
                `vocab_size`, an array (n_cases, n_timepoints) of tokens, or a list of sequences of
                them or of texts.
            y: Labels of shape (n_cases,).

        Raises:
            ValueError: X or y that scikit-learn would refuse, a single class, or too few features.
            TypeError: A setting of another type, or X of times.
        """
        with self._all_or_nothing(anew=True):
            return self._fit(X, y)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> "SequenceClassifier":
        """Fit to these series and all that were given before, exactly and in closed form.

        Kernels, biases, standardisation and networks are those of the first call, so let it be
        typical: it needs two classes at least.

        Args:
            X: Series.
            y: Their labels; new ones are new classes.
            classes: What labels may be in this call, as scikit-learn has it. One without series is
                none of `classes_`: nothing can be learnt of it.

        Raises:
            ValueError: What `fit` refuses, a first call with one class, a label that `classes` of
                this call does not have, or a classifier that was saved without room.
            TypeError: A setting that is no whole number.
        """
        if classes is not None and y is not None:
            unknown = set(np.ravel(y).tolist()) - set(np.ravel(classes).tolist())
            if unknown:
                strange = min(unknown, key=str)
                raise ValueError(f"y has the label {strange!r}, which classes does not have")
        if not self.__sklearn_is_fitted__():
            return self.fit(X, y)
        self._expect_settings()
        fitted = self._found()
        before = _described(fitted)
        more = described(self, fitted.features, X)
        labels = labels_like(fitted.classes, checked_labels(more, y))
        all_labels = np.concatenate([fitted.classes[fitted.target.numpy()], labels])
        every, indices = np.unique(all_labels, return_inverse=True)
        rows = torch.cat([before, more])
        points = separated_prototypes(len(every), len(every) - 1).points
        return self._fit_rows(fitted.features, rows, every, torch.from_numpy(indices), points)

    def add_classes(self, X: Any, y: Any) -> "SequenceClassifier":
        """Learn classes that were not there, from a few series each, without training again.

        Cosines with the classes there are, and so decisions between them, stay as they are, bit for
        bit; thresholds and the scale of probabilities are found anew. See `class_column` for how a
        new one is placed: it gets a map of its own, and no row of `prototypes_`. Several in one
        call are placed in the order of their labels, each beside those before it.

        Args:
            X: Series of new classes; five each are enough to begin with. A single one is a guess.
            y: Their labels.

        Raises:
            ValueError: X or y that `fit` would refuse, a label that is a class already, or a
                classifier that was saved without room.
        """
        fitted = self._found()
        before = _described(fitted)
        more = described(self, fitted.features, X)
        labels = labels_like(fitted.classes, checked_labels(more, y))
        new, indices = np.unique(labels, return_inverse=True)
        known = np.isin(new, fitted.classes)
        if known.any():
            raise ValueError(
                f"{new[known].tolist()[0]!r} is a class already; partial_fit learns more of what "
                "is known"
            )
        n_before = len(fitted.classes)
        rows = torch.cat([before, more])
        target = torch.cat([fitted.target, n_before + torch.from_numpy(indices)])
        left_out = torch.cat([fitted.left_out, fitted.cosines(more)])
        apart = float(fitted.prototypes[0] @ fitted.prototypes[1])
        x = fitted.features.of_ridge(rows)
        weights, biases, reach = [fitted.added_weight], [fitted.added_bias], [fitted.added_reach]
        squared = fitted.left_out_squared(left_out)
        for index in range(n_before, n_before + len(new)):
            rival = left_out.max(1).values
            column = class_column(x, target == index, rival, squared, apart=apart)
            weights.append(column.weight[None])
            biases.append(column.bias[None])
            reach.append(column.reach[None])
            left_out = torch.cat([left_out, column.left_out[:, None]], 1)
        known_by = fitted.familiarity.weights
        return self._keep(
            replace(
                fitted,
                classes=np.concatenate([fitted.classes, new]),
                familiarity=Familiarity.of(fitted.features, rows, target, left_out, known_by),
                left_out=left_out,
                target=target,
                added_weight=torch.cat(weights),
                added_bias=torch.cat(biases),
                added_reach=torch.cat(reach),
                scale=scale_of(left_out, target),
                described=rows,
                calibration=None,
            ),
        )

    def calibrate(self, X: Any, y: Any) -> "SequenceClassifier":
        """Take the thresholds of `predict_open` and `predict_set` from series `fit` did not see.

        Then both keep what they promise: of one more series like these the class is in the set with
        the probability that is asked for at least, and it is called unknown, though its class is
        known, with that of `rejection` at most, on the average over calibrating and new series.
        Classes, cosines and probabilities stay as they are. Another call replaces the series; so
        does any later fit, and classes that come later, with those of training, left out.

        Args:
            X: Series of any of the classes, drawn as those are that will be asked about.
            y: Their labels.

        Raises:
            ValueError: X or y that `score` would refuse, or a label that is no class.
        """
        fitted = self._found()
        cosines, known = self._cosines_and_known(fitted, X)
        target = class_indices(fitted.classes, checked_labels(cosines, y))
        self._fitted = replace(fitted, calibration=Calibration(cosines, target, known))
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class whose prototype is nearest, for each series; shape (n_cases,)."""
        fitted = self._found()
        found: NDArray[Any] = fitted.classes[self._cosines(fitted, X).argmax(1).numpy()]
        return found

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return cosines with the prototypes, of shape (n_cases, k).

        Of two classes, as scikit-learn has it, what the second has more, of shape (n_cases,).
        """
        cosines = self._cosines(self._found(), X).numpy()
        return cosines[:, 1] - cosines[:, 0] if cosines.shape[1] == 2 else cosines

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, calibrated on left-out series; (n_cases, k)."""
        fitted = self._found()
        return probabilities(self._cosines(fitted, X), fitted.scale).numpy()

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the logarithm of `predict_proba`, of shape (n_cases, k)."""
        fitted = self._found()
        return torch.log_softmax(fitted.scale * self._cosines(fitted, X), 1).numpy()

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Return where on the sphere each series lies: unit rows of shape (n_cases, d)."""
        fitted = self._found()
        parts = described_in_parts(self, fitted.features, X)
        return seen_from_below(torch.cat([fitted.points(rows) for rows in parts])).numpy()

    def predict_open(
        self, X: Any, *, rejection: float = 0.05, unknown_label: Any = "unknown"
    ) -> NDArray[np.object_]:
        """Predict as `predict` does, but say when a series is like no class.

        A series is unknown when its `known_score` is below that which a share of `rejection` of
        the training series had when they were left out, or of those of `calibrate`.

        Args:
            X: Series.
            rejection: Share of series of known classes one is ready to call unknown.
            unknown_label: What they are called.

        Returns:
            Labels as objects, of shape (n_cases,).

        Raises:
            ValueError: Too few series for such a rate, or a label that is a class.
        """
        fitted = self._found()
        threshold = _threshold(fitted, rejection, unknown_label)
        cosines, known = self._cosines_and_known(fitted, X)
        found = fitted.classes[cosines.argmax(1).numpy()].astype(object)
        for index in (known < threshold).nonzero()[:, 0].tolist():
            found[index] = unknown_label  # one by one: it may be a tuple
        return found

    def known_score(self, X: Any) -> NDArray[np.float64]:
        """Return how much each series is like those of a class, of shape (n_cases,).

        The largest cosine, less how far the series is from the nearest training series of that
        class, in level, spread and extremes of its channels and in convolution features; see
        `Familiarity`. Of tokens it is the largest cosine. Scores of series of known classes are as
        `left_out_known_scores_`; what is below them is like no class.
        """
        return self._cosines_and_known(self._found(), X)[1].numpy()

    def predict_set(
        self, X: Any, *, coverage: float = 0.9, never_empty: bool = False
    ) -> NDArray[np.bool_]:
        """Return for each series the set of classes that holds the true one with a probability.

        Args:
            X: Series.
            coverage: That probability, on the average over training and new series, about right;
                after `calibrate` a promise, on the average over its series and new ones.
            never_empty: Whether the nearest class is always inside. An empty set, which is wrong,
                says that no class fits; without any, sets hold the truth more often than asked
                for where the classifier is right more often than that.

        Returns:
            Whether a class is in the set of a series, of shape (n_cases, k).

        Raises:
            ValueError: A coverage outside 0..1.
        """
        fitted = self._found()
        judged = fitted.judged
        scores = lac_scores(probabilities(judged.cosines, fitted.scale))
        threshold = set_threshold(scores, judged.target, coverage=coverage)
        found = lac_scores(probabilities(self._cosines(fitted, X), fitted.scale))
        return prediction_sets(found, threshold, never_empty=never_empty).numpy()

    def stream(
        self, *, rejection: float | None = None, unknown_label: Any = "unknown"
    ) -> SeriesStream[ClassAnswer]:
        """Return a stream that answers for a series while it comes in.

        Args:
            rejection: As of `predict_open`, whose labels answers then have; without it nothing is
                called unknown. Thresholds are those of whole series: the beginning of one is less
                like them.
            unknown_label: What is called so.

        Raises:
            ValueError: A classifier that needs the whole series, too few series for such a rate, or
                a label that is a class.
        """
        fitted = self._found()
        threshold = -math.inf
        if rejection is not None:
            threshold = _threshold(fitted, rejection, unknown_label)
        return SeriesStream(fitted.features, partial(fitted.answer, threshold, unknown_label))

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
        fitted = self._found()
        place = page_path(path)
        left_out = _answers(
            fitted,
            f"{len(fitted.target)} training series, each left out",
            fitted.left_out,
            fitted.target,
            fitted.familiarity.left_out,
            fitted.familiarity.rows,
            caution=" The scale of its answers was fitted to these series.",
        )
        clock = Clock()
        answers = left_out
        if X is not None or y is not None:
            rows = described(self, fitted.features, X)
            clock.look("features")
            cosines = fitted.cosines(rows)
            clock.look("cosines")
            target = class_indices(fitted.classes, checked_labels(rows, y))
            kept = fitted.familiarity.kept(rows)
            known = fitted.familiarity.score(cosines, kept)
            clock.look("nearest training series")
            answers = _answers(fitted, f"{len(rows)} series", cosines, target, known, kept)
        page = page_of_classifier(
            self,
            answers,
            unknown=None if unknown is None else self._cosines_and_known(fitted, unknown)[1],
            judged=fitted.judged,
            seconds=clock.seconds,
        )
        write_page(page, place)
        return place

    def _facts(self) -> dict[str, str]:
        fitted = self._fitted
        right = fitted.left_out.argmax(1) == fitted.target
        return {
            "training series": str(len(right)),
            "classes": ", ".join(map(str, fitted.classes.tolist())),
            "accuracy on training series, each left out": f"{right.double().mean():.3f}",
        }

    def save(self, path: str | Path) -> None:
        """Write everything that predictions need to one new safetensors file.

        Raises:
            CheckpointError: Another file has the name.
            StorageError: The disk refused.
            ValueError: Labels of a type that a file cannot hold, or a setting that `fit` refuses.
            TypeError: A setting that is no whole number.
        """
        fitted = self._found()
        self._expect_settings()
        saved = SavedClassifier(
            **SavedClassifier.common(self, fitted.features, len(fitted.target)),
            reserve_classes=int(self.reserve_classes),
            label_type=label_type(fitted.classes),
            labels=tuple(fitted.classes.tolist()),
            scale=fitted.scale,
        )
        tensors = {name: getattr(fitted, name) for name in TENSORS}
        tensors |= {_NEAR + name: getattr(fitted.familiarity, name) for name in OF_FAMILIARITY}
        if fitted.calibration is not None:
            tensors |= {_CALIBRATION + n: getattr(fitted.calibration, n) for n in OF_CALIBRATION}
        if fitted.described is not None and len(fitted.added_bias) < self.reserve_classes:
            tensors["described"] = fitted.described
        self._write(path, saved, tensors, fitted.features)

    @classmethod
    def load(cls, path: str | Path) -> "SequenceClassifier":
        """Read what `save` wrote, by whoever: no code in it is run.

        Raises:
            CheckpointError: The file is missing, damaged, or of another kind.
        """
        checkpoint = read_checkpoint(user_path(path))
        with cls._reading(path):
            saved = saved_of(SavedClassifier, checkpoint.state, cls.__name__)
            tensors: dict[str, Any] = {name: checkpoint.tensors[name] for name in TENSORS}
            features = saved.features(checkpoint.below(FEATURES), checkpoint.below(CURVES))
            tensors["described"] = checkpoint.tensors.get("described")
            labels = saved.classes()
            expect_sound(tensors, features, len(labels), saved.scale)
            familiarity = Familiarity.of_state(
                checkpoint.below(_NEAR), Kept.of(features), tensors["target"]
            )
            fitted = FittedClassifier(
                labels,
                features,
                **tensors,
                scale=saved.scale,
                familiarity=familiarity,
                calibration=Calibration.of_state(checkpoint.below(_CALIBRATION), len(labels)),
            )
            made = cls(**saved.parameters(), reserve_classes=saved.reserve_classes)
            saved.restore(made, features, len(fitted.target))
        return made._keep(fitted)

    def _fit(self, X: Any, y: Any) -> "SequenceClassifier":
        clock = Clock()
        batch = padded(self, X, reset=True)
        labels = checked_labels(batch.x, y)
        self._expect_settings()
        classes, indices = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y has the one class {classes.tolist()[0]!r}; a classifier needs at least two "
                "classes, and so does the first call of partial_fit, whatever its classes"
            )
        target = torch.from_numpy(indices)
        points = separated_prototypes(len(classes), len(classes) - 1).points
        features, rows = self._fit_features(
            batch, target, seen_from_below(points), points[target], statistics=True, clock=clock
        )
        self._fit_rows(features, rows, classes, target, points)
        clock.look_at_ridge(len(target))
        features.seconds = clock.seconds
        return self

    def _fit_rows(
        self,
        features: SeriesFeatures,
        rows: Float[Tensor, "n f"],
        classes: NDArray[Any],
        target: Int[Tensor, " n"],
        points: Float[Tensor, "k e"],
    ) -> "SequenceClassifier":
        warn_of_copies(
            features.of_no_network(rows), too_good="what predict_open and predict_set say"
        )
        fitted = ridge(features.of_ridge(rows), points[target])
        prototypes = seen_from_below(points)
        left_out = seen_from_below(fitted.left_out) @ prototypes.T
        return self._keep(
            FittedClassifier(
                classes,
                features,
                fitted.weight,
                fitted.bias,
                prototypes,
                left_out,
                target,
                added_weight=fitted.weight.new_zeros(0, len(fitted.weight)),
                added_bias=fitted.bias.new_zeros(0),
                added_reach=fitted.bias.new_ones(0),
                scale=scale_of(left_out, target),
                described=rows,
                familiarity=Familiarity.of(features, rows, target, left_out),
            ),
        )

    def _expect_settings(self) -> None:
        expect_whole("reserve_classes", self.reserve_classes)
        if self.reserve_classes < 0:
            raise ValueError(f"reserve_classes is {self.reserve_classes}; it must not be negative")

    def _found(self) -> FittedClassifier:
        """Return what fitting found; a call asks once, as another thread may learn meanwhile."""
        check_is_fitted(self)
        return self._fitted

    def _keep(self, fitted: FittedClassifier) -> "SequenceClassifier":
        # In one go: whoever interrupts finds all of it or nothing.
        self.__dict__.update(
            classes_=fitted.classes,
            _fitted=fitted,
            prototypes_=fitted.prototypes.numpy(),
            scale_=fitted.scale,
            left_out_cosines_=fitted.left_out.numpy(),
            left_out_known_scores_=fitted.familiarity.left_out.numpy(),
            _n_features_out=fitted.prototypes.shape[1],
        )
        return self

    def _cosines_and_known(
        self, fitted: FittedClassifier, X: Any
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
        familiarity, found = fitted.familiarity, []
        for rows in described_in_parts(self, fitted.features, X):
            cosines = fitted.cosines(rows)
            found.append((cosines, familiarity.score(cosines, familiarity.kept(rows))))
        every, known = (torch.cat(parts) for parts in zip(*found, strict=True))
        return every, known

    def _cosines(self, fitted: FittedClassifier, X: Any) -> Float[Tensor, "n c"]:
        parts = described_in_parts(self, fitted.features, X)
        return torch.cat([fitted.cosines(rows) for rows in parts])


def _described(fitted: FittedClassifier) -> Float[Tensor, "n f"]:
    """Return the features of the training series.

    Raises:
        ValueError: They were not saved.
    """
    if fitted.described is None:
        raise ValueError(
            "this classifier was saved without the features of its training series; fit it "
            "with a larger reserve_classes before saving"
        )
    return fitted.described


def _threshold(fitted: FittedClassifier, rejection: float, unknown_label: Any) -> float:
    if isinstance(unknown_label, np.ndarray) and unknown_label.ndim:
        raise ValueError(f"unknown_label is {unknown_label!r}; it must be a single label")
    if unknown_label in fitted.classes.tolist():
        raise ValueError(f"{unknown_label!r} is a class; choose another unknown_label")
    return known_threshold(fitted.judged.known, rejection=rejection)


def _answers(
    fitted: FittedClassifier,
    source: str,
    cosines: Float[Tensor, "n c"],
    target: Int[Tensor, " n"],
    known: Float[Tensor, " n"],
    kept: Float[Tensor, "n g"],
    *,
    caution: str = "",
) -> ClassAnswers:
    strange = fitted.familiarity.score(without_own(cosines, target), kept)
    k = len(fitted.prototypes)
    # Cosines with as many independent directions as there are dimensions say where it lies.
    places = torch.linalg.solve(fitted.prototypes, cosines[:, :k].T).T
    return ClassAnswers(
        source,
        tuple(map(str, fitted.classes.tolist())),
        cosines,
        target,
        functional.normalize(places, dim=1),
        fitted.prototypes,
        scale=fitted.scale,
        caution=caution,
        known=Known(known, strange, fitted.familiarity.in_words),
    )

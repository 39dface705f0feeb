"""A regressor of series after scikit-learn's habits.

Letters: n series, f features.
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
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional

from spherescan.calibration import fit_half_width, intervals
from spherescan.estimators.base import CURVES, FEATURES, SeriesEstimator
from spherescan.estimators.clock import Clock
from spherescan.estimators.copies import warn_of_copies
from spherescan.estimators.description import SeriesFeatures
from spherescan.estimators.pages import half_width_of, page_of_regressor
from spherescan.estimators.saved import SavedRegressor, saved_of
from spherescan.estimators.saved_tensors import expect_tensor
from spherescan.estimators.sequences import checked_values, described, described_in_parts, padded
from spherescan.estimators.stream import NumberAnswer, SeriesStream
from spherescan.features import cosine_of_height, seen_from_below, sphere_ridge
from spherescan.losses import from_cosine, to_cosine
from spherescan.paths import user_path
from spherescan.report import NumberAnswers, page_path, write_page
from spherescan.runs import read_checkpoint

_TENSORS = ("weight", "bias", "left_out", "target")
_SMALLEST_MARGIN, _LARGEST_MARGIN = 0.01, 1000.0
# Networks learn in which of so many equal parts of the sorted values a series lies.
_MOST_BINS, _FEWEST_IN_BIN = 10, 10
_RESOLUTION = 1e-12  # of values, below which their range is rounding


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """What fitting found; values of the n training series and what they get left out.

    `calibration` has predictions and values of series that fitting did not see; none before
    `calibrate`.
    """

    features: SeriesFeatures
    weight: Float[Tensor, " f"]
    bias: Float[Tensor, ""]
    left_out: Float[Tensor, " n"]
    target: Float[Tensor, " n"]
    lower: float
    upper: float
    described: Float[Tensor, "n g"] | None = None
    calibration: Float[Tensor, "2 m"] | None = None

    @property
    def judged(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Predictions and values that intervals come from; of training series left out, or not."""
        if self.calibration is None:
            return self.left_out, self.target
        return self.calibration[0], self.calibration[1]

    def heights(self, described: Float[Tensor, "m f"]) -> Float[Tensor, " m"]:
        """Return how high series lie, before they are seen from the origin."""
        return self.features.for_ridge(described) @ self.weight + self.bias

    def values(self, described: Float[Tensor, "m f"]) -> Float[Tensor, " m"]:
        """Return the values of series."""
        cosines = cosine_of_height(self.heights(described))
        found = from_cosine(cosines, lower=self.lower, upper=self.upper)
        return found.clamp(self.lower, self.upper)

    def answer(self, n_steps: int, described: Float[Tensor, "1 f"]) -> NumberAnswer:
        """Answer for a stream of so many samples, which has these features."""
        return NumberAnswer(n_steps, float(self.values(described)))


class SequenceRegressor(RegressorMixin, SeriesEstimator):
    """Predict numbers from series by features of them and a closed-form map onto a half circle.

    Values are cosines with a pole: the ends of a range, wider than that of the training values by
    a margin on both sides, are the pole and its opposite, and every prediction is within it.
    What each training series would have got had it been left out comes with the solution, and
    sets the width of intervals.

    Args:
        n_features: About how many convolution features of the series, at least 84, and as many of
            its differences; Hydra's come on top.
        n_networks: How many state-space models describe the series too, as of `SequenceClassifier`;
            they learn in which tenth of the training values each value lies, or larger part of
            fewer than 100.
        causal: Whether models read one way and describe the series without fixed features, so that
            `stream` can answer while a series comes in.
        selective: Whether the scan of the models depends on their input.
        max_steps: Most training steps of each model; by the number of series when None.
        time_budget: Seconds from the beginning of `fit` to the end of the training of models; see
            `SequenceClassifier`.
        early_stopping: Whether a tenth of the series of each model ends its training.
        margin: How far beyond the training values predictions may go on each side, in widths of
            their range, from 0.01 to 1000.
        verbose: Whether to write to the standard error what is done, and how far it is.
        vocab_size: How many tokens there are, whole numbers from 0, when X is sequences of them; of
            texts the tokens are bytes: 256. Fixed features are then `NGrams`: runs of one to four
            tokens, those that occur in the most sequences, at most `n_features` of each length.
        missing: What to do with NaN and masked values: "refuse" them, or "mask", which reads over
            them by straight lines between the values that there are. A channel that is missing
            altogether gets its mean over the training series.
        random_state: Seed of kernels and models; see scikit-learn's glossary.

    Attributes:
        n_channels_: Channels of a series; 1 of tokens.
        n_features_in_: Length of the series, where X had two axes.
        range_: The two ends that no prediction goes beyond.
        left_out_predictions_: Of each training series, left out, of shape (n,).

    References:
        Mettes, van der Pol, Snoek, "Hyperspherical Prototype Networks", 2019, arXiv:1901.10514
        (the loss); Dempster, Schmidt, Webb, 2021, arXiv:2012.08791 and 2023, arXiv:2203.13652 (the
        features).

    Example:
        >>> import numpy as np
        >>> t, rng = np.linspace(0, 6, 60), np.random.default_rng(0)
        >>> y = rng.uniform(1, 4, size=80)
        >>> X = [np.sin(f * t) + 0.1 * rng.standard_normal(60) for f in y]
        >>> regressor = SequenceRegressor(random_state=0).fit(X, y)
        >>> bool(abs(regressor.predict([np.sin(2.5 * t)])[0] - 2.5) < 0.2)
        True
    """

    margin: float
    _fitted: _Fitted

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
        margin: float = 0.5,
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
        self.margin = margin
        self.verbose = verbose
        self.vocab_size = vocab_size
        self.missing = missing
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> "SequenceRegressor":
        """Fit to series and values; when that fails or is interrupted, an earlier fit stays.

        Args:
            X: An array of shape (n_cases, n_channels, n_timepoints) or (n_cases, n_timepoints), or
                a list of arrays (n_channels, n_timepoints) or (n_timepoints,) of any lengths. With
                `vocab_size`, an array (n_cases, n_timepoints) of tokens, or a list of sequences of
                them or of texts.
            y: Finite numbers of shape (n_cases,).

        Raises:
            ValueError: X or y that scikit-learn would refuse, a single series, values too large or
                too near each other, too few features, or a setting outside its range.
            TypeError: A setting of another type, or X or y of times.
        """
        with self._all_or_nothing(anew=True):
            return self._fit(X, y)

    def partial_fit(self, X: Any, y: Any) -> "SequenceRegressor":
        """Fit to these series and all that were given before, as if to all of them at once.

        Kernels, biases, standardisation and networks are those of the first call, so let it be
        typical. The range of predictions widens with the values.

        Args:
            X: Series.
            y: Their values.

        Raises:
            ValueError: What `fit` refuses, or a regressor that was saved, which is without the
                features of its training series.
            TypeError: A setting of another type.
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(X, y)
        fitted = self._fitted
        if fitted.described is None:
            raise ValueError(
                "this regressor was saved, without the features of its training series; fit it to "
                "all series again"
            )
        more = described(self, fitted.features, X)
        target = torch.cat([fitted.target, checked_values(more, y)])
        return self._fit_rows(fitted.features, torch.cat([fitted.described, more]), target)

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the value of each series, of shape (n_cases,)."""
        return self._values(self._found(), X).numpy()

    def calibrate(self, X: Any, y: Any) -> "SequenceRegressor":
        """Take the width of `predict_interval` from series `fit` did not see.

        Then it keeps what it promises: the interval of one more series like these holds its value
        with the probability that is asked for at least, on the average over calibrating and new
        series. Predictions stay as they are. Another call replaces the series; any later fit, those
        of training, left out.

        Args:
            X: Series, drawn as those are that will be asked about.
            y: Their values.

        Raises:
            ValueError: X or y that `score` would refuse.
        """
        fitted = self._found()
        predicted = self._values(fitted, X)
        found = torch.stack([predicted, checked_values(predicted, y)])
        self._fitted = replace(fitted, calibration=found)
        return self

    def predict_interval(self, X: Any, *, coverage: float = 0.9) -> NDArray[np.float64]:
        """Return an interval for each series that holds its value with a probability.

        All are as wide: as the errors of that share of the training series, left out, or of those
        of `calibrate`.

        Args:
            X: Series.
            coverage: That probability, on the average over training and new series, about right;
                after `calibrate` a promise, on the average over its series and new ones.

        Returns:
            Lower and upper end, of shape (n_cases, 2).

        Raises:
            ValueError: A coverage outside 0..1, or one that so few series cannot tell.
        """
        fitted = self._found()
        predicted, target = fitted.judged
        half = fit_half_width(predicted, target, coverage=coverage)
        if math.isinf(half):
            raise ValueError(
                f"{len(target)} series cannot tell a coverage of {coverage}; ask for at most "
                f"{_rounded_down(len(target))}"
            )
        return intervals(self._values(fitted, X), half).numpy()

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Return where on the half circle each series lies: unit rows of shape (n_cases, 2)."""
        fitted = self._found()
        parts = described_in_parts(self, fitted.features, X)
        heights = torch.cat([fitted.heights(rows) for rows in parts])
        return seen_from_below(heights[:, None]).numpy()

    def stream(self) -> SeriesStream[NumberAnswer]:
        """Return a stream that answers for a series while it comes in.

        Raises:
            ValueError: A regressor that needs the whole series.
        """
        fitted = self._found()
        return SeriesStream(fitted.features, fitted.answer)

    def report(self, path: str | Path, X: Any = None, y: Any = None) -> Path:
        """Write one HTML page: predicted and true values, intervals, the sphere.

        Args:
            path: The file; a page that has the name is replaced.
            X: Series to be asked about. When missing, it is each training series, left out.
            y: Their values.

        Returns:
            The path.

        Raises:
            ValueError: Series or values that `score` refuses.
            ConfigError: No such folder, another file has the name, or the extra `report` is not
                installed.
            StorageError: The disk refused.
        """
        fitted = self._found()
        place = page_path(path)
        clock = Clock()
        source = f"{len(fitted.target)} training series, each left out"
        predicted, target = fitted.left_out, fitted.target
        caution = "" if fitted.calibration is not None else " That width was set by these series."
        if X is not None or y is not None:
            rows = described(self, fitted.features, X)
            clock.look("features")
            predicted = fitted.values(rows)
            clock.look("values")
            target, source, caution = checked_values(rows, y), f"{len(rows)} series", ""
        cosines = to_cosine(predicted, lower=fitted.lower, upper=fitted.upper)
        answers = NumberAnswers(
            source,
            predicted,
            target,
            torch.stack([cosines, (1 - cosines.square()).clamp(min=0).sqrt()], 1),
            torch.tensor([1.0, 0.0], dtype=torch.float64),
            half_width=half_width_of(*fitted.judged),
            caution=caution,
        )
        page = page_of_regressor(self, answers, n_trained=len(fitted.target), seconds=clock.seconds)
        write_page(page, place)
        return place

    def _facts(self) -> dict[str, str]:
        fitted = self._fitted
        error = (fitted.left_out - fitted.target).square().mean().sqrt()
        return {
            "training series": str(len(fitted.target)),
            "error on training series, each left out (rmse)": f"{error:.4g}",
            "predictions lie in": f"{fitted.lower:.4g}..{fitted.upper:.4g}",
        }

    def save(self, path: str | Path) -> None:
        """Write everything that predictions need to one new safetensors file.

        Raises:
            CheckpointError: Another file has the name.
            StorageError: The disk refused.
            ValueError: A setting that `fit` refuses; TypeError: one that is no number.
        """
        fitted = self._found()
        saved = SavedRegressor(
            **SavedRegressor.common(self, fitted.features, len(fitted.target)),
            margin=_margin_of(self.margin),
            lower=fitted.lower,
            upper=fitted.upper,
        )
        tensors = {name: getattr(fitted, name) for name in _TENSORS}
        if fitted.calibration is not None:
            tensors["calibration"] = fitted.calibration
        self._write(path, saved, tensors, fitted.features)

    @classmethod
    def load(cls, path: str | Path) -> "SequenceRegressor":
        """Read what `save` wrote, by whoever: no code in it is run.

        Raises:
            CheckpointError: The file is missing, damaged, or of another kind.
        """
        checkpoint = read_checkpoint(user_path(path))
        with cls._reading(path):
            saved = saved_of(SavedRegressor, checkpoint.state, cls.__name__)
            tensors = {name: checkpoint.tensors[name] for name in _TENSORS}
            features = saved.features(checkpoint.below(FEATURES), checkpoint.below(CURVES))
            _expect_sound(tensors, features.n_features, largest=max(-saved.lower, saved.upper))
            fitted = _Fitted(
                features,
                **tensors,
                lower=saved.lower,
                upper=saved.upper,
                calibration=_sound_calibration(checkpoint.tensors.get("calibration")),
            )
            made = cls(**saved.parameters(), margin=_margin_of(saved.margin))
            saved.restore(made, features, len(fitted.target))
        return made._keep(fitted)

    def _fit(self, X: Any, y: Any) -> "SequenceRegressor":
        clock = Clock()
        batch = padded(self, X, reset=True)
        target = checked_values(batch.x, y)
        if len(target) < 2:
            raise ValueError("got 1 sample; a regressor needs at least two")
        lower, upper = _range_around(target, margin=_margin_of(self.margin))
        goal = to_cosine(target, lower=lower, upper=upper)
        features, rows = self._fit_features(
            batch, *_bins_of(target), goal[:, None], statistics=False, clock=clock
        )
        self._fit_rows(features, rows, target)
        clock.look_at_ridge(len(target))
        features.seconds = clock.seconds
        return self

    def _fit_rows(
        self, features: SeriesFeatures, rows: Float[Tensor, "n f"], target: Float[Tensor, " n"]
    ) -> "SequenceRegressor":
        lower, upper = _range_around(target, margin=_margin_of(self.margin))
        goal = to_cosine(target, lower=lower, upper=upper)
        warn_of_copies(features.of_no_network(rows), too_good="the width of intervals")
        fitted = sphere_ridge(features.of_ridge(rows), goal)
        left_out = from_cosine(fitted.left_out, lower=lower, upper=upper)
        return self._keep(
            _Fitted(
                features, fitted.weight, fitted.bias, left_out, target, lower, upper, described=rows
            )
        )

    def _keep(self, fitted: _Fitted) -> "SequenceRegressor":
        # In one go: whoever interrupts finds all of it or nothing.
        self.__dict__.update(
            _fitted=fitted,
            range_=(fitted.lower, fitted.upper),
            left_out_predictions_=fitted.left_out.numpy(),
            _n_features_out=2,
        )
        return self

    def _found(self) -> _Fitted:
        """Return what fitting found; a call asks once, as another thread may learn meanwhile."""
        check_is_fitted(self)
        return self._fitted

    def _values(self, fitted: _Fitted, X: Any) -> Float[Tensor, " n"]:
        parts = described_in_parts(self, fitted.features, X)
        return torch.cat([fitted.values(rows) for rows in parts])


def _expect_sound(tensors: Mapping[str, Tensor], n_features: int, *, largest: float) -> None:
    """Check what came from a file.

    Raises:
        ValueError: Shapes that do not fit each other, or a value that cannot be.
    """
    n = max(1, tensors["target"].numel())  # no series make no regressor
    fits = f"{n} series and {n_features} features"
    for name, shape in (("weight", (n_features,)), ("bias", ())):
        expect_tensor(name, tensors[name], torch.float64, shape, fits=fits)
    for name in ("left_out", "target"):
        expect_tensor(name, tensors[name], torch.float64, (n,), fits=fits, largest=largest)


def _sound_calibration(found: Tensor | None) -> Tensor | None:
    """Check what came from a file.

    Raises:
        ValueError: Another shape or type, or a value that cannot be.
    """
    if found is None:
        return None
    n = max(1, found.numel() // 2)  # no series tell nothing
    fits, largest = f"predictions and values of {n} series", torch.finfo(torch.float64).max
    expect_tensor("calibration", found, torch.float64, (2, n), fits=fits, largest=largest)
    return found


def _bins_of(target: Float[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Float[Tensor, "k d"]]:
    """Return what networks learn: in which part of the sorted values each lies.

    The prototypes of the parts lie on a curve, so that neighbours are near each other.
    """
    n_bins = max(2, min(_MOST_BINS, len(target) // _FEWEST_IN_BIN))
    _, index, count = torch.unique(target, return_inverse=True, return_counts=True)
    # Half of equal values count as below, so that many of them get a part of their own.
    below = (2 * count.cumsum(0) - count)[index]
    middle = (torch.arange(n_bins, dtype=torch.float64)[:, None] + 0.5) / n_bins
    wave = torch.arange(1, max(3, n_bins), dtype=torch.float64)
    curve = torch.cos(torch.pi * wave * middle) / wave
    return below * n_bins // (2 * len(target)), functional.normalize(curve, dim=1)


def _rounded_down(n: int) -> float:
    """Return the largest coverage of four digits that n values can tell."""
    return math.floor(1e4 * n / (n + 1)) / 1e4


def _margin_of(margin: object) -> float:
    """Check the type and the size of a margin."""
    if isinstance(margin, bool) or not isinstance(margin, int | float | np.integer | np.floating):
        raise TypeError(f"margin is {margin!r}; it must be a number")
    if not _SMALLEST_MARGIN <= margin <= _LARGEST_MARGIN:
        raise ValueError(
            f"margin is {margin}; it must be between {_SMALLEST_MARGIN} and {_LARGEST_MARGIN}"
        )
    return float(margin)


def _range_around(target: Float[Tensor, " n"], *, margin: float) -> tuple[float, float]:
    """Return the ends that no prediction goes beyond.

    Raises:
        ValueError: Values that are too large, or too near each other for their size.
    """
    low, high = float(target.min()), float(target.max())
    room = margin * (high - low) or max(1.0, abs(low))  # of values that are all the same
    lower, upper = low - room, high + room
    if not math.isfinite(2 * (upper - lower)):
        raise ValueError(f"y goes from {low} to {high}, which is too large; rescale it")
    if not lower < low <= high < upper or 0 < high - low < _RESOLUTION * max(abs(low), abs(high)):
        raise ValueError(
            f"y goes from {low} to {high}, which floating-point numbers barely tell apart; "
            "subtract an offset"
        )
    return lower, upper

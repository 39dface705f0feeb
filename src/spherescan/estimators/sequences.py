"""What users pass as X: arrays, lists of series of any length, data frames, tokens, texts.

Letters: n series, l length of the longest, c channels.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    column_or_1d,
    validate_data,
)
from torch import Generator, Tensor

from spherescan.allocator import memory_bytes
from spherescan.estimators.clock import Clock
from spherescan.estimators.description import SeriesFeatures
from spherescan.estimators.frames import (
    as_floats,
    expect_channel_names,
    expect_no_times,
    expect_one_table,
    expect_real,
    expect_ungrouped,
    is_frame,
    is_na,
    table_without_na,
    values_of,
    without_na,
)
from spherescan.estimators.settings import (
    expect_vocabulary_of_fit,
    expect_whole,
    vocabulary_of,
)
from spherescan.features import FixedFeatures, NGrams

# Of new series so many features are held at once.
_FEATURES_AT_ONCE = 1 << 22
# Of a channel's quartile range: farther out, one value spoils what is learned of the others.
_FAR = 1e6
# Seconds of fixed features that more than one line is written about.
_LONG = 2.0
# Values that tell quartiles.
_ENOUGH = 100_000
# That fitting takes for each series and each of `n_features`: as many of differences or of other
# lengths come on top, and there are copies.
_FEATURE_BYTES = 24
# Labels that may be NaN, or NaT.
_MAY_BE_NAN = (float, np.floating, np.datetime64, np.timedelta64)
# What NumPy begins to say of a text or another object that is no number.
_NO_NUMBER = ("could not convert", "float() argument must be")


class Padded(NamedTuple):
    """Series, or sequences of tokens, in one tensor; `mask` is True on real positions."""

    x: Float[Tensor, "n l c"] | Int[Tensor, "n l"]
    mask: Bool[Tensor, "n l"]


def padded(estimator: BaseEstimator, X: Any, *, reset: bool) -> Padded:
    """Check X as scikit-learn does and return it as one tensor.

    Args:
        estimator: Has the settings `vocab_size` and `missing`. Remembers `n_channels_`, of
            two-dimensional X `n_features_in_`, and where values may be missing `channel_means_`.
        X: An array (n_cases, n_channels, n_timepoints) or (n_cases, n_timepoints), whatever
            scikit-learn takes for the latter, or a list or an object array of arrays (n_channels,
            n_timepoints) or (n_timepoints,) whose lengths differ. With a vocabulary, an array
            (n_cases, n_timepoints) of whole numbers, or a list of sequences of these or of texts.
        reset: Whether to remember what X is like, or to expect what was remembered.

    Raises:
        ValueError: Something that is no finite number, nothing at all, or not what was remembered.
        TypeError: A sparse matrix, or values of a type that is no number.
    """
    expect_ungrouped(X)
    if estimator.vocab_size is not None:
        return _padded_tokens(estimator, X, reset=reset)
    masked = _may_miss(estimator)
    with _strange_named(X):
        series = _series(estimator, X, reset=reset, masked=masked)
    n_channels = series[0].shape[0]
    if reset:
        estimator.n_channels_ = n_channels
    for index, values in enumerate(series):
        if values.shape[0] != estimator.n_channels_:
            raise ValueError(
                f"series {index} of X has {values.shape[0]} channels, but "
                f"{type(estimator).__name__} is expecting {estimator.n_channels_}: a series has "
                "the shape (n_channels, n_timepoints), so transpose (n_timepoints, n_channels), "
                "and of a single series give [X]"
            )
        _expect_finite(values, index, may_miss=masked)
    if masked:
        if reset:
            estimator.channel_means_ = _means(series)
        elif not hasattr(estimator, "channel_means_"):
            raise ValueError('this estimator was fitted with missing="refuse"; fit it again')
        series = [_filled(values, estimator.channel_means_) for values in series]
    _expect_float32(series)
    if reset:
        _warn_of_turned(series)
        _warn_of_far(series)
    return _stacked(series)


def _expect_float32(series: list[NDArray[np.float64]]) -> None:
    """Check that values are not too large; ValueError says which series has one."""
    for index, values in enumerate(series):
        if np.abs(values).max() > np.finfo(np.float32).max:
            raise ValueError(
                f"series {index} of X holds a value too large for dtype('float32'); rescale it"
            )


def _warn_of_turned(series: list[NDArray[np.float64]]) -> None:
    """Warn of series that look as if time and channels were taken for each other."""
    n_channels = series[0].shape[0]
    if n_channels > 1 and all(values.shape[1] == 1 for values in series):
        warnings.warn(
            f"every series of X has {n_channels} channels and a single time point; if X has the "
            "shape (n_cases, n_timepoints, n_channels), transpose it to (n_cases, n_channels, "
            "n_timepoints)",
            stacklevel=2,
        )


def _warn_of_far(series: list[NDArray[np.float64]]) -> None:
    """Warn of the first value beside which those of its channel are all the same."""
    every = max(1, sum(values.shape[1] for values in series) // _ENOUGH)
    some = np.concatenate([values[:, ::every] for values in series], 1)
    low, middle, high = np.quantile(some, [0.25, 0.5, 0.75], axis=1)[..., None]
    limit = np.where(high > low, _FAR * (high - low), np.inf)
    for index, values in enumerate(series):
        far = np.abs(values - middle) > limit
        if far.any():
            channel, time = np.argwhere(far)[0].tolist()
            warnings.warn(
                f"series {index} of X has {values[channel, time]:g} in channel {channel} at time "
                f"{time}, more than {_FAR:g} times as far from the middle as half of that channel: "
                "beside it the others may all look the same; correct it, or make it NaN with "
                'missing="mask"',
                stacklevel=2,
            )
            return


@contextmanager
def _strange_named(X: Any) -> Iterator[None]:
    """Name the series that holds something which is no number: NumPy tells that alone."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not str(error).startswith(_NO_NUMBER):
            raise
        for index, values in enumerate(X if isinstance(X, list | tuple) else np.atleast_1d(X)):
            try:
                as_floats(values)
            except (TypeError, ValueError) as strange:
                named = f"series {index} of X: {strange}; it has to be a number"
                raise type(strange)(named) from None
        raise


def _expect_finite(values: NDArray[np.float64], index: int, *, may_miss: bool) -> None:
    """Check the values of a series.

    Raises:
        ValueError: An infinity, or a NaN where none may be; says where.
    """
    strange = np.isinf(values) if may_miss else ~np.isfinite(values)
    if strange.any():
        channel, time = np.argwhere(strange)[0].tolist()
        value = values[channel, time]
        found = "NaN" if np.isnan(value) else "infinity" if value > 0 else "-infinity"
        way_out = (
            'fill it in, or set missing="mask"' if np.isnan(value) else "it has to be a number"
        )
        raise ValueError(
            f"series {index} of X has {found} in channel {channel} at time {time}; {way_out}"
        )


def _may_miss(estimator: BaseEstimator) -> bool:
    """Return whether values may be missing.

    Raises:
        ValueError: An unknown setting.
    """
    if estimator.missing not in ("refuse", "mask"):
        raise ValueError(f'missing is {estimator.missing!r}; it must be "refuse" or "mask"')
    return bool(estimator.missing == "mask")


def _means(series: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the mean of each channel over the values that there are.

    Raises:
        ValueError: A channel without any.
    """
    n = np.sum([np.isfinite(values).sum(1) for values in series], axis=0)
    if not n.all():
        raise ValueError(f"channel {int(np.argmin(n))} of X has no value in any series")
    means: NDArray[np.float64] = np.sum([np.nansum(v, axis=1) for v in series], axis=0) / n
    return means


def _filled(values: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Read over missing values by straight lines; before the first and after the last, as it is.

    A channel that is missing altogether gets the mean that it had in training.
    """
    if not np.isnan(values).any():
        return values
    filled = values.copy()
    time = np.arange(values.shape[1])
    for row, mean in zip(filled, means, strict=True):
        there = np.isfinite(row)
        row[~there] = np.interp(time[~there], time[there], row[there]) if there.any() else mean
    return filled


def _series(
    estimator: BaseEstimator, X: Any, *, reset: bool, masked: bool
) -> list[NDArray[np.float64]]:
    strange = isinstance(X, str | bytes | Mapping | AbstractSet | Iterator)
    if X is None or (strange and not hasattr(X, "toarray")):
        raise ValueError(f"X is of type {type(X).__name__}; give an array or a list of series")
    given = X.to_numpy() if len(getattr(X, "shape", ())) == 1 and hasattr(X, "to_numpy") else X
    if isinstance(given, np.ndarray) and given.dtype == object and given.ndim == 1:
        given = list(given)  # a column or an array of series
    several = given if isinstance(given, list | tuple) else [given]
    if several and all(isinstance(values, str | bytes) for values in several):
        raise ValueError("X holds texts; set vocab_size=256, which makes tokens of their bytes")
    if masked:
        several = [_unmasked(values) for values in several]
    if any(map(has_masked, several)):
        raise ValueError('X has masked values; fill them in, or set missing="mask"')
    given = several if isinstance(given, list | tuple) else several[0]
    expect_one_table(given)
    listed = given if isinstance(given, list | tuple) else ()
    expect_channel_names(estimator, listed, reset=reset)
    series = _ragged(given)
    return _of_one_array(estimator, given, reset=reset) if series is None else series


def _of_one_array(estimator: BaseEstimator, X: Any, *, reset: bool) -> list[NDArray[np.float64]]:
    """Return the series of an array or a table of all of them."""
    given = table_without_na(X) if is_frame(X) else _plain(X, name="X")
    axes = getattr(given, "ndim", 2)
    if axes > 3:
        raise ValueError(
            f"X has {axes} axes; an array of series has the shape (n_cases, n_channels, "
            "n_timepoints) or (n_cases, n_timepoints)"
        )
    if axes != 3:
        return _rows(estimator, given, reset=reset)
    array = check_array(
        given, dtype=np.float64, allow_nd=True, estimator=estimator, ensure_all_finite=False
    )
    if 0 in array.shape:
        raise ValueError(f"X has the shape {array.shape}; every series needs a value")
    return list(array)


def _plain(values: Any, *, name: str) -> Any:
    """Return values as they are, or an array of objects that has NaN for each NA of pandas.

    Raises:
        ValueError: Complex numbers.
        TypeError: Times.
    """
    array = np.asarray(values)
    expect_real(array.dtype, name=name)
    expect_no_times(array.dtype, name=name)
    return without_na(array) if array.dtype == object and array.ndim else values


def _rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> list[NDArray[np.float64]]:
    """Return the series of a table as scikit-learn has it, each of one channel."""
    if isinstance(X, list | tuple) and not X:
        raise ValueError("X is an empty list; give at least one series")
    try:
        array = validate_data(estimator, X, reset=reset, dtype=np.float64, ensure_all_finite=False)
    except ValueError as error:
        if "features as input" not in str(error):
            raise
        raise ValueError(f"{error} Series of other lengths can be given as a list.") from None
    return list(array[:, None, :])


def _padded_tokens(estimator: BaseEstimator, X: Any, *, reset: bool) -> Padded:
    """Check sequences of tokens and return them as one tensor.

    Raises:
        ValueError: No sequences, an empty one, a number that is no token, or the setting `missing`.
        TypeError: A vocabulary or tokens that are no whole numbers.
    """
    vocab_size = vocabulary_of(estimator)
    if _may_miss(estimator):
        raise ValueError(
            'missing is "mask" and vocab_size is set; there is no line between tokens: let one of '
            "them say that it is missing"
        )
    strange = isinstance(X, str | bytes | bytearray | Mapping | AbstractSet)
    sparse = hasattr(X, "toarray")
    if strange or sparse or not hasattr(X, "__iter__") or getattr(X, "ndim", 1) not in {1, 2}:
        raise ValueError(
            "X must be an array (n_cases, n_timepoints) of tokens, or a list of sequences of them "
            "or of texts"
        )
    rows = X.to_numpy() if hasattr(X, "to_numpy") else X
    sequences = [
        checked_tokens(values, vocab_size, name=f"X[{index}]") for index, values in enumerate(rows)
    ]
    if not sequences:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    empty = [index for index, tokens in enumerate(sequences) if not len(tokens)]
    if empty:
        raise ValueError(f"X[{empty[0]}] is empty; every sequence needs a token")
    if reset:
        estimator.n_channels_ = 1
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    longest = int(lengths.max())
    _expect_room(lengths, 8, "tokens")
    x = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, tokens in zip(x, sequences, strict=True):
        row[: len(tokens)] = tokens
    return Padded(x, torch.arange(x.shape[1]) < lengths[:, None])


def _expect_room(lengths: Int[Tensor, " n"], width: int, unit: str) -> None:
    """Check that sequences fit into memory when all are as long as the longest.

    Args:
        lengths: How many positions each has.
        width: Bytes of a position.
        unit: What a position is called.

    Raises:
        ValueError: They take more than a quarter of it.
    """
    n, longest = len(lengths), int(lengths.max())
    if width * n * longest > memory_bytes() // 4:
        raise ValueError(
            f"X[{int(lengths.argmax())}] has {longest} {unit}; {n} sequences as long as the "
            "longest take more than a quarter of this machine's memory: give long ones by "
            "themselves, or cut them"
        )


def checked_tokens(values: Any, vocab_size: int, *, name: str) -> Int[Tensor, " l"]:
    """Return a sequence of tokens; those of a text are the bytes of its UTF-8.

    Raises:
        ValueError: A number outside the vocabulary, masked values, no sequence, or more than one
            axis.
        TypeError: Values that are no whole numbers.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked values; tokens cannot be missing: let one say so")
    try:
        text = values.encode() if isinstance(values, str) else values
        tokens = (
            np.frombuffer(text, dtype=np.uint8) if isinstance(text, bytes) else np.asarray(text)
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is no sequence of tokens: {error}") from error
    if tokens.ndim == 0:
        raise ValueError(
            f"{name} is {values!r}, which is no sequence of tokens; of a single sequence give [X]"
        )
    if tokens.ndim != 1:
        raise ValueError(f"{name} has the shape {tokens.shape}; a sequence of tokens has one axis")
    if tokens.size and tokens.dtype.kind not in "iu":
        tokens = np.asarray(values, dtype=object)
        strange = [
            token for token in tokens if isinstance(token, bool) or not isinstance(token, Integral)
        ]
        if strange:
            raise TypeError(f"{name} has {strange[0]!r}; tokens are whole numbers")
    outside = (tokens < 0) | (tokens >= vocab_size) if tokens.size else np.zeros(0, dtype=bool)
    if outside.any():
        raise ValueError(
            f"{name} has {tokens[outside][0]}, which is no token: vocab_size is {vocab_size}, so "
            f"tokens are 0 to {vocab_size - 1}"
        )
    return torch.from_numpy(tokens.astype(np.int64))


def checked_labels(series: Tensor, y: Any) -> NDArray[Any]:
    """Check that y has a label for each series, and return them as an array.

    Raises:
        ValueError: It is missing, of another length, no class labels, holds a NaN or the like, or
            labels of several types.
    """
    if y is None:
        raise ValueError("it requires y to be passed, but the target y is None")
    if np.ma.is_masked(y):
        raise ValueError("y has masked labels; leave these series out")
    expect_real(np.asarray(y).dtype, name="y")
    labels = column_or_1d(y, warn=True)
    check_consistent_length(series, labels)
    _expect_labels(y, labels)
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    return labels


def _expect_labels(given: Any, labels: NDArray[Any]) -> None:
    """Check labels by what they were before NumPy made an array of them.

    Raises:
        ValueError: One is missing, they are of several types, or objects that are no texts.
    """
    # NumPy makes texts of whatever comes with texts, NaN too.
    objects = labels.dtype.kind in "OSU"
    cells = np.ravel(np.asarray(given, dtype=object)) if objects else labels
    missing = [
        index
        for index, cell in enumerate(cells)
        if cell is None or is_na(cell) or (isinstance(cell, _MAY_BE_NAN) and np.isnan(cell))
    ]
    if missing:
        raise ValueError(
            f"y has missing labels (NaN, None or NA), the first for series {missing[0]}; leave "
            "these series out"
        )
    kinds = {str if isinstance(cell, str) else type(cell) for cell in cells}
    names = " and ".join(sorted(kind.__name__ for kind in kinds))
    if len(kinds) > 1:
        raise ValueError(
            f"Unknown label type: y has labels of several types, {names}; make them one"
        )
    if labels.dtype == object and kinds != {str}:
        raise ValueError(
            f"Unknown label type: y is of type object and holds {names}; make the labels whole "
            "numbers or texts, by astype(int) or astype(str)"
        )


def labels_like(classes: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels in the type of the classes; texts may be longer.

    Raises:
        ValueError: They have another value in it.
    """
    texts = [each.dtype.kind in "UO" for each in (classes, labels)]
    if all(texts):
        return labels.astype(object if classes.dtype.kind == "O" else str)
    if not any(texts) and (classes.dtype.kind == "b") == (labels.dtype.kind == "b"):
        with np.errstate(all="ignore"):
            same = labels.astype(classes.dtype)
            kept = (same == labels).all() and (same.astype(labels.dtype) == labels).all()
        if kept:
            return same
    raise ValueError(
        f"y has labels of type {labels.dtype} that are none of the type of the classes, "
        f"{classes.dtype}; give the same kind of labels"
    )


def class_indices(classes: NDArray[Any], labels: NDArray[Any]) -> Int[Tensor, " n"]:
    """Return which class each label is.

    Raises:
        ValueError: One is no class.
    """
    place = {label: index for index, label in enumerate(classes.tolist())}
    strange = [label for label in labels.tolist() if label not in place]
    if strange:
        raise ValueError(
            f"y has the label {strange[0]!r}, which is none of the classes; leave such series out, "
            "or give them to a report as unknown"
        )
    return torch.tensor([place[label] for label in labels.tolist()])


def checked_values(series: Tensor, y: Any) -> Float[Tensor, " n"]:
    """Check that y has a finite number for each series, and return them in float64.

    Raises:
        ValueError: It is missing, of another length, of more than one column, or not finite.
        TypeError: It has times, or other objects that are no numbers.
    """
    if y is None:
        raise ValueError("it requires y to be passed, but the target y is None")
    if np.ma.is_masked(y):
        raise ValueError("y has masked values; leave these series out")
    given = _plain(y, name="y")
    try:
        with np.errstate(invalid="ignore"):  # of the sum that scikit-learn looks for NaN by
            array = check_array(given, dtype=np.float64, ensure_2d=False, input_name="y")
    except (TypeError, ValueError) as error:
        if not str(error).startswith(_NO_NUMBER):
            raise
        raise type(error)(f"y: {error}; give a number for each series") from None
    values = column_or_1d(array, warn=True)
    check_consistent_length(series, values)
    return torch.from_numpy(values.copy())


def seeded(estimator: BaseEstimator) -> Generator:
    """Return a source of randomness by the setting `random_state`.

    Raises:
        ValueError: It is no seed.
    """
    seed = check_random_state(estimator.random_state).randint(2**31)
    return Generator().manual_seed(int(seed))


def fitted_features(
    estimator: BaseEstimator, batch: Padded, *, clock: Clock | None = None, generator: Generator
) -> tuple[FixedFeatures | NGrams, Float[Tensor, "n f"]]:
    """Fit fixed features to training series.

    Args:
        estimator: Has the settings `n_features` and `vocab_size`.
        batch: The series.
        clock: Has run since the fit began; when missing, it begins here and tells nothing.
        generator: Source of kernels.

    Returns:
        The features, and what they are of each series.

    Raises:
        ValueError: Too few features.
        TypeError: A number of features that is no whole number.
    """
    expect_whole("n_features", estimator.n_features)
    n, wanted = len(batch.x), int(estimator.n_features)
    if estimator.vocab_size is not None:
        wanted = min(wanted, int(batch.mask.sum()))  # there are no more runs than tokens
    if 2 * _FEATURE_BYTES * n * wanted > memory_bytes():
        raise ValueError(
            f"n_features is {estimator.n_features}; of {n} series they take more than half of this "
            "machine's memory: choose fewer, or give fewer series"
        )
    clock = clock or Clock()
    features: FixedFeatures | NGrams
    if estimator.vocab_size is not None:
        features = NGrams(vocabulary_of(estimator), n_features=int(estimator.n_features))
        rows = features.fit(*batch)
    else:
        features = FixedFeatures(
            batch.x.shape[2],
            batch.x.shape[1],
            n_features=int(estimator.n_features),
            generator=generator,
        )
        with _groups_told(features, clock):
            rows = features.fit(*batch, generator=generator)
    spent = clock.look("fixed features")
    clock.tell(f"fixed features, {n} series, {rows.shape[1]} features, {spent:.1f} s")
    return features, rows


@contextmanager
def _groups_told(features: FixedFeatures, clock: Clock) -> Iterator[None]:
    """Tell of each group of convolutions that is done but the last, where they take long."""
    groups = list(features.children())

    def told(index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if clock.since_look > _LONG:
                clock.tell(f"fixed features, group {index} of {len(groups)}, {clock.so_far:.0f} s")

        return hook

    handles = [g.register_forward_hook(told(i)) for i, g in enumerate(groups[:-1], 1)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def described(estimator: BaseEstimator, features: SeriesFeatures, X: Any) -> Float[Tensor, "n f"]:
    """Return the features of new series, in float32.

    Raises:
        ValueError: X that `padded` refuses, or values too far from those of training.
    """
    return torch.cat(list(described_in_parts(estimator, features, X)))


def described_in_parts(
    estimator: BaseEstimator, features: SeriesFeatures, X: Any
) -> Iterator[Float[Tensor, "m f"]]:
    """Yield the features of new series, of so many at once that they take little memory.

    Raises:
        ValueError: As of `described`.
    """
    expect_vocabulary_of_fit(estimator, features.vocab_size)
    x, mask = padded(estimator, X, reset=False)
    first, at_once = 0, max(1, _FEATURES_AT_ONCE // features.n_features)
    for batch in zip(torch.split(x, at_once), torch.split(mask, at_once), strict=True):
        with torch.inference_mode():
            found: Tensor = features(*batch)
        far = ~found.isfinite().all(1)
        if bool(far.any()):
            raise ValueError(
                f"series {first + int(far.nonzero()[0])} of X has values too far from those of "
                "training for float32"
            )
        yield found
        first += len(found)


def has_masked(values: Any) -> bool:
    """Return whether an array has masked values, or one of a list of channels."""
    if isinstance(values, list | tuple):
        return any(np.ma.is_masked(channel) for channel in values)
    return bool(np.ma.is_masked(values))


def _unmasked(values: Any) -> Any:
    """Return an array, or channels, whose masked values are NaN; anything else as it is."""
    if isinstance(values, list | tuple) and has_masked(values):
        return [_unmasked(channel) for channel in values]
    if not has_masked(values):
        return values
    return np.ma.filled(values.astype(np.float64), np.nan)


def _ragged(X: Any) -> list[NDArray[np.float64]] | None:
    """Return the series of a list of arrays, or of lists of two levels or of several lengths.

    Nothing of a list of lists of as many numbers each: that is an array of two axes.
    """
    if not isinstance(X, list | tuple) or not X:
        return None
    if not any(isinstance(values, np.ndarray) for values in X):
        shapes = {_shape(values) for values in X}
        shape = shapes.pop() if len(shapes) == 1 else None
        if shape is not None and len(shape) < 2:
            return None
    return [_one(index, values) for index, values in enumerate(X)]


def _shape(values: Any) -> tuple[int, ...] | None:
    try:
        return np.shape(values)
    except ValueError:  # lists within it are not of one length
        return None


def _one(index: int, values: Any) -> NDArray[np.float64]:
    if is_frame(values):
        values = values_of(values, name=f"X[{index}]")
    shape = _shape(values)
    if shape is None:
        raise ValueError(f"X[{index}] has channels of several lengths; all of a series have one")
    if len(shape) not in {1, 2}:
        raise ValueError(
            f"X[{index}] has the shape {shape}; a series has the shape (n_channels, n_timepoints) "
            "or (n_timepoints,)"
        )
    array = check_array(
        _plain(values, name=f"X[{index}]"),
        dtype=np.float64,
        ensure_2d=False,
        ensure_min_samples=0,
        ensure_all_finite=False,
        input_name=f"X[{index}]",
    )
    array = array[None] if array.ndim == 1 else array
    if 0 in array.shape:
        raise ValueError(f"X[{index}] has the shape {array.shape}; every series needs a value")
    return array


def _stacked(series: list[NDArray[np.float64]]) -> Padded:
    lengths = torch.tensor([values.shape[1] for values in series])
    longest = int(lengths.max())
    if int(lengths.min()) < longest:
        _expect_room(lengths, 8 * series[0].shape[0], "values in each channel")
    x = torch.zeros(len(series), longest, series[0].shape[0], dtype=torch.float64)
    for row, values in zip(x, series, strict=True):
        row[: values.shape[1]] = torch.from_numpy(
            values.T.copy()
        )  # what is read-only has to be copied
    return Padded(x, torch.arange(longest) < lengths[:, None])

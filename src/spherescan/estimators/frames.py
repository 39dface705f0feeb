"""Data frames: a table of one series in each row, or a series with channels in columns.

And what they and arrays hold that is no number: the NA of pandas, times, complex numbers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator


def is_frame(values: Any) -> bool:
    """Return whether something is a data frame, of pandas or polars."""
    return hasattr(values, "columns") and hasattr(values, "to_numpy")


def is_na(value: object) -> bool:
    """Return whether something is the NA of pandas, which need not be installed."""
    return type(value).__name__ == "NAType"


def without_na(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array that has NaN for each NA of pandas."""
    if values.dtype != object:
        return values
    missing = np.asarray(np.frompyfunc(is_na, 1, 1)(values), dtype=bool)
    return np.where(missing, np.nan, values) if missing.any() else values


def expect_real(dtype: np.dtype[Any], *, name: str) -> None:
    """Refuse complex numbers.

    Raises:
        ValueError: The type is one of theirs.
    """
    if dtype.kind == "c":
        raise ValueError(
            f"Complex data not supported: {name} is of type {dtype}; give real numbers"
        )


def expect_no_times(dtype: np.dtype[Any], *, name: str) -> None:
    """Refuse times: NumPy makes numbers of them without a word, and of NaT too.

    Raises:
        TypeError: The type is one of theirs.
    """
    if dtype.kind in "mM":
        since = name if dtype.kind == "m" else f"({name} - start)"
        raise TypeError(
            f"{name} is of type {dtype}, which is no number; give numbers, such as seconds: "
            f"{since} / np.timedelta64(1, 's')"
        )


def as_floats(values: Any) -> NDArray[np.float64]:
    """Return values in float64, each NA of pandas as NaN.

    Raises:
        ValueError: A text that is no number.
        TypeError: Something else that is no number.
    """
    array = np.asarray(values)
    if array.dtype.kind in "cmM":
        raise TypeError(f"it is of type {array.dtype}")
    return np.asarray(without_na(array), dtype=np.float64)


def values_of(frame: Any, *, name: str) -> NDArray[Any]:
    """Return the values of a series, of shape (n_channels, n_timepoints).

    Raises:
        ValueError: A column that holds no numbers.
    """
    values = np.asarray(frame.to_numpy())
    if values.dtype.kind not in "biuf":
        _expect_numbers(frame, TypeError, ValueError, name=name)
    return values.T


def _expect_numbers(frame: Any, *refused: type[Exception], name: str) -> None:
    """Check that columns hold numbers, as far as `as_floats` raises one of these errors.

    Raises:
        ValueError: One does not.
    """
    for column in frame.columns:
        try:
            as_floats(frame[column])
        except refused as error:
            raise ValueError(
                f"{name} has the column {column!r}, which holds no numbers ({error}); leave it out"
            ) from None


def table_without_na(frame: Any) -> Any:
    """Return a table of series that has NaN for each NA of pandas.

    Raises:
        ValueError: A column that holds times, or something else that is neither number nor text.
    """
    values = np.asarray(frame.to_numpy())
    if values.dtype.kind not in "biuf":
        _expect_numbers(frame, TypeError, name="X")
    if without_na(values) is values:
        return frame
    return frame.astype(object).where(frame.notna(), np.nan)


def expect_ungrouped(X: Any) -> None:
    """Refuse what `groupby` returns, or a list of it.

    Raises:
        ValueError: With what to give instead.
    """
    first = X[0] if isinstance(X, list | tuple) and X else None
    pair = isinstance(first, tuple) and any(map(is_frame, first))
    if pair or type(X).__name__.endswith("GroupBy"):
        raise ValueError(
            "X has the groups of a data frame, each with its key; give a list of the frames alone, "
            "without the column that they were grouped by: "
            "[frame.drop(columns=...) for _, frame in X]"
        )


def expect_one_table(X: Any) -> None:
    """Refuse a data frame that is not a table of one series in each row.

    Raises:
        ValueError: With what to give instead.
    """
    if not is_frame(X):
        return
    if getattr(getattr(X, "index", None), "nlevels", 1) > 1:
        raise ValueError(
            "X is a data frame with an index of several levels; give a list of the frames of its "
            "series: [frame for _, frame in X.groupby(level=0)]"
        )
    cells = X.head(1).to_numpy().ravel() if len(X) else ()
    if any(hasattr(cell, "__len__") and not isinstance(cell, str | bytes) for cell in cells):
        raise ValueError(
            "X is a data frame with a series in each cell; give its column "
            f"{next(iter(X.columns))!r} as a list of series"
        )


def expect_channel_names(estimator: BaseEstimator, series: Sequence[Any], *, reset: bool) -> None:
    """Remember the columns of data frames, or compare them with what was remembered.

    Args:
        estimator: Remembers `channel_names_`, if the first series is a data frame.
        series: Data frames and others.
        reset: Whether to remember.

    Raises:
        ValueError: They are others, or in another order.
    """
    if reset and series and is_frame(series[0]):
        estimator.channel_names_ = list(map(str, series[0].columns))
    expected = getattr(estimator, "channel_names_", None)
    for index, frame in enumerate(series):
        if expected is None or not is_frame(frame):
            continue
        names = list(map(str, frame.columns))
        if names != expected:
            raise ValueError(
                f"X[{index}] has the columns {', '.join(names)}; wanted those of the fit, in their "
                f"order: {', '.join(expected)}"
            )

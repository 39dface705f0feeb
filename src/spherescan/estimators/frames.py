"""Data frames: a table of one series in each row, or a series with channels in columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator


def is_frame(values: Any) -> bool:
    """Return whether something is a data frame, of pandas or polars."""
    return hasattr(values, "columns") and hasattr(values, "to_numpy")


def values_of(frame: Any, *, name: str) -> NDArray[Any]:
    """Return the values of a series, of shape (n_channels, n_timepoints).

    Raises:
        ValueError: A column that holds no numbers.
    """
    values = np.asarray(frame.to_numpy())
    for column in frame.columns if values.dtype.kind not in "biuf" else ():
        try:
            np.asarray(frame[column], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} has the column {column!r}, which holds no numbers ({error}); leave it out"
            ) from None
    return values.T


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

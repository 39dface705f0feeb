"""What a file of sequences holds, before it becomes batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spherescan.data.rounding import Rounding
from spherescan.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)  # eq: arrays have no single truth value to compare by
class SeriesTable:
    """Hold labelled (or not) sequences as a file gives them.

    A table that breaks one of the rules below cannot be made. Indices in messages count from 0.

    Args:
        series: One C-contiguous array of shape (length, channels) per sequence. Lengths may
            differ, the number of channels may not; every value is finite.
        labels: The class label of each sequence as written in the file; None where there are none.
        targets: The regression target of each sequence; None where there are none. A table has
            labels or targets or neither.
        class_names: The classes the file declares, in its order; None where it declares none.
        source: The file name, for messages.
        channel_names: The name of each channel; None where the file has none.
        case_names: The name of each sequence; None where the file has none.
        rounding: What float32 has changed; None where the file has no better, or nobody looked.

    Raises:
        DataError: A rule above is broken; the message names the source and the sequence.
    """

    series: tuple[NDArray[np.float32], ...]
    labels: tuple[str, ...] | None
    targets: NDArray[np.float64] | None
    class_names: tuple[str, ...] | None
    source: str
    channel_names: tuple[str, ...] | None = None
    case_names: tuple[str, ...] | None = None
    rounding: Rounding | None = None

    def __post_init__(self) -> None:
        _check_series(self.series, self.source)
        if self.labels is not None and self.targets is not None:
            raise DataError(
                f"{self.source}: both class labels and regression targets; a table has one of the "
                "two; keep the one to learn"
            )
        if self.targets is not None:
            _check_targets(self.targets, len(self.series), self.source)
        _check_labels(self.labels, self.class_names, len(self.series), self.source)
        for what, names, count in (
            ("channel", self.channel_names, self.n_channels),
            ("case", self.case_names, len(self.series)),
        ):
            if names is not None and len(names) != count:
                raise DataError(f"{self.source}: {len(names)} {what} names for {count}")

    def __len__(self) -> int:
        return len(self.series)

    @property
    def n_channels(self) -> int:
        """Return the number of channels, the same for every sequence."""
        return int(self.series[0].shape[1])


def _check_series(series: Sequence[NDArray[np.float32]], source: str) -> None:
    if not series:
        raise DataError(f"{source}: holds no sequences; wanted at least one; check the file")
    for index, values in enumerate(series):
        what = f"{source}: sequence {index}"
        if values.ndim != 2 or values.dtype != np.float32 or not values.flags.c_contiguous:
            raise DataError(
                f"{what} is {values.dtype} of shape {values.shape}; wanted C-contiguous float32 "
                "of shape (length, channels); convert it with np.ascontiguousarray"
            )
        if 0 in values.shape:
            raise DataError(
                f"{what} has shape (length, channels) = {values.shape}; wanted at least 1 of each; "
                f"remove the sequence"
            )
        if values.shape[1] != series[0].shape[1]:
            raise DataError(
                f"{what} has {values.shape[1]} channels where sequence 0 has {series[0].shape[1]}; "
                f"wanted the same number everywhere; put them into separate files"
            )
        finite = np.isfinite(values)
        if not finite.all():
            position, channel = np.argwhere(~finite)[0]
            raise DataError(
                f"{what} has {values[position, channel]} at position {position} of channel "
                f"{channel}; wanted finite float32 numbers; fill in or remove missing values, "
                "rescale values above 3.4e38"
            )


def _check_targets(targets: NDArray[np.float64], count: int, source: str) -> None:
    if targets.shape != (count,):
        raise DataError(
            f"{source}: targets of shape {targets.shape} for {count} sequences; wanted one target "
            "for each"
        )
    bad = np.flatnonzero(~np.isfinite(targets))
    if bad.size:
        raise DataError(
            f"{source}: the target of sequence {bad[0]} is {targets[bad[0]]}; wanted a finite "
            "number; remove the sequence or repair its target"
        )


def _check_labels(
    labels: Sequence[str] | None, class_names: Sequence[str] | None, count: int, source: str
) -> None:
    if labels is None:
        if class_names is not None:
            raise DataError(
                f"{source}: declares class names but has no labels; give both or neither"
            )
        return
    if len(labels) != count:
        raise DataError(
            f"{source}: {len(labels)} labels for {count} sequences; wanted one for each"
        )
    if "" in labels:
        raise DataError(
            f"{source}: the label of sequence {labels.index('')} is empty; wanted a name; write one"
        )
    if class_names is None:
        return
    known = set(class_names)
    if len(known) != len(class_names):
        raise DataError(
            f"{source}: a class name is declared twice; wanted each once; remove the second"
        )
    for index, label in enumerate(labels):
        if label not in known:
            raise DataError(
                f"{source}: the label of sequence {index} is {label!a}; wanted one of the "
                f"{len(known)} declared classes; declare it or correct the label"
            )

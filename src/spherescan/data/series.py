"""Batches of ragged, multichannel series."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spherescan.data.batch import Batch
from spherescan.data.formats.quoting import listed, quoted
from spherescan.data.order import derived_seed, permuted, sample_order
from spherescan.data.rounding import WHERE
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError

# Part of a standard deviation that rounding to float32 may be. There are then three steps in one
# standard deviation; with fewer, what a channel does is lost.
_MOST_LOST = 0.1

Targets = NDArray[np.int64] | NDArray[np.float64]


class SeriesSource:
    """Series in the order of a run, with noise that depends on their place in it.

    Args:
        series: Arrays of shape (length, channels).
        targets: One class index or one number per series.
        seed: Seed of the order and of the jitter.
        jitter: Standard deviation of the noise added to every value, in units of the standard
            deviation of its channel.
        shuffle: Whether each epoch has an order of its own.
    """

    def __init__(
        self,
        series: Sequence[NDArray[np.float32]],
        targets: Targets,
        *,
        seed: int,
        jitter: float = 0.0,
        shuffle: bool = True,
    ) -> None:
        self._series, self._targets = series, targets
        self._seed, self._jitter, self._shuffle = seed, jitter, shuffle
        self._std = channel_statistics(series)[1]

    def __len__(self) -> int:
        return len(self._series)

    def batch(self, start: int, count: int) -> Batch:
        """Return samples `start` to `start + count` of the run."""
        order = sample_order(start, count, n=len(self), seed=self._seed, shuffle=self._shuffle)
        batch = collate([self._series[i] for i in order], self._targets[order])
        if not self._jitter:
            return batch
        seed = derived_seed(self._seed, "jitter", start)
        noise = torch.randn(batch.inputs.shape, generator=torch.Generator().manual_seed(seed))
        noisy = batch.inputs + self._jitter * torch.from_numpy(self._std) * noise
        inputs = torch.where(batch.mask[:, :, None], noisy, 0.0)
        return Batch(inputs, batch.targets, batch.mask)


def series_batches(
    series: Sequence[NDArray[np.float32]], targets: Targets, *, batch_size: int
) -> Iterator[Batch]:
    """Yield every series once, in order."""
    for start in range(0, len(series), batch_size):
        part = slice(start, start + batch_size)
        yield collate(series[part], targets[part])


def collate(series: Sequence[NDArray[np.float32]], targets: Targets) -> Batch:
    """Pad series with zeros at the end to the longest of them."""
    longest = max(map(len, series))
    inputs = np.zeros((len(series), longest, series[0].shape[1]), dtype=np.float32)
    mask = np.zeros((len(series), longest), dtype=np.bool_)
    for row, values in enumerate(series):
        inputs[row, : len(values)] = values
        mask[row, : len(values)] = True
    return Batch(
        torch.from_numpy(inputs), torch.from_numpy(np.array(targets)), torch.from_numpy(mask)
    )


def channel_statistics(
    series: Sequence[NDArray[np.float32]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of each channel over all positions of all series.

    A channel that never changes has standard deviation 1: dividing by it leaves zeros.
    """
    values = np.concatenate(series).astype(np.float64)
    std = values.std(axis=0).astype(np.float32)
    # Below the smallest normal number, or the rounding of the mean, there is no spread.
    rounding = 1e-12 * np.abs(values).max(axis=0, initial=0.0)
    std[std <= np.maximum(rounding, np.finfo(np.float32).tiny)] = 1.0
    return values.mean(axis=0).astype(np.float32), std


def class_names(table: SeriesTable) -> tuple[str, ...]:
    """Return the classes of a training set: those the file declares, else those it holds, sorted.

    Raises:
        DataError: No labels, fewer than two classes, or a declared class without a sample.
    """
    if table.labels is None:
        numbers = table.targets is not None
        raise DataError(
            f"{table.source}: has {'numeric targets and ' if numbers else ''}no class labels"
            f"{_or_empty(table, 'label')}; a classifier needs one per sequence"
            + (', and data.task = "regression" learns numbers' if numbers else "")
        )
    present = set(table.labels)
    names = table.class_names if table.class_names is not None else tuple(sorted(present))
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            f"{table.source}: declares the classes {listed(names)} but has no sequence of "
            f"{listed(missing)}; add some, or remove it from the header"
        )
    for name in names:
        if name != name.strip() and name.strip() in names:
            raise DataError(
                f"{table.source}: has the classes {name!r} and {name.strip()!r}, which differ by "
                "blanks alone; make them one"
            )
    if len(names) < 2:
        raise DataError(f"{table.source}: holds only the class {names[0]!r}; two are needed")
    return names


def class_indices(table: SeriesTable, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each label among the classes of the model.

    Raises:
        DataError: No labels, or a label the model does not know.
    """
    if table.labels is None:
        raise DataError(
            f"{table.source}: has no class labels{_or_empty(table, 'label')} to compare with"
        )
    index = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(table.labels):
        if label not in index:
            raise DataError(
                f"{table.source}: sequence {row} has the unknown class {label!r}; "
                f"the model was trained on {listed(names)}"
            )
    return np.array([index[label] for label in table.labels], dtype=np.int64)


def regression_targets(table: SeriesTable) -> NDArray[np.float64]:
    """Return the numbers to predict.

    Raises:
        DataError: The file has none.
    """
    if table.targets is None:
        raise DataError(
            f"{table.source}: has {'class labels and ' if table.labels is not None else ''}no "
            f"numeric targets{_or_empty(table, 'target')}; a regressor needs one per sequence"
            f"{_way_to_targets(table)}"
        )
    return table.targets


def _or_empty(table: SeriesTable, column: str) -> str:
    """Return where labels or targets stand in a format that may have an empty column of them."""
    if table.labels is not None or table.targets is not None:
        return ""
    csv = Path(table.source).suffix.lower() == ".csv"
    return f" (no column {column!r}, or an empty one)" if csv else ""


def _way_to_targets(table: SeriesTable) -> str:
    """Return how numbers that were read as labels become targets, by the format of the file."""
    match table.labels and Path(table.source).suffix.lower():
        case ".csv":
            way = "call their column 'target'"
        case ".ts":
            way = "declare them by @targetLabel true instead of @classLabel"
        case ".npz":
            way = "save y as floating-point numbers"
        case _:
            return ""
    return f"; if the labels are numbers, {way}"


def expect_channels(table: SeriesTable, n_channels: int, names: Sequence[str] = ()) -> None:
    """Check the channels against those of the training data.

    Args:
        table: Other data.
        n_channels: Channels of the training data.
        names: Their names, when there are any.

    Raises:
        DataError: Their number differs, or their names or order do when both have names.
    """
    if table.n_channels != n_channels:
        raise DataError(
            f"{table.source}: has {table.n_channels} channels; the training data has {n_channels}"
        )
    if names and table.channel_names is not None and table.channel_names != tuple(names):
        raise DataError(
            f"{table.source}: has the channels {', '.join(table.channel_names)}; the training data "
            f"has {', '.join(names)}; give the columns these names, in this order"
        )


def expect_resolved(table: SeriesTable) -> None:
    """Check that float32 has left the differences within each channel of training data.

    Raises:
        DataError: A channel is not constant, and its values are too large for its differences.
    """
    rounding = table.rounding
    if rounding is None:
        return
    bad = np.flatnonzero(rounding.lost > _MOST_LOST * rounding.deviation)
    if not bad.size:
        return
    names = table.channel_names or tuple(map(str, range(table.n_channels)))
    first, magnitude = bad[0], rounding.magnitude[bad[0]]
    step = np.spacing(np.float32(magnitude))
    tiny = magnitude < np.finfo(np.float32).tiny
    way = "multiply it by a power of ten" if tiny else "subtract an offset that all sequences share"
    raise DataError(
        f"{table.source}: channel {quoted(names[first])} has values of about {magnitude:.7g}, "
        f"where float32 tells no less than {step:.3g} apart; they differ by "
        f"{rounding.deviation[first]:.3g} {WHERE[rounding.where[first]]} (standard deviation), "
        f"which rounding would lose or turn into steps; {way}, or leave the channel out"
        + (f"; likewise {listed(names[i] for i in bad[1:])}" if bad.size > 1 else "")
    )


def stratified_split(
    targets: Targets, *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split samples into training and validation, class by class.

    Of a class with m samples, round(fraction m) are held out, but at most m - 1. Numbers
    to predict count as one class.

    Returns:
        Sorted indices of the training and of the validation samples.

    Raises:
        DataError: Nothing would be held out.
    """
    groups = targets if targets.dtype == np.int64 else np.zeros(len(targets), dtype=np.int64)
    held_out = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        count = min(len(members) - 1, math.floor(fraction * len(members) + 0.5))
        order = permuted(
            np.arange(count), n=len(members), seed=derived_seed(seed, "split"), epoch=int(group)
        )
        held_out.append(members[order])
    validation = np.sort(np.concatenate(held_out))
    if len(validation) == 0:
        single = len(np.unique(groups)) == len(targets)
        way_out = (
            "each is the only one of its class: bring more of each"
            if single
            else "raise data.validation_fraction"
        )
        raise DataError(
            f"a validation fraction of {fraction} holds out none of {len(targets)} sequences; "
            f"{way_out}, or give data.validation"
        )
    return np.setdiff1d(np.arange(len(targets)), validation), validation


def fingerprint(table: SeriesTable) -> str:
    """Return a digest of all values, lengths and labels."""
    names = (table.labels, table.class_names, table.channel_names, len(table))
    digest = hashlib.sha256(repr(names).encode())
    if table.targets is not None:
        digest.update(table.targets.tobytes())
    for values in table.series:
        digest.update(repr(values.shape).encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()

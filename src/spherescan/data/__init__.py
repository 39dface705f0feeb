"""Batches that can be resumed at any position, and the files they come from."""

from collections.abc import Callable

from torch import Tensor

from spherescan.data.batch import NO_TARGET, Batch, Source
from spherescan.data.formats import SERIES_READERS, TOKEN_READERS, read_series, read_tokens
from spherescan.data.importing import import_text, open_tokens
from spherescan.data.locate import locate
from spherescan.data.negatives import (
    rust_trainer_negative,
    shuffled_segments,
    time_shift,
    wrong_label,
)
from spherescan.data.rows import PackedDocuments, TokenSource, Windows
from spherescan.data.series import SeriesSource
from spherescan.data.shards import open_shards, write_shards
from spherescan.data.stream import BatchStream
from spherescan.data.table import SeriesTable
from spherescan.data.task import Task
from spherescan.data.tokens import TokenData

# How real data is made wrong on purpose; labels are by `wrong_label`.
NEGATIVES: dict[str, Callable[..., Tensor]] = {
    "shuffled_segments": shuffled_segments,
    "time_shift": time_shift,
    "rust_trainer": rust_trainer_negative,
}

__all__ = [
    "NEGATIVES",
    "NO_TARGET",
    "SERIES_READERS",
    "TOKEN_READERS",
    "Batch",
    "BatchStream",
    "PackedDocuments",
    "SeriesSource",
    "SeriesTable",
    "Source",
    "Task",
    "TokenData",
    "TokenSource",
    "Windows",
    "import_text",
    "locate",
    "open_shards",
    "open_tokens",
    "read_series",
    "read_tokens",
    "rust_trainer_negative",
    "shuffled_segments",
    "time_shift",
    "write_shards",
    "wrong_label",
]

"""Batches that can be resumed at any position, and the files they come from."""

from collections.abc import Callable

from torch import Tensor

from spherescan.data.batch import NO_TARGET, Batch
from spherescan.data.formats import SERIES_READERS, TOKEN_READERS, read_series, read_tokens
from spherescan.data.importing import import_text
from spherescan.data.locate import locate
from spherescan.data.negatives import (
    rust_trainer_negative,
    shuffled_segments,
    time_shift,
    wrong_label,
)
from spherescan.data.series import SeriesStream
from spherescan.data.shards import open_shards, open_tokens, write_shards
from spherescan.data.table import SeriesTable
from spherescan.data.task import Task
from spherescan.data.tokens import TokenData, TokenStream

# How real data is turned into data that is wrong on purpose.
NEGATIVES: dict[str, Callable[..., Tensor]] = {
    "wrong_label": wrong_label,
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
    "SeriesStream",
    "SeriesTable",
    "Task",
    "TokenData",
    "TokenStream",
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

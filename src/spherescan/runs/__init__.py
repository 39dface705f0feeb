"""A run on disk: checkpoints, metrics and the folder they live in."""

from spherescan.runs.container import (
    Checkpoint,
    CheckpointInfo,
    inspect_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from spherescan.runs.events import PATIENCE_SECONDS, EventLog
from spherescan.runs.folder import Folder
from spherescan.runs.lock import RunLock
from spherescan.runs.metrics import LogPosition, MetricsLog, expect_metrics, read_metrics
from spherescan.runs.state import expect_state
from spherescan.runs.store import RunStore
from spherescan.runs.stream_state import (
    expect_replaceable,
    restore_stream_state,
    write_stream_state,
)

__all__ = [
    "PATIENCE_SECONDS",
    "Checkpoint",
    "CheckpointInfo",
    "EventLog",
    "Folder",
    "LogPosition",
    "MetricsLog",
    "RunLock",
    "RunStore",
    "expect_metrics",
    "expect_replaceable",
    "expect_state",
    "inspect_checkpoint",
    "read_checkpoint",
    "read_metrics",
    "restore_stream_state",
    "write_checkpoint",
    "write_stream_state",
]

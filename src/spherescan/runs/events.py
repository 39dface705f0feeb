"""What happened to a run: append-only, never cut back, so that the history of crashes survives."""

import datetime as dt
from pathlib import Path
from typing import Literal

from spherescan.errors import RunDirectoryError, StorageError
from spherescan.runs.folder import Folder
from spherescan.runs.metrics import MetricsLog

# As long as the metrics wait for a full disk.
PATIENCE_SECONDS = 180.0

Kind = Literal[
    "start", "resume", "save", "save_failed", "quarantine", "rewind", "signal", "nonfinite",
    "rollback", "grow", "change", "stop",
]  # fmt: skip


class EventLog:
    """The one writer of an `events.jsonl`.

    A line that a crash tore is removed when it opens. A log that is damaged in another way, as
    after a loss of power, is kept under the name events.damaged-N.jsonl, and a new one begun.

    Args:
        path: The file.
        run_id: Written into each line.
        folder: The folder of the file.

    Raises:
        RunDirectoryError: The file cannot be opened, or is not the log of this run.
        StorageError: The system refused.
    """

    def __init__(self, path: Path, *, run_id: str, folder: Folder) -> None:
        self._log = _opened(path, run_id, folder)
        try:
            self._log.cut_torn_line()
        except RunDirectoryError as error:
            self._log.close()
            aside = folder.set_aside(path.name, "events.damaged-{}.jsonl")
            self._log = _opened(path, run_id, folder)
            self.write("quarantine", file=aside, reason=str(error))
        except BaseException:
            self._log.close()
            raise

    def write(self, kind: Kind, **facts: object) -> None:
        """Append an event with the time; one that the disk does not take is left out.

        Events tell what happened; no decision depends on them, so none of them ends a run.
        """
        now = dt.datetime.now(tz=dt.UTC).isoformat(timespec="milliseconds")
        try:
            self._log.append({"time": now, "kind": kind, **facts})
        except StorageError:
            return

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def _opened(path: Path, run_id: str, folder: Folder) -> MetricsLog:
    return MetricsLog(path, run_id=run_id, folder=folder, patience=PATIENCE_SECONDS)

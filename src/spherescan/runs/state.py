"""What a checkpoint of a run holds besides its tensors, field by field.

Every checkpoint that a run reads is checked against this before anything of it is used, so that
whoever uses it may rely on each field being there and of its type.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from spherescan.strict_json import typed

# As of run.threads: a resume makes as many as the run had.
MAX_THREADS = 1024
_Count = Annotated[int, Field(ge=0, le=2**53)]


@dataclass(slots=True)
class _Counters:
    step: _Count
    bp_updates: _Count
    ff_updates: _Count
    skipped: _Count
    best_step: _Count | None
    best_score: float | None
    best_loss: float | None
    lowest_loss: float | None
    highest_score: float | None
    since_improvement: _Count


@dataclass(slots=True)
class _Guard:
    in_a_row: _Count
    rollbacks: _Count
    lr_scale: float
    left_out: list[tuple[_Count, _Count]]
    alive: list[_Count]


@dataclass(slots=True)
class _Place:
    epoch: _Count
    position: _Count


@dataclass(slots=True)
class _End:
    offset: _Count
    lines: _Count
    crc32: _Count
    next_seq: _Count


@dataclass(slots=True)
class RunState:
    """The state of a run in the newest schema; `docs/formats.md` says what each field means."""

    run_id: str
    step: _Count
    config: dict[str, dict[str, Any]]
    model: dict[str, Any]
    mergers: list[dict[str, Any]]
    task: dict[str, Any]
    counters: _Counters
    guard: _Guard
    environment: dict[str, str | int] | None
    generators: list[str]
    seconds: float
    parent: str | None
    data: _Place
    fingerprint: str
    metrics: _End


def expect_state(state: dict[str, Any]) -> None:
    """Check that the state of a checkpoint is that of a run.

    Raises:
        ValueError: A field is missing, unknown, of another type, or does not fit another one.
    """
    whole = typed(RunState, state, where="its state")
    if whole.counters.step != whole.step:
        raise ValueError(f"its state is of step {whole.step} and counts {whole.counters.step}")
    threads = 1 if whole.environment is None else whole.environment.get("threads")
    # type(), because True is an int too.
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"its environment has {threads!r} threads, not 1 to {MAX_THREADS}")

"""From the state of an older schema to the newest: pure functions, one for each schema.

A function is never changed once its schema has been released. `tests/golden` has a run of each.
"""

from collections.abc import Callable
from typing import Any

State = dict[str, Any]


def migrated(state: State, schema: int) -> State:
    """Return the state as the newest schema has it.

    Args:
        state: As a file has it.
        schema: Schema of the file.
    """
    for older in range(schema, 1 + len(_MIGRATIONS)):
        state = _MIGRATIONS[older](state)
    return state


def _from_1(state: State) -> State:
    """Add what schema 2 brought; a run of schema 1 had skipped steps, and no other guard."""
    if "counters" not in state:  # written by a program that keeps no run
        return state
    counters = state["counters"]
    if not isinstance(counters, dict):
        raise ValueError("counters is not a JSON object")  # noqa: TRY004 - the file is at fault
    return {
        **state,
        "counters": {**counters, "highest_score": counters.get("best_score")},
        "environment": None,
        "generators": [],
        "guard": {"in_a_row": 0, "rollbacks": 0, "lr_scale": 1.0, "left_out": [], "alive": []},
        "seconds": 0.0,
        "parent": None,
    }


def _from_2(state: State) -> State:
    """Return it as it is: schema 3 changed how a file is hashed."""
    return state


_MIGRATIONS: dict[int, Callable[[State], State]] = {1: _from_1, 2: _from_2}

"""What a compiled graph takes as a constant."""

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant_in_graphs(function: F) -> F:
    """Let `torch.compile` call a function while it traces, and keep what it answered.

    This is `torch.compiler.assume_constant_result`, but for its import of the whole compiler, which
    would take a third of the time in which a command starts.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function

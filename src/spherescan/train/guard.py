"""What a run does about a step that is not finite, and about a block that does not learn."""

from dataclasses import dataclass, field
from typing import Literal

from spherescan.errors import NonFiniteError

Policy = Literal["fail", "skip", "rollback"]

MAX_SKIPS_IN_A_ROW = 8
MAX_SKIPPED_SHARE = 0.01
MAX_ROLLBACKS = 3
# A rollback halves the learning rate for the rest of the run.
ROLLBACK_SCALE = 0.5
# Steps within which a new block must have been given a gradient.
STEPS_TO_LIVE = 10


@dataclass(slots=True)
class Guard:
    """What has gone wrong so far, as a checkpoint has it.

    Attributes:
        in_a_row: Steps left out since the last update.
        rollbacks: Times the run went back to a checkpoint.
        lr_scale: Factor of every learning rate.
        left_out: Places in the data, as (epoch, position), whose batch is not trained on.
        alive: New blocks that have had a gradient.
    """

    in_a_row: int = 0
    rollbacks: int = 0
    lr_scale: float = 1.0
    left_out: list[list[int]] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)

    def leaves_out(self, place: dict[str, int]) -> bool:
        """Return whether the batch at a place is not to be trained on."""
        return [place["epoch"], place["position"]] in self.left_out

    def skipped(self, *, total: int, steps: int, reason: str) -> None:
        """Count a step that was left out.

        Args:
            total: Steps left out so far, this one too.
            steps: Steps of the whole run.
            reason: What was not finite.

        Raises:
            NonFiniteError: It is one too many.
        """
        self.in_a_row += 1
        allowed = max(MAX_SKIPS_IN_A_ROW, int(MAX_SKIPPED_SHARE * steps))
        if self.in_a_row > MAX_SKIPS_IN_A_ROW or total > allowed:
            raise NonFiniteError(
                f"{reason}; {self.in_a_row} steps in a row and {total} in all were left out, and "
                f"{MAX_SKIPS_IN_A_ROW} and {allowed} may be; lower optim.lr or look at the data"
            )

    def rolled_back(self, before: "Guard", place: dict[str, int] | None, *, reason: str) -> None:
        """Take over from the guard that met the trouble, on a state from before it.

        Args:
            before: That guard.
            place: Where the batch is; None when no batch is known to be at fault.
            reason: What was not finite.

        Raises:
            NonFiniteError: It is one too many.
        """
        if before.rollbacks >= MAX_ROLLBACKS:
            raise NonFiniteError(
                f"{reason}; the run has gone back {MAX_ROLLBACKS} times already; lower optim.lr or "
                "look at the data"
            )
        self.rollbacks = before.rollbacks + 1
        self.lr_scale = before.lr_scale * ROLLBACK_SCALE
        self.left_out = [*before.left_out]
        if place is not None:
            self.left_out.append([place["epoch"], place["position"]])

"""What a person sees of a run while it goes on."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from spherescan.train.evaluate import Evaluation, score_text
from spherescan.train.step import StepMetrics


class Reporter:
    """Receive what happens during a run, used as a context around it; this one is silent."""

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def stepped(self, step: int, metrics: StepMetrics, *, lr: float) -> None:
        """Receive a step; `step` counts them."""

    def validated(self, step: int, result: Evaluation, *, best: bool) -> None:
        """Receive a validation."""


class Lines(Reporter):
    """Say one plain line every so many steps.

    Args:
        say: Receives each line.
        total: Steps of the run.
        every: Steps between lines.
    """

    def __init__(self, say: Callable[[str], object], *, total: int, every: int) -> None:
        self._say, self._total, self._every = say, total, every
        self._since = time.perf_counter()
        self._since_step: int | None = None

    def stepped(self, step: int, metrics: StepMetrics, *, lr: float) -> None:
        """Print every so many steps, and at the last."""
        if self._since_step is None:
            self._since_step = step - 1
        if step % self._every == 0 or step == self._total:
            now = time.perf_counter()
            each = (now - self._since) / (step - self._since_step)
            self._say(
                f"step {step}/{self._total}  {_losses(metrics)}  "
                f"grad norm {metrics.grad_norm:.3f}  lr {lr:.2e}  {each * 1e3:.0f} ms/step"
            )
            self._since, self._since_step = now, step

    def validated(self, step: int, result: Evaluation, *, best: bool) -> None:
        """Print the result."""
        self._say(_validation_line(step, result, best=best))


class Bar(Reporter):
    """Draw a bar with the newest loss, and a line for each validation above it.

    Args:
        console: A terminal.
        total: Steps of the run.
        done: Steps done before.
    """

    def __init__(self, console: Console, *, total: int, done: int) -> None:
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID = self._bar.add_task("train", total=total, completed=done, losses="")

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def stepped(self, step: int, metrics: StepMetrics, *, lr: float) -> None:  # noqa: ARG002  of Reporter
        """Move the bar."""
        self._bar.update(self._task, completed=step, losses=_losses(metrics))

    def validated(self, step: int, result: Evaluation, *, best: bool) -> None:
        """Print the result above the bar."""
        line = _validation_line(step, result, best=best)
        self._bar.console.print(line, highlight=False, soft_wrap=True)


def _losses(metrics: StepMetrics) -> str:
    pairs = (("loss", metrics.loss), ("local loss", metrics.local_loss))
    return "  ".join(f"{name} {value:.4f}" for name, value in pairs if value is not None)


def _validation_line(step: int, result: Evaluation, *, best: bool) -> str:
    return (
        f"step {step}  validation loss {result.loss:.4f}  "
        f"{score_text(result.score_name, result.score)} (n = {result.n})"
        f"{'  kept as best' if best else ''}"
    )

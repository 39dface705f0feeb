"""What kind of step a run takes, and which blocks learn together."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from spherescan.config import RunConfig
from spherescan.surgery import make_aggregator, make_weighting
from spherescan.train.local import LOCAL_LOSSES, LocalLoss
from spherescan.train.merge import Merger
from spherescan.train.problem import Problem

Mode = Literal["detached", "grouped", "deep", "surgery"]


@dataclass(frozen=True, slots=True)
class LearningRule:
    """How a model learns from a batch.

    Attributes:
        local: The local loss; None for backpropagation alone.
        mode: How local learning meets backpropagation.
        group: Blocks that share a local loss.
        stop_gradient_every: Blocks between two cuts of backpropagation; 0 for no cut.
        backprop_every: Backpropagation joins when (step + 1) is a multiple of this.
        weight: Weight of a local loss beside the loss of the task.
        plain_updates: Whether a local step is a plain gradient step, without the optimiser.
        run_step_count: Whether the optimiser's bias correction counts the steps of the run.
        seed: Of dropout.
        make_merger: Makes what merges the gradients of one group.
    """

    local: LocalLoss | None
    mode: Mode
    group: int
    stop_gradient_every: int
    backprop_every: int
    weight: float
    plain_updates: bool
    run_step_count: bool
    seed: int
    make_merger: Callable[[], Merger]

    def backprop_joins(self, step: int) -> bool:
        """Return whether a gradient crosses groups in a step, counted from 0."""
        if self.local is None:
            return True
        return self.mode in {"deep", "surgery"} and (step + 1) % self.backprop_every == 0

    def groups(self, n_layers: int) -> list[range]:
        """Return the blocks of each group; the last group may be smaller."""
        size = n_layers if self.local is None else self.group
        return [range(i, min(i + size, n_layers)) for i in range(0, n_layers, size)]

    def is_cut(self, block: int) -> bool:
        """Return whether backpropagation stops in front of a block."""
        return self.stop_gradient_every > 0 and block % self.stop_gradient_every == 0


def make_rule(config: RunConfig, problem: Problem) -> LearningRule:
    """Return the rule that a configuration asks for."""
    local, surgery = config.local, config.surgery
    return LearningRule(
        local=None if local.loss == "none" else LOCAL_LOSSES[local.loss](config, problem.objective),
        mode=local.mode,
        group=local.group,
        stop_gradient_every=local.stop_gradient_every,
        backprop_every=surgery.backprop_every,
        weight=local.weight,
        plain_updates=local.update == "sgd",
        run_step_count=config.optim.step_count == "run",
        seed=config.run.seed,
        make_merger=functools.partial(_merger, config),
    )


def _merger(config: RunConfig) -> Merger:
    surgery = config.surgery
    name = surgery.aggregator
    options: dict[str, float] = {}
    if name == "cagrad":
        options["c"] = surgery.cagrad_c
    rust = name.startswith("rust_")
    if rust:
        options["epsilon"] = surgery.rust_epsilon
    if name == "rust_gradnorm":
        options["alpha"] = surgery.rust_alpha
    if name == "rust_cagradstep":
        options["lam"] = surgery.rust_lambda
    weighting = {"alpha": surgery.gradnorm_alpha} if surgery.weighting == "gradnorm" else {}
    weigh = make_weighting(surgery.weighting, **weighting)
    return Merger(make_aggregator(name, **options), weigh, scaled=rust)

"""One run in memory: steps, validations and checkpoints."""

import dataclasses
import errno
import math
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW

from spherescan.allocator import tells_lack_of_memory
from spherescan.config import RunConfig
from spherescan.data import Batch
from spherescan.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    SpherescanError,
    StorageError,
)
from spherescan.nn import SequenceModel
from spherescan.runs import PATIENCE_SECONDS, Checkpoint, LogPosition, MetricsLog, RunStore
from spherescan.train.depth import grow, set_frozen
from spherescan.train.environment import (
    GENERATORS,
    environment,
    generator_tensors,
    restore_generators,
)
from spherescan.train.evaluate import Evaluation, evaluate
from spherescan.train.guard import STEPS_TO_LIVE, Guard
from spherescan.train.merge import Merger
from spherescan.train.optim import keep_state, load_optimizer, make_optimizer, optimizer_tensors
from spherescan.train.problem import Problem, with_layers
from spherescan.train.progress import Reporter
from spherescan.train.rule import make_rule
from spherescan.train.schedule import learning_rate
from spherescan.train.signals import Signals
from spherescan.train.step import StepMetrics, hybrid_step

Stopped = Literal["finished", "patience", "signal"]

# Saves in a row that may fail before the run stops.
MAX_FAILED_SAVES = 3


@dataclass(slots=True)
class Counters:
    """What a run has counted so far.

    Attributes:
        step: Steps done, updates or not.
        bp_updates: Updates by backpropagation.
        ff_updates: Local updates.
        skipped: Steps left out because something was not finite.
        best_step: Step of the best validation, see `Trainer`.
        best_score: Its accuracy or error.
        best_loss: Its loss.
        lowest_loss: Lowest validation loss of any step, saved or not.
        highest_score: Highest validation accuracy of any step, saved or not; None if not measured.
        since_improvement: Validations since the lowest loss or highest accuracy.
    """

    step: int = 0
    bp_updates: int = 0
    ff_updates: int = 0
    skipped: int = 0
    best_step: int | None = None
    best_score: float | None = None
    best_loss: float | None = None
    lowest_loss: float | None = None
    highest_score: float | None = None
    since_improvement: int = 0


# What counts before the first validation.
NO_VALIDATION = {
    name: getattr(Counters(), name)
    for name in (
        "best_step", "best_score", "best_loss", "lowest_loss", "highest_score", "since_improvement"
    )
}  # fmt: skip


class Trainer:
    """Train a model, and save all that is needed to go on with the same bits.

    Made by `train.start` and `train.resume`.

    The best step of a classification is that of the highest validation accuracy, the latest of
    equals: on a few dozen sequences the loss says more about confidence than about being right,
    and later weights have seen a smaller learning rate. Of any other task it is that of the lowest
    validation loss.

    Args:
        config: The whole configuration.
        problem: What is learned on what.
        model: What is trained.
        store: The folder of the run, with its lock; `close` lets go.
        step: Steps done before; the model has the depth of that step.
    """

    def __init__(
        self,
        config: RunConfig,
        problem: Problem,
        model: SequenceModel,
        store: RunStore,
        *,
        step: int = 0,
    ) -> None:
        self.config, self.problem, self.model, self.store = config, problem, model, store
        self.counters, self.guard = Counters(step=step), Guard()
        self.seconds = 0.0
        self._saved_step: int | None = None
        self._parent: str | None = None
        self._failed_saves = 0
        self._saved_best = self._best()
        self._seconds_of_save = 0.0
        self.rule = make_rule(config, problem)
        set_frozen(model, config, step)
        self.optimizer = self._make_optimizer()
        self.mergers = self._make_mergers()
        self._metrics = MetricsLog(
            store.metrics_path,
            run_id=store.run_id,
            folder=store.folder,
            patience=PATIENCE_SECONDS,
        )

    def fit(
        self,
        steps: int | None = None,
        *,
        reporter: Reporter | None = None,
        signals: Signals | None = None,
    ) -> Stopped:
        """Train until the end of the run, then validate and save.

        A checkpoint that the disk does not take while the run goes on is tried again at the next
        occasion; the third in a row that fails, or a broken disk, ends the run.

        Args:
            steps: Stop after so many steps; at the configured end when missing.
            reporter: What to show meanwhile.
            signals: Looked at after each step: the run is saved, or saved and left.

        Returns:
            Why it stopped.

        Raises:
            NonFiniteError: A loss, gradient or weight was not finite, and `run.on_non_finite` does
                not allow for it.
            StorageError: The disk refused; the checkpoints before are intact.
        """
        end = self.config.run.steps
        if steps is not None:
            end = min(end, self.counters.step + steps)
        signals = signals or Signals()
        stopped: Stopped = "finished"
        self.model.train()
        try:
            with reporter or Reporter() as report:
                while self.counters.step < end:
                    if self._out_of_patience():
                        stopped = "patience"
                        break
                    if signals.stop:
                        stopped = "signal"
                        break
                    self._train_step(report)
                    self._after_step(report)
                    if signals.save:
                        signals.save = False
                        self.store.event("signal", step=self.counters.step, signal="SIGUSR1")
                        if self._saved_step != self.counters.step:
                            self._save_or_wait()
            self._save_last(signals)
        except SpherescanError as error:
            self.store.event("stop", step=self.counters.step, reason=str(error))
            raise
        self.store.event("stop", step=self.counters.step, reason=stopped)
        return stopped

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """Score the model on batches."""
        return evaluate(self.model, batches, self.problem.objective)

    def save(self) -> None:
        """Commit a checkpoint of this step, then remove those that are not kept.

        Raises:
            NonFiniteError: A weight or moment is not finite.
            StorageError: The disk refused, or there is too little memory.
        """
        try:
            self._save()
        except (MemoryError, RuntimeError) as error:
            if not tells_lack_of_memory(error):
                raise
            raise StorageError(
                f"{self.store.checkpoint_path(self.counters.step)} was not written (too little "
                "memory); make room and save again"
            ) from error

    def _save(self) -> None:
        began = time.monotonic()
        tensors = self._tensors()
        self._expect_finite(tensors)
        generators = {f"generators/{n}": t for n, t in generator_tensors().items()}
        self._parent = self.store.save(
            self.counters.step,
            tensors | generators,
            self._state(),
            verify=self.config.checkpoint.verify,
        )
        self._saved_step = self.counters.step
        self._saved_best = self._best()
        self._seconds_of_save = time.monotonic() - began
        self.store.show_best(self.counters.best_step)
        self.store.prune(keep=self.config.checkpoint.keep)

    def _save_or_wait(self) -> None:
        """Save; when the disk is full, go on and hope for the next time."""
        try:
            self.save()
        except NonFiniteError as error:
            # Found only now: the step that brought it had a finite loss and finite gradients.
            step, policy = self.counters.step, self.config.run.on_non_finite
            self.store.event("nonfinite", step=step, policy=policy, reason=str(error))
            if policy != "rollback":
                raise
            self._roll_back(None, str(error))
        except StorageError as error:
            self._failed_saves += 1
            # A best step is one that can be loaded: until another save it is the one before.
            counters = self.counters
            counters.best_step, counters.best_score, counters.best_loss = self._saved_best
            reason = str(error)
            self.store.event("save_failed", step=self.counters.step, reason=reason)
            broken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO
            if broken or self._failed_saves == MAX_FAILED_SAVES:
                raise
        else:
            self._failed_saves = 0

    def _best(self) -> tuple[int | None, float | None, float | None]:
        return self.counters.best_step, self.counters.best_score, self.counters.best_loss

    def _save_last(self, signals: Signals) -> None:
        """Save before leaving, unless there would be no time to finish."""
        if signals.signum is not None:
            name = signal.Signals(signals.signum).name
            self.store.event("signal", step=self.counters.step, signal=name)
        if self._saved_step == self.counters.step:
            return
        if self._seconds_of_save > signals.seconds_left:
            reason = (
                f"the last save took {self._seconds_of_save:.1f} s, "
                f"{signals.seconds_left:.1f} s were left"
            )
            self.store.event("save_failed", step=self.counters.step, reason=reason)
            return
        self.save()

    @property
    def saved_step(self) -> int | None:
        """The step that this process has saved or restored last."""
        return self._saved_step

    def close(self) -> None:
        """Close metrics and data, and let go of the run."""
        self._metrics.close()
        self.problem.stream.close()
        self.store.close()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of the same run: weights, moments, counters, data and metrics.

        Newer checkpoints are set aside.

        Raises:
            CheckpointError: It is of another model or another way of learning.
            RunDirectoryError: The metrics are not those it was saved with.
            StorageError: The disk refused.
        """
        state = checkpoint.state
        set_frozen(self.model, self.config, state["counters"]["step"])
        self.optimizer = self._make_optimizer()
        self._expect_fitting(checkpoint)
        self.model.load_state_dict(checkpoint.below("model/"))
        load_optimizer(self.optimizer, self.model.named_parameters(), checkpoint.below("optim/"))
        try:
            for merger, saved in zip(self.mergers, state["mergers"], strict=True):
                merger.load_state_dict(saved)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint has other mergers: {error!r}") from error
        self.counters, self.guard = Counters(**state["counters"]), Guard(**state["guard"])
        self.seconds = state["seconds"]
        self._saved_step = self.counters.step
        self._saved_best = self._best()
        self._parent = checkpoint.digest
        self.problem.stream.load_state_dict(state["data"])
        restore_generators(checkpoint.below("generators/"))
        position = LogPosition(**state["metrics"])
        self._metrics.expect(position)
        # Before the metrics are cut, so that after a crash in between the newest checkpoint is
        # still one that they fit.
        self.store.rewind(self.counters.step)
        self._metrics.cut_to(position)

    def _expect_fitting(self, checkpoint: Checkpoint) -> None:
        """Check all that a checkpoint of this run must agree with, before anything is used."""
        expected, found = self._tensors(), checkpoint.tensors
        generators = {f"generators/{name}" for name in checkpoint.state["generators"]}
        for name in sorted(expected.keys() | (found.keys() - generators)):
            here, there = (_form_of(tensors.get(name)) for tensors in (expected, found))
            if here != there:
                raise CheckpointError(
                    f"the checkpoint is of another model: {name} is {there} there and {here} here"
                )
        place = checkpoint.state["data"]
        if place["position"] >= len(self.problem.stream.source):
            raise CheckpointError(
                f"the checkpoint is at sample {place['position']} of an epoch of "
                f"{len(self.problem.stream.source)}"
            )
        if not set(checkpoint.state["generators"]) <= set(GENERATORS):
            raise CheckpointError(f"unknown generators: {checkpoint.state['generators']}")
        counters, every = Counters(**checkpoint.state["counters"]), self.rule.backprop_every
        joined = counters.step // every if self.rule.backprop_joins(every - 1) else 0
        if not joined - counters.skipped <= counters.bp_updates <= joined:
            raise CheckpointError(
                f"the checkpoint of step {counters.step} counts {counters.bp_updates} updates by "
                f"backpropagation and {counters.skipped} steps left out; wanted {joined} together"
            )
        if len(checkpoint.state["mergers"]) != len(self.mergers):
            raise CheckpointError(
                f"the checkpoint has {len(checkpoint.state['mergers'])} mergers of gradients, the "
                f"model {len(self.mergers)}"
            )

    def _train_step(self, report: Reporter) -> None:
        config, counters, stream = self.config, self.counters, self.problem.stream
        began = time.perf_counter()
        lr, local_lr = self._learning_rates()
        while self.guard.leaves_out(stream.state_dict()):
            next(stream)
        place = stream.state_dict()
        metrics = hybrid_step(
            self.model,
            next(stream),
            self.problem.objective,
            self.optimizer,
            self.rule,
            self.mergers,
            step=counters.step,
            lr=lr,
            local_lr=local_lr,
            grad_clip=config.optim.grad_clip,
            local_scale=self.guard.lr_scale * self._peak_local_lr / lr if lr else 0.0,
        )
        joined = self.rule.backprop_joins(counters.step)
        counters.step += 1
        counters.bp_updates += metrics.updated and joined
        counters.ff_updates += metrics.updated and self.rule.local is not None
        counters.skipped += not metrics.updated
        self._log_step(metrics, lr if joined else local_lr)
        self.seconds += time.perf_counter() - began
        if metrics.updated:
            self.guard.in_a_row = 0
        elif not self._left_out(metrics, place):
            return
        self._watch_new_blocks()
        self._change_depth()
        report.stepped(counters.step, metrics, lr=lr)

    def _left_out(self, metrics: StepMetrics, place: dict[str, int]) -> bool:
        """Do what the configuration says about a step that was not finite.

        Returns:
            Whether the run goes on from here: False after it went back to a checkpoint.
        """
        step, policy = self.counters.step, self.config.run.on_non_finite
        reason = (
            f"step {step}: loss {metrics.loss}, local loss {metrics.local_loss}, gradient norm "
            f"{metrics.grad_norm}; nothing was updated"
        )
        norms = {
            name: float(torch.linalg.vector_norm(parameter.grad))
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        report = {
            "step": step,
            "data": place,
            "batch_size": self.config.data.batch_size,
            "loss": metrics.loss,
            "ff_loss": metrics.local_loss,
            "grad_norms": norms,
        }
        file = self.store.dump(f"nonfinite-step-{step}.json", report)
        self.store.event("nonfinite", step=step, policy=policy, file=file, reason=reason)
        if policy == "fail":
            raise NonFiniteError(
                f"{reason}; {file} has the norms of all gradients; lower optim.lr, or go on with "
                "--run.on-non-finite skip or rollback"
            )
        if policy == "skip":
            total, steps = self.counters.skipped, self.config.run.steps
            self.guard.skipped(total=total, steps=steps, reason=reason)
            return True
        self._roll_back(place, reason)
        return False

    def _roll_back(self, place: dict[str, int] | None, reason: str) -> None:
        """Go back to the newest checkpoint, and leave the batch out that came to grief, if any."""
        met = self.guard
        checkpoint = self.store.load()
        if len(self.model.layers) != self.config.n_layers_at(checkpoint.state["step"]):
            raise NonFiniteError(
                f"{reason}; the newest checkpoint, of step {checkpoint.state['step']}, is of the "
                "model before it grew, so the run cannot go back there"
            )
        self.restore(checkpoint)
        self.guard.rolled_back(met, place, reason=reason)
        self.store.event("rollback", step=self.counters.step, lr_scale=self.guard.lr_scale)

    def _watch_new_blocks(self) -> None:
        """Look after growth whether every new block is given gradients, as it must be to learn."""
        config, guard = self.config, self.guard
        since = self.counters.step - config.grow.at_step
        last = STEPS_TO_LIVE * self.rule.backprop_every
        if config.grow.layers is None or config.grow.init != "identity" or not 0 < since <= last:
            return
        frozen = config.frozen_blocks() if config.is_frozen_at(self.counters.step - 1) else ()
        watched = [index for index in config.new_positions() if index not in frozen]
        for index in watched:
            gradients = (p.grad for p in self.model.layers[index].parameters())
            if index not in guard.alive and any(g is not None and bool(g.any()) for g in gradients):
                guard.alive.append(index)
        dead = sorted(set(watched) - set(guard.alive))
        if since == last and dead:
            raise ConfigError(
                f"the new blocks {dead} were given no gradient in the {last} steps since the model "
                "grew, so they cannot learn; look at local.mode and freeze.blocks"
            )

    def _learning_rates(self) -> tuple[float, float]:
        """Return that of a step with backpropagation, and that of a step without."""
        optim, local = self.config.optim, self.config.local
        lr = self.guard.lr_scale * learning_rate(
            self.counters.step,
            lr=optim.lr,
            warmup_steps=optim.warmup_steps,
            total_steps=self.config.run.steps,
            min_scale=optim.min_lr_scale,
        )
        peak = self.guard.lr_scale * self._peak_local_lr
        return lr, peak if local.update == "sgd" else lr * (self._peak_local_lr / optim.lr)

    @property
    def _peak_local_lr(self) -> float:
        local = self.config.local
        return self.config.optim.lr if local.lr is None else local.lr

    def _change_depth(self) -> None:
        """Grow, freeze and unfreeze when it is time to, and keep all state that stays valid."""
        config, step = self.config, self.counters.step
        growing = config.grow.layers is not None and step == config.grow.at_step
        if not growing and step != config.freeze.until_step:
            return
        if growing:
            grow(self.model, config)
            self.store.event("grow", step=step, blocks=list(config.new_positions()))
            made, kept = self._make_mergers(), iter(self.mergers)
            if self.rule.group == 1:  # otherwise groups have other blocks than before
                new = config.new_positions()
                made = [m if index in new else next(kept) for index, m in enumerate(made)]
            self.mergers = made
        set_frozen(self.model, config, step)
        former = self.optimizer
        self.optimizer = self._make_optimizer()
        keep_state(self.optimizer, former)

    def _make_optimizer(self) -> AdamW:
        optim = self.config.optim
        return make_optimizer(
            self.model.named_parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            weight_decay=optim.weight_decay,
            decay_all=optim.decayed == "all",
        )

    def _make_mergers(self) -> list[Merger]:
        if self.config.local.mode != "surgery":
            return []
        return [self.rule.make_merger() for _ in self.rule.groups(len(self.model.layers))]

    def _log_step(self, metrics: StepMetrics, lr: float) -> None:
        self._metrics.append(
            {
                "kind": "train",
                "step": self.counters.step,
                "loss": metrics.loss,
                "ff_loss": metrics.local_loss,
                self._quality_name: metrics.quality,
                "lr": lr,
                "grad_norm": metrics.grad_norm,
                "grad_norm_embedding": metrics.grad_norm_embedding,
                "grad_norm_prototypes": metrics.grad_norm_prototypes,
                "grad_norm_top": metrics.grad_norm_top,
                "clipped": metrics.clipped,
                "skipped": not metrics.updated,
                "bp_updates": self.counters.bp_updates,
                "ff_updates": self.counters.ff_updates,
                "skipped_updates": self.counters.skipped,
                "conflict_layers": sum(group.conflict for group in metrics.groups),
                "groups": [
                    {
                        "blocks": list(group.blocks),
                        "ff_loss": group.local_loss,
                        "cosine": group.cosine,
                        "weights": None if group.weights is None else list(group.weights),
                        "grad_norm": group.grad_norm,
                        "update_norm": group.update_norm,
                    }
                    for group in metrics.groups
                ],
                **self.problem.stream.state_dict(),
            }
        )

    @property
    def _quality_name(self) -> str:
        name = self.problem.objective.score_name
        return "mse" if name == "rmse" else name

    def _after_step(self, report: Reporter) -> None:
        """Validate and save when it is time to."""
        step = self.counters.step
        if step == self._saved_step:  # it went back to a checkpoint
            return
        last = step == self.config.run.steps
        if last or step % self.config.validation.every == 0:
            self._validate(report)
        # What has just grown is saved, so that a run never has to go back to a smaller model.
        grown = self.config.grow.layers is not None and step == self.config.grow.at_step
        due = step % self.config.checkpoint.every == 0 or step == self.counters.best_step
        # The last step is saved here and not only when leaving, so that a rollback can go on.
        if last or grown or due:
            self._save_or_wait()

    def _out_of_patience(self) -> bool:
        config = self.config
        patience = config.validation.patience
        if self.counters.step < max(config.grow.at_step, config.freeze.until_step):
            return False  # a change still to come may bring what has stopped improving further
        return 0 < patience <= self.counters.since_improvement

    def _validate(self, report: Reporter) -> None:
        counters = self.counters
        result = self.evaluate(self.problem.validation())
        finite = math.isfinite(result.loss) and math.isfinite(result.score)
        if not finite:
            self.store.event(
                "nonfinite", step=counters.step, reason=f"validation loss {result.loss}"
            )
        best = finite and self._is_best(result)
        lower = finite and (counters.lowest_loss is None or result.loss < counters.lowest_loss)
        higher = (
            finite
            and self._scores_best
            and (counters.highest_score is None or result.score > counters.highest_score)
        )
        counters.since_improvement = 0 if lower or higher else counters.since_improvement + 1
        if lower:
            counters.lowest_loss = result.loss
        if higher:
            counters.highest_score = result.score
        if best:
            counters.best_step = counters.step
            counters.best_score, counters.best_loss = result.score, result.loss
        self._metrics.append(
            {
                "kind": "val",
                "step": counters.step,
                "loss": result.loss,
                result.score_name: result.score,
                "n": result.n,
                "best": best,
            }
        )
        report.validated(counters.step, result, best=best)

    def _is_best(self, result: Evaluation) -> bool:
        """Compare with the best so far; what is not finite is never best."""
        counters = self.counters
        if counters.best_score is None or counters.best_loss is None:
            return True
        if self._scores_best:
            return result.score >= counters.best_score
        return result.loss < counters.best_loss

    @property
    def _scores_best(self) -> bool:
        """Whether the score, rather than the loss, says which step is best."""
        return self.problem.objective.task.kind == "classification"

    def _expect_finite(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            # A sum passes over the tensor once and makes no other; only an overflow needs a look.
            if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
                raise NonFiniteError(
                    f"{name} is not finite at step {self.counters.step}; nothing was saved, the "
                    f"newest checkpoint is of step {max(self.store.steps(), default=None)}"
                )

    def _tensors(self) -> dict[str, Tensor]:
        moments = optimizer_tensors(self.optimizer, self.model.named_parameters())
        return {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()} | {
            f"optim/{name}": tensor for name, tensor in moments.items()
        }

    def _state(self) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "model": with_layers(
                self.problem.description, self.config, len(self.model.layers)
            ).to_json(),
            "mergers": [merger.state_dict() for merger in self.mergers],
            "task": self.problem.objective.task.to_json(),
            "counters": dataclasses.asdict(self.counters),
            "guard": dataclasses.asdict(self.guard),
            "environment": environment(),
            "generators": list(GENERATORS),
            "seconds": self.seconds,
            "parent": self._parent,
            "data": self.problem.stream.state_dict(),
            "fingerprint": self.problem.fingerprint,
            "metrics": dataclasses.asdict(self._metrics.sync()),
        }


def _form_of(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"

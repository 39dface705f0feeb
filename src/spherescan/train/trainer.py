"""One run in memory: steps, validations and checkpoints."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.optim import AdamW

from spherescan.config import RunConfig
from spherescan.data import Batch
from spherescan.errors import CheckpointError, NonFiniteError
from spherescan.nn import SequenceModel
from spherescan.runs import Checkpoint, LogPosition, MetricsLog, RunLock, RunStore
from spherescan.train.depth import grow, set_frozen
from spherescan.train.evaluate import Evaluation, evaluate
from spherescan.train.merge import Merger
from spherescan.train.optim import keep_state, load_optimizer, make_optimizer, optimizer_tensors
from spherescan.train.problem import Problem, with_layers
from spherescan.train.progress import Reporter
from spherescan.train.rule import make_rule
from spherescan.train.schedule import learning_rate
from spherescan.train.step import StepMetrics, hybrid_step

Stopped = Literal["finished", "patience", "signal"]


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
        lowest_loss: Lowest validation loss of any step.
        since_improvement: Validations since score or loss last improved.
    """

    step: int = 0
    bp_updates: int = 0
    ff_updates: int = 0
    skipped: int = 0
    best_step: int | None = None
    best_score: float | None = None
    best_loss: float | None = None
    lowest_loss: float | None = None
    since_improvement: int = 0


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
        store: The folder of the run.
        lock: Held on it; `close` lets go.
        step: Steps done before; the model has the depth of that step.
    """

    def __init__(
        self,
        config: RunConfig,
        problem: Problem,
        model: SequenceModel,
        store: RunStore,
        lock: RunLock,
        *,
        step: int = 0,
    ) -> None:
        self.config, self.problem, self.model, self.store = config, problem, model, store
        self.counters = Counters(step=step)
        self._saved_step: int | None = None
        self.rule = make_rule(config, problem)
        set_frozen(model, config, step)
        self.optimizer = self._make_optimizer()
        self.mergers = self._make_mergers()
        self._lock = lock
        lock.sign()
        self._metrics = MetricsLog(store.metrics_path, run_id=store.run_id)

    def fit(
        self,
        steps: int | None = None,
        *,
        reporter: Reporter | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Stopped:
        """Train until the end of the run, then validate and save.

        Args:
            steps: Stop after so many steps; at the configured end when missing.
            reporter: What to show meanwhile.
            should_stop: Asked at each step boundary; when true the run is saved and left.

        Returns:
            Why it stopped.

        Raises:
            NonFiniteError: A loss or gradient was not finite and `run.on_non_finite` is "fail".
        """
        end = self.config.run.steps
        if steps is not None:
            end = min(end, self.counters.step + steps)
        stopped: Stopped = "finished"
        self.model.train()
        with reporter or Reporter() as report:
            while self.counters.step < end:
                if self._out_of_patience():
                    stopped = "patience"
                    break
                if should_stop():
                    stopped = "signal"
                    break
                self._train_step(report)
                self._after_step(report)
        if self._saved_step != self.counters.step:
            self.save()
        return stopped

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """Score the model on batches."""
        return evaluate(self.model, batches, self.problem.objective)

    def save(self) -> None:
        """Commit a checkpoint of this step, then remove those that are not kept."""
        self._check_weights()
        self.store.save(self.counters.step, self._tensors(), self._state())
        self._saved_step = self.counters.step
        self.store.prune(keep=self.config.checkpoint.keep, best_step=self.counters.best_step)

    def close(self) -> None:
        """Close the metrics and let go of the run."""
        self._metrics.close()
        self._lock.close()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of the same run: weights, moments, counters, data and metrics.

        Raises:
            CheckpointError: It is of another model or another way of learning; nothing was changed.
        """
        expected = {name: tensor.shape for name, tensor in self._tensors().items()}
        found = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise CheckpointError(
                    f"the checkpoint is of another model: {name} has shape {found.get(name)} "
                    f"there and {expected.get(name)} here"
                )
        state = checkpoint.state
        self.model.load_state_dict(checkpoint.below("model/"))
        load_optimizer(self.optimizer, self.model.named_parameters(), checkpoint.below("optim/"))
        for merger, saved in zip(self.mergers, state["mergers"], strict=True):
            merger.load_state_dict(saved)
        self.counters = Counters(**state["counters"])
        self._saved_step = self.counters.step
        self.problem.stream.load_state_dict(state["data"])
        self._metrics.cut_to(LogPosition(**state["metrics"]))

    def _train_step(self, report: Reporter) -> None:
        config, counters = self.config, self.counters
        lr, local_lr = self._learning_rates()
        metrics = hybrid_step(
            self.model,
            next(self.problem.stream),
            self.problem.objective,
            self.optimizer,
            self.rule,
            self.mergers,
            step=counters.step,
            lr=lr,
            local_lr=local_lr,
            grad_clip=config.optim.grad_clip,
            local_scale=self._peak_local_lr / lr if lr else 0.0,
        )
        joined = self.rule.backprop_joins(counters.step)
        counters.step += 1
        counters.bp_updates += metrics.updated and joined
        counters.ff_updates += metrics.updated and self.rule.local is not None
        counters.skipped += not metrics.updated
        self._log_step(metrics, lr if joined else local_lr)
        if not metrics.updated and config.run.on_non_finite == "fail":
            raise NonFiniteError(
                f"step {counters.step}: loss {metrics.loss}, local loss {metrics.local_loss}, "
                f"gradient norm {metrics.grad_norm}; nothing was updated; lower optim.lr, or leave "
                'such steps out with run.on_non_finite = "skip"'
            )
        self._change_depth()
        report.stepped(counters.step, metrics, lr=lr)

    def _learning_rates(self) -> tuple[float, float]:
        """Return that of a step with backpropagation, and that of a step without."""
        optim, local = self.config.optim, self.config.local
        lr = learning_rate(
            self.counters.step,
            lr=optim.lr,
            warmup_steps=optim.warmup_steps,
            total_steps=self.config.run.steps,
            min_scale=optim.min_lr_scale,
        )
        peak = self._peak_local_lr
        return lr, peak if local.update == "sgd" else lr * (peak / optim.lr)

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
        last = step == self.config.run.steps
        if last or step % self.config.validation.every == 0:
            self._validate(report)
        if last or step % self.config.checkpoint.every == 0 or step == self.counters.best_step:
            self.save()

    def _out_of_patience(self) -> bool:
        config = self.config
        patience = config.validation.patience
        if self.counters.step < max(
            config.grow.at_step, config.freeze.until_step
        ):  # a change still to come may bring what has stopped improving further
            return False
        return 0 < patience <= self.counters.since_improvement

    def _validate(self, report: Reporter) -> None:
        counters = self.counters
        result = self.evaluate(self.problem.validation())
        best = self._is_best(result)
        lower = counters.lowest_loss is None or result.loss < counters.lowest_loss
        if lower or (best and result.score != counters.best_score):
            counters.since_improvement = 0
        else:
            counters.since_improvement += 1
        if lower:
            counters.lowest_loss = result.loss
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
        """Compare with the best so far; a loss that is NaN is never best."""
        counters = self.counters
        if counters.best_score is None or counters.best_loss is None:
            return math.isfinite(result.loss)
        if self.problem.objective.task.kind == "classification":
            return math.isfinite(result.loss) and result.score >= counters.best_score
        return result.loss < counters.best_loss

    def _check_weights(self) -> None:
        for name, tensor in self.model.state_dict().items():
            if not bool(tensor.isfinite().all()):
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
            "data": self.problem.stream.state_dict(),
            "fingerprint": self.problem.fingerprint,
            "metrics": dataclasses.asdict(self._metrics.sync()),
        }

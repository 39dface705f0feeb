"""Three objectives that want different things of one small model: which aggregation serves them?

    python experiments/conflicting_objectives.py [--units equal|own] [--methods NAME ...]
    python experiments/conflicting_objectives.py --select
    python experiments/conflicting_objectives.py --cost

On MNIST-1D with a noise level of its own in each sample, one trunk of bidirectional Mamba blocks
feeds three linear heads: which digit, where it is, how strong the noise is. Each head learns by its
own loss, the trunk by an aggregate of the three gradients.

Methods are compared by Delta_m: the mean over the objectives of the relative change of the test
metric against a model trained on that objective alone, in percent, positive where it got worse.
Metrics are those of the last step. Settings were chosen for the sum of the losses on a fifth of
the training set, by `--select`.

Letters: n samples, b batch, t objectives, p shared parameters.
"""

import argparse
import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import mnist1d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from spherescan.data.order import derived_seed, sample_order
from spherescan.losses import from_cosine, prototype_softmax_loss, sphere_regression_loss, to_cosine
from spherescan.nn import Block, Mamba, Pooling, PrototypeHead, SeriesEmbedding
from spherescan.nn.init import linear_layer
from spherescan.nn.norm import ResidualNorm
from spherescan.surgery import AGGREGATORS, GradNorm, make_aggregator
from spherescan.train import learning_rate
from spherescan.train.optim import make_optimizer

TASKS = ("digit", "position", "noise")
# What the poles of each regression stand for: samples of the series, standard deviations.
RANGES = {"position": (0.0, mnist1d.LENGTH - 1.0), "noise": (0.0, mnist1d.NOISE_RANGE[1])}
UNITS = ("equal", "own")
SCALE = 12.0  # of the cosines in the softmax, as in the examples
# A control: sums with weights by hand, for digit, position and noise.
HAND_WEIGHTS = {f"sum_1_{weight}_{weight}": (1.0, weight, weight) for weight in (3, 10, 30)}
METHODS = (*(name for name in AGGREGATORS if not name.startswith("rust_")), "gradnorm")
T_QUANTILE = {3: 4.303, 5: 2.776, 10: 2.262}  # two-sided 95 %, by the number of seeds

# (t, p) gradients and t losses -> p
Combine = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What all methods share.

    Args:
        units: "equal" for losses of cosines, all of order 1; "own" for squared errors in samples
            and in standard deviations.
        lr: Peak learning rate.
        d_model: Width of the trunk.
        n_layers: Blocks of the trunk.
        pooling: Of the trunk's positions.
        steps: Updates.
        batch_size: Samples per update.
    """

    units: str = "equal"
    lr: float = 2e-2
    d_model: int = 16
    n_layers: int = 2
    pooling: tuple[str, ...] = ("attention",)
    steps: int = 1000
    batch_size: int = 32


CHOSEN = {
    "equal": Settings(units="equal", lr=2e-2),
    "own": Settings(units="own", lr=1e-2),
}
# What was tried for them.
POOLINGS = (("mean", "max"), ("attention",))
RATES = (5e-3, 1e-2, 2e-2, 4e-2)
SELECTION_SEEDS = (100, 101)
COST_ROUNDS = 200


class Samples(NamedTuple):
    """Series (n, 40, 1) and one target (n,) per objective."""

    x: Tensor
    targets: dict[str, Tensor]


class Run(NamedTuple):
    """What one run leaves.

    Attributes:
        metrics: Accuracy in percent, and root mean squared errors, on unseen samples.
        cosines: Of each pair of gradients at each step.
        ratios: Longest gradient by shortest at each step.
        seconds: Of the training.
    """

    metrics: dict[str, float]
    cosines: dict[tuple[str, str], list[float]]
    ratios: list[float]
    seconds: float


class Model(nn.Module):
    """Shared trunk and one linear head per objective."""

    def __init__(self, settings: Settings, *, generator: Generator) -> None:
        super().__init__()
        d_model = settings.d_model

        def mixer(width: int, *, generator: Generator | None) -> Mamba:
            return Mamba(width, expand=1, d_state=8, generator=generator)

        self.trunk = nn.ModuleDict(
            {
                "embedding": SeriesEmbedding(1, d_model, generator=generator),
                "blocks": nn.ModuleList(
                    Block(d_model, mixer=mixer, bidirectional=True, generator=generator)
                    for _ in range(settings.n_layers)
                ),
                "norm": ResidualNorm(d_model),
                "pool": Pooling(d_model, settings.pooling, n_heads=2, generator=generator),
            }
        )
        width = self.trunk["pool"].dim
        self.prototypes = PrototypeHead(mnist1d.N_CLASSES, mnist1d.N_CLASSES - 1)
        self.register_buffer("pole", torch.tensor([1.0, 0.0]))
        sizes = {"digit": mnist1d.N_CLASSES - 1, "position": 2, "noise": 2}
        self.heads = nn.ModuleDict(
            {
                name: linear_layer(width, sizes[name], bias=True, generator=generator)
                for name in TASKS
            }
        )
        self.factors = {"digit": 1.0} | {
            name: ((upper - lower) / 2) ** 2 if settings.units == "own" else 1.0
            for name, (lower, upper) in RANGES.items()
        }

    def points(self, x: Tensor) -> dict[str, Tensor]:
        """Return the output of each head."""
        stream, update = self.trunk["embedding"](x), None
        for block in self.trunk["blocks"]:
            stream, update = block(stream, update)
        pooled = self.trunk["pool"](self.trunk["norm"](stream, update)[0])
        return {name: head(pooled) for name, head in self.heads.items()}

    def losses(self, samples: Samples) -> dict[str, Tensor]:
        """Return the mean loss of each objective."""
        points = self.points(samples.x)
        each = {
            "digit": prototype_softmax_loss(
                points["digit"], self.prototypes.weight, samples.targets["digit"], scale=SCALE
            )
        }
        for name, (lower, upper) in RANGES.items():
            cosine = to_cosine(samples.targets[name], lower=lower, upper=upper)
            each[name] = sphere_regression_loss(points[name], self.pole, cosine)
        return {name: self.factors[name] * loss.mean() for name, loss in each.items()}

    @torch.no_grad()
    def metrics(self, samples: Samples) -> dict[str, float]:
        """Return accuracy in percent, and root mean squared errors in their own units."""
        points = self.points(samples.x)
        hits = self.prototypes(points["digit"]).argmax(1) == samples.targets["digit"]
        found = {"digit": 100 * float(hits.double().mean())}
        for name, (lower, upper) in RANGES.items():
            cosine = torch.cosine_similarity(points[name], self.pole.expand_as(points[name]))
            error = from_cosine(cosine, lower=lower, upper=upper) - samples.targets[name]
            found[name] = math.sqrt(float(error.double().square().mean()))
        return found


def load() -> tuple[Samples, Samples]:
    """Return the training and the test set."""
    data = mnist1d.load(seed=0)
    return (
        _samples(data.x_train, data.y_train, data.position_train, data.noise_train),
        _samples(data.x_test, data.y_test, data.position_test, data.noise_test),
    )


def _samples(x: NDArray[np.float32], *targets: NDArray[np.generic]) -> Samples:
    named = zip(TASKS, map(torch.from_numpy, targets), strict=True)
    return Samples(torch.from_numpy(x)[:, :, None], dict(named))


def taken(samples: Samples, index: Tensor | slice) -> Samples:
    """Return some of the samples."""
    return Samples(
        samples.x[index], {name: target[index] for name, target in samples.targets.items()}
    )


def make_combine(method: str) -> Combine:
    """Return a new aggregation, with state where it has some."""
    if method == "gradnorm":
        weigh = GradNorm()
        return lambda jacobian, losses: weigh(losses, jacobian.norm(dim=1)) @ jacobian
    if method in HAND_WEIGHTS:
        weights = torch.tensor(HAND_WEIGHTS[method])
        return lambda jacobian, _: weights @ jacobian
    aggregator = make_aggregator(method)
    return lambda jacobian, _: aggregator(jacobian)


def gradients(model: Model, samples: Samples, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Give each head its gradient; return those of the trunk, (t, p), and the losses."""
    losses = model.losses(samples)
    shared = list(model.trunk.parameters())
    rows = []
    for name in tasks:
        own = list(model.heads[name].parameters())
        found = torch.autograd.grad(losses[name], [*shared, *own], retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found[: len(shared)]]))
        for parameter, gradient in zip(own, found[len(shared) :], strict=True):
            parameter.grad = gradient
    return torch.stack(rows), torch.stack([losses[name].detach() for name in tasks])


def give(model: Model, direction: Tensor) -> None:
    """Make a direction the gradient of the trunk."""
    shared = list(model.trunk.parameters())
    for parameter, part in zip(shared, direction.split([p.numel() for p in shared]), strict=True):
        parameter.grad = part.view_as(parameter)


def train(
    train_set: Samples,
    unseen: Samples,
    *,
    method: str,
    seed: int,
    settings: Settings,
    tasks: Sequence[str] = TASKS,
) -> Run:
    """Train once."""
    began = time.perf_counter()
    generator = Generator().manual_seed(derived_seed(seed, "weights"))
    model = Model(settings, generator=generator)
    optimizer = make_optimizer(
        model.named_parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01
    )
    combine = make_combine(method)
    cosines, ratios = defaultdict(list), []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, lr=settings.lr, warmup_steps=50, total_steps=settings.steps, min_scale=0.0
            )
        order = sample_order(
            step * settings.batch_size, settings.batch_size, n=len(train_set.x), seed=seed
        )
        jacobian, losses = gradients(model, taken(train_set, torch.from_numpy(order)), tasks)
        for (i, first), (j, second) in itertools.combinations(enumerate(tasks), 2):
            cosine = torch.cosine_similarity(jacobian[i], jacobian[j], dim=0)
            cosines[first, second].append(float(cosine))
        norms = jacobian.norm(dim=1)
        ratios.append(float(norms.max() / norms.min()))
        give(model, combine(jacobian, losses))
        optimizer.step()
    seconds = time.perf_counter() - began
    metrics = model.metrics(unseen)
    return Run({name: metrics[name] for name in tasks}, dict(cosines), ratios, seconds)


def worse(metrics: Mapping[str, float], alone: Mapping[str, float]) -> float:
    """Return Delta_m in percent."""
    changes = [(metrics[name] - alone[name]) / alone[name] for name in TASKS]
    changes[0] = -changes[0]  # a higher accuracy is better
    return 100 * statistics.mean(changes)


def compare(settings: Settings, n_seeds: int, methods: Sequence[str]) -> None:
    """Train every method with every seed and print the tables."""
    train_set, test_set = load()
    runs: dict[str, list[Run]] = defaultdict(list)
    jobs = [(f"{name} alone", "sum", (name,)) for name in TASKS]
    jobs += [(method, method, TASKS) for method in methods]
    for seed in range(n_seeds):
        for label, method, tasks in jobs:
            run = train(
                train_set, test_set, method=method, seed=seed, settings=settings, tasks=tasks
            )
            runs[label].append(run)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in run.metrics.items())
            print(f"seed {seed}  {label}: {shown}  {run.seconds:.1f} s", flush=True)
    alone = {name: _mean(run.metrics[name] for run in runs[f"{name} alone"]) for name in TASKS}
    print_conflicts(runs["sum"])
    print_methods({method: runs[method] for method in methods}, alone)
    seconds = [run.seconds for found in runs.values() for run in found]
    print(f"\n{len(seconds)} runs, {sum(seconds) / 60:.0f} minutes")


def print_conflicts(runs: Sequence[Run]) -> None:
    """Print how the gradients of the trunk lie to each other."""
    print("\n| gradients under the sum | mean cosine | conflicts, first half | second half |")
    print("|---|---|---|---|")
    for pair in runs[0].cosines:
        steps = len(runs[0].cosines[pair])
        halves = [slice(steps // 2), slice(steps // 2, None)]
        rates = [_mean(c < 0 for run in runs for c in run.cosines[pair][half]) for half in halves]
        mean = _mean(cosine for run in runs for cosine in run.cosines[pair])
        print(f"| {pair[0]}, {pair[1]} | {mean:+.3f} | {rates[0]:.0%} | {rates[1]:.0%} |")
    ratio = statistics.median(ratio for run in runs for ratio in run.ratios)
    print(f"\nlongest gradient by shortest, median: {ratio:.1f}")


def print_methods(runs: Mapping[str, Sequence[Run]], alone: Mapping[str, float]) -> None:
    """Print one row per method, the best first, and each compared with the sum seed by seed."""
    deltas = {name: [worse(run.metrics, alone) for run in found] for name, found in runs.items()}
    print("\n| method | digit, % | position | noise | Delta_m, % | against sum (95 %) | better |")
    print("|---|---|---|---|---|---|---|")
    print(f"| each alone | {_cells([alone])} | 0 | | |")
    for name in sorted(deltas, key=lambda name: _mean(deltas[name])):
        spread = statistics.stdev(deltas[name])
        pairs = [own - other for own, other in zip(deltas[name], deltas["sum"], strict=True)]
        half_width = T_QUANTILE[len(pairs)] * statistics.stdev(pairs) / math.sqrt(len(pairs))
        against = f"{_mean(pairs):+.1f} +- {half_width:.1f} | {sum(p < 0 for p in pairs)}"
        print(
            f"| {name} | {_cells([run.metrics for run in runs[name]])} "
            f"| {_mean(deltas[name]):+.1f} +- {spread:.1f} "
            f"| {' | ' if name == 'sum' else against} |"
        )


def _cells(metrics: Sequence[Mapping[str, float]]) -> str:
    digit, position, noise = (_mean(each[name] for each in metrics) for name in TASKS)
    return f"{digit:.1f} | {position:.3f} | {noise:.4f}"


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(map(float, values))


def select() -> None:
    """Print how sums of the losses do on a fifth of the training set, by their settings."""
    whole, _ = load()
    n_fit = len(whole.x) * 4 // 5
    fit, unseen = taken(whole, slice(n_fit)), taken(whole, slice(n_fit, None))
    spreads = {name: float(unseen.targets[name].std()) for name in RANGES}
    print("| units | pooling | lr | method | digit, % | position | noise | unexplained, mean |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    tried = [
        (Settings(units=units, pooling=pooling, lr=lr), "sum")
        for units, pooling, lr in itertools.product(UNITS, POOLINGS, RATES)
    ]
    tried += [(CHOSEN["equal"], method) for method in HAND_WEIGHTS]
    for settings, method in tried:
        found = [
            train(fit, unseen, method=method, seed=seed, settings=settings).metrics
            for seed in SELECTION_SEEDS
        ]
        left = [
            _mean([(100 - each["digit"]) / 90, *(each[name] / spreads[name] for name in RANGES)])
            for each in found
        ]
        print(
            f"| {settings.units} | {', '.join(settings.pooling)} | {settings.lr:g} | {method} "
            f"| {_cells(found)} | {_mean(left):.3f} |",
            flush=True,
        )


def cost(settings: Settings) -> None:
    """Print what aggregating two gradients takes, as a part of a step with one backward pass."""
    model = Model(settings, generator=Generator().manual_seed(0))
    optimizer = make_optimizer(
        model.named_parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01
    )
    batch = taken(load()[0], slice(settings.batch_size))
    tasks = ("digit", "position")

    def step() -> None:
        optimizer.zero_grad()
        losses = model.losses(batch)
        (losses["digit"] + losses["position"]).backward()
        optimizer.step()

    def step_apart() -> None:
        give(model, gradients(model, batch, tasks)[0].sum(0))
        optimizer.step()

    jobs: dict[str, Callable[..., object]] = {"step": step, "step, gradients apart": step_apart}
    combines = {name: make_combine(name) for name in (*AGGREGATORS, "gradnorm")}
    seconds = defaultdict(list)
    for _ in range(COST_ROUNDS):
        for name, job in jobs.items():
            seconds[name].append(_seconds(job))
        for name, combine in combines.items():
            # Fresh gradients: the caches are as they would be in training.
            seconds[name].append(_seconds(partial(combine, *gradients(model, batch, tasks))))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    size = sum(parameter.numel() for parameter in model.trunk.parameters())
    print(f"{size} shared parameters, batch {settings.batch_size}, {COST_ROUNDS} rounds")
    print("\n| what | median, us | part of a step |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {1e6 * median:.0f} | {median / medians['step']:.2%} |")


def _seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def main() -> None:
    """Compare, select or time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", choices=UNITS, default="equal")
    parser.add_argument(
        "--methods", nargs="+", choices=(*METHODS, *HAND_WEIGHTS), default=METHODS, metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, choices=T_QUANTILE, default=5)
    parser.add_argument("--select", action="store_true", help="try settings of the sum")
    parser.add_argument("--cost", action="store_true", help="time the aggregation of two gradients")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    if options.select:
        select()
    elif options.cost:
        cost(Settings())
    else:
        methods = [method for method in options.methods if method != "sum"]
        compare(CHOSEN[options.units], options.seeds, ["sum", *methods])


if __name__ == "__main__":
    main()

"""State-space models that describe series for a ridge, each series by models that never saw it.

Letters: n series, l length, c channels, k classes, d prototype dimension.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional

from spherescan.allocator import memory_bytes
from spherescan.estimators.clock import Clock
from spherescan.estimators.curves import Curve
from spherescan.features import unit_of
from spherescan.losses import prototype_softmax_loss
from spherescan.nn import ModelDescription, SequenceModel
from spherescan.ops.threads import side_by_side
from spherescan.strict_json import typed
from spherescan.train.in_memory import Plan, Series, fit_series, steps_for

# Longer series are averaged over a few positions: a second or two of a sensor say the same.
_MOST_POSITIONS = 512
_D_MODEL, _N_CONVOLUTIONS = 64, 2
_POOLING = ("attention", "max", "mean")
# Series in one forward pass.
_BATCH = 64
_BATCH_OF_MANY, _MANY = 32, 1000
# And positions: sequences of tokens are of any length.
_POSITIONS = _BATCH * _MOST_POSITIONS
# Positions from which on the networks answer side by side.
_LEAST_SHARED = 512
# The weights of the network that is trained: they, their gradient, two moments, and their mean.
_COPIES = 5
# Of the series of a network, what early stopping looks at.
_INNER_PARTS, _FEWEST_TO_SPLIT = 10, 20
# What a file may ask for.
_LARGEST_STRIDE = 1 << 20


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How networks are made and trained.

    Attributes:
        n_networks: How many there are; each leaves out a third of the series at most; of two, half.
        causal: Whether they read one way, so that a stream can.
        selective: Whether the scan depends on its input.
        max_steps: Most steps of each; by the number of series when missing.
        time_budget: Seconds from the beginning of the fit to the end of the last training; no limit
            when missing.
        early_stopping: Whether a tenth of the series of each, kept apart, ends its training.
        verbose: Whether to write lines about what is done to the standard error.
    """

    n_networks: int
    causal: bool = False
    selective: bool = True
    max_steps: int | None = None
    time_budget: float | None = None
    early_stopping: bool = False
    verbose: bool = False


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """Sizes of networks, as plain values that a file can hold.

    Attributes:
        description: Of each model.
        n_networks: How many there are.
        stride: Positions that are averaged to one.
    """

    description: ModelDescription
    n_networks: int
    stride: int

    def to_json(self) -> dict[str, Any]:
        """Return the values under their names."""
        return {**asdict(self), "description": self.description.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NetworkPlan":
        """Invert `to_json`.

        Raises:
            ValueError: A field is missing, unknown or of another type.
        """
        return typed(cls, dict(values), where="the networks")


# Gets which series are described, and what is said of them; returns whether to go on.
Ask = Callable[[Bool[Tensor, " n"], Float[Tensor, "n d"]], bool]


class Learned(NamedTuple):
    """What training comes to.

    Attributes:
        networks: None where not all were trained.
        left_out: What those that did not learn from a series say of it, on the average.
        curves: How each that was trained learned.
    """

    networks: "Networks | None"
    left_out: Float[Tensor, "n d"]
    curves: tuple[Curve, ...]


class Networks(nn.Module):
    """Describe series by small models, cross-fitted.

    The series are dealt into as many parts as there are models, class by class. A model learns from
    all parts but a third, or but one where there are fewer than six: multi-scale convolutions, or
    of tokens an embedding, one Mamba block that reads both ways, and attention, maximum and mean
    over positions, trained by the softmax of cosines with fixed prototypes. A training series is
    described by the mean of the unit vectors of those that did not learn from it, a new one by the
    mean over all. So what a ridge learns of them holds for new series too, and the nearer the
    number of vectors in the two means, the nearer are the cosines of both to each other.

    Args:
        plan: Their sizes.

    Raises:
        ValueError: Sizes that make no model.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.plan, self.description, self.stride = plan, plan.description, plan.stride
        n_channels = plan.description.n_channels or 0
        self.vocab_size = plan.description.vocab_size
        if (self.vocab_size is None) == (n_channels == 0) or not plan.description.pooling:
            raise ValueError(f"these networks do not read series: {plan}")
        largest = _LARGEST_STRIDE if self.vocab_size is None else 1
        if not 1 <= plan.stride <= largest:
            raise ValueError(f"the stride {plan.stride} is outside 1..{largest}")
        generator = Generator().manual_seed(0)
        self.models = nn.ModuleList(
            plan.description.build(place=False, generator=generator).float().eval()
            for _ in range(plan.n_networks)
        )
        self.register_buffer("channel_mean", torch.zeros(n_channels, dtype=torch.float64))
        self.register_buffer("channel_std", torch.ones(n_channels, dtype=torch.float64))
        self.channel_mean: Tensor
        self.channel_std: Tensor

    @classmethod
    def fitted(
        cls,
        x: Float[Tensor, "n l c"] | Int[Tensor, "n l"],
        mask: Bool[Tensor, "n l"],
        target: Int[Tensor, " n"],
        prototypes: Float[Tensor, "k d"],
        settings: NetworkSettings,
        *,
        vocab_size: int | None = None,
        clock: Clock | None = None,
        ask: Ask | None = None,
        generator: Generator,
    ) -> Learned:
        """Train them.

        Args:
            x: Series, or sequences of tokens.
            mask: True on real positions, which come first, at least one in each series.
            target: Class of each.
            prototypes: Of the classes.
            settings: How many, and how they are trained.
            vocab_size: Of sequences of tokens.
            clock: Has run since the fit began; when missing, it begins here.
            ask: Whether to go on, after each network until every series is described, which six are
                half-way. When missing, all are trained.
            generator: Source of the parts, of weights and of the order of training.
        """
        k, dim = prototypes.shape
        # A part without series would have nothing to describe.
        settings = replace(settings, n_networks=min(settings.n_networks, len(target)))
        description = ModelDescription(
            vocab_size=vocab_size,
            n_channels=x.shape[2] if vocab_size is None else None,
            d_model=_D_MODEL,
            n_layers=1,
            mixer="mamba",
            d_state=16,
            d_conv=4,
            expand=1,
            dt_rank=None,
            gate=True,
            bidirectional=not settings.causal,
            pooling=_POOLING,
            n_pool_heads=4,
            n_prototypes=k,
            prototype_dim=dim,
            prototype_init="random",
            learnable_prototypes=False,
            n_convolutions=_N_CONVOLUTIONS if vocab_size is None else 0,
            selective=settings.selective,
        )
        stride = math.ceil(x.shape[1] / _MOST_POSITIONS) if vocab_size is None else 1
        # Of tokens weights can be what fills the memory.
        room = memory_bytes() // 2 // (4 * description.n_weights()) - settings.n_networks
        if vocab_size is not None and room < _COPIES:
            raise ValueError(
                f"vocab_size is {vocab_size}; {settings.n_networks} networks of so many tokens "
                "take more than half of this machine's memory: set n_networks=0, or number the "
                "tokens that occur from 0"
            )
        made = cls(NetworkPlan(description, settings.n_networks, stride))
        if vocab_size is None:
            values = x[mask].double()
            made.channel_mean.copy_(values.mean(0))
            made.channel_std.copy_(unit_of(values))
        series = Series(*made.prepared(x, mask), target)
        part = parts_of(target, settings.n_networks, generator=generator)
        said = torch.zeros(len(target), dim, dtype=torch.float64)
        by = torch.zeros(len(target), 1, dtype=torch.float64)
        at_once = max(1, min(torch.get_num_threads(), room // _COPIES))
        training = _Training(settings, clock or Clock(verbose=settings.verbose), at_once)
        n_left_out = _left_out_parts(settings.n_networks)
        # The first to be trained leave out parts that lie side by side: soon all are described.
        order = sorted(range(settings.n_networks), key=lambda i: i % n_left_out)
        seeds = torch.randint(2**63 - 1, (len(order),), generator=generator).tolist()

        def learn(number: int) -> _Trained:
            own = Generator().manual_seed(seeds[number])
            model = description.build(generator=own, place=False).float()
            model.head.weight.copy_(prototypes.float())
            is_held = (part - order[number]) % settings.n_networks < n_left_out
            learns, held = (~is_held).nonzero()[:, 0], is_held.nonzero()[:, 0]
            model, curve = training.train(model, series[learns], number, generator=own)
            return _Trained(
                model, curve, held, _unit_vectors(model, series.x[held], series.mask[held])
            )

        trained: list[_Trained] = []
        for number, each in enumerate(training.in_waves(learn)):
            trained.append(each)
            said[each.held] += each.said.double()
            by[each.held] += 1
            if ask is not None and number + 1 < len(order):
                if not ask(by[:, 0] > 0, said / by.clamp(min=1)):
                    break
                ask = ask if bool((by == 0).any()) else None
        curves = tuple(each.curve for each in trained)
        if len(trained) < len(order):
            return Learned(None, said / by.clamp(min=1), curves)
        made.models = nn.ModuleList(each.model for each in trained)
        return Learned(made, said / by, curves)

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], plan: NetworkPlan) -> "Networks":
        """Make them again from their `state_dict`, which may come from anyone.

        Raises:
            ValueError: Sizes that make no model, or a value that cannot be.
            RuntimeError: A tensor is missing, or has another shape than these sizes give it.
        """
        # Before anything is made: it takes memory by what the plan says.
        held = sum(tensor.numel() for tensor in state.values())
        if plan.n_networks < 1 or plan.n_networks * plan.description.n_weights() > 2 * held:
            raise ValueError(f"{plan.n_networks} such networks do not fit into {held} numbers")
        made = cls(plan)
        made.load_state_dict(dict(state))
        for name, tensor in made.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} holds a value that is not finite")
        state = made.state_dict()
        stds = [tensor for name, tensor in state.items() if name.endswith(("_std", ".std"))]
        if not all(bool((std > 0).all()) for std in stds):
            raise ValueError("a standard deviation is not above 0")
        return made

    @property
    def n_channels(self) -> int:
        """Channels of a series; a token is one."""
        return self.description.n_channels or 1

    def forward(
        self, x: Float[Tensor, "n l c"] | Int[Tensor, "n l"], mask: Bool[Tensor, "n l"]
    ) -> Float[Tensor, "n d"]:
        """Return the mean of the unit vectors that the networks give each series, in float64."""
        x, mask = self.prepared(x, mask)
        tasks = [partial(_unit_vectors, model, x, mask) for model in self.each()]
        found = side_by_side(tasks, at_most=1 if mask.numel() < _LEAST_SHARED else None)
        return torch.stack(found).double().mean(0)

    def prepared(
        self, x: Float[Tensor, "n l c"] | Int[Tensor, "n l"], mask: Bool[Tensor, "n l"]
    ) -> tuple[Float[Tensor, "n s c"] | Int[Tensor, "n s"], Bool[Tensor, "n s"]]:
        """Standardise series, and average every `stride` positions to one; leave tokens alone."""
        if self.vocab_size is not None:
            return x, mask
        x = self.standardised(x).masked_fill(~mask[:, :, None], 0)
        if self.stride > 1:
            missing = -x.shape[1] % self.stride
            shape = (len(x), -1, self.stride)
            x = functional.pad(x, (0, 0, 0, missing)).reshape(*shape, x.shape[2])
            real = functional.pad(mask, (0, missing)).reshape(shape).sum(2)
            x, mask = x.sum(2) / real.clamp(min=1)[:, :, None], real > 0
        return x.float(), mask

    def standardised(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """Take the mean of training away, in units of the deviation.

        In float64: a time in seconds since 1970 has no fractions in float32.
        """
        return (x.double() - self.channel_mean) / self.channel_std

    def nothing(self) -> Float[Tensor, "0 c"] | Int[Tensor, " 0"]:
        """Return a series of no positions, as streams collect them."""
        if self.vocab_size is not None:
            return torch.zeros(0, dtype=torch.int64)
        return torch.zeros(0, self.n_channels, dtype=torch.float64)

    def each(self) -> list[SequenceModel]:
        """Return the networks."""
        models: list[SequenceModel] = []
        for model in self.models:
            assert isinstance(model, SequenceModel)
            models.append(model)
        return models


def full_precision() -> torch.autocast:
    """Return a context in which networks compute in float32, whatever autocast is on around it."""
    return torch.autocast("cpu", enabled=False)


def _left_out_parts(n_networks: int) -> int:
    """Return how many parts each network leaves out: a third of them, at least one."""
    return max(1, n_networks // 3)


def parts_of(target: Int[Tensor, " n"], n_parts: int, *, generator: Generator) -> Int[Tensor, " n"]:
    """Deal series into parts of nearly one size, each class as evenly as it goes."""
    dealt = torch.empty_like(target)
    order = torch.argsort(target, stable=True)
    shuffled = [
        group[torch.randperm(len(group), generator=generator)]
        for group in torch.split(order, torch.bincount(target).tolist())
    ]
    dealt[torch.cat(shuffled)] = torch.arange(len(target)) % n_parts
    return dealt


def _unit_vectors(
    model: SequenceModel, x: Float[Tensor, "n l c"] | Int[Tensor, "n l"], mask: Bool[Tensor, "n l"]
) -> Float[Tensor, "n d"]:
    each = max(1, min(_BATCH, _POSITIONS // x.shape[1]))
    found = []
    with torch.inference_mode(), full_precision():
        for part, real in zip(torch.split(x, each), torch.split(mask, each), strict=True):
            longest = int(real.sum(1).max())
            z = model.embed(part[:, :longest], mask=real[:, :longest])
            found.append(functional.normalize(z, dim=1))
    return torch.cat(found)


class _Trained(NamedTuple):
    """A network, how it learned, which series it did not see, and what it says of them."""

    model: SequenceModel
    curve: Curve
    held: Int[Tensor, " h"]
    said: Float[Tensor, "h d"]


class _Abandoned(Exception):  # noqa: N818  nothing is wrong
    """Nobody waits for this network any more."""


class _Training:
    """Shares time and threads between networks, watches each, and tells of it."""

    def __init__(self, settings: NetworkSettings, clock: Clock, at_once: int) -> None:
        self.settings, self.clock, self.at_once = settings, clock, at_once
        self._stop = threading.Event()

    def in_waves(self, learn: Callable[[int], _Trained]) -> Iterator[_Trained]:
        """Train networks, a wave of them at once; of a wave nobody asks for, none is trained."""
        n = self.settings.n_networks
        for first in range(0, n, self.at_once):
            wave = range(first, min(first + self.at_once, n))
            yield from side_by_side([partial(learn, number) for number in wave], stop=self._stop)

    def train(
        self, model: SequenceModel, series: Series, number: int, *, generator: Generator
    ) -> tuple[SequenceModel, Curve]:
        """Train one network; where it may stop early, on all of its series but a tenth."""
        settings = self.settings
        name = f"network {number + 1} of {settings.n_networks}"
        watched = None
        if settings.early_stopping and len(series.target) >= _FEWEST_TO_SPLIT:
            part = parts_of(series.target, _INNER_PARTS, generator=generator)
            watched = series[(part == 0).nonzero()[:, 0]]
            series = series[(part != 0).nonzero()[:, 0]]
        elif settings.early_stopping:
            self.clock.tell(
                f"{name}, early_stopping is ignored: it learns from {len(series.target)} series, "
                f"and a part is kept apart from {_FEWEST_TO_SPLIT} on"
            )
        batch = _BATCH_OF_MANY if len(series.target) > _MANY else 16
        steps = steps_for(len(series.target), batch_size=batch)
        if settings.max_steps is not None:
            steps = min(steps, settings.max_steps)
        seconds = None
        if settings.time_budget is not None:
            left = settings.time_budget - self.clock.so_far
            # What is left is shared by waves to come; the first step of each is always taken.
            first = number - number % self.at_once
            seconds = max(0.0, left / math.ceil((settings.n_networks - first) / self.at_once))
        plan = Plan(steps, batch_size=batch, seconds=seconds, early_stopping=watched is not None)
        told, started = 0, time.perf_counter()
        points: list[tuple[int, float]] = []

        def watch(step: int, loss: float) -> None:
            nonlocal told
            if self._stop.is_set():
                raise _Abandoned
            points.append((step, loss))
            done = step / steps
            if seconds is not None:
                done = max(done, min(1.0, (time.perf_counter() - started) / max(seconds, 1e-9)))
            if int(10 * done) > told:
                told = int(10 * done)
                so_far = f"loss {loss:.4f}, {self.clock.so_far:.0f} s"
                self.clock.tell(f"{name}, step {step} of {steps}, {so_far}")

        trained = fit_series(
            model, series, plan, held_out=watched, generator=generator, watch=watch
        )
        curve = _curve(points, trained, watched, scale=plan.scale)
        if watched is not None:
            loss, share = curve.held_out.tolist()
            self.clock.tell(
                f"{name}, weights kept, held-out loss {loss:.4f}, held-out accuracy {share:.3f}, "
                f"{self.clock.so_far:.0f} s"
            )
        return trained, curve


def _curve(
    points: list[tuple[int, float]], model: SequenceModel, watched: Series | None, *, scale: float
) -> Curve:
    """Return how a network learned, and what it has become on the series that were watched."""
    held_out: list[float] = []
    if watched is not None:
        z, prototypes = _unit_vectors(model, watched.x, watched.mask), model.head.prototypes
        loss = prototype_softmax_loss(z, prototypes, watched.target, scale=scale).mean()
        nearest = (z @ prototypes.T).argmax(1)
        held_out = [float(loss), float((nearest == watched.target).double().mean())]
    return Curve(
        torch.tensor([step for step, _ in points], dtype=torch.int64),
        torch.tensor([loss for _, loss in points], dtype=torch.float64),
        torch.tensor(held_out, dtype=torch.float64),
    )

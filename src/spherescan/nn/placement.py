"""Place class prototypes far apart on the unit sphere, and say how far apart they could be.

Letters: k classes, d dimensions; ``s`` is a cosine, ``beta`` an inverse temperature.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spherescan.nn.separation import check_sizes, separation_bound

SEED = 0  # of the placements that nobody passed a generator for

# An evaluation is k * k * (d + OVERHEAD) multiply-adds, the second term for exp and its friends;
# one core does 1e9 (k = 100) to 1e10 (k = 5000) of them a second.
OVERHEAD = 12
WORK = 100e9  # 10 to 20 seconds where k is large
MOST_EVALUATIONS = 2700  # 1 second at k = 100; another restart gains less than 0.001 there
FEWEST_EVALUATIONS = 24  # at (5000, 64): random 0.58, after 24 evaluations 0.29, after 48 0.26
# An hour where d is large, three where it is 3, on one core at the speeds above. Vocabularies still
# pass: (50000, 256) is 1.6e13. Whoever can wait longer gains little over random points.
MOST_WORK = 4e13
BLOCK = 256  # rows of a Gram block: 0.5 MiB fits the cache; twice as fast as one piece at k = 5000

# The first temperature sees all pairs; at 1024 only the closest, and the arrangement is settled.
ANNEALING = tuple(4.0 * 2.0**i for i in range(9))
# log-sum-exp exceeds the maximum by at most 2 log(k) / beta: 1e-6 after the last, for k = 3000.
POLISHING = tuple(1024.0 * 4.0**i for i in range(1, 8))
# With few evaluations: 0.01 to 0.1 better than finer or cooler choices at (5000, 64), (2000, 256).
COARSE = (16.0, 128.0, 1024.0)
# Temperatures a restart skips: at (7, 3) slow starts all end in one basin, which is not the best.
SKIPPED = (0, 4, 0, 7)
STEPS = 100  # evaluations per temperature: three times as many gain less than another restart
FEWEST_STEPS = 5  # with fewer, COARSE is better

HISTORY = 10  # pairs of L-BFGS
LONGEST_STEP = 0.5  # of one point, about in radians: it cannot jump across a neighbour
TRIALS = 12  # halvings: the usual step is accepted in one or two
ARMIJO = 1e-4  # share of the predicted decrease, the textbook value
ROUNDING = 1e-16  # a cosine's decrease below this cannot be told from rounding
FLAT = 1e-13  # norm of a gradient that is rounding
OPTIMAL = 1e-6  # this close to the bound, no restart can gain anything that matters


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Hold unit prototypes with the certificate of how well they are separated.

    Args:
        points: float64, one unit row per class.
        max_cosine: largest cosine between two different rows; -1.0 for a single class.
        lower_bound: no arrangement has a smaller ``max_cosine``. Where the two are equal, up to
            rounding, the arrangement is proved optimal.
    """

    points: Float[Tensor, "k d"]
    max_cosine: float
    lower_bound: float


def separated_prototypes(
    n_classes: int, dim: int, *, generator: torch.Generator | None = None
) -> Placement:
    """Place points on the unit sphere so that the closest two are as far apart as we can make them.

    Minimises ``max_{i != j} <p_i, p_j>``, in closed form where the optimum is known for all k:

    - k <= d + 1: the simplex, cosine -1 / (k - 1);
    - d + 1 < k <= 2 d: the orthoplex, vertices +-e_i, cosine 0;
    - d = 2: the regular polygon, cosine cos(2 pi / k).

    Elsewhere ``1 / beta * log sum_{i != j} exp(beta <p_i, p_j>)`` is minimised on the product of
    spheres by L-BFGS with backtracking, for rising beta, from several random starts, of which the
    best is polished. The result is a local optimum, and often the global one where k is small.

    Args:
        n_classes: number of points, at least 1.
        dim: dimensions they live in, at least 1; one dimension has room for two points only.
        generator: source of the random starts; None is a fresh one with seed ``SEED``. Closed forms
            leave it untouched. Same seed, machine and number of threads, same points, bit for bit.

    Returns:
        The points and their certificate.

    Raises:
        TypeError: a count that is no whole number.
        ValueError: a count below 1, more than two classes in one dimension, or so many that
            placing them would take hours (``MOST_WORK``).

    References:
        Mettes, van der Pol, Snoek, "Hyperspherical Prototype Networks", 2019, arXiv:1901.10514.
        Kasarla et al., "Maximum Class Separation as Inductive Bias in One Matrix", 2022,
        arXiv:2206.08704 (the simplex).
        Rankin, "The closest packing of spherical caps in n dimensions", 1955 (simplex, orthoplex).

    Notes:
        Mettes et al. run projected SGD on the mean over i of the largest cosine of row i. A smooth
        maximum with curvature gets closer: 0.34 against 0.38 for 100 points in 10 dimensions.

        Work is limited by counting evaluations, ``O(k^2 d)`` each, not by the clock. Up to some 300
        classes all restarts and temperatures are run (100 classes: 1 second on one core). Beyond,
        restarts go first, then steps per temperature, then the polishing: 1000 to 5000 classes take
        10 to 20 seconds. ``FEWEST_EVALUATIONS`` are always made, so from there on time grows like
        ``k^2 d``: 40 to 60 seconds at (8192, 256). The Gram matrix is never held whole: memory is
        ``O(k d)``.
    """
    check_sizes(n_classes, dim)
    n_classes, dim = int(n_classes), int(dim)  # those of NumPy overflow
    _check_work(n_classes, dim)
    bound = separation_bound(n_classes, dim)
    points = _closed_form(n_classes, dim)
    if points is None:
        generator = generator or torch.Generator().manual_seed(SEED)
        points = _optimised(n_classes, dim, bound=bound, generator=generator)
    return Placement(points, _largest_cosine(points), bound)


def _check_work(n_classes: int, dim: int) -> None:
    """Refuse what would seem to run without end; a closed form is only evaluated once."""
    closed = n_classes <= 2 * dim or dim == 2
    work = (1 if closed else FEWEST_EVALUATIONS) * n_classes * n_classes * (dim + OVERHEAD)
    if work > MOST_WORK:
        raise ValueError(
            f"to separate {n_classes} points in {dim} dimensions takes {work:.1e} multiply-adds, "
            f"{work / 3.6e13:.0f} hours or more on one core; the most is {MOST_WORK:.0e}. Draw "
            'them at random, PrototypeHead(..., init="random"), or have fewer classes'
        )


def _closed_form(n_classes: int, dim: int) -> Float[Tensor, "k d"] | None:
    if n_classes <= dim + 1:
        return _simplex(n_classes, dim)
    if n_classes <= 2 * dim:
        axes = torch.eye(dim, dtype=torch.float64)
        return torch.cat((axes, -axes[: n_classes - dim]))
    if dim == 2:
        angle = torch.arange(n_classes, dtype=torch.float64) * (2 * math.pi / n_classes)
        return torch.stack((angle.cos(), angle.sin()), dim=1)
    return None


def _simplex(n_classes: int, dim: int) -> Float[Tensor, "k d"]:
    """Unroll the recursion of Kasarla et al.: its products of sqrt(1 - 1 / n^2) telescope."""
    points = torch.zeros(n_classes, dim, dtype=torch.float64)
    if n_classes == 1:
        points[0, 0] = 1.0
        return points
    left = torch.arange(n_classes - 1, 0, -1, dtype=torch.float64)  # points after the j-th
    ratio = n_classes / (n_classes - 1)
    below = -(ratio / (left * (left + 1))).sqrt()
    points[:, : n_classes - 1] = below.expand(n_classes, -1).tril(-1)
    points.diagonal()[: n_classes - 1] = (ratio * left / (left + 1)).sqrt()
    return points


def _optimised(
    n_classes: int, dim: int, *, bound: float, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    affordable = WORK / (n_classes * n_classes * (dim + OVERHEAD))
    left = round(min(max(affordable, FEWEST_EVALUATIONS), MOST_EVALUATIONS))
    annealing, polishing, steps = _schedule(left)
    left -= steps * len(polishing)
    best, smallest = torch.empty(0, dim), math.inf
    for skip in cycle(SKIPPED):
        start = torch.randn(n_classes, dim, generator=generator, dtype=torch.float64)
        points, used = _minimise(_unit(start), annealing[skip:], steps)
        left -= used
        if (largest := _largest_cosine(points)) < smallest:
            best, smallest = points, largest
        if left < steps * len(annealing) or smallest <= bound + OPTIMAL:
            break
    return _minimise(best, polishing, steps)[0]


def _schedule(evaluations: int) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Choose the temperatures before and after a start is chosen, and evaluations for each."""
    steps = evaluations // (len(ANNEALING) + len(POLISHING))
    if steps >= FEWEST_STEPS:
        return ANNEALING, POLISHING, min(steps, STEPS)
    return COARSE, (), evaluations // len(COARSE)


def _minimise(
    points: Float[Tensor, "k d"], betas: tuple[float, ...], steps: int
) -> tuple[Float[Tensor, "k d"], int]:
    """Lower the smooth maximum at each temperature in turn; return the evaluations used as well."""
    used = 0
    for beta in betas:
        here = _evaluate(points, beta)
        history: deque[_Pair] = deque(maxlen=HISTORY)
        stop, used = used + steps, used + 1
        while used < stop and here.gradient.norm() > FLAT:
            there, tried = _line_search(here, _direction(here, history, beta), beta)
            used += tried
            if there is not None:
                _remember(history, here, there)
                here = there
            elif history:
                history.clear()
            else:
                break
        points = here.points
    return points, used


class _State(NamedTuple):
    points: Float[Tensor, "k d"]
    value: float
    gradient: Float[Tensor, "k d"]


class _Pair(NamedTuple):
    step: Float[Tensor, " kd"]
    change: Float[Tensor, " kd"]  # of the gradient
    product: float


def _remember(history: deque[_Pair], here: _State, there: _State) -> None:
    step = (there.points - here.points).flatten()
    change = (there.gradient - here.gradient).flatten()
    product = float(step.dot(change))
    if product > 0:  # else the model would not be convex, and its direction might climb
        history.append(_Pair(step, change, product))


def _line_search(
    here: _State, direction: Float[Tensor, "k d"], beta: float
) -> tuple[_State | None, int]:
    """Halve the step until the value drops enough (Armijo); also return the evaluations used."""
    slope = float(direction.flatten().dot(here.gradient.flatten()))
    scale = min(1.0, LONGEST_STEP / direction.norm(dim=1).max().item())
    for tried in range(1, TRIALS + 1):
        there = _evaluate(_unit(here.points + scale * direction), beta)
        if there.value < here.value + ARMIJO * scale * slope - ROUNDING:
            return there, tried
        scale *= 0.5
    return None, TRIALS


def _direction(here: _State, history: deque[_Pair], beta: float) -> Float[Tensor, "k d"]:
    """Apply the L-BFGS inverse Hessian to the negative gradient, and project onto the tangents."""
    direction = here.gradient.flatten().neg()
    if not history:
        return direction.div(beta * direction.norm()).view_as(here.points)
    weights = []
    for pair in reversed(history):
        weight = float(pair.step.dot(direction)) / pair.product
        direction.sub_(pair.change, alpha=weight)
        weights.append(weight)
    newest = history[-1]
    direction.mul_(newest.product / float(newest.change.dot(newest.change)))
    for pair, weight in zip(history, reversed(weights), strict=True):
        correction = weight - float(pair.change.dot(direction)) / pair.product
        direction.add_(pair.step, alpha=correction)
    return _tangent(direction.view_as(here.points), here.points)


def _evaluate(points: Float[Tensor, "k d"], beta: float) -> _State:
    """Compute ``1 / beta * log sum_{i != j} exp(beta <p_i, p_j>)`` and its Riemannian gradient."""
    top, total, pull = -math.inf, 0.0, torch.zeros_like(points)
    for rows, columns, cosines in _gram_blocks(points):
        if (largest := cosines.max().item()) > top:
            shrink = math.exp(beta * (top - largest))
            top, total = largest, total * shrink
            pull *= shrink
        weights = cosines.sub_(top).mul_(beta).exp_()
        mass = weights.sum().item()
        pull[rows].addmm_(weights, points[columns])
        if rows != columns:
            pull[columns].addmm_(weights.T, points[rows])
            mass *= 2
        total += mass
    gradient = _tangent(pull * (2 / total), points)
    return _State(points, top + math.log(total) / beta, gradient)


def _gram_blocks(
    points: Float[Tensor, "k d"],
) -> Iterator[tuple[slice, slice, Float[Tensor, "i j"]]]:
    """Yield the upper triangle of the cosines block by block, -inf where a row meets itself."""
    slices = [slice(i, i + BLOCK) for i in range(0, len(points), BLOCK)]
    for i, rows in enumerate(slices):
        for columns in slices[i:]:
            cosines = points[rows] @ points[columns].T
            if rows == columns:
                cosines.fill_diagonal_(-math.inf)
            yield rows, columns, cosines


def _largest_cosine(points: Float[Tensor, "k d"]) -> float:
    largest = max(cosines.max().item() for _, _, cosines in _gram_blocks(points))
    return max(largest, -1.0)


def _tangent(x: Float[Tensor, "k d"], points: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    return x - (x * points).sum(dim=1, keepdim=True) * points


def _unit(x: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    return x.div(x.norm(dim=1, keepdim=True))

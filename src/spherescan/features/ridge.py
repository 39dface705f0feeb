"""A linear map onto prototypes in closed form, and what it would have said of each sample unseen.

Letters: n samples, f features, d dimensions of the targets, a penalties.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from spherescan.ops.argument import expect_numbers, expect_shape
from spherescan.ops.threads import one_thread

# Of features whose columns have a squared norm of about one for each sample.
PENALTIES = tuple(10.0 ** (e / 2) for e in range(-8, 9))
# Samples up to which every penalty is tried; of more, so many say where to begin.
_FEW = 2000
# Rows or columns taken to float64 at a time.
_AT_ONCE = 1024
# Errors that differ by less, relative to them, are equal.
_ROUNDING = 1e-10


@dataclass(frozen=True, slots=True)
class Ridge:
    """A fitted map.

    Attributes:
        weight: With `bias` the map, z = x W + bias.
        bias: See there.
        penalty: The one that was chosen.
        left_out: What the map fitted without a sample makes of it, for each sample.
    """

    weight: Float[Tensor, "f d"]
    bias: Float[Tensor, " d"]
    penalty: float
    left_out: Float[Tensor, "n d"]

    def __call__(self, x: Float[Tensor, "m f"]) -> Float[Tensor, "m d"]:
        """Return x W + bias."""
        return products(x, self.weight) + self.bias


def ridge(
    x: Float[Tensor, "n f"],
    target: Float[Tensor, "n d"],
    *,
    weights: Float[Tensor, " n"] | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> Ridge:
    """Fit a linear map with an intercept by ridge regression, the penalty by leaving one out.

        W = argmin sum_i w_i |x_i W + b - target_i|^2 + penalty |W|^2

    The penalty is the one with the smallest squared error over samples of which each was left out;
    of equals the largest. Of more than 2000 samples it is the one for 2000 drawn from them alone,
    or one beside it as long as these are better left out of all. What is solved has the size of
    samples or of features, whichever are fewer.

    Args:
        x: Features, finite.
        target: For a classification the prototype of each sample's class.
        weights: How much the error of each sample counts, above 0 and finite; 1 when missing.
        penalties: To choose from, all positive.

    Returns:
        The map, in the type of `target`. `x` itself may be narrower: parts of it are widened.

    Raises:
        TypeError: Targets that are no floating-point numbers.
        ValueError: Fewer than two samples, targets or weights of another shape, a target that is
            not finite, no positive penalty or weight, or features so large that no penalty is more
            than their rounding.

    References:
        Rifkin, Lippert, "Notes on Regularized Least Squares", 2007, MIT-CSAIL-TR-2007-025: leaving
        out sample i changes its residual from r_i to r_i / (1 - h_ii).

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> fitted = ridge(x, 2 * x + 1, penalties=[1e-6])
        >>> fitted.weight, fitted.bias
        (tensor([[2.0000]]), tensor([1.0000]))
    """
    expect_numbers("target", target)
    if target.ndim != 2 or len(target) != len(x):
        raise ValueError(
            f"target has shape {tuple(target.shape)}; expected ({len(x)}, any): a row for each "
            "sample, and a single column is target[:, None]"
        )
    if weights is not None:
        expect_shape("weights", weights, x.shape[:1])
    if len(x) < 2:
        raise ValueError(f"got {len(x)} samples; at least two are needed to leave one out")
    if not bool(target.isfinite().all()):
        raise ValueError("got a target that is not finite; leave its sample out")
    if not penalties or not all(0 < penalty < math.inf for penalty in penalties):
        raise ValueError(f"got the penalties {list(penalties)}; give one or more above 0, finite")
    if weights is not None and not bool(((weights > 0) & weights.isfinite()).all()):
        raise ValueError("got a weight that is not above 0 and finite; leave such samples out")
    root = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double().sqrt()
    goal = target.double()
    goal_mean = root.square() @ goal / root.square().sum()
    centred = _Centred.of(x, root)
    wanted = root[:, None] * (goal - goal_mean)
    every = len(x) <= _FEW or len(penalties) == 1
    form = _Eigenvalues if every and len(penalties) > 1 else _Cholesky
    side = _BySamples if len(x) <= x.shape[1] else _ByFeatures
    system = side(centred, wanted, form)
    if every:
        with one_thread() if form is _Eigenvalues else nullcontext():
            best = _best_of_all(system, penalties)
    else:
        some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:_FEW]
        part = None if weights is None else weights[some]
        begin = ridge(x[some], target[some], weights=part, penalties=penalties).penalty
        chosen = _best_near(system, penalties, begin, some)
        best = None if chosen is None else system.solved(chosen.penalty)
    if best is None:
        raise ValueError(
            f"no penalty of {list(penalties)} can be told from rounding beside features of this "
            "size; make them smaller, or penalties larger"
        )
    weight = system.weight(best)
    return Ridge(
        weight.to(target.dtype),
        (goal_mean - centred.mean @ weight).to(target.dtype),
        best.penalty,
        (goal - best.unseen / root[:, None]).to(target.dtype),
    )


def products(x: Float[Tensor, "m f"], weight: Float[Tensor, "f d"]) -> Float[Tensor, "m d"]:
    """Return x W in the type of W, to which a few rows of x are taken at a time."""
    parts = [rows.to(weight.dtype) @ weight for rows in torch.split(x, _AT_ONCE)]
    return torch.cat(parts)


class _Fit(NamedTuple):
    """What a penalty comes to.

    Attributes:
        penalty: That one.
        unseen: Weighted error of each sample when left out.
        solution: Of the system that was solved.
    """

    penalty: float
    unseen: Float[Tensor, "n d"]
    solution: Float[Tensor, "m d"]

    def better_than(self, other: "_Fit | None") -> bool:
        """Return whether its error is smaller, by more than rounding if its penalty is too."""
        if other is None:
            return True
        ours, theirs = (float(fit.unseen.square().sum()) for fit in (self, other))
        least = 1 - _ROUNDING if self.penalty < other.penalty else 1 + _ROUNDING
        return ours < least * theirs or ours == theirs == 0 < self.penalty - other.penalty


@dataclass(frozen=True, slots=True)
class _Centred:
    """Samples less their mean, times the root of their weight, a few at a time in float64.

    Attributes:
        x: The samples.
        root: Root of each weight.
        mean: Weighted.
        constant: What the intercept fits, a unit vector to which all columns are orthogonal.
    """

    x: Float[Tensor, "n f"]
    root: Float[Tensor, " n"]
    mean: Float[Tensor, " f"]
    constant: Float[Tensor, " n"]

    @classmethod
    def of(cls, x: Float[Tensor, "n f"], root: Float[Tensor, " n"]) -> "_Centred":
        share = root.square() / root.square().sum()
        parts = zip(torch.split(share, _AT_ONCE), torch.split(x, _AT_ONCE), strict=True)
        mean = torch.stack([some @ rows.double() for some, rows in parts]).sum(0)
        return cls(x, root, mean, share.sqrt())

    def rows(
        self, some: Int[Tensor, " s"] | None = None
    ) -> Iterator[tuple[Int[Tensor, " r"], Float[Tensor, "r f"]]]:
        for part in torch.split(torch.arange(len(self.x)) if some is None else some, _AT_ONCE):
            yield part, self.root[part, None] * (self.x[part].double() - self.mean)

    def columns(self) -> Iterator[tuple[slice, Float[Tensor, "n c"]]]:
        for first in range(0, self.x.shape[1], _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            yield part, self.root[:, None] * (self.x[:, part].double() - self.mean[part])


class _Eigenvalues:
    """(G + penalty)^-1 for many penalties, of one decomposition of G."""

    def __init__(self, inner: Float[Tensor, "m m"]) -> None:
        with one_thread():
            values, self._vectors = torch.linalg.eigh(inner)
        self._values = values.clamp(min=0)

    def raised_by(self, penalty: float) -> "_Inverse":
        vectors, raised = self._vectors, self._values + penalty
        return _Inverse(
            times=lambda right: vectors @ (vectors.T @ right / raised[:, None]),
            squares=lambda right: (vectors.T @ right).square().T @ (1 / raised),
            diagonal=lambda: vectors.square() @ (1 / raised),
        )


class _Cholesky:
    """The same for few penalties: each costs an eighth of the decomposition."""

    def __init__(self, inner: Float[Tensor, "m m"]) -> None:
        self._inner = inner

    def raised_by(self, penalty: float) -> "_Inverse | None":
        """Return it; None where rounding hides the penalty."""
        # The triangle that is filled, where LAPACK wants it: the factor takes its place.
        factor = self._inner.T.clone()
        factor.diagonal().add_(penalty)
        failed = torch.empty((), dtype=torch.int32)
        torch.linalg.cholesky_ex(factor, upper=True, out=(factor, failed))
        if bool(failed):
            return None
        half = functools.partial(torch.linalg.solve_triangular, factor.T, upper=False)
        return _Inverse(
            times=lambda right: torch.linalg.solve_triangular(factor, half(right), upper=True),
            squares=lambda right: half(right).square().sum(0),
            diagonal=lambda: _diagonal_of_inverse(factor.T),
        )


def _diagonal_of_inverse(lower: Float[Tensor, "m m"]) -> Float[Tensor, " m"]:
    """Return that of (L L^T)^-1: the squares of L^-1, whose columns begin with zeros, summed."""
    found = []
    for first in range(0, len(lower), _AT_ONCE):
        rest = lower[first:, first:]
        unit = torch.eye(len(rest), min(_AT_ONCE, len(rest)), dtype=lower.dtype)
        solved = torch.linalg.solve_triangular(rest, unit, upper=False)
        found.append(solved.square().sum(0))
    return torch.cat(found)


class _Inverse(NamedTuple):
    """The inverse of a matrix.

    Attributes:
        times: It times columns.
        squares: c^T inverse c of each column c.
        diagonal: Its diagonal.
    """

    times: Callable[[Tensor], Tensor]
    squares: Callable[[Tensor], Tensor]
    diagonal: Callable[[], Tensor]


_Form = _Eigenvalues | _Cholesky


class _BySamples:
    """(X X^T + penalty) a = y, W = X^T a, for no more samples than features.

    The error of sample i, left out, is a_i / ((X X^T + penalty)^-1)_ii, where what the intercept
    fits is not in the inverse. To keep its share from filling all digits it is made as large as
    the rest is, and subtracted.
    """

    def __init__(self, centred: _Centred, wanted: Float[Tensor, "n d"], form: type[_Form]) -> None:
        self._centred, self._wanted = centred, wanted
        n = len(wanted)
        inner = torch.zeros(n, n, dtype=torch.float64)
        for _, columns in centred.columns():
            _add_products(inner, columns)
        self._along = float(inner.diagonal().mean()) or 1.0
        inner.addr_(centred.constant, centred.constant, alpha=self._along)
        self._form = form(inner)

    def solved(self, penalty: float, some: Int[Tensor, " s"] | None = None) -> _Fit | None:
        """Return what a penalty comes to, for some samples; None where rounding hides it."""
        inverse = self._form.raised_by(penalty)
        if inverse is None:
            return None
        solution = inverse.times(self._wanted)
        along = self._centred.constant.square() / (self._along + penalty)
        if some is None:
            return _Fit(penalty, solution / (inverse.diagonal() - along)[:, None], solution)
        unit = functional.one_hot(some, len(solution)).double().T
        own = inverse.squares(unit) - along[some]
        return _Fit(penalty, solution[some] / own[:, None], solution)

    def weight(self, fit: _Fit) -> Float[Tensor, "f d"]:
        return torch.cat([columns.T @ fit.solution for _, columns in self._centred.columns()])


class _ByFeatures:
    """(X^T X + penalty) W = X^T y, for more samples than features.

    The error of sample i, left out, is that of the fit in 1 - x_i^T (X^T X + penalty)^-1 x_i, less
    the share of the intercept.
    """

    def __init__(self, centred: _Centred, wanted: Float[Tensor, "n d"], form: type[_Form]) -> None:
        self._centred, self._wanted = centred, wanted
        f = centred.x.shape[1]
        inner = torch.zeros(f, f, dtype=torch.float64)
        self._right = torch.zeros(f, wanted.shape[1], dtype=torch.float64)
        for part, rows in centred.rows():
            _add_products(inner, rows.T)
            self._right.addmm_(rows.T, wanted[part])
        self._form = form(inner)

    def solved(self, penalty: float, some: Int[Tensor, " s"] | None = None) -> _Fit | None:
        """Return what a penalty comes to, for some samples; None where rounding hides it."""
        inverse = self._form.raised_by(penalty)
        if inverse is None:
            return None
        weight = inverse.times(self._right)
        unseen = []
        for part, rows in self._centred.rows(some):
            rest = 1 - inverse.squares(rows.T) - self._centred.constant[part].square()
            unseen.append((self._wanted[part] - rows @ weight) / rest[:, None])
        return _Fit(penalty, torch.cat(unseen), weight)

    def weight(self, fit: _Fit) -> Float[Tensor, "f d"]:
        return fit.solution


def _add_products(inner: Float[Tensor, "m m"], rows: Float[Tensor, "m c"]) -> None:
    """Add the inner products of rows to the lower triangle, which is all that is read of it."""
    for first in range(0, len(rows), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        inner[first:, some].addmm_(rows[first:], rows[some].T)


def _best_of_all(system: _BySamples | _ByFeatures, penalties: Sequence[float]) -> _Fit | None:
    best = None
    for penalty in sorted(penalties, reverse=True):
        fit = system.solved(penalty)
        if fit is not None and fit.better_than(best):
            best = fit
    return best


def _best_near(
    system: _BySamples | _ByFeatures,
    penalties: Sequence[float],
    begin: float,
    some: Int[Tensor, " s"],
) -> _Fit | None:
    """Go from one penalty to the next as long as some samples get better, upwards or else down."""
    order = sorted(penalties)
    index = order.index(begin)
    best = system.solved(begin, some)
    for way in (order[index + 1 :], order[:index][::-1]):
        at_first = best
        for penalty in way:
            fit = system.solved(penalty, some)
            if fit is None or not fit.better_than(best):
                break
            best = fit
        if best is not at_first:
            break
    return best

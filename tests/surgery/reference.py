"""MGDA and CAGrad by their definitions: every subset of the gradients, 60 digits, exact products.

Slow and independent of the package: subsets instead of an active set, no scaling.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from mpmath import matrix, mp, mpf, sqrt
from torch import Tensor

mp.dps = 60


def exact_gram(jacobian: Tensor) -> matrix:
    """Multiply the float64 numbers as integers."""
    rows, powers = [], []
    for row in jacobian.numpy():
        smallest = int(np.frexp(row[row != 0])[1].min()) if row.any() else 0
        rows.append([int(value) for value in np.ldexp(row, 53 - smallest)])
        powers.append(smallest - 53)
    gram = matrix(len(rows), len(rows))
    for i, j in itertools.combinations_with_replacement(range(len(rows)), 2):
        product = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        gram[i, j] = gram[j, i] = mpf(product) * mpf(2) ** (powers[i] + powers[j])
    return gram


def mgda_reference(jacobian: Tensor) -> Tensor:
    """The shortest convex combination."""
    gram = exact_gram(jacobian)

    def candidates(inside: list[int]) -> list[matrix]:
        n = len(inside)
        system = matrix(n + 1, n + 1)  # G w = level 1,  sum w = 1
        for a in range(n):
            system[a, n] = system[n, a] = 1
            for b in range(n):
                system[a, b] = gram[inside[a], inside[b]]
        return [solution[:n] for solution in _solve(system, [matrix([0] * n + [1])])]

    weights = _least(gram, candidates, lambda w: _form(w, gram, w), range(gram.rows))
    return _combine(weights, jacobian)


def cagrad_reference(jacobian: Tensor, *, c: float) -> Tensor:
    """The vector of the ball that helps the worst off most; zero gradients are not among them."""
    gram = exact_gram(jacobian)
    t = gram.rows
    mean = gram * matrix([mpf(1) / t] * t)
    radius = c * sqrt(sum(mean) / t)

    def candidates(inside: list[int]) -> list[matrix]:
        # G y = tau 1 - mean on the subset, with y^T G y = radius^2
        part = matrix([[gram[a, b] for b in inside] for a in inside])
        found = _solve(part, [matrix([1] * len(inside)), matrix([mean[a] for a in inside])])
        if not found:
            return []
        p, q = found
        a, b = sum(p), sum(q)
        root = b * b - a * (_form(q, part, q) - radius**2)
        if root < 0 or a <= 0:
            return []
        return [_to_simplex(((b + sign * sqrt(root)) / a) * p - q) for sign in (1, -1)]

    def dual(w: matrix) -> mpf:
        return sum(w[i] * mean[i] for i in range(t)) + radius * sqrt(_form(w, gram, w))

    present = [i for i in range(t) if gram[i, i]]
    if not present or not radius:
        return jacobian.mean(dim=0)
    weights = _least(gram, candidates, dual, present)
    weights = weights * (radius / sqrt(_form(weights, gram, weights)))
    return _combine(weights + matrix([mpf(1) / t] * t), jacobian)


def _least(
    gram: matrix,
    candidates: Callable[[list[int]], list[matrix]],
    value: Callable[[matrix], mpf],
    indices: range | list[int],
) -> matrix:
    """Take the best of all feasible candidates: each is one upper bound of a minimum."""
    best, lowest = None, mp.inf
    for size in range(1, len(indices) + 1):
        for inside in itertools.combinations(indices, size):
            for part in candidates(list(inside)) if size > 1 else [matrix([1])]:
                if min(part) < 0:
                    continue
                weights = matrix(gram.rows, 1)
                for i, weight in zip(inside, part, strict=True):
                    weights[i] = weight
                if value(weights) < lowest:
                    best, lowest = weights, value(weights)
    assert best is not None
    return best


def _solve(system: matrix, sides: list[matrix]) -> list[matrix]:
    """Eliminate with pivots; nothing if singular: a smaller subset has the same combinations."""
    n = system.rows
    rows = [[*(system[i, j] for j in range(n)), *(side[i] for side in sides)] for i in range(n)]
    for k in range(n):
        pivot = max(range(k, n), key=lambda i: abs(rows[i][k]))
        if abs(rows[pivot][k]) <= mpf(10) ** -50 * max(abs(value) for value in rows[pivot]):
            return []
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(n):
            if i != k and rows[i][k]:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [matrix([rows[i][n + side] for i in range(n)]) for side in range(len(sides))]


def _form(left: matrix, gram: matrix, right: matrix) -> mpf:
    n = len(left)
    return max(sum(left[i] * gram[i, j] * right[j] for i in range(n) for j in range(n)), mpf(0))


def _to_simplex(weights: matrix) -> matrix:
    total = sum(weights)
    return weights / total if total else weights - 1


def _combine(weights: matrix, jacobian: Tensor) -> Tensor:
    return torch.tensor([float(weight) for weight in weights], dtype=torch.float64) @ jacobian

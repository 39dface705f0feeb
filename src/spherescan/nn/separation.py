"""How far apart points on a sphere can be at most."""

import math
import operator

import numpy as np


def separation_bound(n_classes: int, dim: int) -> float:
    """Bound from below the largest cosine of every arrangement of so many points.

    The best of Rankin's bounds, -1 / (k - 1), and 0 for k > d + 1, and of Levenshtein's: with
    largest cosine s in the m-th interval there are at most L_m(d, s) points, so
    ``s >= L_m^{-1}(k)``. In two dimensions, the regular polygon.

    Args:
        n_classes: number of points, at least 1.
        dim: dimensions they live in, at least 1; at least 2 for more than two points.

    Returns:
        The bound, exact up to rounding (1e-12); -1.0 for one point.

    Raises:
        TypeError: a count that is no whole number.
        ValueError: a count below 1, or more than two points in one dimension.

    References:
        Rankin, "The closest packing of spherical caps in n dimensions", 1955.
        Levenshtein, "Designs as maximum codes in polynomial metric spaces", 1992, and "Universal
        bounds for codes and designs", Handbook of Coding Theory, 1998 (the intervals and L_m).
    """
    check_sizes(n_classes, dim)
    if n_classes == 1:
        return -1.0
    if n_classes <= 2 * dim:
        return -1 / (n_classes - 1) if n_classes <= dim + 1 else 0.0
    if dim == 2:
        return math.cos(2 * math.pi / n_classes)
    # The intervals of L_1 and L_2 end at s = 0, where Rankin's bounds are at least as good.
    degree = 3
    while _design_size(dim, degree + 1) < n_classes:
        degree += 1
    low, high = _levenshtein_interval(dim, degree)
    while low < (middle := (low + high) / 2) < high:
        if _levenshtein(dim, degree, middle) < n_classes:
            low = middle
        else:
            high = middle
    return low


def check_sizes(n_classes: int, dim: int) -> None:
    """Refuse what no arrangement has.

    Raises:
        TypeError: a count that is no whole number.
        ValueError: a count below 1, or more than two points in one dimension.
    """
    for name, value in (("n_classes", n_classes), ("dim", dim)):
        try:
            operator.index(value)
        except TypeError:
            raise TypeError(
                f"{name} must be a whole number, got {value!r}; pass int({name})"
            ) from None
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if dim == 1 and n_classes > 2:
        raise ValueError(f"one dimension has two unit points, got n_classes={n_classes}; use dim=2")


def _design_size(dim: int, degree: int) -> int:
    """Count the points a design of this strength needs: L_degree's first value on its interval."""
    half = degree // 2
    if degree % 2:
        return 2 * math.comb(dim + half - 1, dim - 1)
    return math.comb(dim + half - 1, dim - 1) + math.comb(dim + half - 2, dim - 1)


def _levenshtein(dim: int, degree: int, s: float) -> float:
    if degree % 2:
        k = (degree + 1) // 2
        p, q = _gegenbauer(dim, k, s)
        ratio = (p - q) / ((1 - s) * q)
        return math.comb(k + dim - 3, k - 1) * ((2 * k + dim - 3) / (dim - 1) - ratio)
    k = degree // 2
    p, q = _gegenbauer(dim, k + 1, s)
    ratio = (1 + s) * (p - q) / ((1 - s) * (p + q))
    return math.comb(k + dim - 2, k) * ((2 * k + dim - 1) / (dim - 1) - ratio)


def _gegenbauer(dim: int, degree: int, s: float) -> tuple[float, float]:
    """Evaluate the sphere's orthogonal polynomials of degree - 1 and degree, 1 at s = 1."""
    previous, current = 0.0, 1.0
    for i in range(degree):
        following = ((2 * i + dim - 2) * s * current - i * previous) / (i + dim - 2)
        previous, current = current, following
    return previous, current


def _levenshtein_interval(dim: int, degree: int) -> tuple[float, float]:
    """Find where L_degree is valid: between largest zeros of Gegenbauer's adjacent polynomials."""
    a = (dim - 3) / 2
    half = (degree + 1) // 2
    odd = _largest_jacobi_zero(half, a + 1, a)
    if degree % 2:
        return _largest_jacobi_zero(half - 1, a + 1, a + 1), odd
    return odd, _largest_jacobi_zero(half, a + 1, a + 1)


def _largest_jacobi_zero(degree: int, a: float, b: float) -> float:
    """Find the largest eigenvalue of the Jacobi matrix of P^{(a, b)} (Golub and Welsch, 1969)."""
    n = np.arange(1, degree)
    c = 2 * n + a + b
    diagonal = np.append((b - a) / (a + b + 2), (b * b - a * a) / (c * (c + 2)))
    beside = np.sqrt(4 * n * (n + a) * (n + b) * (n + a + b) / (c * c * (c * c - 1)))
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return float(np.linalg.eigvalsh(matrix)[-1])

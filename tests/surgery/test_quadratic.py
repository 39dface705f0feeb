"""The minimum over non-negative numbers, by the conditions that define it."""

import numpy as np
import pytest

from spherescan.surgery.quadratic import nonnegative_minimum

pytestmark = pytest.mark.unwatched

# Distance from dependence; below 1e-8 the float64 matrix does not hold it, and may be singular.
NOISE = {"nearly dependent": 1e-6, "singular in float64": 1e-9}


def problems(kind):
    """Bounded ones: h is a combination of the same vectors, whose inner products are M."""
    for seed in range(60):
        random = np.random.default_rng(seed)
        t = 2 + seed % 9
        rank = t if kind == "regular" else 1 + int(random.integers(t))
        vectors = random.standard_normal((t, rank))
        if kind == "repeated":
            vectors = vectors[random.integers(t, size=t)]
        if kind in NOISE:
            vectors = np.hstack([vectors, NOISE[kind] * random.standard_normal((t, t))])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        matrix = vectors @ vectors.T
        np.fill_diagonal(matrix, 1.0)
        yield random, matrix, vectors @ random.standard_normal(vectors.shape[1]), vectors


@pytest.mark.parametrize("kind", ["regular", "dependent", "repeated", *NOISE])
@pytest.mark.parametrize("guessed", [False, True])
def test_the_value_falls_along_no_index(kind, guessed):
    for random, matrix, linear, vectors in problems(kind):
        guess = [i for i in range(len(linear)) if random.random() < 0.5] if guessed else []
        x = nonnegative_minimum(matrix, linear, guess=guess)
        assert (x >= 0).all()
        slope = linear - matrix @ x
        size = np.abs(linear).max() + np.linalg.norm(vectors.T @ x)
        assert (slope <= 1e-6 * size).all()
        assert (np.abs(slope[x > 0]) <= 1e-6 * size).all()


def test_a_right_guess_is_the_answer():
    matrix, linear = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([1.0, 0.2])
    assert nonnegative_minimum(matrix, linear).tolist() == [1.0, 0.0]
    assert nonnegative_minimum(matrix, linear, guess=[0]).tolist() == [1.0, 0.0]
    assert nonnegative_minimum(matrix, linear, guess=[1]).tolist() == [1.0, 0.0]
    assert nonnegative_minimum(matrix, -linear).tolist() == [0.0, 0.0]

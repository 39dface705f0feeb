"""The bounds that kernels/exp.h states, at every SIMD level."""

import math

import pytest
import torch
from torch.nn import functional

from spherescan.ops import native

pytestmark = pytest.mark.skipif(
    native.unavailable() is not None, reason="installed without native kernels"
)

LEVELS = range(0 if native.unavailable() else native.best_simd() + 1)
EXP2, SIGMOID, SOFTPLUS, SOFTPLUS_OF_PAIR, SLOPE_OF_PAIR = range(5)
EXACT = {
    EXP2: torch.exp2,
    SIGMOID: torch.sigmoid,
    SOFTPLUS: lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())),
}
EXACT |= {SOFTPLUS_OF_PAIR: EXACT[SOFTPLUS], SLOPE_OF_PAIR: EXACT[SIGMOID]}
FLOAT32_BOUNDS = dict.fromkeys(EXACT, 6e-7) | {EXP2: 2.5e-7}
FLOAT64_BOUNDS = dict.fromkeys(EXACT, 1e-15) | {EXP2: 5e-16}
# Four times the smallest normal number; what is smaller may be flushed.
SMALLEST = {torch.float32: 2.0**-124, torch.float64: 2.0**-1020}


def bit_patterns(first: int, last: int, step: int) -> torch.Tensor:
    return torch.arange(first, last, step, dtype=torch.int64).to(torch.int32).view(torch.float32)


def check_float32(function: int, x: torch.Tensor) -> None:
    x = x[x.isfinite()]
    exact = EXACT[function](x.double())
    kept = (exact.abs() >= SMALLEST[torch.float32]) & (exact < 2.0**127.99)
    for level in LEVELS:
        with native.forced_simd(level):
            found = native.apply(function, x)
        errors = ((found.double() - exact) / exact)[kept].abs()
        assert (errors <= FLOAT32_BOUNDS[function]).all(), native.SIMD_LEVELS[level]
        assert (found[~kept & (exact < 1)].abs() <= SMALLEST[torch.float32]).all()


@pytest.mark.parametrize("function", EXACT)
def test_float32_stays_within_its_bound_on_a_comb_of_all_numbers(function):
    for sign in (0, 1 << 31):
        check_float32(function, bit_patterns(sign, sign + 0x7F800000, 997))


@pytest.mark.slow
@pytest.mark.parametrize("function", EXACT)
def test_float32_stays_within_its_bound_on_every_number(function):
    part = 1 << 24
    for sign in (0, 1 << 31):
        for first in range(sign, sign + 0x7F800000, part):
            check_float32(function, bit_patterns(first, min(first + part, sign + 0x7F800000), 1))


@pytest.mark.unwatched
@pytest.mark.parametrize("function", EXACT)
def test_float64_stays_within_its_bound(function, generator):
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40
    spread = torch.randn(600, generator=generator, dtype=torch.float64)
    x = torch.cat([spread, spread * 30, spread * 400, spread * 1e-6])
    exact = {
        EXP2: lambda v: mpmath.power(2, v),
        SIGMOID: lambda v: 1 / (1 + mpmath.exp(-v)),
        SOFTPLUS: lambda v: mpmath.log1p(mpmath.exp(v)),
    }[{SOFTPLUS_OF_PAIR: SOFTPLUS, SLOPE_OF_PAIR: SIGMOID}.get(function, function)]
    expected = [exact(mpmath.mpf(v)) for v in x.tolist()]
    for level in LEVELS:
        with native.forced_simd(level):
            found = native.apply(function, x).tolist()
        for value, truth in zip(found, expected, strict=True):
            if SMALLEST[torch.float64] <= truth < mpmath.mpf(2) ** 1024:
                assert abs(mpmath.mpf(value) - truth) / truth <= FLOAT64_BOUNDS[function]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_and_nan(level, dtype):
    inf = math.inf
    x = torch.tensor([-inf, -1e30, 0.0, -0.0, 1e30, inf, math.nan], dtype=dtype)
    # A missing value of some programs is a NaN with a payload.
    payload = torch.tensor([0x7FF00000000007A2], dtype=torch.int64).view(torch.float64)
    with native.forced_simd(level):
        assert native.apply(EXP2, x)[:6].tolist() == [0, 0, 1, 1, inf, inf]
        for sigmoid in (SIGMOID, SLOPE_OF_PAIR):
            assert native.apply(sigmoid, x)[:6].tolist() == [0, 0, 0.5, 0.5, 1, 1]
        for function in (SOFTPLUS, SOFTPLUS_OF_PAIR):
            softplus = native.apply(function, x)
            assert torch.equal(softplus[[0, 1, 5]], torch.tensor([0, 0, inf], dtype=dtype))
            torch.testing.assert_close(softplus[2:5], functional.softplus(x[2:5]))
        for function in EXACT:
            assert native.apply(function, x)[6].isnan()
            assert native.apply(function, payload).isnan().all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_of_zero_decays_nothing(level, dtype):
    with native.forced_simd(level):
        assert native.apply(EXP2, torch.zeros(1, dtype=dtype)).item() == 1.0

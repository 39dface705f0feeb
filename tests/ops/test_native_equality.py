"""The native kernels compute what the reference says, at every SIMD level and in every type."""

import pytest
import torch
from hypothesis import given, settings

from spherescan.ops import add_rms_norm, causal_conv1d, native, reference, selective_scan
from tests.ops.comparison import (
    conv_terms,
    largest_error,
    magnitudes,
    rounded,
    run,
    scan_terms,
)
from tests.strategies import (
    ScanCase,
    conv_case,
    kernel_conv_cases,
    kernel_scan_cases,
    scan_case,
)

pytestmark = [
    pytest.mark.unwatched,
    pytest.mark.skipif(native.unavailable() is not None, reason="installed without native kernels"),
]

LEVELS = range(0 if native.unavailable() else native.best_simd() + 1)

# Relative to the largest magnitude of a tensor, before the sums that make it up cancel.
FLOAT32 = 2e-6
FLOAT64 = 1e-12
# Rounding to 8 bits errs by 2^-9. Gradients that come from two outputs are rounded once more.
BFLOAT16 = 2.0**-8
# Inputs are of order one: a tensor that is nowhere larger than this came out of a cancellation,
# such as the derivative of the SiLU near its zero.
SMALLEST = 1e-2


@pytest.fixture(autouse=True)
def _native(monkeypatch):
    monkeypatch.setenv("SPHERESCAN_OPS", "native")
    # Narrow layers would leave the widest vectors to nobody.
    monkeypatch.setattr(native, "simd_for", lambda *_: native.simd())


def check(case: ScanCase, op, exact, terms, values: torch.dtype, bounds) -> None:
    """Compare all levels with the reference in float64 on the same, rounded inputs."""
    parameters = native.compute_dtype(values)
    case = rounded(case, values, parameters)
    expected = run(case, exact, torch.float64, torch.float64)
    scales = magnitudes(case, terms)
    for level in LEVELS:
        with native.forced_simd(level):
            found = run(case, op, values, parameters)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            error = largest_error(tensor, expected[name])
            bound = bounds[tensor.dtype] * max(scales[name], SMALLEST)
            assert error <= bound, (
                f"{name} at SIMD level {native.SIMD_LEVELS[level]}: error {error:.2e} "
                f"exceeds {bound:.0e}"
            )


def check_scan(case: ScanCase, values: torch.dtype, bounds) -> None:
    check(case, selective_scan, reference.selective_scan, scan_terms, values, bounds)


@settings(max_examples=500)
@given(kernel_scan_cases())
def test_the_scan_in_float32(case):
    check_scan(case, torch.float32, {torch.float32: FLOAT32})


@settings(max_examples=500)
@given(kernel_scan_cases())
def test_the_scan_in_float64(case):
    check_scan(case, torch.float64, {torch.float64: FLOAT64})


@settings(max_examples=200)
@given(kernel_scan_cases())
def test_the_scan_in_bfloat16_errs_by_the_rounding_of_its_values_alone(case):
    check_scan(case, torch.bfloat16, {torch.bfloat16: BFLOAT16, torch.float32: FLOAT32})


@pytest.mark.parametrize(
    "shape",
    [
        (300, 2, 40, 2),  # several tasks of several batch rows each
        (300, 2, 3, 20),  # the same where states lie in lanes
        (2, 70, 300, 2),  # sums of B and C over groups of channels, in several stretches
        (1, 3, 300, 80),  # so many states that groups get smaller
    ],
)
def test_the_scan_where_its_work_is_cut_otherwise(shape):
    check_scan(scan_case(*shape), torch.float32, {torch.float32: FLOAT32})


@pytest.mark.parametrize("values", [torch.float32, torch.float64])
def test_the_convolution_with_several_stretches_per_task(values):
    bounds = {torch.float32: FLOAT32, torch.float64: FLOAT64}
    case = conv_case(3, 1400, 5, 4)
    check(case, causal_conv1d, reference.causal_conv1d, conv_terms, values, bounds)


@settings(max_examples=200)
@given(kernel_conv_cases())
@pytest.mark.parametrize("values", [torch.float32, torch.float64, torch.bfloat16])
def test_the_convolution(values, case):
    bounds = {torch.float32: FLOAT32, torch.float64: FLOAT64, torch.bfloat16: 2 * BFLOAT16}
    check(case, causal_conv1d, reference.causal_conv1d, conv_terms, values, bounds)


def norm_results(form: str, monkeypatch, x, update, weight, dtype):
    monkeypatch.setenv("SPHERESCAN_OPS", form)
    leaves = [
        None if t is None else t.detach().clone().requires_grad_() for t in (x, update, weight)
    ]
    normed, total = add_rms_norm(*leaves, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    ((normed * torch.randn(x.shape, generator=generator).to(normed.dtype)).sum()
     + (total * torch.randn(x.shape, generator=generator)).sum()).backward()  # fmt: skip
    return [normed.detach(), total.detach(), *(t.grad for t in leaves if t is not None)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("with_update", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 5, 7), (4, 16), (70, 33), (2, 3, 100)])
@pytest.mark.parametrize(
    ("x", "update", "normed"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.bfloat16),
    ],
)
def test_the_norm(monkeypatch, generator, level, shape, x, update, normed, with_update):
    inputs = [
        torch.randn(shape, generator=generator).to(x),
        torch.randn(shape, generator=generator).to(update) if with_update else None,
        torch.randn(shape[-1], generator=generator).to(x),
    ]
    with native.forced_simd(level):
        found = norm_results("native", monkeypatch, *inputs, normed)
    double = [None if t is None else t.double() for t in inputs]
    expected = norm_results("reference", monkeypatch, *double, torch.float64)
    bounds = {torch.float32: FLOAT32, torch.float64: FLOAT64, torch.bfloat16: 2 * BFLOAT16}
    coarsest = max(bounds[normed], bounds[update] if with_update else 0)
    for actual, exact in zip(found, expected, strict=True):
        # The gradient of the norm arrives rounded to its type, and is rounded again on its way out.
        scale = exact.abs().max().clamp(min=1.0)
        assert largest_error(actual, exact) <= max(coarsest, bounds[actual.dtype]) * scale

"""How close is close: one table, with the reason for each number."""

import torch

# Relative to the largest magnitude of the expected tensor: an element that cancels to almost zero
# carries the rounding of the large ones it came from.
RELATIVE = {
    torch.float64: 1e-12,  # a few hundred roundings of 2^-53
    torch.float32: 1e-5,  # the same roundings at 2^-24, doubled by exp and softplus
    torch.bfloat16: 3e-2,  # the output itself is rounded to 8 bits
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, *, what: str = "values") -> None:
    """Compare with the tolerance of the coarser type, scaled by the largest magnitude."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape} != {expected.shape}"
    if expected.numel() == 0:
        return
    tolerance = max(RELATIVE[actual.dtype], RELATIVE[expected.dtype])
    actual, expected = actual.double(), expected.double()
    scale = expected.abs().max().clamp(min=1e-30)
    error = ((actual - expected).abs().max() / scale).item()
    assert error <= tolerance, f"{what}: relative error {error:.2e} exceeds {tolerance:.0e}"

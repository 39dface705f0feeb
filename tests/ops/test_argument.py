"""Ops refuse what a cast would make other numbers of, in every form and by name."""

import numpy as np
import pytest
import torch

from spherescan.ops import (
    add_rms_norm,
    causal_conv1d,
    causal_conv1d_step,
    mamba_inner,
    selective_scan,
    selective_scan_step,
)

# Users run without the checks of types that tests have.
pytestmark = pytest.mark.unwatched

B, L, D, N, K, R = 2, 3, 4, 5, 3, 1


def scan_arguments(*length):
    maps, values = torch.zeros(B, *length, N), torch.zeros(B, *length, D)
    return {
        "u": values, "delta": values, "A": torch.zeros(D, N), "B": maps, "C": maps,
        "D": torch.zeros(D), "delta_bias": torch.zeros(D), "gate": values,
        "state": torch.zeros(B, D, N),
    }  # fmt: skip


def conv_arguments(*length):
    return {
        "x": torch.zeros(B, *length, D), "weight": torch.zeros(D, K), "bias": torch.zeros(D),
        "state": torch.zeros(B, D, K - 1),
    }  # fmt: skip


OPS = {
    selective_scan: scan_arguments(L),
    selective_scan_step: scan_arguments(),
    causal_conv1d: conv_arguments(L),
    causal_conv1d_step: conv_arguments(),
    add_rms_norm: {
        "x": torch.zeros(B, D), "update": torch.zeros(B, D), "weight": torch.zeros(D),
    },
    mamba_inner: {
        "projected": torch.zeros(B, L, 2 * D), "conv_weight": torch.zeros(D, K),
        "conv_bias": torch.zeros(D), "x_proj": torch.zeros(R + 2 * N, D),
        "dt_proj": torch.zeros(D, R), "dt_bias": torch.zeros(D), "A": torch.zeros(D, N),
        "D": torch.zeros(D), "conv_state": torch.zeros(B, D, K - 1),
        "ssm_state": torch.zeros(B, D, N),
    },
}  # fmt: skip
EACH = pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op, arguments in OPS.items() for name in arguments],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)


@EACH
@pytest.mark.parametrize("form", ["", "torch"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_what_is_no_real_number_is_named(op, name, form, dtype, monkeypatch):
    monkeypatch.setenv("SPHERESCAN_OPS", form)
    arguments = OPS[op]
    wrong = arguments[name].to(dtype)
    with pytest.raises(TypeError, match=rf"^{name} has dtype {dtype}; expected real .*: pass "):
        op(**(arguments | {name: wrong}))


@EACH
@pytest.mark.parametrize("make", [np.asarray, lambda tensor: tensor.tolist()])
def test_what_is_no_tensor_is_named(op, name, make):
    arguments = OPS[op]
    wrong = make(arguments[name])
    message = f"^{name} is of type {type(wrong).__name__}; expected a tensor: torch.as_tensor"
    with pytest.raises(TypeError, match=message):
        op(**(arguments | {name: wrong}))


@pytest.mark.parametrize(
    ("op", "name", "axes"),
    [
        (selective_scan, "u", "3 axes (batch, length, channels)"),
        (selective_scan_step, "u", "2 axes (batch, channels)"),
        (causal_conv1d, "x", "3 axes (batch, length, channels)"),
        (causal_conv1d_step, "x", "2 axes (batch, channels)"),
        (mamba_inner, "projected", "3 axes (batch, length, channels)"),
        (selective_scan, "A", "2 axes (channels, states)"),
        (causal_conv1d, "weight", "2 axes (channels, taps)"),
        (mamba_inner, "dt_proj", "2 axes (channels, rank)"),
    ],
)
@pytest.mark.parametrize("change", [lambda tensor: tensor[0], lambda tensor: tensor[None]])
def test_the_axes_that_an_argument_must_have_are_named(op, name, axes, change):
    arguments = OPS[op]
    with pytest.raises(ValueError, match=f"^{name} has shape .* expected ") as raised:
        op(**(arguments | {name: change(arguments[name])}))
    assert axes in str(raised.value)


@pytest.mark.parametrize("op", [selective_scan, causal_conv1d, mamba_inner])
def test_a_reset_is_true_or_false(op):
    with pytest.raises(
        TypeError, match=r"^reset has dtype torch\.float32; expected .*: pass reset\.to"
    ):
        op(**OPS[op], reset=torch.zeros(B, L))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("op", OPS)
def test_every_real_type_is_taken(op, dtype):
    y, *_ = op(**{name: tensor.to(dtype) for name, tensor in OPS[op].items()})
    assert y.dtype == dtype

"""Compare forms of an op, outputs and all gradients, in any type."""

import torch
from torch import Tensor

from spherescan.ops import reference
from tests.strategies import ScanCase

# Of the selective scan and the convolution: what varies with the position, and so may be bfloat16.
VALUES = {"u", "delta", "gate", "B", "C", "x"}


def rounded(case: ScanCase, values: torch.dtype, parameters: torch.dtype) -> ScanCase:
    """Round the inputs to the types that a form will read, so that all forms read the same."""
    return ScanCase(
        {
            name: tensor.to(values if name in VALUES else parameters).double()
            for name, tensor in case.arguments.items()
        },
        case.options,
    )


def run(case: ScanCase, op, values: torch.dtype, parameters: torch.dtype) -> dict[str, Tensor]:
    """Return the outputs and the gradients of a fixed weighted sum of them, by name."""
    inputs = {
        name: tensor.detach().clone().to(values if name in VALUES else parameters).requires_grad_()
        for name, tensor in case.arguments.items()
    }
    outputs = dict(zip(("y", "state"), op(**inputs, **case.options), strict=True))
    generator = torch.Generator().manual_seed(7)
    weights = {
        name: torch.randn(out.shape, generator=generator, dtype=torch.float64).bfloat16()
        for name, out in outputs.items()
    }
    sum(
        (outputs[name] * weights[name].to(outputs[name].dtype)).sum() for name in outputs
    ).backward()
    gradients = {f"gradient of {name}": x.grad for name, x in inputs.items() if x.grad is not None}
    return {name: x.detach() for name, x in outputs.items()} | gradients


def scan_terms(u, delta, A, B, C, D, *, delta_bias=None, gate=None, state, reset, delta_softplus):
    """Run the reference scan with parameters of their own for every batch row and position."""
    step = getattr(reference.selective_scan_step, "__wrapped__", reference.selective_scan_step)
    outputs = []
    for t in range(u.shape[1]):
        if reset is not None:
            state = state.where(~reset[:, t, None, None], 0.0)
        y, state = step(
            u[:, t], delta[:, t], A[t], B[:, t], C[:, t], D[t],
            delta_bias=None if delta_bias is None else delta_bias[t],
            delta_softplus=delta_softplus,
            gate=None if gate is None else gate[:, t],
            state=state,
        )  # fmt: skip
        outputs.append(y)
    return torch.stack(outputs, 1), state


def conv_terms(x, weight, bias=None, *, activation, state, reset):
    """Run the reference convolution in the same way."""
    step = getattr(reference.causal_conv1d_step, "__wrapped__", reference.causal_conv1d_step)
    outputs = []
    for t in range(x.shape[1]):
        if reset is not None:
            state = state.where(~reset[:, t, None, None], 0.0)
        y, state = step(
            x[:, t],
            weight[t],
            None if bias is None else bias[t],
            activation=activation,
            state=state,
        )
        outputs.append(y)
    return torch.stack(outputs, 1), state


def magnitudes(case: ScanCase, terms) -> dict[str, float]:
    """Return how large each result of `run` is before the sums that make it up cancel.

    The gradient of a parameter is a sum over batch rows and positions: where it happens to cancel,
    the rounding of its terms remains.
    """
    parameters = case.arguments.keys() - VALUES - {"state"}
    b, length = case.arguments["u" if "u" in case.arguments else "x"].shape[:2]
    own = {
        name: tensor.expand(length, b, *tensor.shape) if name in parameters else tensor
        for name, tensor in case.arguments.items()
    }
    found = run(ScanCase(own, case.options), terms, torch.float64, torch.float64)
    sums = {f"gradient of {name}" for name in parameters}
    return {
        name: float((x.abs().sum((0, 1)) if name in sums else x.abs()).max()) if x.numel() else 0.0
        for name, x in found.items()
    }


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute error."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max()) if expected.numel() else 0.0

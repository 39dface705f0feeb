"""Derivatives that kernels do not have are those of the torch form, which ops take by themselves.

Kernels compute gradients alone. What they are compared with here are central differences of native
values, and native gradients, in float64.
"""

import subprocess
import sys

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from spherescan.nn import PrototypeHead, SequenceModel
from spherescan.ops import (
    add_rms_norm,
    causal_conv1d,
    causal_conv1d_step,
    linear,
    mamba_inner,
    native,
    native_fixed,
    selective_scan,
    selective_scan_step,
)
from spherescan.ops.form import selected_form
from spherescan.ops.native_norm import norm_operator
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.skipif(native.unavailable() is not None, reason="installed without native kernels"),
    # torch's own, of how its forward mode is made.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

LINEAR = sys.modules["spherescan.ops.linear"]
D, N, K = 4, 2, 3


def wave(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return numbers of all signs that depend on the shape alone."""
    count = torch.Size(shape).numel()
    return torch.sin(1.7 * torch.arange(1, count + 1, dtype=dtype)).reshape(shape)


def scan(x):
    arguments = (x.cos(), -wave(D, N).exp(), x[..., :N], x[..., N:], wave(D))
    y, state = selective_scan(x, *arguments, gate=x, delta_softplus=True)
    return torch.cat([y.flatten(), state.flatten()])


def scan_step(x):
    x = x[:, 0]
    arguments = (x.cos(), -wave(D, N).exp(), x[..., :N], x[..., N:], wave(D))
    state = x[..., None] * wave(D, N)
    y, state = selective_scan_step(x, *arguments, delta_softplus=True, state=state)
    return torch.cat([y.flatten(), state.flatten()])


def conv(x):
    y, state = causal_conv1d(x, wave(D, K), x[0, 0])
    return torch.cat([y.flatten(), state.flatten()])


def conv_step(x):
    state = x[:, 1:K].transpose(1, 2)
    y, state = causal_conv1d_step(x[:, 0], wave(D, K), state=state)
    return torch.cat([y.flatten(), state.flatten()])


def norm(x):
    return torch.cat([each.flatten() for each in add_rms_norm(x, x.cos(), wave(D) + 2)])


def inner(x):
    rank = 1
    found = mamba_inner(
        torch.cat([x, x.cos()], -1), wave(D, K), wave(D), wave(rank + 2 * N, D), wave(D, rank),
        wave(D), -wave(D, N).exp(), wave(D),
    )  # fmt: skip
    return torch.cat([each.flatten() for each in found])


OPS = pytest.mark.parametrize("op", [scan, scan_step, conv, conv_step, norm, inner])


def differences(function, x, direction):
    """Return the derivative along a direction; central differences err by a step squared."""
    step = 1e-5
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def native_gradient(function):
    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]

    return gradient


@OPS
def test_tangents_are_central_differences_of_the_kernels(op):
    x, direction = wave(2, 3, D), wave(3, 2, D).reshape(2, 3, D)
    expected = differences(op, x, direction)
    assert expected.abs().min() > 0
    assert_near(func.jvp(op, (x,), (direction,))[1], expected)
    with forward_ad.dual_level():
        y = op(forward_ad.make_dual(x, direction))
        assert_near(forward_ad.unpack_dual(y).tangent, expected)


@OPS
def test_transforms_give_the_gradients_and_jacobians_of_the_kernels(op):
    x = wave(2, 3, D)
    expected = torch.autograd.functional.jacobian(op, x)
    assert_close(func.jacrev(op)(x), expected)
    assert_close(func.jacfwd(op)(x), expected)
    assert_close(func.vjp(op, x)[1](wave(*op(x).shape))[0], torch.tensordot(
        wave(*op(x).shape), expected, 1
    ))  # fmt: skip

    def loss(x):
        return op(x).square().sum()

    gradient = native_gradient(loss)
    assert_close(func.grad(loss)(x), gradient(x))
    assert_near(func.hessian(loss)(x), torch.stack(
        [differences(gradient, x, e.reshape(x.shape)) for e in torch.eye(x.numel()).double()], -1
    ).reshape(x.shape * 2))  # fmt: skip
    batch = torch.stack([x, x.cos(), x + 1])
    each = torch.stack([gradient(one) for one in batch])
    assert_close(func.vmap(func.grad(loss))(batch), each)
    assert_close(func.grad(lambda batch: func.vmap(loss)(batch).sum())(batch), each)


@OPS
def test_a_plain_vmap_gives_the_bits_of_the_kernels(op):
    batch = torch.stack([wave(2, 3, D), wave(2, 3, D).cos(), wave(2, 3, D) + 1])
    assert torch.equal(func.vmap(op)(batch), torch.stack([op(one) for one in batch]))


def test_only_what_differentiates_takes_the_torch_form():
    seen = []

    def look(x):
        seen.append(selected_form())
        return x.sum()

    x = torch.ones(2, 2)
    func.vmap(look)(x)
    func.functionalize(look)(x)
    assert seen == ["native", "native"]
    seen.clear()
    func.grad(look)(x)
    func.jvp(look, (x,), (x,))
    func.vmap(func.grad(look))(x)
    func.grad(lambda x: func.vmap(look)(x).sum())(x)
    with forward_ad.dual_level():
        look(x)
    assert seen == ["torch"] * 5
    assert selected_form() == "native"


@pytest.mark.parametrize("transform", [func.vmap, func.grad, func.jacfwd])
def test_fixed_convolutions_are_called_past_torch_outside_of_transforms_alone(transform):
    found = []

    def look(x):
        found.append(native_fixed.has_kernel(x, x))
        return x.sum()

    look(torch.ones(2))
    transform(look)(torch.ones(2))
    assert found == [True, False]


def test_a_reference_that_is_forced_stays(monkeypatch):
    monkeypatch.setenv("SPHERESCAN_OPS", "reference")
    with forward_ad.dual_level():
        assert selected_form() == "reference"


def test_a_large_product_has_a_tangent(monkeypatch):
    monkeypatch.setattr(native, "processor_is_amd", lambda: True)
    monkeypatch.setattr(native, "best_simd", lambda: len(native.SIMD_LEVELS) - 1)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(LINEAR, "SMALLEST", 0)
    x, weight = wave(3, D, dtype=torch.float32), wave(2, D, dtype=torch.float32)
    found = func.jvp(linear, (x, weight), (x.cos(), weight.cos()))[1]
    assert_close(found, x.cos() @ weight.t() + x @ weight.cos().t())


def model() -> SequenceModel:
    return SequenceModel(
        head=PrototypeHead(3, 4),
        n_channels=2,
        d_model=8,
        n_layers=2,
        generator=torch.Generator().manual_seed(0),
    ).double()


@pytest.mark.unwatched
def test_a_whole_model_has_all_derivatives():
    whole, x, direction = model().eval(), wave(2, 5, 2), wave(2, 5, 2).cos()
    weights = {name: weight.detach() for name, weight in whole.named_parameters()}

    def of_weights(weights):
        return func.functional_call(whole, weights, (x,))

    assert_near(func.jvp(whole, (x,), (direction,))[1], differences(whole, x, direction))
    along = {name: weight.cos() for name, weight in weights.items()}
    step = 1e-5
    moved = [
        of_weights({name: weights[name] + sign * step * along[name] for name in weights})
        for sign in (1, -1)
    ]
    assert_near(func.jvp(of_weights, (weights,), (along,))[1], (moved[0] - moved[1]) / (2 * step))

    def loss(x):
        return (whole(x) * wave(3)).sum()

    expected = torch.autograd.functional.jacobian(whole, x)
    assert_close(func.jacfwd(whole)(x), expected)
    assert_close(func.jacrev(whole)(x), expected)
    gradient = native_gradient(loss)
    assert_close(func.grad(loss)(x), gradient(x))
    product = func.jvp(func.grad(loss), (x,), (direction,))[1]
    assert_near(product, differences(gradient, x, direction))
    each = torch.cat([gradient(one[None]) for one in x])
    assert_close(func.vmap(func.grad(lambda one: loss(one[None])))(x), each)


def test_an_operator_refuses_a_tangent_that_it_would_lose():
    x = wave(2, D).requires_grad_()
    y, _ = add_rms_norm(x, None, wave(D))
    more = (None, wave(D), 1e-5, torch.float64, native.simd())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), wave(2, D))
        with pytest.raises(RuntimeError, match=r"add_rms_norm has no forward-mode .*_OPS=torch"):
            norm_operator(dual, *more)
        with pytest.raises(RuntimeError, match=r"_backward has no forward-mode .*_OPS=torch"):
            torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), wave(2, D)))


def test_a_level_that_is_open_elsewhere_ends_no_backward_pass():
    x = wave(1, 3, 2 * N).requires_grad_()
    (expected,) = torch.autograd.grad(scan(x).sum(), x)
    y = scan(x).sum()
    with forward_ad.dual_level():  # which all threads see
        y.backward()
    assert torch.equal(x.grad, expected)


def compare_compiled() -> None:
    """Called in a process of its own: the type checks of the tests cannot be traced."""
    x, direction = wave(2, 3, D), wave(2, 3, D).cos()

    def both(x):
        tangent = func.jvp(inner, (x,), (direction,))[1]
        return tangent, func.grad(lambda x: norm(x).square().sum())(x)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(x), both(x), strict=True):
        assert_close(found, expected)
    assert_near(compiled(x)[0], differences(inner, x, direction))


def test_torch_compile_takes_transforms_whole():
    code = "from tests.ops import test_derivatives; test_derivatives.compare_compiled()"
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=300, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

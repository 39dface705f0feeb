"""Products of either library equal the exact ones, and each is asked only where it should be."""

import platform
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from spherescan.ops import linear, native
from spherescan.ops.linear import (
    add_input_gradient,
    bfloat16_cost,
    input_gradient,
    onednn_is_faster,
    product,
    weight_gradient,
)

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN"
)

MODULE = sys.modules["spherescan.ops.linear"]
# Rows, inputs, outputs: one of each, no multiple of a vector, more rows than a block has.
SHAPES = [(1, 1, 1), (5, 1, 3), (1, 40, 7), (33, 17, 65), (64, 96, 32), (2049, 3, 2), (4500, 20, 9)]


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def library(request, monkeypatch):
    monkeypatch.setattr(MODULE, "onednn_is_faster", lambda: request.param)
    monkeypatch.setattr(MODULE, "SMALLEST", 0)
    return "onednn" if request.param else "torch"


def normal(*shape, generator):
    return torch.randn(shape, generator=generator)


def assert_product(found, left, right):
    """Hold left @ right to float32's rounding, relative to what was added up."""
    exact = left.double() @ right.double()
    added = left.double().abs() @ right.double().abs()
    assert found.shape == exact.shape
    assert found.is_contiguous()
    assert ((found.double() - exact).abs() <= 1e-6 * added).all()


@pytest.mark.parametrize(("rows", "i", "o"), SHAPES)
def test_products_equal_the_exact_ones(library, rows, i, o, generator):
    x, weight = normal(rows, i, generator=generator), normal(o, i, generator=generator)
    y_grad = normal(rows, o, generator=generator)
    assert_product(product(x, weight), x, weight.t())
    assert_product(input_gradient(y_grad, weight), y_grad, weight)
    assert_product(weight_gradient(y_grad, x), y_grad.t(), x)
    total = normal(rows, i, generator=generator)
    ones = torch.eye(rows)
    added = add_input_gradient(total.clone(), y_grad, weight)
    assert_product(added, torch.cat([ones, y_grad], 1), torch.cat([total, weight]))


def test_rows_of_a_wider_tensor_are_multiplied_as_they_lie(library, generator):
    wide = normal(40, 50, generator=generator)
    x, y_grad = wide[:, 3:20], wide[:, 20:31]
    weight = normal(17, 11, generator=generator).t()
    assert_product(product(x, weight), x, weight.t())
    assert_product(input_gradient(y_grad, weight), y_grad, weight)
    assert_product(weight_gradient(y_grad, x), y_grad.t(), x)


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_gradients_equal_those_of_torch_in_float64(library, lead, generator):
    leaves = [
        normal(*lead, 9, generator=generator).requires_grad_(),
        normal(4, 9, generator=generator).requires_grad_(),
    ]
    y = linear(*leaves)
    y_grad = torch.randn(y.shape, generator=generator)
    found = torch.autograd.grad(y, leaves, y_grad)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact_y = functional.linear(*doubles)
    exact = torch.autograd.grad(exact_y, doubles, y_grad.double())
    torch.testing.assert_close(y.double(), exact_y, rtol=1e-5, atol=1e-5)
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_gradient_that_nobody_wants_is_not_computed(library, wanted, generator, monkeypatch):
    leaves = [normal(6, 5, generator=generator), normal(3, 5, generator=generator)]
    leaves[wanted].requires_grad_()
    unwanted = ("weight_gradient", "input_gradient")[wanted]

    def fail(*_):
        raise AssertionError(unwanted)

    y = linear(*leaves)
    monkeypatch.setattr(MODULE, unwanted, fail)
    y.sum().backward()
    assert leaves[wanted].grad.abs().sum() > 0


def test_bits_repeat(library, generator):
    x, weight = normal(3000, 33, generator=generator), normal(50, 33, generator=generator)
    y_grad = normal(3000, 50, generator=generator)
    first = product(x, weight), weight_gradient(y_grad, x)
    for _ in range(3):
        again = product(x, weight), weight_gradient(y_grad, x)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def asks_onednn(x, weight):
    kinds = set()

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kinds.add(func.namespace)
            return func(*args, **(kwargs or {}))

    with Spy():
        product(x, weight)
    return "mkldnn" in kinds


def test_only_large_float32_products_of_the_native_form_go_to_onednn(monkeypatch, generator):
    monkeypatch.setattr(native, "processor_is_amd", lambda: True)
    monkeypatch.setattr(native, "best_simd", lambda: len(native.SIMD_LEVELS) - 1)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(MODULE, "selected_form", lambda: "native")
    large, weight = normal(512, 128, generator=generator), normal(128, 128, generator=generator)
    assert asks_onednn(large, weight)
    assert not asks_onednn(large[:511], weight)
    assert not asks_onednn(large.double(), weight.double())
    assert not asks_onednn(large.bfloat16(), weight.bfloat16())
    for name, value in (("processor_is_amd", False), ("best_simd", 1)):
        with monkeypatch.context() as other:
            other.setattr(native, name, lambda value=value: value)
            assert not onednn_is_faster()
    with monkeypatch.context() as other:
        other.setattr(MODULE, "selected_form", lambda: "torch")
        assert not onednn_is_faster()
    torch.set_float32_matmul_precision("medium")
    try:
        assert not onednn_is_faster()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert onednn_is_faster()


def test_autocast_computes_in_bfloat16(library, generator):
    x, weight = normal(8, 8, generator=generator), normal(8, 8, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(30.0).reshape(6, 5).sin())

    def forward(self, x):
        return linear(x, self.weight)


def compare_compiled(*, onednn: bool) -> None:
    """Called in a process of its own: the type checks of the tests cannot be traced."""
    MODULE.onednn_is_faster, MODULE.SMALLEST = lambda: onednn, 0
    layer, x = Layer(), torch.arange(35.0).reshape(7, 5).cos()
    expected = layer(x)
    expected.sum().backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.weight.grad, gradient)
    program = torch.export.export(layer, (x,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert ("spherescan.linear.default" in names) == onednn, names
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.parametrize("onednn", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiles_whole_and_exports(onednn):
    code = f"from tests.ops import test_linear; test_linear.compare_compiled(onednn={onednn})"
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=300, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_bfloat16_costs_more_where_no_instruction_multiplies_it():
    cost = bfloat16_cost()
    assert 0 < cost < 1000
    if platform.machine() == "x86_64" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert cost > 3


def test_the_cost_of_bfloat16_is_a_ratio_of_what_was_measured(monkeypatch):
    times = {torch.bfloat16: 6.0, torch.float32: 1.5}
    monkeypatch.setattr(MODULE, "_seconds", lambda x, _: times[x.dtype])
    assert bfloat16_cost() == 4

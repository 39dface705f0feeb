"""What the native kernels promise beside their results."""

import ctypes
import ctypes.util
import functools
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from spherescan.errors import ConfigError
from spherescan.ops import (
    add_rms_norm,
    causal_conv1d,
    causal_conv1d_step,
    form,
    mamba_inner,
    native,
    selective_scan,
    selective_scan_step,
)
from spherescan.ops.native_conv import ConvInputs, conv_backward, conv_operator
from spherescan.ops.native_norm import NormInputs, norm_forward, norm_operator
from spherescan.ops.native_scan import ScanInputs, scan_backward, scan_forward, scan_operator

pytestmark = pytest.mark.skipif(
    native.unavailable() is not None, reason="installed without native kernels"
)


def scan_tensors(generator, batch=2, length=37, d=70, n=5, dtype=torch.float32) -> dict:
    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        "u": normal(batch, length, d),
        "delta": normal(batch, length, d).abs(),
        "A": -torch.rand(d, n, generator=generator) - 0.1,
        "B": normal(batch, length, n),
        "C": normal(batch, length, n),
        "D": torch.randn(d, generator=generator),
        "delta_bias": torch.randn(d, generator=generator),
        "gate": normal(batch, length, d),
        "state": torch.randn(batch, d, n, generator=generator),
    }


def inner_tensors(generator, batch=2, length=37, d=70, n=5, rank=3, k=4) -> dict:
    def normal(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    return {
        "projected": normal(batch, length, 2 * d),
        "conv_weight": normal(d, k),
        "conv_bias": normal(d),
        "x_proj": normal(rank + 2 * n, d),
        "dt_proj": normal(d, rank),
        "dt_bias": normal(d),
        "A": -torch.rand(d, n, generator=generator) - 0.1,
        "D": normal(d),
    }


def everything(tensors: dict, op=selective_scan, **options) -> list[torch.Tensor]:
    """Return outputs and gradients."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
    outputs = op(**leaves, **options)
    sum(
        (out.float() * torch.sin(torch.arange(out.numel()).view(out.shape))).sum()
        for out in outputs
    ).backward()
    return [out.detach() for out in outputs] + [v.grad for v in leaves.values()]


@pytest.fixture
def threads():
    """Set the number of threads; put it back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("d", "n"), [(7, 5), (7, 40), (70, 5), (600, 5)])
def test_results_are_the_same_bits_for_any_number_of_threads(generator, d, n):
    scan = scan_tensors(generator, batch=5, d=d, n=n)
    conv = {"x": scan["u"], "weight": torch.randn(d, 4), "bias": scan["D"]}
    norm = {"x": scan["u"], "update": scan["gate"], "weight": scan["D"]}
    results = []
    for count in (1, 2, 3, 5, 8, 8):
        torch.set_num_threads(count)
        results.append(
            everything(scan, delta_softplus=True)
            + everything(conv, causal_conv1d)
            + everything(norm, add_rms_norm)
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("d", "n"), [(2, 16), (4, 64), (8, 16), (64, 16)])
def test_what_follows_changes_no_bit_of_what_was_before(generator, d, n):
    scan = scan_tensors(generator, d=d, n=n)
    names = ("u", "delta", "B", "C", "gate")
    whole, _ = selective_scan(**scan)
    for length in range(1, 37):
        start = {name: x[:, :length] if name in names else x for name, x in scan.items()}
        assert torch.equal(selective_scan(**start)[0], whole[:, :length])


class _Environment:
    """The floating-point environment of this thread, as bytes.

    Of x86 without where the last x87 instruction and its operand lay: they are no mode, and
    compilers use such instructions to copy.
    """

    library = ctypes.CDLL(ctypes.util.find_library("m"))

    @classmethod
    def read(cls) -> bytes:
        memory = (ctypes.c_ubyte * 64)()
        assert cls.library.fegetenv(memory) == 0
        if platform.machine() == "x86_64":
            memory[12:28] = bytes(16)
        return bytes(memory)


def test_the_floating_point_environment_is_put_back(generator):
    scan = scan_tensors(generator)
    scan["u"][0, 0, 0] = 1e-40  # a subnormal, so that the status flags would change
    x = {"x": scan["u"], "weight": torch.randn(70, 4)}
    before = _Environment.read()
    inputs = ScanInputs(*scan.values(), None, True, native.simd())
    y, _, checkpoints = scan_forward(inputs, keep=True)
    scan_backward(inputs, checkpoints, torch.ones_like(y), None)
    conv = ConvInputs(x["x"], x["weight"], None, None, None, True, native.simd())
    conv_backward(conv, torch.ones_like(y))
    norm_forward(NormInputs(scan["u"], None, scan["D"], 1e-5, torch.float32, native.simd()))
    after = _Environment.read()
    assert after == before
    assert torch.tensor(1e-40).mul(0.5).item() != 0.0


def test_a_state_that_decays_becomes_zero_and_not_subnormal():
    length = 1000
    u = torch.zeros(1, length, 32)
    u[0, 0] = 1.0
    one = torch.ones(1, length, 4)
    y, state = selective_scan(u, torch.ones_like(u), -torch.ones(32, 4), one, one, torch.zeros(32))
    assert (state == 0).all()
    smallest = torch.finfo(torch.float32).tiny
    assert ((y == 0) | (y >= smallest)).all()


def test_a_call_lets_other_python_threads_run(generator):
    tensors = scan_tensors(generator, batch=8, length=512, d=512, n=16)
    counted = 0
    finished = threading.Event()

    def work():
        for _ in range(5):
            selective_scan(**tensors)
        finished.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not finished.is_set():
        counted += 1
        finished.wait(0.0005)
    worker.join()
    # Holding the interpreter lock through a kernel of milliseconds would leave a handful of turns.
    assert counted > 20


_FORK = """
import os, sys, torch
torch.set_num_threads(2)
from spherescan.ops import native, selective_scan
x = torch.randn(4, 64, 512)
A, D = -torch.ones(512, 4), torch.ones(512)
B = torch.randn(4, 64, 4)
delta = x.abs()
expected, _ = selective_scan(x, delta, A, B, B, D)
child = os.fork()
if child == 0:
    y, _ = selective_scan(x, delta, A, B, B, D)
    x.sqrt_()  # of torch itself
    os._exit(0 if native.threads() == 1 and torch.equal(y, expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_computes_and_does_not_hang():
    done = subprocess.run([sys.executable, "-c", _FORK], timeout=120, check=False)
    assert done.returncode == 0


def test_one_openmp_runtime_serves_torch_and_the_kernels(generator):
    selective_scan(**scan_tensors(generator))
    maps = Path("/proc/self/maps").read_text().splitlines()
    libraries = {Path(line.split()[-1]) for line in maps if "gomp" in line or "iomp" in line}
    ours = {path for path in libraries if "scikit_learn" not in path.parts[-2]}
    assert {path.parent for path in ours} == {Path(torch.__file__).parent / "lib"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("carried", [False, True])
def test_the_inner_operator_equals_its_parts(generator, monkeypatch, dtype, gated, carried):
    tensors = {k: v.to(dtype) for k, v in inner_tensors(generator).items()}
    d, n = tensors["A"].shape
    if not gated:
        tensors["projected"] = tensors["projected"][..., :d]
    if carried:
        tensors["conv_state"] = torch.randn(2, d, 3, generator=generator).to(dtype)
        tensors["ssm_state"] = torch.randn(2, d, n, generator=generator).to(dtype)
    reset = torch.rand(2, 37, generator=generator) < 0.1
    found = everything(tensors, mamba_inner, reset=reset)
    monkeypatch.setenv("SPHERESCAN_OPS", "torch")
    double = {k: v.double() for k, v in tensors.items()}
    expected = everything(double, mamba_inner, reset=reset)
    bound = 2e-6 if dtype == torch.float32 else 1e-12
    for actual, exact in zip(found, expected, strict=True):
        assert (actual - exact).abs().max() <= bound * max(1.0, float(exact.abs().max()))


def test_the_inner_operator_under_autocast_stays_near_float32(generator):
    tensors = inner_tensors(generator)
    exact = everything(tensors, mamba_inner)

    def under_autocast(projected, **rest):
        with torch.autocast("cpu", torch.bfloat16):
            y, conv_state, ssm_state = mamba_inner(projected, **rest)
        assert y.dtype == torch.bfloat16
        assert ssm_state.dtype == torch.float32
        return y, conv_state, ssm_state

    found = everything(tensors, under_autocast)
    for actual, expected in zip(found, exact, strict=True):
        scale = expected.abs().max()
        # Rounding to 8 bits at each of six places, met at random.
        assert (actual.float() - expected).abs().max() <= 0.03 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scan_under_autocast_takes_mixed_types(generator, dtype):
    tensors = scan_tensors(generator)
    mixed = {k: v.to(dtype) if k in {"u", "B"} else v for k, v in tensors.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y, state = selective_scan(**mixed)
    assert y.dtype == dtype
    assert state.dtype == torch.float32


def test_checkpointing_gives_the_same_bits(generator):
    tensors = inner_tensors(generator)

    def recomputed(**leaves):
        return checkpoint(lambda: mamba_inner(**leaves), use_reentrant=False)

    pairs = zip(everything(tensors, mamba_inner), everything(tensors, recomputed), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_operators_are_registered_as_torch_wants_them(generator):
    scan = scan_tensors(generator, length=5, d=6)
    leaves = [v.requires_grad_() for v in scan.values()]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        scan_operator, (*leaves, None, True, native.simd(), True), test_utils=tests
    )
    x, weight = scan["u"], torch.randn(6, 4, requires_grad=True)
    torch.library.opcheck(
        conv_operator,
        (x, weight, None, None, None, True, native.simd()),
        test_utils=tests,
    )
    torch.library.opcheck(
        norm_operator, (x, scan["gate"], scan["D"], 1e-5, torch.float32, native.simd()),
        test_utils=tests,
    )  # fmt: skip


def test_tensors_without_values_have_shapes_and_gradients():
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, requires_grad=True)
        normed, total = add_rms_norm(x, x, torch.ones(4))
        (normed.sum() + total.sum()).backward()
    assert normed.shape == total.shape == x.grad.shape == x.shape


def test_a_gradient_of_a_gradient_is_refused(generator):
    x = torch.randn(2, 3, 4, generator=generator, requires_grad=True)
    normed, _ = add_rms_norm(x, x, torch.ones(4))
    (gradient,) = torch.autograd.grad(normed.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="add_rms_norm_backward has no gradient of its own"):
        gradient.sum().backward()


def whole(projected, scan_u, norm_weight, **inner):
    normed, total = add_rms_norm(projected, projected, norm_weight)
    y, conv_state, ssm_state = mamba_inner(normed, **inner)
    z, final = causal_conv1d(total, torch.ones(total.shape[-1], 3))
    return y, conv_state, ssm_state, z, final, scan_u


def compare_compiled(backend: str) -> None:
    """Called in a process of its own: the type checks of the tests cannot be traced."""
    tensors = inner_tensors(torch.Generator().manual_seed(0), length=8, d=6)
    tensors |= {"norm_weight": torch.ones(12), "scan_u": torch.ones(1)}
    compiled = torch.compile(whole, fullgraph=True, backend=backend)
    pairs = zip(everything(tensors, whole), everything(tensors, compiled), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_takes_the_whole_graph(backend):
    code = f"from tests.ops import test_native; test_native.compare_compiled({backend!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=300, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_torch_export_keeps_the_operators(generator):
    class Inner(torch.nn.Module):
        def forward(self, **tensors):
            return mamba_inner(**tensors)

    tensors = inner_tensors(generator, length=8, d=6)
    program = torch.export.export(Inner(), (), tensors)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "spherescan.mamba_inner.default" in names
    for a, b in zip(program.module()(**tensors), mamba_inner(**tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.unwatched
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("d", "n"), [(1, 1), (7, 16), (70, 5), (33, 40)])
@pytest.mark.parametrize("level", range(0 if native.unavailable() else native.best_simd() + 1))
def test_native_steps_equal_the_scan(generator, level, d, n, dtype):
    tensors = scan_tensors(generator, length=6, d=d, n=n, dtype=dtype)
    if dtype == torch.float64:
        tensors = {k: v.double() for k, v in tensors.items()}
    with native.forced_simd(level):
        y, final = selective_scan(**tensors, delta_softplus=True)
        state = tensors.pop("state")
        timed = {"u", "delta", "B", "C", "gate"}
        for t in range(6):
            now = {k: v[:, t] if k in timed else v for k, v in tensors.items()}
            y_t, state = selective_scan_step(**now, state=state, delta_softplus=True)
            tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(y_t, y[:, t], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-5)


def test_a_step_that_records_a_gradient_gives_one(generator):
    tensors = scan_tensors(generator, length=1)
    tensors = {
        k: v[:, 0] if k in {"u", "delta", "B", "C", "gate"} else v for k, v in tensors.items()
    }
    u = tensors["u"].requires_grad_()
    y, _ = selective_scan_step(**tensors)
    y.sum().backward()
    assert u.grad.abs().sum() > 0
    x = torch.randn(2, 70, generator=generator, requires_grad=True)
    y, _ = causal_conv1d_step(x, torch.ones(70, 4), state=torch.zeros(2, 70, 3))
    y.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("d", "n"), [(70, 5), (7, 40)])
def test_strides_are_followed_or_copied(generator, d, n):
    def strided(u, delta, gate, A, **rest):
        wide = torch.cat([u, u, u], dim=-1)
        strange = {
            "u": wide[..., d : 2 * d],  # rows of a wider tensor
            "delta": delta.transpose(1, 2).contiguous().transpose(1, 2),
            "gate": gate.transpose(0, 1).contiguous().transpose(0, 1),
            "A": A.t().contiguous().t(),
        }
        assert not any(x.is_contiguous() for x in strange.values())
        y, state = selective_scan(**strange, **rest)
        return y.transpose(1, 2).contiguous().transpose(1, 2), state

    tensors = scan_tensors(generator, d=d, n=n)
    pairs = zip(everything(tensors), everything(tensors, strided), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_transposed_step_is_written_where_it_is_read(generator):
    tensors = scan_tensors(generator, batch=3, length=1)
    timed = {"u", "delta", "B", "C", "gate"}
    tensors = {k: v[:, 0] if k in timed else v for k, v in tensors.items()}
    expected, _ = selective_scan_step(**tensors)
    turned = {k: v.t().contiguous().t() if k in timed else v for k, v in tensors.items()}
    y, _ = selective_scan_step(**turned)
    assert torch.equal(y, expected)
    x, weight, state = tensors["u"], torch.randn(70, 4), torch.randn(3, 70, 3)
    expected = causal_conv1d_step(x, weight, state=state)
    found = causal_conv1d_step(turned["u"], weight, state=state)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_norm_with_a_strided_weight_has_a_gradient(generator):
    x = torch.randn(3, 5, generator=generator, requires_grad=True)
    wide = torch.randn(10, generator=generator, requires_grad=True)
    normed, _ = add_rms_norm(x, None, wide[::2])
    normed.sum().backward()
    assert wide.grad[::2].abs().sum() > 0
    assert wide.grad[1::2].abs().sum() == 0


def test_an_expanded_input_is_read_as_what_it_shows(generator):
    tensors = scan_tensors(generator)
    one = tensors["u"][:, :1].expand(2, 37, 70)
    y, _ = selective_scan(**(tensors | {"u": one}))
    expected, _ = selective_scan(**(tensors | {"u": one.contiguous()}))
    assert torch.equal(y, expected)


def raw(generator, **change) -> ScanInputs:
    tensors = scan_tensors(generator) | change
    return ScanInputs(*tensors.values(), reset=None, delta_softplus=False, simd=native.simd())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"delta": torch.zeros(2, 37, 70, dtype=torch.float64)}, TypeError, "delta has dtype"),
        ({"u": torch.zeros(2, 37, 70, dtype=torch.float16)}, TypeError, "the kernels know"),
        ({"A": torch.zeros(70, 5, dtype=torch.bfloat16)}, TypeError, "A has dtype"),
        ({"B": torch.zeros(2, 37, 6)}, ValueError, "B has shape"),
        ({"D": torch.zeros(71)}, ValueError, "D has shape"),
        ({"state": torch.zeros(2, 70, 4)}, ValueError, "state has shape"),
        ({"gate": torch.zeros(2, 37, 70, device="meta")}, TypeError, "expected a CPU tensor"),
    ],
)
def test_a_crafted_call_raises_before_any_pointer_is_passed(generator, change, error, message):
    with pytest.raises(error, match=message):
        scan_forward(raw(generator, **change), keep=True)


def test_an_output_over_an_input_raises(generator):
    inputs = raw(generator)
    y, _, checkpoints = scan_forward(inputs, keep=True)
    with pytest.raises(ValueError, match="gate_grad and gate share memory"):
        scan_backward(inputs, checkpoints, torch.ones_like(y), None, gate_grad=inputs.gate)


def test_checkpoints_of_another_shape_are_refused(generator):
    inputs = raw(generator)
    y, _, checkpoints = scan_forward(inputs, keep=True)
    y_grad = torch.ones_like(y)
    with pytest.raises(ValueError, match="too small"):
        scan_backward(inputs, checkpoints[:-1], y_grad, None)
    with pytest.raises(TypeError, match="checkpoints has dtype"):
        scan_backward(inputs, checkpoints.double(), y_grad, None)
    with pytest.raises(ValueError, match="checkpoints has strides"):
        scan_backward(inputs, checkpoints[:1].expand(checkpoints.numel()), y_grad, None)


def test_outputs_over_each_other_raise(generator):
    inputs = raw(generator)
    y, _, checkpoints = scan_forward(inputs, keep=True)
    out = torch.empty(2, 37, 5)
    call = functools.partial(scan_backward, inputs, checkpoints, torch.ones_like(y), None)
    with pytest.raises(ValueError, match="B_grad, C_grad share memory"):
        call(B_grad=out, C_grad=out)
    with pytest.raises(ValueError, match="must not overlap itself"):
        call(B_grad=out[:1].expand(2, 37, 5))


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (conv_operator, (torch.zeros(2, 3, 4), torch.zeros(4, 0), None, None, None, True, 0)),
        (conv_operator, (torch.zeros(2, 0, 4), torch.zeros(4, 2), None, None, None, True, 0)),
        (norm_operator, (torch.zeros(0, 4), None, torch.zeros(4), 1e-5, torch.float32, 0)),
        (
            scan_operator,
            (
                *(torch.zeros(2, 3, 0), torch.zeros(2, 3, 0), torch.zeros(0, 2)),
                *(torch.zeros(2, 3, 2), torch.zeros(2, 3, 2), torch.zeros(0)),
                *(None, None, None, None, False, 0, False),
            ),
        ),
    ],
)
def test_an_operator_refuses_what_is_empty(operator, arguments):
    with pytest.raises(ValueError, match="the kernels need at least 1"):
        operator(*arguments)


def test_a_level_from_elsewhere_is_lowered_and_one_that_never_was_is_refused(generator):
    inputs = raw(generator)
    y, *_ = scan_forward(inputs._replace(simd=2), keep=False)
    assert torch.equal(y, scan_forward(inputs._replace(simd=native.best_simd()), keep=False)[0])
    with pytest.raises(ValueError, match="SIMD level 7"):
        scan_forward(inputs._replace(simd=7), keep=False)


def test_apply_refuses_bfloat16():
    with pytest.raises(TypeError, match="expected float32 or float64"):
        native.apply(0, torch.zeros(3, dtype=torch.bfloat16))


MIXED = [
    {"delta_bias": torch.float64},
    {"gate": torch.float64},
    {"u": torch.bfloat16, "gate": torch.bfloat16},
    {"A": torch.bfloat16},
]


@pytest.mark.parametrize("types", MIXED)
@pytest.mark.parametrize("autocast", [False, True])
def test_all_forms_take_the_same_types_and_give_the_same_types(
    generator, monkeypatch, types, autocast
):
    tensors = scan_tensors(generator, length=5, d=6)
    tensors = {k: v.to(types.get(k, v.dtype)) for k, v in tensors.items()}
    x, weight = tensors["u"], torch.randn(6, 4, generator=generator)
    results = []
    for name in ("reference", "torch", "native"):
        monkeypatch.setenv("SPHERESCAN_OPS", name)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            resets = [None, torch.zeros(2, 5, dtype=torch.bool)]
            convolved = [out for r in resets for out in causal_conv1d(x, weight, reset=r)]
            results.append([*selective_scan(**tensors), *convolved])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.dtype == b.dtype
            tolerance = 1e-2 if a.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_proj": torch.zeros(12, 70)}, "x_proj has shape"),
        ({"dt_proj": torch.zeros(71, 3)}, "dt_proj has shape"),
        ({"conv_state": torch.zeros(2, 70, 0)}, "conv_state has shape"),
        ({"ssm_state": torch.zeros(2, 70, 0)}, "ssm_state has shape"),
        ({"reset": torch.zeros(2, 36, dtype=torch.bool)}, "reset has shape"),
        ({"projected": torch.zeros(2, 37, 71)}, "projected has 71 channels"),
    ],
)
def test_a_wrong_argument_of_the_inner_op_is_named(generator, change, message):
    inner = getattr(mamba_inner, "__wrapped__", mamba_inner)
    with pytest.raises(ValueError, match=message):
        inner(**(inner_tensors(generator) | change))


def test_a_last_axis_that_is_not_contiguous_never_reaches_a_kernel():
    x = torch.zeros(2, 3, 8)[..., ::2]
    with pytest.raises(ValueError, match="last axis must be contiguous"):
        native.rows("x", x, (2, 3, 4), torch.float32)
    with pytest.raises(ValueError, match="must be contiguous"):
        native.dense("x", x, (2, 3, 4), torch.float32)


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 0, 4, 2), (2, 3, 0, 2), (2, 3, 4, 0)])
def test_empty_sizes_give_empty_results(shape):
    b, length, d, n = shape
    y, state = selective_scan(
        torch.zeros(b, length, d), torch.zeros(b, length, d), torch.zeros(d, n),
        torch.zeros(b, length, n), torch.zeros(b, length, n), torch.zeros(d),
    )  # fmt: skip
    assert y.shape == (b, length, d)
    assert state.shape == (b, d, n)


def test_a_size_that_no_memory_holds_raises():
    one = torch.zeros(1, 1, 1)
    huge = one.expand(1 << 40, 4, 1)
    with pytest.raises(RuntimeError):
        selective_scan(huge, huge, torch.zeros(1, 1), huge, huge, torch.zeros(1))


def test_a_forced_level_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("SPHERESCAN_SIMD", "1024")
    with pytest.raises(ConfigError, match="not a SIMD level of this machine"):
        native.simd()
    monkeypatch.setenv("SPHERESCAN_SIMD", "baseline")
    assert native.simd() == 0


def test_without_a_library_the_torch_form_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SPHERESCAN_LIBRARY", str(tmp_path / "none.so"))
    native._load.cache_clear()
    try:
        assert form.selected_form() == "torch"
        assert "no library" in native.unavailable()
        monkeypatch.setenv("SPHERESCAN_OPS", "native")
        with pytest.raises(ConfigError, match="no native kernels"):
            form.selected_form()
    finally:
        monkeypatch.undo()
        native._load.cache_clear()


def test_a_library_that_is_none_is_named(tmp_path, monkeypatch):
    path = tmp_path / "broken.so"
    path.write_bytes(b"not a library")
    monkeypatch.setenv("SPHERESCAN_LIBRARY", str(path))
    native._load.cache_clear()
    try:
        assert str(path) in native.unavailable()
    finally:
        monkeypatch.undo()
        native._load.cache_clear()

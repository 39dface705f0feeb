import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.errors import ConfigError
from spherescan.ops import reference, selective_scan, selective_scan_step
from tests.strategies import ScanCase, scan_cases
from tests.tolerances import assert_close


def gradients(case: ScanCase, scan, dtype=torch.float64):
    inputs, y, state = case.call(scan, dtype, requires_grad=True)
    weights = torch.Generator().manual_seed(7)
    loss = sum(
        (out * torch.randn(out.shape, generator=weights, dtype=torch.float64)).sum()
        for out in (y, state)
    )
    loss.backward()
    return {name: x.grad for name, x in inputs.items()}, y, state


def numpy_scan(u, delta, A, B, C, D, state):
    """Write the recurrence once more, without torch, one number at a time."""
    batch, length, d_inner = u.shape
    h = state.copy()
    y = np.zeros_like(u)
    for b in range(batch):
        for t in range(length):
            for d in range(d_inner):
                h[b, d] = (
                    np.exp(delta[b, t, d] * A[d]) * h[b, d] + delta[b, t, d] * u[b, t, d] * B[b, t]
                )
                y[b, t, d] = h[b, d] @ C[b, t] + D[d] * u[b, t, d]
    return y, h


def test_the_reference_is_the_recurrence_of_the_paper(generator):
    shapes = {"u": (2, 5, 3), "delta": (2, 5, 3), "A": (3, 4), "B": (2, 5, 4), "C": (2, 5, 4)}
    x = {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64)
        for name, shape in (shapes | {"D": (3,), "state": (2, 3, 4)}).items()
    }
    y, state = reference.selective_scan(**x)
    expected_y, expected_state = numpy_scan(**{name: value.numpy() for name, value in x.items()})
    assert_close(y, torch.from_numpy(expected_y))
    assert_close(state, torch.from_numpy(expected_state))


@given(scan_cases())
def test_outputs_state_and_gradients_equal_the_reference(case):
    grads, y, state = gradients(case, selective_scan)
    expected_grads, expected_y, expected_state = gradients(case, reference.selective_scan)
    assert_close(y, expected_y, what="y")
    assert_close(state, expected_state, what="state")
    for name, expected in expected_grads.items():
        if expected is not None:
            assert_close(grads[name], expected, what=f"gradient of {name}")


@given(scan_cases())
def test_float32_stays_near_float64(case):
    _, y, state = case.call(selective_scan, torch.float32)
    _, expected_y, expected_state = case.call(reference.selective_scan)
    assert y.dtype == state.dtype == torch.float32
    assert_close(y, expected_y, what="y")
    assert_close(state, expected_state, what="state")


@given(scan_cases(), st.integers(0, 12))
def test_a_split_sequence_carries_its_state(case, cut):
    _, y, state = case.call(selective_scan)

    def part(along: slice, carried):
        timed = {"u", "delta", "B", "C", "gate"}
        arguments = {
            name: value[:, along] if name in timed else value
            for name, value in case.arguments.items()
        }
        reset = case.options["reset"]
        options = case.options | {"reset": None if reset is None else reset[:, along]}
        return ScanCase(arguments | {"state": carried}, options).call(selective_scan)[1:]

    first, carried = part(slice(cut), case.arguments["state"])
    second, final = part(slice(cut, None), carried)
    assert_close(torch.cat([first, second], dim=1), y)
    assert_close(final, state)


@pytest.mark.unwatched
@given(scan_cases())
def test_steps_equal_the_scan(case):
    case = ScanCase(case.arguments, case.options | {"reset": None})
    _, y, state = case.call(selective_scan)
    timed = ("u", "delta", "B", "C", "gate")
    carried = case.arguments["state"]
    steps = []
    for t in range(y.shape[1]):
        now = {n: v[:, t] if n in timed else v for n, v in case.arguments.items() if n != "state"}
        y_t, carried = selective_scan_step(
            **now, state=carried, delta_softplus=case.options["delta_softplus"]
        )
        steps.append(y_t)
    if steps:
        assert_close(torch.stack(steps, dim=1), y)
    assert_close(carried, state)


def test_a_reset_separates_documents(generator):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, delta, B, C = normal(1, 9, 4), normal(1, 9, 4).abs(), normal(1, 9, 3), normal(1, 9, 3)
    A, D = -normal(4, 3).abs(), normal(4)
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, 5] = True
    y, state = selective_scan(u, delta, A, B, C, D, reset=reset)
    parts = [
        selective_scan(u[:, s], delta[:, s], A, B[:, s], C[:, s], D)
        for s in (slice(5), slice(5, None))
    ]
    assert_close(y, torch.cat([part[0] for part in parts], dim=1))
    assert_close(state, parts[1][1])


def test_a_reset_stops_even_a_state_that_overflowed():
    one = torch.ones(1, 2, 1)
    state = torch.full((1, 1, 1), float("inf"))
    reset = torch.tensor([[True, False]])
    y, final = selective_scan(
        one, one, torch.zeros(1, 1), one, one, torch.zeros(1), state=state, reset=reset
    )
    assert y.flatten().tolist() == [1.0, 2.0]
    assert final.item() == 2.0


@pytest.mark.unwatched
@pytest.mark.parametrize("softplus", [False, True])
def test_gradcheck(generator, softplus):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = [
        normal(2, 4, 3), normal(2, 4, 3), -torch.exp(normal(3, 2)),
        normal(2, 4, 2), normal(2, 4, 2), normal(3), normal(3), normal(2, 4, 3), normal(2, 3, 2),
    ]  # fmt: skip
    reset = torch.tensor([[False, False, True, False], [True, False, False, True]])

    def scan(u, delta, A, B, C, D, delta_bias, gate, state):
        return selective_scan(
            u, delta, A, B, C, D,
            delta_bias=delta_bias, delta_softplus=softplus, gate=gate, state=state, reset=reset,
        )  # fmt: skip

    assert torch.autograd.gradcheck(scan, [x.requires_grad_() for x in arguments])


def test_a_bfloat16_input_keeps_a_float32_state(generator):
    shapes = {"u": (2, 50, 3), "delta": (2, 50, 3), "B": (2, 50, 4), "C": (2, 50, 4)}
    coarse = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
    coarse["delta"] = coarse["delta"].abs() * 0.01
    fixed = {"A": -torch.ones(3, 4), "D": torch.ones(3)}
    y, state = selective_scan(**coarse, **fixed)
    expected, _ = selective_scan(**{n: x.float() for n, x in coarse.items()}, **fixed)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert_close(y, expected)


@pytest.mark.parametrize("form", ["torch", "reference"])
def test_a_coarse_state_is_carried_in_float32(generator, monkeypatch, form):
    """A bfloat16 model that hands in its own zeros must not compute in eight bits."""
    monkeypatch.setenv("SPHERESCAN_OPS", form)
    shapes = {"u": (2, 40, 3), "delta": (2, 40, 3), "B": (2, 40, 4), "C": (2, 40, 4), "D": (3,)}
    coarse = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
    coarse["delta"] = coarse["delta"].abs() * 0.01
    coarse["A"] = -torch.ones(3, 4).bfloat16()
    state = torch.zeros(2, 3, 4).bfloat16()
    _, final = selective_scan(**coarse, state=state)
    exact = {n: x.double() for n, x in coarse.items()}
    _, expected = reference.selective_scan(**exact, state=state.double())
    assert_close(final, expected)
    at_end = {n: x[:, -1] if x.ndim == 3 else x for n, x in coarse.items()}
    assert selective_scan_step(**at_end, state=state)[1].dtype == torch.float32


def test_one_double_makes_the_scan_double(generator):
    one = torch.ones(1, 2, 1)
    arguments = [one.double(), one, torch.zeros(1, 1), one, one, torch.zeros(1)]
    _, state = selective_scan(*arguments, state=torch.zeros(1, 1, 1))
    assert state.dtype == torch.float64


def test_backward_time_grows_linearly_with_length():
    """Count autograd work instead of seconds: no node may touch a full-length gradient per step."""
    from torch.profiler import ProfilerActivity, profile

    def allocated(length: int) -> int:
        u, delta = (torch.rand(1, length, 2, requires_grad=True) for _ in range(2))
        B, C = (torch.rand(1, length, 2, requires_grad=True) for _ in range(2))
        y, _ = selective_scan(u, delta, -torch.ones(2, 2), B, C, torch.ones(2))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            y.sum().backward()
        return sum(max(0, event.self_cpu_memory_usage) for event in trace.key_averages())

    assert allocated(256) < 5 * allocated(64)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("delta", (2, 3, 5)), ("A", (5, 2)), ("B", (2, 4, 2)), ("C", (1, 3, 2)), ("D", (1,)),
        ("delta_bias", (5,)), ("gate", (2, 3, 5)), ("state", (2, 2, 4)), ("reset", (3, 2)),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_named(name, shape):
    arguments = {
        "u": torch.zeros(2, 3, 4), "delta": torch.zeros(2, 3, 4), "A": torch.zeros(4, 2),
        "B": torch.zeros(2, 3, 2), "C": torch.zeros(2, 3, 2), "D": torch.zeros(4),
    }  # fmt: skip
    arguments[name] = torch.zeros(shape, dtype=torch.bool if name == "reset" else torch.float32)
    scan = getattr(selective_scan, "__wrapped__", selective_scan)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        scan(**arguments)


def test_the_environment_forces_a_form(monkeypatch):
    one = torch.ones(1, 1, 1)
    call = [one, one, torch.zeros(1, 1), one, one, torch.zeros(1)]
    seen = []
    original = reference.selective_scan
    monkeypatch.setattr(
        reference,
        "selective_scan",
        lambda *a, **k: (seen.append("reference"), original(*a, **k))[1],
    )
    monkeypatch.setenv("SPHERESCAN_OPS", "torch")
    selective_scan(*call)
    assert seen == []
    monkeypatch.setenv("SPHERESCAN_OPS", "reference")
    selective_scan(*call)
    assert seen == ["reference"]
    monkeypatch.setenv("SPHERESCAN_OPS", "fastest")
    with pytest.raises(ConfigError, match="fastest"):
        selective_scan(*call)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.ops import causal_conv1d, causal_conv1d_step, reference
from tests.strategies import ScanCase, conv_cases
from tests.tolerances import assert_close


@given(conv_cases())
def test_outputs_state_and_gradients_equal_the_reference(case):
    results = []
    for conv in (causal_conv1d, reference.causal_conv1d):
        inputs, y, state = case.call(conv, requires_grad=True)
        weights = torch.Generator().manual_seed(7)
        loss = sum(
            (out * torch.randn(out.shape, generator=weights, dtype=torch.float64)).sum()
            for out in (y, state)
        )
        loss.backward()
        results.append(({name: x.grad for name, x in inputs.items()}, y, state))
    (grads, y, state), (expected_grads, expected_y, expected_state) = results
    assert_close(y, expected_y, what="y")
    assert_close(state, expected_state, what="state")
    for name, expected in expected_grads.items():
        if expected is not None:
            assert_close(grads[name], expected, what=f"gradient of {name}")


def test_the_reference_is_torchs_padded_convolution(generator):
    x = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, generator=generator, dtype=torch.float64)
    y, state = reference.causal_conv1d(x, weight, bias, state=x.new_zeros(2, 3, 3))
    padded = torch.nn.functional.conv1d(x.mT, weight[:, None], bias, padding=3, groups=3)[..., :7]
    assert_close(y, torch.nn.functional.silu(padded).mT)
    assert_close(state, x[:, -3:].mT)


@given(conv_cases(), st.integers(0, 12))
def test_a_split_sequence_carries_its_state(case, cut):
    _, y, state = case.call(causal_conv1d)

    def part(along: slice, carried):
        reset = case.options["reset"]
        return ScanCase(
            case.arguments | {"x": case.arguments["x"][:, along], "state": carried},
            case.options | {"reset": None if reset is None else reset[:, along]},
        ).call(causal_conv1d)[1:]

    first, carried = part(slice(cut), case.arguments["state"])
    second, final = part(slice(cut, None), carried)
    assert_close(torch.cat([first, second], dim=1), y)
    assert_close(final, state)


@given(conv_cases())
def test_steps_equal_the_convolution(case):
    case = ScanCase(case.arguments, case.options | {"reset": None})
    _, y, state = case.call(causal_conv1d)
    carried = case.arguments["state"]
    for t in range(y.shape[1]):
        y_t, carried = causal_conv1d_step(
            case.arguments["x"][:, t],
            case.arguments["weight"],
            case.arguments.get("bias"),
            activation=case.options["activation"],
            state=carried,
        )
        assert_close(y_t, y[:, t])
    assert_close(carried, state)


@pytest.mark.parametrize("activation", ["silu", None])
def test_gradcheck(generator, activation):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    reset = torch.tensor([[False, False, True, False], [True, False, False, True]])

    def conv(x, weight, bias, state):
        return causal_conv1d(x, weight, bias, activation=activation, state=state, reset=reset)

    assert torch.autograd.gradcheck(
        conv, [normal(2, 4, 3), normal(3, 4), normal(3), normal(2, 3, 3)]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 4)}, "weight has shape"),
        ({"weight": torch.zeros(3, 0)}, "weight has shape"),
        ({"bias": torch.zeros(4)}, "bias has shape"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"state": torch.zeros(2, 3, 2)}, "state has shape"),
        ({"reset": torch.zeros(2, 6, dtype=torch.bool)}, "reset has shape"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    arguments = {"x": torch.zeros(2, 5, 3), "weight": torch.zeros(3, 4)} | change
    conv = getattr(causal_conv1d, "__wrapped__", causal_conv1d)
    with pytest.raises(ValueError, match=message):
        conv(**arguments)

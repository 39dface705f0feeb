"""What every mixer promises; a new one is tested by its line in the registry."""

import functools
import math

import pytest
import torch

from spherescan.nn import MIXERS, Mamba
from tests.tolerances import assert_close


@pytest.fixture(
    params=[(name, selective) for name in sorted(MIXERS) for selective in (True, False)]
)
def mixer(request, generator):
    name, selective = request.param
    make = functools.partial(MIXERS[name], 6, d_state=3, d_conv=4, expand=2, selective=selective)
    return make(generator=generator).double()


@pytest.fixture
def x(generator):
    return torch.randn(2, 11, 6, generator=generator, dtype=torch.float64)


def test_the_output_has_the_shape_of_the_input(mixer, x):
    y, state = mixer(x)
    assert y.shape == x.shape
    assert state.ssm.shape == mixer.initial_state(2).ssm.shape
    assert state.conv.shape == mixer.initial_state(2).conv.shape


def test_the_future_does_not_reach_the_past(mixer, x):
    y, _ = mixer(x)
    changed = x.clone()
    changed[:, 7:] += 1
    again, _ = mixer(changed)
    assert torch.equal(again[:, :7], y[:, :7])
    assert not torch.allclose(again[:, 7:], y[:, 7:])


def test_steps_equal_the_whole(mixer, x):
    y, final = mixer(x)
    state = mixer.initial_state(2)
    steps = []
    for t in range(x.shape[1]):
        y_t, state = mixer.step(x[:, t], state)
        steps.append(y_t)
    assert_close(torch.stack(steps, 1), y)
    assert_close(state.ssm, final.ssm)
    assert_close(state.conv, final.conv)


@pytest.mark.parametrize("cut", [1, 5, 10])
def test_parts_that_carry_the_state_equal_the_whole(mixer, x, cut):
    y, final = mixer(x)
    first, state = mixer(x[:, :cut])
    second, state = mixer(x[:, cut:], state)
    assert_close(torch.cat([first, second], 1), y)
    assert_close(state.ssm, final.ssm)


def test_a_reset_equals_separate_documents(mixer, x):
    reset = torch.zeros(2, 11, dtype=torch.bool)
    reset[:, [0, 4, 5]] = True
    y, final = mixer(x, reset=reset)
    parts = [mixer(x[:, a:b]) for a, b in ((0, 4), (4, 5), (5, 11))]
    assert_close(y, torch.cat([part[0] for part in parts], 1))
    assert_close(final.ssm, parts[-1][1].ssm)
    assert_close(final.conv, parts[-1][1].conv)


def test_every_parameter_gets_a_gradient(mixer, x):
    mixer(x)[0].square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.unwatched
def test_gradcheck(mixer, generator):
    x = torch.randn(1, 4, 6, generator=generator, dtype=torch.float64)
    names = [name for name, _ in mixer.named_parameters()]

    def run(x, *parameters):
        arguments = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(mixer, arguments, (x,))[0]

    parameters = [p.detach().clone().requires_grad_() for p in mixer.parameters()]
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters))


def test_the_state_dict_makes_an_equal_mixer(mixer, x):
    made = {"d_state": 3, "d_conv": 4, "expand": 2, "selective": mixer.selective}
    other = type(mixer)(6, **made).double()
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x)[0], mixer(x)[0])


def test_the_generator_decides_the_weights_and_the_global_one_is_left_alone():
    def make(seed):
        return Mamba(6, generator=torch.Generator().manual_seed(seed)).state_dict()

    before = torch.get_rng_state()
    first, again, other = make(1), make(1), make(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["in_proj.weight"], other["in_proj.weight"])


def test_mamba_has_the_published_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in Mamba(32, d_state=8).state_dict().items()}
    assert shapes == {
        "A_log": (64, 8),
        "D": (64,),
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 16, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
    }


def test_mamba_starts_as_published(generator):
    mixer = Mamba(64, d_state=16, generator=generator)
    assert_close(mixer.A_log, torch.log(torch.arange(1.0, 17)).expand(128, 16))
    assert torch.equal(mixer.D, torch.ones(128))
    delta = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert delta.min() >= 1e-3 * 0.999
    assert delta.max() <= 1e-1 * 1.001
    # Log-uniform: as many step sizes below the geometric mean as above it.
    assert 0.35 < (delta < 1e-2).float().mean() < 0.65
    bound = 4**-0.5
    assert bound * 0.95 < mixer.dt_proj.weight.abs().max() <= bound
    assert 0.95 / math.sqrt(128) < mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(128)


def test_the_reduced_layer_has_neither_gate_nor_input_projection(x):
    mixer = Mamba(6, d_state=3, gate=False, expand=1, dt_rank=1).double()
    names = {name for name, _ in mixer.named_parameters()}
    assert "in_proj.weight" not in names
    assert mixer.x_proj.weight.shape == (2 * 3 + 1, 6)
    assert mixer.dt_proj.weight.shape == (6, 1)
    assert mixer(x)[0].shape == x.shape
    # Without a gate but expanded there is a projection, of one branch.
    assert Mamba(6, gate=False).in_proj.weight.shape == (12, 6)


def test_without_selection_an_impulse_has_the_same_answer_everywhere(generator):
    mixer = Mamba(6, d_state=3, gate=False, expand=1, selective=False, generator=generator).double()
    names = {name for name, _ in mixer.named_parameters()}
    assert names == {
        "A_log",
        "D",
        "B",
        "C",
        "dt_bias",
        "conv1d.weight",
        "conv1d.bias",
        "out_proj.weight",
    }
    impulses = torch.zeros(2, 20, 6, dtype=torch.float64)
    impulses[0, 3], impulses[1, 7] = 1.0, 1.0
    with torch.no_grad():
        mixer.conv1d.bias.zero_()  # silu(0) = 0: silence before
        y, _ = mixer(impulses)
    assert_close(y[0, :16], y[1, 4:])
    assert y[0, 3].abs().max() > 0
    # The scan itself is linear, by the plain recurrence.
    u = torch.nn.functional.silu(
        torch.nn.functional.conv1d(impulses.mT, mixer.conv1d.weight, padding=3, groups=6)[..., :20]
    ).mT
    delta = torch.nn.functional.softplus(mixer.dt_bias)
    decay = torch.exp(-delta[:, None] * mixer.A_log.exp())
    state, outputs = torch.zeros(2, 6, 3, dtype=torch.float64), []
    for t in range(20):
        state = decay * state + (delta * u[:, t])[:, :, None] * mixer.B
        outputs.append(state @ mixer.C + mixer.D * u[:, t])
    assert_close(y, torch.stack(outputs, 1) @ mixer.out_proj.weight.T)


@pytest.mark.parametrize("name", ["d_model", "d_state", "d_conv", "expand", "dt_rank"])
def test_a_size_below_one_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Mamba(**({"d_model": 4} | {name: 0}))

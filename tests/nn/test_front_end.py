"""Convolutions of several widths, against torch's own on sequences that are padded by hand."""

import pytest
import torch
from torch.nn import functional

from spherescan.nn import MultiScaleConvolution
from tests.tolerances import assert_close


def layer_of(generator, *, causal, d_in=3, d_model=8):
    return MultiScaleConvolution(d_in, d_model, causal=causal, generator=generator).double()


def spelled_out(layer, x):
    """Return what the formula says, position by position, for one sequence of shape (l, e)."""
    length, rows = len(x), []
    inner = functional.linear(x, layer.bottleneck.weight)
    for t in range(length):
        found = []
        for convolution in layer.convolutions:
            width = convolution.weight.shape[2]
            first = t - (width - 1 if layer.causal else width // 2)
            total = torch.zeros(convolution.weight.shape[0], dtype=x.dtype)
            for k in range(width):
                if 0 <= first + k < length:
                    total = total + convolution.weight[:, :, k] @ inner[first + k]
            found.append(total)
        near = range(t - 2, t + 1) if layer.causal else range(t - 1, t + 2)
        around = [x[s] if 0 <= s < length else torch.zeros_like(x[0]) for s in near]
        found.append(layer.pooled.weight @ torch.stack(around).amax(0))
        rows.append(torch.cat(found))
    return layer.shortcut(x) + functional.relu(layer.norm(torch.stack(rows)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "d_in"), [(1, 3), (2, 8), (7, 1), (30, 3)])
def test_it_is_what_its_formula_says(generator, causal, length, d_in):
    layer = layer_of(generator, causal=causal, d_in=d_in)
    x = torch.randn(2, length, d_in, generator=generator, dtype=torch.float64)
    assert_close(layer(x), torch.stack([spelled_out(layer, row) for row in x]))


def test_an_empty_batch_stays_empty(generator):
    layer = layer_of(generator, causal=False)
    assert layer(torch.zeros(0, 5, 3, dtype=torch.float64)).shape == (0, 5, 8)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_not_seen_whatever_is_in_it(generator, causal):
    layer = layer_of(generator, causal=causal)
    x = torch.randn(3, 12, 3, generator=generator, dtype=torch.float64)
    mask = torch.arange(12) < torch.tensor([1, 5, 12])[:, None]
    y = layer(x, mask)
    for row, length in enumerate([1, 5, 12]):
        assert_close(y[row, :length], layer(x[row : row + 1, :length])[0])
        assert bool((y[row, length:] == 0).all())


def test_a_causal_one_sees_nothing_that_comes_later(generator):
    layer = layer_of(generator, causal=True)
    x = torch.randn(1, 30, 3, generator=generator, dtype=torch.float64)
    changed = x.clone()
    changed[:, 20:] += 1
    assert torch.equal(layer(changed)[:, :20], layer(x)[:, :20])
    other = layer_of(generator, causal=False)
    with pytest.raises(ValueError, match="look ahead"):
        other.extend(x, other.initial_state(1))


def test_gradcheck(generator):
    layer = layer_of(generator, causal=False, d_in=2, d_model=4)
    x = torch.randn(1, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True, True, False]])
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        arguments = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, arguments, (x, mask))

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_a_width_that_branches_cannot_share_is_refused():
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        MultiScaleConvolution(3, 6, causal=True)

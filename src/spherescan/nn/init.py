"""Layers drawn from a generator of the caller, never from the global one."""

import math
from typing import TypeVar

import torch
from torch import Generator, Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def allocated(layer: Layer) -> Layer:
    """Give memory, as it comes, to the parameters of a layer made on the meta device.

    So torch draws nothing. Its own `skip_init` imports half of the compiler, which takes longer
    than many a model needs to answer.
    """
    for name, parameter in layer.named_parameters():
        setattr(layer, name, nn.Parameter(torch.empty(parameter.shape)))
    return layer


def uniform_(tensor: Tensor, bound: float, generator: Generator | None) -> None:
    """Fill with U(-bound, bound)."""
    with torch.no_grad():
        tensor.uniform_(-bound, bound, generator=generator)


def linear_layer(
    n_in: int, n_out: int, *, bias: bool = False, generator: Generator | None = None
) -> nn.Linear:
    """Make a linear layer drawn as torch does, U(+-1/sqrt(n_in)); the bias starts at 0."""
    layer = allocated(nn.Linear(n_in, n_out, bias=bias, device="meta"))
    uniform_(layer.weight, 1 / math.sqrt(n_in), generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def depthwise_conv1d(channels: int, width: int, *, generator: Generator | None = None) -> nn.Conv1d:
    """Make a depthwise convolution with torch's own distribution, U(+-1/sqrt(width))."""
    layer = allocated(nn.Conv1d(channels, channels, width, groups=channels, device="meta"))
    for tensor in (layer.weight, layer.bias):
        assert tensor is not None
        uniform_(tensor, 1 / math.sqrt(width), generator)
    return layer

"""Keep the input of a computation instead of its inside, and compute it again for its gradient.

`torch.utils.checkpoint` does the same through hooks on every saved tensor. With one call for each
direction of a block, which halves what is held, that costs more on small tensors than this does
(benchmarks/recompute.py).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def recomputed(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[nn.Parameter]
) -> Tensor:
    """Return function(x), keeping nothing of it but x.

    Args:
        function: Deterministic; called again in the backward pass, under the autocast of now.
        x: Its one input that a gradient may flow to.
        parameters: All that it uses besides.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    result: Tensor = _Recomputed.apply(function, x, *trained)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.function, ctx.parameters = function, parameters
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        enabled, dtype = ctx.autocast
        x = x.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad(), torch.autocast("cpu", dtype, enabled=enabled):
            again = ctx.function(x)
        wanted = [x, *ctx.parameters] if x.requires_grad else list(ctx.parameters)
        found = torch.autograd.grad(again, wanted, gradient, allow_unused=True)
        return (None, *found) if x.requires_grad else (None, None, *found)

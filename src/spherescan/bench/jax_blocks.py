"""Our Mamba block in JAX: there is no published one to compare with.

The scan is `lax.scan` over time, compiled together with everything around it by XLA, whose
processor threads are all of the machine.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_EPSILON = 1e-5


class JaxBlocks(nn.Module):
    """A stack of blocks x + mixer(norm(x)) with the weights of ours.

    Args:
        blocks: One module per block, with `norm` and `mixer`.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self._jax = importlib.import_module("jax")
        self.take(blocks)
        self._forward = self._jax.jit(self._stack)
        self._gradients = self._jax.jit(self._pull_back)

    def take(self, blocks: nn.ModuleList) -> None:
        """Take the weights of blocks."""
        asarray = self._jax.numpy.asarray
        self._weights = [
            {name: asarray(tensor.numpy()) for name, tensor in block.state_dict().items()}
            for block in blocks
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Return the output; it has no gradient."""
        y = self._forward(self._weights, self._jax.numpy.asarray(x.detach().numpy()))
        return torch.from_numpy(importlib.import_module("numpy").array(y))

    def train_step(self, x: Tensor, y_grad: Tensor) -> Callable[[], None]:
        """Return a forward and backward pass over all weights and the input."""
        values = [self._jax.numpy.asarray(t.detach().numpy()) for t in (x, y_grad)]

        def step() -> None:
            self._jax.block_until_ready(self._gradients(self._weights, *values))

        return step

    def _pull_back(self, weights: Any, x: Any, y_grad: Any) -> Any:
        _, pull = self._jax.vjp(self._stack, weights, x)
        return pull(y_grad)

    def _stack(self, weights: Any, x: Any) -> Any:
        for block in weights:
            x = x + self._mixer(block, self._norm(block, x))
        return x

    def _norm(self, weights: Any, x: Any) -> Any:
        scale = self._jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + _EPSILON)
        return x * scale * weights["norm.weight"]

    def _mixer(self, weights: Any, x: Any) -> Any:
        jax, w = self._jax, {k.removeprefix("mixer."): v for k, v in weights.items()}
        d_inner, n = w["A_log"].shape
        rank, length = w["dt_proj.weight"].shape[1], x.shape[1]
        u, gate = jax.numpy.split(x @ w["in_proj.weight"].T, 2, axis=-1)
        kernel = w["conv1d.weight"][:, 0]
        width = kernel.shape[1]
        padded = jax.numpy.pad(u, ((0, 0), (width - 1, 0), (0, 0)))
        parts = (padded[:, j : j + length] * kernel[:, j] for j in range(width))
        u = jax.nn.silu(sum(parts, w["conv1d.bias"]))
        selected = u @ w["x_proj.weight"].T
        r, B, C = (selected[..., :rank], selected[..., rank : rank + n], selected[..., rank + n :])
        delta = jax.nn.softplus(r @ w["dt_proj.weight"].T + w["dt_proj.bias"])
        A = -jax.numpy.exp(w["A_log"])

        def advance(h: Any, now: Any) -> tuple[Any, Any]:
            u_t, delta_t, B_t, C_t = now
            decay = jax.numpy.exp(delta_t[..., None] * A)
            h = decay * h + (delta_t * u_t)[..., None] * B_t[:, None, :]
            return h, (h * C_t[:, None, :]).sum(-1)

        start = jax.numpy.zeros((x.shape[0], d_inner, n), x.dtype)
        over_time = tuple(t.swapaxes(0, 1) for t in (u, delta, B, C))
        _, y = jax.lax.scan(advance, start, over_time)
        y = y.swapaxes(0, 1) + w["D"] * u
        return (y * jax.nn.silu(gate)) @ w["out_proj.weight"].T

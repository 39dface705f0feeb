"""One Mamba block in x + mixer(norm(x)), by everyone who has one for the CPU."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spherescan.bench.jax_blocks import JaxBlocks
from spherescan.nn import Block, Mamba
from spherescan.ops.form import ENVIRONMENT_VARIABLE
from spherescan.ops.linear import input_gradient, product, weight_gradient

D_MODEL, D_STATE, D_CONV, EXPAND = 512, 16, 4, 2
DT_RANK = D_MODEL // 16
D_INNER = EXPAND * D_MODEL


@dataclass(frozen=True, slots=True)
class Contender:
    """Who takes part.

    Attributes:
        make: Makes the stack of so many layers.
        form: Form of our ops while it runs; theirs do not care.
        autocast: Whether bfloat16 is used where it is safe.
        precision: How torch multiplies float32 matrices.
        longest: It is not asked for sequences longer than this: what it would take is known.
        peer: Whether it is somebody else's.
    """

    make: Callable[[int], nn.Module]
    form: str = "native"
    autocast: bool = False
    precision: str = "highest"
    longest: int = 1 << 40
    peer: bool = False


class _Ours(nn.Module):
    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(D_MODEL, mixer=Mamba) for _ in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        update = None
        for block in self.blocks:
            x, update = block(x, update)
        assert update is not None
        out: Tensor = x + update
        return out


class _Theirs(nn.Module):
    def __init__(self, mixers: list[nn.Module]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.norms = nn.ModuleList(nn.RMSNorm(D_MODEL, eps=1e-5) for _ in mixers)

    def forward(self, x: Tensor) -> Tensor:
        for mixer, norm in zip(self.mixers, self.norms, strict=True):
            x = x + mixer(norm(x))
        return x


def _mambapy(n_layers: int) -> nn.Module:
    library = importlib.import_module("mambapy.mamba")
    config = library.MambaConfig(
        d_model=D_MODEL, n_layers=n_layers, d_state=D_STATE, d_conv=D_CONV, expand_factor=EXPAND
    )
    return _Theirs([library.MambaBlock(config) for _ in range(n_layers)])


def _transformers(n_layers: int, *, use_mambapy: bool) -> nn.Module:
    library = importlib.import_module("transformers.models.mamba.modeling_mamba")
    configuration = importlib.import_module("transformers.models.mamba.configuration_mamba")
    config = configuration.MambaConfig(
        hidden_size=D_MODEL,
        state_size=D_STATE,
        conv_kernel=D_CONV,
        expand=EXPAND,
        time_step_rank=DT_RANK,
        use_bias=False,
        use_conv_bias=True,
        use_mambapy=use_mambapy,
    )
    return _Theirs([library.MambaMixer(config, layer_idx=i) for i in range(n_layers)])


def _jax(n_layers: int) -> nn.Module:
    return JaxBlocks(_Ours(n_layers).blocks)


CONTENDERS = {
    "spherescan": Contender(_Ours),
    "spherescan medium": Contender(_Ours, precision="medium"),
    "spherescan bf16": Contender(_Ours, autocast=True),
    "torch form": Contender(_Ours, form="torch"),
    "transformers + mambapy": Contender(
        lambda n: _transformers(n, use_mambapy=True), longest=1024, peer=True
    ),
    "mambapy": Contender(_mambapy, longest=1024, peer=True),
    "jax": Contender(_jax, peer=True),
    # Indexing in its loop makes the backward pass quadratic in length.
    "transformers": Contender(
        lambda n: _transformers(n, use_mambapy=False), longest=128, peer=True
    ),
}


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give a peer our weights: its parameters have the published names."""
    if isinstance(theirs, JaxBlocks) and isinstance(ours, _Ours):
        theirs.take(ours.blocks)
        return
    if not isinstance(theirs, _Theirs) or not isinstance(ours, _Ours):
        theirs.load_state_dict(ours.state_dict())
        return
    for block, mixer, norm in zip(ours.blocks, theirs.mixers, theirs.norms, strict=True):
        mixer.load_state_dict(block.get_submodule("mixer").state_dict())
        norm.load_state_dict(block.get_submodule("norm").state_dict())


def installed(name: str) -> bool:
    """Return whether a contender can take part."""
    needs = {"mambapy": "mambapy", "transformers": "transformers", "jax": "jax"}
    packages = [needs[word] for word in name.split() if word in needs]
    return all(importlib.util.find_spec(package) is not None for package in packages)


@contextmanager
def conditions(contender: Contender) -> Iterator[None]:
    """Set what a contender runs under, and put it back."""
    form, precision = os.environ.get(ENVIRONMENT_VARIABLE), torch.get_float32_matmul_precision()
    os.environ[ENVIRONMENT_VARIABLE] = contender.form
    torch.set_float32_matmul_precision(contender.precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if form is None:
            del os.environ[ENVIRONMENT_VARIABLE]
        else:
            os.environ[ENVIRONMENT_VARIABLE] = form


def forward(contender: Contender, model: nn.Module, x: Tensor) -> Tensor:
    """Return the output, in the contender's conditions."""
    with conditions(contender), torch.autocast("cpu", torch.bfloat16, enabled=contender.autocast):
        y: Tensor = model(x)
    return y


def train_step(
    contender: Contender, model: nn.Module, x: Tensor, y_grad: Tensor
) -> Callable[[], None]:
    """Return a forward and backward pass over all parameters and the input."""
    if isinstance(model, JaxBlocks):
        return model.train_step(x, y_grad)

    def step() -> None:
        x.grad = None
        model.zero_grad(set_to_none=True)
        with conditions(contender):
            with torch.autocast("cpu", torch.bfloat16, enabled=contender.autocast):
                y = model(x)
            y.backward(y_grad)

    return step


def matrix_products(tokens: int, n_layers: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return the matrix products of our training step, as it makes them, and nothing else."""

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    layers: list[tuple[Any, ...]] = [
        (new(tokens, D_MODEL), new(2 * D_INNER, D_MODEL), new(tokens, 2 * D_INNER)),
        (new(tokens, D_INNER), new(DT_RANK + 2 * D_STATE, D_INNER), new(tokens, DT_RANK + 32)),
        (new(tokens, DT_RANK), new(D_INNER, DT_RANK), new(tokens, D_INNER)),
        (new(tokens, D_INNER), new(D_MODEL, D_INNER), new(tokens, D_MODEL)),
    ]

    def multiply() -> None:
        for _ in range(n_layers):
            for x, weight, y_grad in layers:
                _ = product(x, weight), input_gradient(y_grad, weight), weight_gradient(y_grad, x)

    return multiply

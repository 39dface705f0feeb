"""A model read position by position: what it carries, and the same answer as for the whole.

Letters: b batch, l length, c series channels, m model width, d prototype dimension.
"""

import hashlib
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from spherescan.nn.block import Block
from spherescan.nn.embedding import SeriesEmbedding, check_channels
from spherescan.nn.front_end import ConvolutionState
from spherescan.nn.local_head import LocalHead
from spherescan.nn.mamba import Mamba, MambaState
from spherescan.nn.model import SequenceModel
from spherescan.nn.one_position import OnePosition, takes_one_position
from spherescan.nn.pooling import Pooling
from spherescan.nn.running import RunningPool, extend_pool, extend_pool_by_one, pooled, start_pool
from spherescan.ops import native
from spherescan.ops.form import selected_form

# The name of the last head beside those of local heads, which are numbers of blocks.
_LAST = "last"


class StreamState(NamedTuple):
    """What a model carries from one position to the next; its size does not depend on the length.

    Attributes:
        mixers: State of each block.
        convolutions: State of each layer of convolutions in front of them.
        pools: What each head that takes part in predictions has pooled so far.
    """

    mixers: tuple[MambaState, ...]
    pools: dict[str, RunningPool]
    convolutions: tuple[ConvolutionState, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor under a name."""
        found = {
            f"mixers/{index}/{name}": tensor
            for index, mixer in enumerate(self.mixers)
            for name, tensor in mixer._asdict().items()
        }
        for index, layer in enumerate(self.convolutions):
            for name, tensor in layer._asdict().items():
                found[f"convolutions/{index}/{name}"] = tensor
        for head, pool in self.pools.items():
            for kind, kept in pool.items():
                for name, tensor in kept._asdict().items():
                    found[f"pools/{head}/{kind}/{name}"] = tensor
        return found

    def with_tensors(self, tensors: dict[str, Tensor]) -> "StreamState":
        """Return a state of the same structure with other values, by the names of `tensors`."""
        mixers = tuple(
            MambaState(*(tensors[f"mixers/{index}/{name}"] for name in mixer._fields))
            for index, mixer in enumerate(self.mixers)
        )
        pools = {
            head: {
                kind: type(kept)(*(tensors[f"pools/{head}/{kind}/{n}"] for n in kept._fields))
                for kind, kept in pool.items()
            }
            for head, pool in self.pools.items()
        }
        convolutions = tuple(
            ConvolutionState(*(tensors[f"convolutions/{index}/{n}"] for n in layer._fields))
            for index, layer in enumerate(self.convolutions)
        )
        return StreamState(mixers, pools, convolutions)


class StreamedModel:
    """Read a model position by position.

    Single positions under `torch.inference_mode` go the short way of `OnePosition` where the
    kernels take the model, with the same bits. Weights that change count from the next position on;
    where another module or parameter takes the place of one, make another `StreamedModel`. Each
    thread needs its own: what lies between two operations is in memory that the next call uses.

    Args:
        model: In eval mode.

    Raises:
        ValueError: A bidirectional model.
    """

    def __init__(self, model: SequenceModel) -> None:
        self._model = model
        front = model.embedding
        self._n_channels = len(front.mean) if isinstance(front, SeriesEmbedding) else None
        self._mixers = [_mixer(block) for block in model.layers]
        self._weights = list(model.state_dict(keep_vars=True).values())
        self._one: OnePosition | None = None
        self._made_for: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[type["StreamedModel"], tuple[SequenceModel]]:
        """Leave out of a copy what is only addresses."""
        return StreamedModel, (self._model,)

    def start(self, *, batch: int) -> StreamState:
        """Return the state before the first position of `batch` sequences."""
        model = self._model
        sizes = {"batch": batch, "d_model": self._mixers[0].d_model}
        dtype = model.head.weight.dtype
        pools = {n: start_pool(pool, **sizes, dtype=dtype) for n, pool in _pools(model).items()}
        front = model.embedding
        convolutions = front.initial_state(batch) if isinstance(front, SeriesEmbedding) else ()
        mixers = tuple(mixer.initial_state(batch) for mixer in self._mixers)
        return StreamState(mixers, pools, convolutions)

    def extend(
        self, state: StreamState, inputs: Int[Tensor, "b l"] | Float[Tensor, "b l c"]
    ) -> StreamState:
        """Read positions, at least one.

        Args:
            state: What the positions before have left. It is not changed.
            inputs: Token ids, or series.

        Raises:
            ValueError: No position, or series of another number of channels.
        """
        model = self._model
        if self._n_channels is not None:
            check_channels(inputs, self._n_channels)
        if inputs.shape[1] == 0:
            raise ValueError("no position was given; a stream goes on by at least one")
        alone = inputs.shape[1] == 1
        if alone and (one := self._one_position(inputs)) is not None:
            normed, after, kept = one(inputs[:, 0], state.mixers, state.convolutions)
            pool = extend_pool_by_one(model.pool, state.pools[_LAST], normed)
            return StreamState(after, {_LAST: pool}, kept)
        x, convolutions = self._begin(inputs, state)
        if alone:
            x = x[:, 0]
        update = None
        mixers, pools = [], {}
        for index, (block, before) in enumerate(zip(model.layers, state.mixers, strict=True)):
            assert isinstance(block, Block)
            mixer = self._mixers[index]
            normed, x = block.norm(x, update)
            update, left = (mixer.step if alone else mixer)(normed, before)
            mixers.append(left)
            if (name := str(index)) in state.pools:
                head = _local_head(model, name)
                pools[name] = _pool_more(head.pool, state.pools[name], head.norm(x + update)[0])
        pools[_LAST] = _pool_more(model.pool, state.pools[_LAST], model.norm_f(x, update)[0])
        return StreamState(tuple(mixers), pools, convolutions)

    def read_out(self, state: StreamState) -> Float[Tensor, "b d"]:
        """Return what `SequenceModel.embed` makes of all positions so far, at least one.

        Of a model without pooling it is the vector of the last position.
        """
        model = self._model
        dtype = model.head.weight.dtype
        z: Tensor = model.projection(pooled(state.pools[_LAST], dtype))
        if not model.averaged:
            return z
        local = [
            _local_head(model, name).projection(pooled(pool, dtype))
            for name, pool in state.pools.items()
            if name != _LAST
        ]
        return torch.stack([functional.normalize(each, dim=-1) for each in (*local, z)]).mean(0)

    def _begin(
        self, inputs: Tensor, state: StreamState
    ) -> tuple[Tensor, tuple[ConvolutionState, ...]]:
        model = self._model
        if not state.convolutions:
            return model.begin(inputs), ()
        assert isinstance(model.embedding, SeriesEmbedding)
        x, convolutions = model.embedding.extend(inputs, state.convolutions)
        return x.to(model.head.weight.dtype), convolutions

    def _one_position(self, inputs: Tensor) -> OnePosition | None:
        """Return the short way, if there is one; a new one where anything it was made for moved."""
        usual = torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
        if not usual or selected_form() != "native":
            return None
        if inputs.is_floating_point() and inputs.dtype != self._weights[0].dtype:
            return None
        batch = len(inputs)
        addresses = map(Tensor.data_ptr, self._weights)
        made_for = (batch, native.simd(), native.threads(), *addresses)
        if made_for != self._made_for:
            fits = takes_one_position(self._model)
            self._one = OnePosition(self._model, batch=batch) if fits else None
            self._made_for = made_for
        return self._one


def digest_of_weights(module: nn.Module) -> UInt8[Tensor, "32"]:
    """Return the SHA-256 of all weights under their names: a stream goes on with these alone."""
    sha = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        sha.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(sha.digest()), dtype=torch.uint8)


def _pools(model: SequenceModel) -> dict[str, Pooling | None]:
    """Return the pooling of each head that takes part in predictions, in the order of blocks."""
    names = [str(index) for index in range(len(model.layers)) if model.averaged]
    local = {n: _local_head(model, n).pool for n in names if n in model.local_heads}
    return {**local, _LAST: model.pool}


def _pool_more(pool: Pooling | None, running: RunningPool, x: Tensor) -> RunningPool:
    return extend_pool(pool, running, x[:, None] if x.ndim == 2 else x)


def _local_head(model: SequenceModel, name: str) -> LocalHead:
    head = model.local_heads[name]
    assert isinstance(head, LocalHead)
    return head


def _mixer(block: nn.Module) -> Mamba:
    assert isinstance(block, Block)
    if block.mixer_backward is not None:
        raise ValueError("a bidirectional model reads each sequence from its end too")
    assert isinstance(block.mixer, Mamba)
    return block.mixer

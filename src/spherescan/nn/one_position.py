"""A model for one position after the other, where every value has a fixed place.

Through the modules each operation checks, casts and looks up what is the same for every position:
ten times the work of a small model. Here that is done once, and a position is a list of products
and kernels between tensors that stay where they are. The results are the same bit for bit.

Weights are read where they lie: what changes them in place counts from the next position on.

Letters: b batch, c series channels, m model width, d inner channels, n state, i inputs, o outputs,
w positions kept of before.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from spherescan.nn.block import Block
from spherescan.nn.embedding import SeriesEmbedding
from spherescan.nn.front_end import WIDTHS, ConvolutionState, MultiScaleConvolution
from spherescan.nn.mamba import Mamba, MambaState
from spherescan.nn.model import SequenceModel
from spherescan.nn.norm import EPSILON, ResidualNorm
from spherescan.ops import native
from spherescan.ops.form import form_for
from spherescan.ops.native_conv import FixedConvStep
from spherescan.ops.native_norm import FixedNorm, NormInputs
from spherescan.ops.native_scan import FixedScanStep


class OnePosition:
    """Read positions one by one, up to the norm behind the last block.

    Args:
        model: One of which `takes_one_position` is true. Its modules and parameters must stay.
        batch: Sequences that are read side by side.
    """

    def __init__(self, model: SequenceModel, *, batch: int) -> None:
        front = model.embedding
        series = isinstance(front, SeriesEmbedding)
        self._front = (_OneOfSeries if series else _OneOfTokens)(front, batch)
        x, update = self._front.y, None
        self._blocks = []
        for block in model.layers:
            assert isinstance(block, Block)
            norm = _fixed_norm(block.norm, x, update)
            mixer = _OneOfMamba(block.mixer, norm.normed)
            x, update = norm.total, mixer.y
            self._blocks.append((norm, mixer))
        self._last = _fixed_norm(model.norm_f, x, update)

    def __call__(
        self,
        inputs: Int[Tensor, " b"] | Float[Tensor, "b c"],
        mixers: tuple[MambaState, ...],
        convolutions: tuple[ConvolutionState, ...],
    ) -> tuple[Float[Tensor, "b m"], tuple[MambaState, ...], tuple[ConvolutionState, ...]]:
        """Read a position.

        Args:
            inputs: Token ids, or series.
            mixers: What the positions before have left of each block. They are not changed.
            convolutions: The same of each layer of convolutions.

        Returns:
            The last norm, which the next call overwrites, and the states after the position.
        """
        convolutions = self._front(inputs, convolutions)
        after = []
        for (norm, mixer), state in zip(self._blocks, mixers, strict=True):
            norm()
            after.append(mixer(state))
        self._last()
        return self._last.normed, tuple(after), convolutions


def takes_one_position(model: SequenceModel) -> bool:
    """Return whether `OnePosition` can read with a model: the kernels must take all of it."""
    weights = list(model.state_dict().values())
    dtype = weights[0].dtype
    return (
        dtype in {torch.float32, torch.float64}
        and all(w.dtype == dtype and w.is_contiguous() for w in weights)
        and form_for(*weights) == "native"
        and isinstance(model.norm_f, ResidualNorm)
        and not model.averaged
    )


class _Product:
    """y = x weight^T, as `nn.Linear` multiplies."""

    def __init__(
        self, x: Float[Tensor, "b i"], weight: Float[Tensor, "o i"], y: Tensor | None = None
    ) -> None:
        self.y: Float[Tensor, "b o"] = x.new_empty(len(x), len(weight)) if y is None else y
        self._x, self._weight = x, weight.detach().t()

    def __call__(self) -> None:
        torch.mm(self._x, self._weight, out=self.y)


class _OneOfTokens:
    """`SequenceModel.begin` of token ids; `y` is its output."""

    def __init__(self, embedding: nn.Module, batch: int) -> None:
        assert isinstance(embedding, nn.Embedding)
        self._weight = embedding.weight.detach()
        self.y: Float[Tensor, "b m"] = self._weight.new_empty(batch, self._weight.shape[1])

    def __call__(
        self, tokens: Int[Tensor, " b"], state: tuple[ConvolutionState, ...]
    ) -> tuple[ConvolutionState, ...]:
        torch.index_select(self._weight, 0, tokens, out=self.y)
        return state


class _OneOfSeries:
    """`SeriesEmbedding.extend`; `y` is its output."""

    def __init__(self, embedding: nn.Module, batch: int) -> None:
        assert isinstance(embedding, SeriesEmbedding)
        self._mean, self._std, self._linear = embedding.mean, embedding.std, embedding.linear
        self._spreads = embedding.mean.new_empty(batch, len(embedding.mean))
        self.y: Float[Tensor, "b m"] = self._spreads
        if self._linear is not None:
            self._weight, self._bias = self._linear.weight.detach().t(), self._linear.bias.detach()
            self.y = self._spreads.new_empty(batch, len(self._bias))
        self._layers = []
        for layer in embedding.convolutions:
            assert isinstance(layer, MultiScaleConvolution)
            self._layers.append(_OneOfConvolutions(layer, self.y))
            self.y = self._layers[-1].y

    def __call__(
        self, x: Float[Tensor, "b c"], state: tuple[ConvolutionState, ...]
    ) -> tuple[ConvolutionState, ...]:
        torch.sub(x, self._mean, out=self._spreads).div_(self._std)
        if self._linear is not None:
            torch.addmm(self._bias, self._spreads, self._weight, out=self.y)
        return tuple(layer(kept) for layer, kept in zip(self._layers, state, strict=True))


class _OneOfConvolutions:
    """`MultiScaleConvolution.extend`; `y` is its output."""

    def __init__(self, layer: MultiScaleConvolution, x: Float[Tensor, "b i"]) -> None:
        assert layer.causal
        batch, (n_inner, d_in), d_model = (
            len(x),
            layer.bottleneck.weight.shape,
            len(layer.norm.bias),
        )
        # Position after position, as they are kept; the last is that which is read.
        self._x, norm = x, layer.norm
        self._norm = (list(norm.normalized_shape), norm.weight, norm.bias, norm.eps)
        self._inner = x.new_empty(batch, max(WIDTHS), n_inner)
        self._bottleneck = _Product(x, layer.bottleneck.weight, self._inner[:, -1])
        self._pool = x.new_empty(batch, layer.initial_state(1).pool.shape[1] + 1, d_in)
        self._convolutions = []
        for convolution, width in zip(layer.convolutions, WIDTHS, strict=True):
            assert isinstance(convolution, nn.Conv1d)
            positions = self._inner[:, -width:].transpose(1, 2)
            self._convolutions.append((positions, convolution.weight))
        self._largest = x.new_empty(batch, d_in)
        self._pooled = _Product(self._largest, layer.pooled.weight)
        self._shortcut = (
            None if isinstance(layer.shortcut, nn.Identity) else _Product(x, layer.shortcut.weight)
        )
        self.y: Float[Tensor, "b m"] = x.new_empty(batch, d_model)

    def __call__(self, state: ConvolutionState) -> ConvolutionState:
        self._inner[:, :-1] = state.inner
        self._bottleneck()
        found = [torch.conv1d(*each)[:, :, 0] for each in self._convolutions]
        self._pool[:, :-1] = state.pool
        self._pool[:, -1] = self._x
        torch.amax(self._pool, 1, out=self._largest)
        self._pooled()
        x = self._x
        if self._shortcut is not None:
            self._shortcut()
            x = self._shortcut.y
        branches = torch.cat([*found, self._pooled.y], 1)
        torch.add(x, functional.layer_norm(branches, *self._norm).relu_(), out=self.y)
        return ConvolutionState(self._inner[:, 1:].clone(), self._pool[:, 1:].clone())


class _OneOfMamba:
    """`Mamba.step`; `y` is its output."""

    def __init__(self, mixer: nn.Module, x: Float[Tensor, "b m"]) -> None:
        assert isinstance(mixer, Mamba)
        simd = native.simd()
        self._A_log = mixer.A_log.detach()
        self._A = torch.empty_like(self._A_log)
        self._before, self._between, projected = [], [], x
        if not isinstance(mixer.in_proj, nn.Identity):
            self._before.append(_Product(x, mixer.in_proj.weight))
            projected = self._before[-1].y
        u, gate = projected.chunk(2, dim=1) if mixer.gated else (projected, None)
        self._conv = FixedConvStep(
            u, mixer.conv1d.weight.detach().squeeze(1), mixer.conv1d.bias, silu=True, simd=simd
        )
        u = self._conv.y
        if mixer.selective:
            selected = _Product(u, mixer.x_proj.weight)
            sizes = [mixer.dt_rank, mixer.d_state, mixer.d_state]
            rank_delta, B, C = torch.split(selected.y, sizes, dim=1)
            step_sizes = _Product(rank_delta, mixer.dt_proj.weight)
            self._between += [selected, step_sizes]
            delta, delta_bias = step_sizes.y, mixer.dt_proj.bias
        else:
            shape = (len(u), mixer.d_state)
            delta, B, C = torch.zeros_like(u), mixer.B.expand(shape), mixer.C.expand(shape)
            delta_bias = mixer.dt_bias
        self._scan = FixedScanStep(
            *(u, delta, self._A, B, C, mixer.D, delta_bias, gate), delta_softplus=True, simd=simd
        )
        self._after = _Product(self._scan.y, mixer.out_proj.weight)
        self.y: Float[Tensor, "b m"] = self._after.y

    def __call__(self, state: MambaState) -> MambaState:
        for product in self._before:
            product()
        conv_state = self._conv(state.conv.contiguous())
        for product in self._between:
            product()
        torch.exp(self._A_log, out=self._A).neg_()
        ssm_state = self._scan(state.ssm.contiguous())
        self._after()
        return MambaState(conv_state, ssm_state)


def _fixed_norm(norm: nn.Module, x: Tensor, update: Tensor | None) -> FixedNorm:
    assert isinstance(norm, ResidualNorm)
    return FixedNorm(NormInputs(x, update, norm.weight, EPSILON, x.dtype, native.simd()))

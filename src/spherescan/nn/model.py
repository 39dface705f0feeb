"""The model: embed -> blocks -> norm -> pool -> project -> head.

Letters: b batch, l length, c series channels, m model width, d prototype dimension, k classes.
"""

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional

from spherescan.nn.block import Block, MixerFactory
from spherescan.nn.dropout import dropped
from spherescan.nn.embedding import SeriesEmbedding
from spherescan.nn.init import linear_layer
from spherescan.nn.local_head import LocalHead
from spherescan.nn.mamba import Mamba
from spherescan.nn.norm import ResidualNorm
from spherescan.nn.pooling import Pooling
from spherescan.nn.prototypes import PrototypeHead
from spherescan.nn.recompute import recomputed
from spherescan.nn.rust_trainer import ResidualLayerNorm, draw_all_normal

FORMS = ("standard", "rust_trainer")

# Of the published implementation: rows about as long as the residual updates of one block.
_EMBEDDING_STD = 0.02


class SequenceModel(nn.Module):
    """Map token ids or real-valued series to points on the sphere of class prototypes.

    Exactly one of `vocab_size` and `n_channels` says what a position holds. With `pooling` a whole
    sequence becomes one point, without it every position does (next-token prediction).

    Args:
        vocab_size: Number of token ids.
        n_channels: Channels of the series.
        head: Prototypes to compare with.
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        mixer: Makes the mixer of a block from `(d_model, generator=...)`.
        bidirectional: Whether each block also reads from the end; not for next-token prediction.
        pooling: Names of the poolings to concatenate; empty for one point per position.
        n_pool_heads: Heads of the attention pooling.
        local_heads: Blocks, counted from 0, that get a head of their own to learn by.
        n_local_outputs: Outputs of those heads; the dimension of the prototypes when missing.
        averaged: Whether a prediction averages the points of all heads, the local ones included.
        dropout: Part of what each block adds that is dropped in training.
        n_convolutions: Layers of convolutions in front of the blocks, see `SeriesEmbedding`; causal
            unless bidirectional. Of series only.
        form: "standard", or "rust_trainer" for the layout and the initial weights of that program.
        generator: Source of the initial weights.

    Attributes:
        make_block: Makes one more block from `(generator=...)`.
        make_local_head: Makes one more local head from `(generator=...)`.
        recompute: Whether a backward pass computes the inside of each block again instead of
            keeping it: the memory of one block instead of all, for one more forward pass.
        dropout_seed: Says which elements are dropped, see `dropped`; whoever trains the model sets
            it anew for every step.

    Raises:
        ValueError: Not exactly one kind of input, no layer, an unknown form, a local head of a
            block that there is not, a dropout outside 0 <= p < 1, or a bidirectional model that
            would see the tokens it is to predict.

    Example:
        >>> import torch
        >>> head = PrototypeHead(3, 3)
        >>> model = SequenceModel(n_channels=2, head=head, d_model=8, n_layers=1)
        >>> model(torch.zeros(4, 10, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        *,
        head: PrototypeHead,
        vocab_size: int | None = None,
        n_channels: int | None = None,
        d_model: int = 64,
        n_layers: int = 2,
        mixer: MixerFactory = Mamba,
        bidirectional: bool = False,
        pooling: tuple[str, ...] = ("mean",),
        n_pool_heads: int = 4,
        local_heads: tuple[int, ...] = (),
        n_local_outputs: int | None = None,
        averaged: bool = False,
        dropout: float = 0.0,
        form: str = "standard",
        n_convolutions: int = 0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if (vocab_size is None) == (n_channels is None):
            raise ValueError("give exactly one of vocab_size and n_channels")
        if n_layers < 1:
            raise ValueError(f"n_layers is {n_layers}; it must be at least 1")
        if bidirectional and not pooling:
            raise ValueError(
                "a bidirectional model sees the positions it is to predict; pool, or read one way"
            )
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; choose from {', '.join(FORMS)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
        crate = form == "rust_trainer"
        self.averaged, self.recompute = averaged, False
        self.dropout = dropout
        self.dropout_seed: int | None = None
        self.embedding: nn.Embedding | SeriesEmbedding
        if vocab_size is not None:
            self.embedding = _token_embedding(vocab_size, d_model, generator)
        else:
            assert n_channels is not None
            self.embedding = SeriesEmbedding(
                n_channels,
                d_model,
                n_convolutions=n_convolutions,
                causal=not bidirectional,
                generator=generator,
            )

        self.make_block = functools.partial(
            Block, d_model, mixer=mixer, bidirectional=bidirectional, normed=not crate
        )
        self.make_local_head = functools.partial(
            LocalHead,
            d_model,
            head.weight.shape[1] if n_local_outputs is None else n_local_outputs,
            pooling=pooling,
            n_pool_heads=n_pool_heads,
        )
        self.layers = nn.ModuleList(self.make_block(generator=generator) for _ in range(n_layers))
        _scale_output_projections(self.layers)
        self.norm_f = ResidualLayerNorm() if crate else ResidualNorm(d_model)
        self.pool = (
            Pooling(d_model, pooling, n_heads=n_pool_heads, generator=generator)
            if pooling
            else None
        )
        width = d_model if self.pool is None else self.pool.dim
        self.projection = (
            nn.Identity()
            if crate
            else linear_layer(width, head.weight.shape[1], generator=generator)
        )
        if crate:
            draw_all_normal(self, generator=generator)
        self.local_heads = nn.ModuleDict()
        for index in local_heads:
            if not 0 <= index < n_layers:
                raise ValueError(f"a local head of block {index}; there are {n_layers} blocks")
            self.local_heads[str(index)] = self.make_local_head(generator=generator)
        self.head = head

    def begin(
        self,
        inputs: Int[Tensor, "b l"] | Float[Tensor, "b l c"],
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l m"]:
        """Return the residual stream in front of the first block.

        It keeps the type of the weights, under autocast too.
        """
        x: Tensor
        if isinstance(self.embedding, SeriesEmbedding):
            x = self.embedding(inputs, mask)
        else:
            x = self.embedding(inputs)
        return x.to(self.head.weight.dtype)

    def through(
        self,
        blocks: Sequence[int],
        x: Float[Tensor, "b l m"],
        update: Float[Tensor, "b l m"] | None = None,
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l m"], Float[Tensor, "b l m"]]:
        """Apply blocks, at least one, by index; the other arguments are those of `Block.forward`.

        Returns:
            The residual stream, and what the last of the blocks adds to it.
        """
        for index in blocks:
            block = self.layers[index]
            if self.recompute and torch.is_grad_enabled():
                # One tensor is kept for each block, not two.
                x = x if update is None else x + update
                # Where all positions are read out, the head takes that memory first.
                keep = self.pool is not None and index == len(self.layers) - 1
                update = _recomputed_update(block, x, mask, reset, keep_last=keep)
            else:
                x, update = block(x, update, mask=mask, reset=reset)
            if self.training and self.dropout:
                update = self._dropped(update, index)
        assert update is not None
        return x, update

    def _dropped(self, update: Tensor, block: int) -> Tensor:
        if self.dropout_seed is None:
            raise ValueError(
                f"a model with a dropout of {self.dropout} is in training mode and has no seed; "
                "set its dropout_seed anew before every step, or call eval() to predict"
            )
        return dropped(update, p=self.dropout, seed=self.dropout_seed, block=block)

    def read_out_local(
        self, block: int, x: Float[Tensor, "b l m"], *, mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b *l o"]:
        """Return what the head of a block makes of the stream after it."""
        head = self.local_heads[str(block)]
        if self.recompute and torch.is_grad_enabled():
            return recomputed(functools.partial(head, mask=mask), x, head.parameters())
        z: Tensor = head(x, mask)
        return z

    def read_out(
        self,
        x: Float[Tensor, "b l m"],
        update: Float[Tensor, "b l m"] | None = None,
        *,
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l d"]:
        """Return a vector in the space of the prototypes for the stream after the last block."""
        x = self.norm_f(x, update)[0]
        if self.pool is not None:
            x = self.pool(x, mask)
        z: Tensor = self.projection(x)
        return z

    def features(
        self,
        inputs: Int[Tensor, "b l"] | Float[Tensor, "b l c"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l m"]:
        """Return the features of every position.

        Args:
            inputs: Token ids, or series.
            mask: True on real positions, which come first in each row. What is in the others, NaN
                of series included, does not reach the real ones.
            reset: True where a new document starts.
        """
        blocks = range(len(self.layers))
        normed: Tensor = self.norm_f(
            *self.through(blocks, self.begin(inputs, mask), mask=mask, reset=reset)
        )[0]
        return normed

    def embed(
        self,
        inputs: Int[Tensor, "b l"] | Float[Tensor, "b l c"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l d"]:
        """Return a vector in the space of the prototypes, of any length, for what is classified.

        With `averaged` it is the mean of the unit vectors of all heads, so its inner product with
        a prototype is the mean of their cosines.
        """
        if not self.averaged:
            x = self.begin(inputs, mask)
            return self.read_out(
                *self.through(range(len(self.layers)), x, mask=mask, reset=reset), mask=mask
            )
        x, update = self.begin(inputs, mask), None
        points = []
        for index in range(len(self.layers)):
            x, update = self.through([index], x, update, mask=mask, reset=reset)
            if str(index) in self.local_heads:
                points.append(self.read_out_local(index, x + update, mask=mask))
        points.append(self.read_out(x, update, mask=mask))
        return torch.stack([functional.normalize(z, dim=-1) for z in points]).mean(0)

    def forward(
        self,
        inputs: Int[Tensor, "b l"] | Float[Tensor, "b l c"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l k"]:
        """Return the cosine with every prototype.

        Raises:
            ValueError: Series of another number of channels, or, with pooling, a sequence without a
                real position.
        """
        cosines: Tensor = self.head(self.embed(inputs, mask=mask, reset=reset))
        return cosines


def _recomputed_update(
    block: nn.Module, x: Tensor, mask: Tensor | None, reset: Tensor | None, *, keep_last: bool
) -> Tensor:
    """Return the update of a block, of which nothing but x is kept for the backward pass.

    With `keep_last` the direction that is computed last is kept whole: when its backward pass
    comes next, it would be computed again before anything has been freed.
    """
    assert isinstance(block, Block)
    update = None
    for mixer, backward in ((block.mixer, False), (block.mixer_backward, True)):
        if mixer is None:
            continue
        one_way = functools.partial(block.one_way, backward=backward, mask=mask, reset=reset)
        if keep_last and backward == (block.mixer_backward is not None):
            found = one_way(x)
        else:
            found = recomputed(one_way, x, [*block.norm.parameters(), *mixer.parameters()])
        update = found if update is None else update + found
    assert update is not None
    return update


def _token_embedding(vocab_size: int, d_model: int, generator: Generator | None) -> nn.Embedding:
    weight = torch.empty(vocab_size, d_model)
    layer: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        layer.weight.normal_(std=_EMBEDDING_STD, generator=generator)
    return layer


def _scale_output_projections(layers: nn.ModuleList) -> None:
    """Divide by sqrt(layers), so that the residual stream does not grow with depth at the start."""
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            if name.endswith("out_proj.weight"):
                parameter.div_(math.sqrt(len(layers)))

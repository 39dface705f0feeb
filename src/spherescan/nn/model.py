"""The model: embed -> blocks -> norm -> pool -> project -> head.

Letters: b batch, l length, c series channels, m model width, d prototype dimension, k classes.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init

from spherescan.nn.block import Block, MixerFactory
from spherescan.nn.embedding import SeriesEmbedding
from spherescan.nn.init import linear
from spherescan.nn.mamba import Mamba
from spherescan.nn.norm import ResidualNorm
from spherescan.nn.pooling import Pooling
from spherescan.nn.prototypes import PrototypeHead

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
        generator: Source of the initial weights.

    Raises:
        ValueError: Not exactly one kind of input, no layer, or a bidirectional model that would
            see the tokens it is to predict.

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
        self.embedding: nn.Embedding | SeriesEmbedding
        if vocab_size is not None:
            self.embedding = _token_embedding(vocab_size, d_model, generator)
        else:
            assert n_channels is not None
            self.embedding = SeriesEmbedding(n_channels, d_model, generator=generator)
        self.layers = nn.ModuleList(
            Block(d_model, mixer=mixer, bidirectional=bidirectional, generator=generator)
            for _ in range(n_layers)
        )
        _scale_output_projections(self.layers)
        self.norm_f = ResidualNorm(d_model)
        self.pool = (
            Pooling(d_model, pooling, n_heads=n_pool_heads, generator=generator)
            if pooling
            else None
        )
        width = d_model if self.pool is None else self.pool.dim
        self.projection = linear(width, head.prototypes.shape[1], generator=generator)
        self.head = head

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
            mask: True on real positions, which come first in each row.
            reset: True where a new document starts.
        """
        # The residual stream keeps the type of the weights, under autocast too.
        x: Tensor = self.embedding(inputs).to(self.norm_f.weight.dtype)
        update: Tensor | None = None
        for block in self.layers:
            x, update = block(x, update, mask=mask, reset=reset)
        normed: Tensor = self.norm_f(x, update)[0]
        return normed

    def embed(
        self,
        inputs: Int[Tensor, "b l"] | Float[Tensor, "b l c"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l d"]:
        """Return a vector in the space of the prototypes, of any length, for what is classified."""
        x = self.features(inputs, mask=mask, reset=reset)
        if self.pool is not None:
            x = self.pool(x, mask)
        z: Tensor = self.projection(x)
        return z

    def forward(
        self,
        inputs: Int[Tensor, "b l"] | Float[Tensor, "b l c"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        reset: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b *l k"]:
        """Return the cosine with every prototype."""
        cosines: Tensor = self.head(self.embed(inputs, mask=mask, reset=reset))
        return cosines


def _token_embedding(vocab_size: int, d_model: int, generator: Generator | None) -> nn.Embedding:
    layer: nn.Embedding = skip_init(nn.Embedding, vocab_size, d_model)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        layer.weight.normal_(std=_EMBEDDING_STD, generator=generator)
    return layer


def _scale_output_projections(layers: nn.ModuleList) -> None:
    """Divide by sqrt(layers), so that the residual stream does not grow with depth at the start."""
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            if name.endswith("out_proj.weight"):
                parameter.div_(math.sqrt(len(layers)))

"""What reads a block out so that the block can learn by itself.

Letters: b batch, l length, m model width, o outputs.
"""

from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from spherescan.nn.init import linear_layer
from spherescan.nn.norm import ResidualNorm
from spherescan.nn.pooling import Pooling


class LocalHead(nn.Module):
    """Read the residual stream out after a block: norm -> pool -> project, as the model ends.

    Args:
        d_model: Width of the residual stream.
        n_outputs: Dimension of the prototype space, or number of classes.
        pooling: Names of the poolings to concatenate; empty for one output per position.
        n_pool_heads: Heads of the attention pooling.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        d_model: int,
        n_outputs: int,
        *,
        pooling: tuple[str, ...] = ("mean",),
        n_pool_heads: int = 4,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.norm = ResidualNorm(d_model)
        self.pool = (
            Pooling(d_model, pooling, n_heads=n_pool_heads, generator=generator)
            if pooling
            else None
        )
        width = d_model if self.pool is None else self.pool.dim
        self.projection = linear_layer(width, n_outputs, generator=generator)

    def forward(
        self, x: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b *l o"]:
        """Return one vector for each sequence, or for each position without pooling."""
        x = self.norm(x)[0]
        if self.pool is not None:
            x = self.pool(x, mask)
        out: Tensor = self.projection(x)
        return out

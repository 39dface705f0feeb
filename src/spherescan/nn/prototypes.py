"""A head whose classes are points on the sphere.

Letters: k classes, d dimensions of the sphere's space.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional

from spherescan.nn.placement import separated_prototypes
from spherescan.ops import linear

INITS = ("separated", "random", "rust_trainer")


class PrototypeHead(nn.Module):
    """Compare features with one unit prototype per class by the cosine.

        cos(z, p_j) = <z / |z|, p_j>

    Prototypes are fixed unless `learnable`. A learnable row is stored with any length and used
    divided by it, so every prototype is a unit vector after any update.

    Args:
        n_classes: Number of prototypes k.
        dim: Dimension d of the space the sphere lies in.
        init: "separated" places them as far apart as possible (see `separated_prototypes`),
            "random" draws them uniformly, "rust_trainer" draws the stored rows from N(0, 0.02^2).
        learnable: Whether the prototypes are trained.
        generator: Source of the placement.

    Raises:
        ValueError: An unknown `init`, or sizes for which no placement exists.

    References:
        Mettes, van der Pol, Snoek, "Hyperspherical Prototype Networks", 2019, arXiv:1901.10514.

    Notes:
        Lengths outside about 1e-12 to 1e19 are beyond float32: the square of a longer vector
        overflows, and a shorter one is divided by 1e-12. Its cosines are then nearer to 0.

    Example:
        >>> import torch
        >>> head = PrototypeHead(3, 2)
        >>> cosines = head(torch.tensor([[10.0, 0.0]]))
        >>> cosines.shape, bool((head.prototypes.norm(dim=1) - 1).abs().max() < 1e-6)
        (torch.Size([1, 3]), True)
    """

    def __init__(
        self,
        n_classes: int,
        dim: int,
        *,
        init: str = "separated",
        learnable: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if n_classes < 1 or dim < 1:
            raise ValueError(f"got {n_classes} classes in {dim} dimensions; both must be >= 1")
        if init == "separated":
            placement = separated_prototypes(n_classes, dim, generator=generator)
            points = placement.points.to(torch.get_default_dtype())
        elif init == "random":
            points = functional.normalize(torch.randn(n_classes, dim, generator=generator), dim=1)
        elif init == "rust_trainer":
            points = 0.02 * torch.randn(n_classes, dim, generator=generator)
        else:
            raise ValueError(f"unknown init {init!r}; choose from {', '.join(INITS)}")
        if learnable:
            self.weight = nn.Parameter(points)
        else:
            self.register_buffer("weight", points)

    @property
    def prototypes(self) -> Float[Tensor, "k d"]:
        """The unit prototypes, one row per class."""
        return functional.normalize(self.weight, dim=1)

    def forward(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch k"]:
        """Return the cosine of every feature vector with every prototype."""
        return linear(functional.normalize(z, dim=-1), self.prototypes)

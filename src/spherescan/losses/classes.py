"""What all losses over classes share.

Letters: k classes.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits: Float[Tensor, "*batch k"], target: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return -log softmax(logits)_target for any shape, unreduced."""
    flat = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), target.long().reshape(-1), reduction="none"
    )
    return flat.reshape(target.shape)

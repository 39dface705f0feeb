"""The two ways to treat all objectives alike.

Letters: t objectives, p parameters.
"""

from jaxtyping import Float
from torch import Tensor

from spherescan.surgery.gram import check_gradients


def mean_gradient(jacobian: Float[Tensor, "t p"]) -> Float[Tensor, " p"]:
    """Average the gradients."""
    check_gradients(jacobian)
    return jacobian.mean(dim=0)


def sum_gradients(jacobian: Float[Tensor, "t p"]) -> Float[Tensor, " p"]:
    """Add the gradients, as the backward pass of a sum of losses does."""
    check_gradients(jacobian)
    return jacobian.sum(dim=0)

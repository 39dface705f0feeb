"""One more class for a ridge onto prototypes, from a few examples, in closed form.

Letters: n samples, f features.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spherescan.features.ridge import ridge


@dataclass(frozen=True, slots=True)
class ClassColumn:
    """How near a sample is to a class that came later.

    Attributes:
        weight: With `bias` the map, cosine = x w + bias.
        bias: See there, of shape ().
        left_out: What the map fitted without a sample makes of it, for each sample.
    """

    weight: Float[Tensor, " f"]
    bias: Float[Tensor, ""]
    left_out: Float[Tensor, " n"]


def class_column(
    x: Float[Tensor, "n f"],
    is_member: Bool[Tensor, " n"],
    rival: Float[Tensor, " n"],
    *,
    apart: float,
) -> ClassColumn:
    """Fit the cosine with a class to the features of it and of all other samples.

    A ridge takes members to 1 and others to `apart`. From few members it says too little of new
    ones; so it is shifted until, left out, the classes there are come halfway between the two:

        mean over members of (cosine - rival) = - mean over others of (cosine - rival)

    Args:
        x: Features of the samples of all classes.
        is_member: Whether a sample is of the new class.
        rival: The largest cosine that each sample has with another class, without its influence.
        apart: Cosine of two classes.

    Raises:
        ValueError: No member, or nothing but members.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> is_member = torch.tensor([False, False, True, True])
        >>> found = class_column(x, is_member, torch.tensor([0.9, 0.9, 0.2, 0.2]), apart=0.0)
        >>> (x @ found.weight + found.bias > torch.tensor([0.9, 0.9, 0.2, 0.2])).tolist()
        [False, False, True, True]
    """
    if bool(is_member.all()) or not bool(is_member.any()):
        raise ValueError("the samples must be some of the class and some not")
    target = torch.where(is_member, 1.0, apart).to(x.dtype)
    fitted = ridge(x, target[:, None])
    ahead = fitted.left_out[:, 0] - rival
    shift = -(ahead[is_member].mean() + ahead[~is_member].mean()) / 2
    return ClassColumn(fitted.weight[:, 0], fitted.bias[0] + shift, fitted.left_out[:, 0] + shift)

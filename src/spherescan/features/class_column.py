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
    """How near samples are to a class that came later.

    Attributes:
        weight: With `bias` the map, t = x w + bias, which `added_cosine` makes a cosine of.
        bias: See there, of shape ().
        reach: How far out the farthest of the samples lies, left out, of shape ().
        left_out: Cosine with the class that each sample has without its own influence.
    """

    weight: Float[Tensor, " f"]
    bias: Float[Tensor, ""]
    reach: Float[Tensor, ""]
    left_out: Float[Tensor, " n"]


def class_column(
    x: Float[Tensor, "n f"],
    is_member: Bool[Tensor, " n"],
    rival: Float[Tensor, " n"],
    squared: Float[Tensor, " n"],
    *,
    apart: float,
) -> ClassColumn:
    """Fit the cosine with a class to the features of it and of all other samples.

    A ridge takes members to 1 and others to `apart`. From few members it says too little of new
    ones; so it is shifted until, left out, classes come halfway between the two:

        mean over members of (t - rival) = - mean over others of (t - rival)

    A single member leaves nothing to be left out from: what the ridge makes of it stands for that.
    The column is in float64, whatever `x` is.

    Args:
        x: Features of the samples of all classes.
        is_member: Whether a sample is of the new class.
        rival: The largest cosine that each sample has with another class, without its influence.
        squared: The square of how far each lies from the middle of the classes there are.
        apart: Cosine of two classes.

    Raises:
        ValueError: No member, or nothing but members.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]).double()
        >>> is_member = torch.tensor([False, False, True, True])
        >>> rival, squared = torch.tensor([0.9, 0.9, 0.2, 0.2]), torch.tensor([1.0, 1.0, 0.1, 0.1])
        >>> found = class_column(x, is_member, rival, squared, apart=0.0)
        >>> t = x @ found.weight + found.bias
        >>> (added_cosine(t, squared, found.reach) > rival).tolist()
        [False, False, True, True]
    """
    if bool(is_member.all()) or not bool(is_member.any()):
        raise ValueError("the samples must be some of the class and some not")
    target = torch.where(is_member, 1.0, apart).double()
    fitted = ridge(x, target[:, None])
    unseen = fitted.left_out[:, 0]
    if int(is_member.sum()) == 1:
        unseen = torch.where(is_member, fitted(x)[:, 0], unseen)
    ahead = unseen - rival
    shift = -(ahead[is_member].mean() + ahead[~is_member].mean()) / 2
    t = unseen + shift
    reach = (t.square() + squared).max().sqrt()
    return ClassColumn(
        fitted.weight[:, 0], fitted.bias[0] + shift, reach, added_cosine(t, squared, reach)
    )


def added_cosine(
    t: Float[Tensor, "*n"], squared: Float[Tensor, "*n"], reach: Float[Tensor, "*#n"]
) -> Float[Tensor, "*n"]:
    """Make a cosine of where a sample is on the way to a class that came later.

        t / max(1, (t^2 + squared) / reach^2), within -1..1

    Farther out than any sample was it falls off, as the cosines of other classes do: what is
    like nothing that was seen is near to no class.

    Args:
        t: See `ClassColumn`.
        squared: See `class_column`.
        reach: See `ClassColumn`.

    Example:
        >>> import torch
        >>> t, squared = torch.tensor([0.9, 0.2, 100.0]), torch.tensor([0.5, 1.0, 7.0])
        >>> [round(c, 4) for c in added_cosine(t, squared, torch.tensor(1.5)).tolist()]
        [0.9, 0.2, 0.0225]
    """
    beyond = (t.square() + squared) / reach.square()
    return (t / beyond.clamp(min=1)).clamp(-1, 1)

"""Where classes really lie on the sphere, and how tightly: what the training embeddings say.

Letters: n embeddings, m embeddings of the training set, d dimensions, k classes.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherescan.calibration.checks import unit_rows
from spherescan.ops.argument import expect_shape
from spherescan.ops.targets import check_target

# The square of a mean length that is rounding: embeddings that cancel have no mean direction.
_CANCELLED = 1e-24
# One minus the squared mean length that is rounding: embeddings that are all the same.
_COLLAPSED = 1e-12
# Rows of the matrix of cosines that are held at a time; with 100 000 embeddings 800 MB.
_BLOCK = 1024


def mean_directions(
    embeddings: Float[Tensor, "n d"], target: Int[Tensor, " n"], *, n_classes: int
) -> Float[Tensor, "k d"]:
    """Return the mean direction of each class.

        m_j = sum_{i in j} z_i / |sum_{i in j} z_i|

    The maximum-likelihood centre of a von Mises-Fisher distribution. Embeddings of a class gather
    near its prototype but not around it; a cosine with the mean direction is a score conditional on
    the class that knows where they gather.

    Args:
        embeddings: Unit vectors.
        target: Class of each.
        n_classes: How many there are; each needs an embedding.

    Returns:
        In float64, one unit row per class.

    Raises:
        ValueError: No embeddings, or one that is not a unit vector; a target outside the classes;
            a class without embeddings, or with some that cancel.

    References:
        Mardia and Jupp, "Directional Statistics", 2000; Mensink et al.,
        "Distance-Based Image Classification: Generalizing to new classes at near-zero cost", 2013
        (nearest class mean).
    """
    z = unit_rows(embeddings, of="embeddings")
    check_target(target, n_classes, z.shape[:1], of="classes")
    sums = z.new_zeros(n_classes, z.shape[1]).index_add_(0, target.long(), z)
    squares = sums.square().sum(1)
    if (squares <= _CANCELLED).any():
        lost = int((squares <= _CANCELLED).nonzero()[0])
        count = int((target == lost).sum())
        raise ValueError(
            f"class {lost} has {count} embeddings"
            + (" that cancel" if count else "")
            + "; it has no mean direction without some that do not cancel"
        )
    return sums / squares.sqrt()[:, None]


def shared_concentration(embeddings: Float[Tensor, "n d"], target: Int[Tensor, " n"]) -> float:
    """Estimate how tightly classes gather: one von Mises-Fisher concentration for all.

        r^2   = mean of <z_i, z_l> over all pairs of different embeddings of one class
        kappa = r (d - r^2) / (1 - r^2)

    The pairs make r^2 unbiased however few embeddings a class has; the length of a mean is not. One
    concentration, because that of a single class would need many embeddings of it.

    Args:
        embeddings: Unit vectors.
        target: Class of each, not negative.

    Returns:
        The concentration; 0 where embeddings of one class are no nearer than chance.

    Raises:
        ValueError: No embeddings, or one that is not a unit vector; one dimension; no class with
            two embeddings; embeddings that are the same within each class.

    References:
        Banerjee et al., "Clustering on the Unit Hypersphere using von Mises-Fisher Distributions",
        2005, equation 4.4 (kappa of r).

    Notes:
        There r is the length of the mean.
    """
    z = unit_rows(embeddings, of="embeddings")
    d = z.shape[1]
    if d < 2:
        raise ValueError("the embeddings have one dimension; a concentration needs two")
    expect_shape("target", target, z.shape[:1])
    check_target(target, int(target.max()) + 1, z.shape[:1], of="classes")
    members = torch.bincount(target.long()).double()
    sums = z.new_zeros(len(members), d).index_add_(0, target.long(), z)
    pairs = float((members * (members - 1)).sum())
    if not pairs:
        raise ValueError(f"each of {len(z)} classes has one embedding; one of them needs two")
    square = float((sums.square().sum(1) - members).sum()) / pairs
    if square <= 0:
        return 0.0
    if 1 - square <= _COLLAPSED:
        raise ValueError(
            "the embeddings of each class are the same; their concentration is infinite; "
            "use the largest cosine"
        )
    return math.sqrt(square) * (d - square) / (1 - square)


def neighbour_cosine(
    embeddings: Float[Tensor, "n d"], training: Float[Tensor, "m d"], *, neighbours: int
) -> Float[Tensor, " n"]:
    """Return the cosine with the nearest training embeddings, the last of so many.

    A score of being known that assumes no shape of the classes. It compares with every training
    embedding.

    Args:
        embeddings: Unit vectors.
        training: Unit vectors of samples of known classes.
        neighbours: Which one counts; 1 is the nearest.

    Returns:
        In float64.

    Raises:
        ValueError: No embeddings on either side, or one that is not a unit vector; fewer neighbours
            than 1, or more than there are.

    References:
        Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022,
        arXiv:2204.06507.
    """
    z, known = unit_rows(embeddings, of="embeddings"), unit_rows(training, of="training embeddings")
    if not 1 <= neighbours <= len(known):
        raise ValueError(f"neighbours is {neighbours}; it must lie in 1..{len(known)}")
    blocks = ((rows @ known.T).topk(neighbours, dim=1).values for rows in torch.split(z, _BLOCK))
    return torch.cat([block[:, -1] for block in blocks])

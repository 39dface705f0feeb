"""Losses by which one block learns from what it computes itself, without a gradient from above.

Letters: b batch, l length, m width of a block, k classes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from spherescan.losses.classes import cross_entropy
from spherescan.ops.argument import expect_shape
from spherescan.ops.mask import check_none_is_empty
from spherescan.ops.targets import check_target

# Both of the program whose form this is.
_STD_EPS = 1e-5
_NORM_EPS = 1e-5


def local_cross_entropy(
    logits: Float[Tensor, "*batch k"], target: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Take the cross-entropy of a linear read-out of the block.

        -log softmax(logits)_target

    Args:
        logits: One per class, a learned projection of the block.
        target: Class.

    Raises:
        TypeError: Targets that are no integers.
        ValueError: A target outside the classes, or not one per sample.

    References:
        Gong, Li, Abdulla, "Mono-Forward: Backpropagation-Free Algorithm for Efficient Neural
        Network Training Harnessing Local Errors", 2025, arXiv:2501.09238, equation 3. There the
        projection is of the flattened activations; here it follows a norm and a pooling.
    """
    check_target(target, logits.shape[-1], logits.shape[:-1], of="logits")
    return cross_entropy(logits, target)


def goodness(
    y: Float[Tensor, "b l m"], mask: Bool[Tensor, "b l"] | None = None
) -> Float[Tensor, " b"]:
    """Return how active a block is on each sequence: the sum of squares, averaged over positions.

        G = mean_t sum_j y_tj^2

    Args:
        y: What the block adds to the residual stream. Its input is normalised to length
            sqrt(m), so the goodness of the block below cannot simply be passed on.
        mask: True on real positions; all of them when missing.

    Raises:
        ValueError: A mask of another shape. A sequence without a real position; unchecked while
            torch compiles, traces or transforms.

    References:
        Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", 2022,
        arXiv:2212.13345, section 2.
    """
    if mask is None and y.shape[1] > 0:
        return y.square().sum(-1).mean(1)
    if mask is None:
        mask = y.new_ones(y.shape[:2], dtype=torch.bool)
    expect_shape("mask", mask, y.shape[:2])
    check_none_is_empty(mask)
    return torch.where(mask[:, :, None], y, 0).square().sum(-1).sum(1) / mask.sum(1)


def goodness_loss(
    positive: Float[Tensor, " b"], negative: Float[Tensor, " b"], *, threshold: float
) -> Float[Tensor, " b"]:
    """Ask for a goodness above a threshold on real data, and below it on negative data.

        log(1 + exp(threshold - G_pos)) + log(1 + exp(G_neg - threshold))

    Args:
        positive: Goodness of each real sequence.
        negative: Goodness of its negative.
        threshold: Where the probability of being real is one half.

    Raises:
        ValueError: Not one negative for each positive.

    References:
        Hinton, 2022, arXiv:2212.13345, equation 1.
    """
    expect_shape("negative", negative, positive.shape)
    return functional.softplus(threshold - positive) + functional.softplus(negative - threshold)


def symmetric_goodness_loss(
    positive: Float[Tensor, " b"], negative: Float[Tensor, " b"], *, alpha: float
) -> Float[Tensor, " b"]:
    """Ask for more goodness on a real sequence than on its negative, wherever both are.

        log(1 + exp(-alpha (G_pos - G_neg)))

    Args:
        positive: Goodness of each real sequence.
        negative: Goodness of its negative.
        alpha: How sharply the difference is judged.

    Raises:
        ValueError: Not one negative for each positive.

    References:
        Lee and Song, "SymBa: Symmetric Backpropagation-Free Contrastive Learning with
        Forward-Forward Algorithm for Optimizing Convergence", 2023, arXiv:2303.08418, equation 4.
    """
    expect_shape("negative", negative, positive.shape)
    return functional.softplus(-alpha * (positive - negative))


def rust_trainer_loss(
    positive: Float[Tensor, " m"], negative: Float[Tensor, " m"], theta: Float[Tensor, " m"]
) -> Float[Tensor, ""]:
    """Return the Forward-Forward loss of rust_trainer 0.1.4, whose parameter is the skip vector D.

        g(h) = sum_i h_i / (std(h) + 1e-5) * theta_i / (|theta| + 1e-5)
        loss = max(0, 1 - (g(positive) - g(negative)))

    Args:
        positive: Mean over batch and time of what enters the block.
        negative: The same of its negative, see `data.negatives`.
        theta: The vector D of the block, as wide as the block.

    Notes:
        As in that program the gradient treats |theta| as a constant. What enters the block is the
        same whatever its other weights are, so D is all that learns; std is the population's.
    """
    length = torch.linalg.vector_norm(theta.detach()) + _NORM_EPS

    def score(h: Tensor) -> Tensor:
        return torch.dot(h / (h.std(correction=0) + _STD_EPS), theta / length)

    difference = score(positive.detach()) - score(negative.detach())
    return torch.relu(1 - difference)

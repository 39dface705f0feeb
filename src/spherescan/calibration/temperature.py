"""How sure a cosine is: the scale of a softmax, fitted on held-out data.

Letters: n samples, k classes.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherescan.calibration.checks import check_positive, checked
from spherescan.ops.targets import check_target

# A lead of 0.01 in cosine is then odds of e^10, 22 000 to 1: no held-out set of a size that people
# have can tell a larger scale from this one.
LARGEST_SCALE = 1000.0

_MOST_STEPS = 1000  # ten are usual, a hundred where almost all samples are certain
_ARMIJO = 1e-4  # share of the predicted decrease, the textbook value
# Newton's method doubles the digits: one step after a predicted decrease this small, what is left
# is below the rounding of the loss.
_LAST_STEP = 1e-12
_FLAT = 1e-12  # eigenvalues of the Hessian below this share of the largest are rounding


def probabilities(
    cosines: Float[Tensor, "n k"], scale: float, bias: Float[Tensor, " k"] | None = None
) -> Float[Tensor, "n k"]:
    """Turn cosines into probabilities of the classes.

        softmax_j(scale cos_j + bias_j)

    Args:
        cosines: With each prototype.
        scale: Inverse temperature, see `fit_scale`; 0 makes all classes equally likely.
        bias: Of each class, see `fit_scale_and_bias`; none when missing.

    Returns:
        In float64 whatever the input: 1 - 1e-9 is not a number in float32.

    Raises:
        ValueError: No cosines, a value that is not finite, or a negative scale.

    Example:
        >>> probabilities(torch.tensor([[0.5, 0.5]]), 12.0).tolist()
        [[0.5, 0.5]]
    """
    if not (scale >= 0 and math.isfinite(scale)):
        raise ValueError(f"the scale is {scale}; it must be finite and not negative")
    logits = scale * checked(cosines, (None, None), of="cosines")
    if bias is not None:
        logits = logits + checked(bias, logits.shape[1:], of="biases")
    return torch.softmax(logits, dim=1)


def laplace_smoothing(n: int, n_classes: int) -> float:
    """Return the smoothing for n samples by which none is ever certain.

    Laplace's rule of right and wrong: after n right answers the next is wrong once in n + 2.
    """
    return n_classes / (max(1, n_classes - 1) * (n + 2))


def fit_scale(
    cosines: Float[Tensor, "n k"],
    target: Int[Tensor, " n"],
    *,
    smoothing: float = 0.0,
    largest: float = LARGEST_SCALE,
) -> float:
    """Find the scale of cosines whose softmax predicts held-out classes best.

        argmin_s  1/n sum_i -<q_i, log softmax(s cos_i)>  over  0 <= s <= largest,
        q_i = (1 - smoothing) [j = target_i] + smoothing / k

    The loss is convex in s, so its slope has one sign change at most, which bisection finds to the
    last bit. No bias: the order of the classes, and with it every decision, stays.

    Args:
        cosines: Of samples that nothing was fitted to.
        target: Their classes.
        smoothing: Share of the probability spread over all classes. With it the optimum is finite
            even if every sample is right. With k / ((k - 1) (n + 2)) the next one is then right
            with probability (n + 1) / (n + 2): Laplace's rule of succession for right and wrong,
            and for two classes Platt's choice.
        largest: The answer where a larger scale is always better: without smoothing, if in every
            sample no class has a larger cosine than the true one.

    Returns:
        The scale; the smallest where several do equally well. It is 0 where cosines say nothing:
        one class, equal cosines, or true classes with no larger cosine than the average class.

    Raises:
        ValueError: No samples, a value that is not finite, a target outside the classes, a
            smoothing outside 0..1, or a bound that is not positive.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599, section 4.2
        (temperature scaling); Platt, "Probabilistic Outputs for Support Vector Machines", 1999
        (targets that are not 0 and 1).

    Example:
        >>> cosines = torch.tensor([[0.6, 0.4], [0.7, 0.5], [0.5, 0.3], [0.6, 0.8]])
        >>> scale = fit_scale(cosines, torch.tensor([0, 0, 0, 0]))     # three of four are right
        >>> round(probabilities(cosines[:1], scale)[0, 0].item(), 6)   # each leads by 0.2
        0.75
    """
    check_positive(largest, of="the largest scale")
    lead = _lead(cosines, target)
    wanted = _smoothed(smoothing) * lead.mean(1)

    def slope(scale: float) -> float:
        expected = (torch.softmax(scale * lead, dim=1) * lead).sum(1)
        return float((expected - wanted).mean())

    if slope(0.0) >= 0:
        return 0.0
    if slope(largest) <= 0:
        return largest
    low, high = 0.0, largest
    while low < (middle := (low + high) / 2) < high:
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return high


class ScaleAndBias(NamedTuple):
    """Hold what `probabilities` needs besides cosines."""

    scale: float
    bias: Float[Tensor, " k"]  # in float64, of mean zero


def fit_scale_and_bias(
    cosines: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, smoothing: float
) -> ScaleAndBias:
    """Find the scale of cosines, and a bias for each class, that predict held-out classes best.

        argmin_{s >= 0, b}  1/n sum_i -<q_i, log softmax(s cos_i + b)>,  q as in `fit_scale`

    For held-out data whose classes are as frequent as those to come. Unlike a scale alone, it
    changes decisions. Damped Newton steps on the k + 1 numbers; the loss is convex.

    Args:
        cosines: Of samples that nothing was fitted to.
        target: Their classes; some may be missing.
        smoothing: As of `fit_scale`, above 0 here: it is what keeps the bias of a class without
            samples finite.

    Raises:
        ValueError: No samples, a value that is not finite, a target outside the classes, or a
            smoothing outside 0..1 or at an end.

    References:
        Alexandari, Kundaje, Shrikumar, "Maximum Likelihood with Bias-Corrected Calibration is
        Hard-To-Beat at Label Shift Adaptation", 2020, arXiv:1901.06852 (BCTS).

    Notes:
        Where cosines separate the classes and the smoothing is below 0.001, the optimum lies at
        scales no data can tell apart, and the loss towards it is flat: the steps end where its
        slope is less than the smoothing, not at the last bit.
    """
    lead = _lead(cosines, target)
    if not _smoothed(smoothing) > 0:
        raise ValueError("the smoothing is 0; a bias needs some, see fit_scale")
    n, k = lead.shape
    wanted = torch.full_like(lead, smoothing / k)
    wanted[torch.arange(n), target.long()] += 1 - smoothing
    found = _newton(lead, wanted)
    if found[0] < 0:
        # The loss is convex, so the best scale that is allowed is 0, and its bias is known.
        found = torch.cat((found.new_zeros(1), wanted.mean(0).log()))
    return ScaleAndBias(float(found[0]), found[1:] - found[1:].mean())


def _lead(cosines: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """Return by how much each class leads the true one.

    A softmax does not see what all classes have in common, and where no class leads, the slope of
    the loss is then negative also after rounding.
    """
    cosines = checked(cosines, (None, None), of="cosines")
    check_target(target, cosines.shape[1], cosines.shape[:1], of="classes")
    return cosines - cosines[torch.arange(len(cosines)), target.long(), None]


def _smoothed(smoothing: float) -> float:
    if not 0 <= smoothing < 1:
        raise ValueError(f"the smoothing is {smoothing}; it must lie in 0..1, 1 excluded")
    return smoothing


def _newton(
    lead: Float[Tensor, "n k"], wanted: Float[Tensor, "n k"]
) -> Float[Tensor, " parameters"]:
    """Minimise over the scale and the biases, in this order."""
    n, k = lead.shape

    def log_softmax(x: Tensor) -> Tensor:
        return torch.log_softmax(x[0] * lead + x[1:], dim=1)

    def loss(x: Tensor) -> float:
        return float(-(wanted * log_softmax(x)).sum() / n)

    def newton_step(x: Tensor) -> tuple[Tensor, float]:
        p = log_softmax(x).exp()
        # Logit j has the gradient (lead_j, e_j) in the scale and the biases.
        excess = p - wanted
        gradient = torch.cat(((excess * lead).sum().view(1), excess.sum(0))) / n
        mean = (p * lead).sum(1, keepdim=True)
        hessian = lead.new_zeros(k + 1, k + 1)
        hessian[0, 0] = (p * (lead - mean).square()).sum()
        hessian[0, 1:] = hessian[1:, 0] = (p * (lead - mean)).sum(0)
        hessian[1:, 1:] = torch.diag(p.sum(0)) - p.T @ p
        # Flat along a bias of all classes alike, among others: the shortest step leaves it alone.
        step = torch.linalg.pinv(hessian / n, rtol=_FLAT, hermitian=True) @ gradient
        return step, float(gradient @ step)

    x = lead.new_zeros(k + 1)
    step, decrease = newton_step(x)
    taken = 0
    while decrease > _LAST_STEP and taken < _MOST_STEPS:
        here, share = loss(x), 1.0
        while loss(x - share * step) > here - _ARMIJO * share * decrease:
            share /= 2
        x, taken = x - share * step, taken + 1
        step, decrease = newton_step(x)
    best: Tensor = x - step
    return best

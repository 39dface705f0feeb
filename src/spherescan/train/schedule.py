"""The learning rate: a pure function of the step."""

import math


def learning_rate(
    step: int, *, lr: float, warmup_steps: int, total_steps: int, min_scale: float
) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine down to a floor.

        lr max(min_scale, (step + 1) / warmup_steps)                        in the warm-up
        lr (min_scale + (1 - min_scale) (1 + cos(pi progress)) / 2)         after it

    Progress runs from 0 at the end of the warm-up to 1 at the last step.

    Args:
        step: Updates done so far.
        lr: Peak.
        warmup_steps: Length of the warm-up; 0 for none.
        total_steps: Length of the run.
        min_scale: Floor as a part of the peak.

    Example:
        >>> [learning_rate(s, lr=1, warmup_steps=2, total_steps=5, min_scale=0) for s in range(5)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return lr * max(min_scale, (step + 1) / warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return lr * (min_scale + (1 - min_scale) * (1 + math.cos(math.pi * progress)) / 2)

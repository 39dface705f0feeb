"""In which order an objective meets the others.

Letters: t objectives.
"""

import torch


def others(i: int, t: int, generator: torch.Generator | None) -> list[int]:
    """List the other objectives: at random, or i + 1, i + 2, ... in a circle without a generator.

    Example:
        >>> others(1, 4, None)
        [2, 3, 0]
    """
    if generator is None:
        return [(i + step) % t for step in range(1, t)]
    return [j for j in torch.randperm(t, generator=generator).tolist() if j != i]

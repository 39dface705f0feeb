"""Dropout as a pure function: a seed and the number of a block say which elements are dropped.

No generator runs along, so there is no state to save, and the same elements are dropped whenever
and in whatever order blocks are computed.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor


def dropped(
    x: Float[Tensor, "*batch"], *, p: float, seed: int, block: int
) -> Float[Tensor, "*batch"]:
    """Set elements to zero at random, and scale the others so that the mean stays.

        y = x / (1 - p) [u >= p],  u ~ U(0, 1)

    Args:
        x: What a block adds to the residual stream.
        p: Probability of a zero, 0 <= p < 1.
        seed: At least 0; another one for every step.
        block: Number of the block.

    References:
        Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout: A Simple Way to Prevent
        Neural Networks from Overfitting", 2014; scaled in training, as in section 10.

    Example:
        >>> dropped(torch.ones(6), p=0.5, seed=1, block=0).unique().tolist()
        [0.0, 2.0]
    """
    # Hashed together: neighbouring seeds and blocks have unrelated masks.
    mixed = np.random.SeedSequence((seed, block)).generate_state(1)[0]
    generator = Generator().manual_seed(int(mixed))
    kept = (torch.rand(x.shape, generator=generator) >= p).to(x.device)
    return x / (1 - p) * kept

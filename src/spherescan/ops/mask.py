"""What poolings and losses both refuse of masks.

Letters: b batch, l length.
"""

import torch
from jaxtyping import Bool
from torch import Tensor


def check_none_is_empty(mask: Bool[Tensor, "b l"]) -> None:
    """Refuse a sequence without a real position.

    Nothing may depend on values while torch compiles, traces or transforms: an empty sequence then
    gives what it gives.

    Raises:
        ValueError: A sequence without a real position.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    if mask.is_meta or torch._C._len_torch_dispatch_stack():
        return
    real = mask.any(1)
    if not bool(real.all()):
        empty = real.logical_not().nonzero().flatten().tolist()
        raise ValueError(
            f"{len(empty)} of {len(mask)} sequences have no real position, the first is row "
            f"{empty[0]}; leave them out, or keep at least one position of each"
        )

"""How networks learned: a curve of each, as a page shows it and a file holds it.

Letters: p points, h what was found on series that were held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# What a file holds of each.
_TYPES = {"steps": torch.int64, "losses": torch.float64, "held_out": torch.float64}
# What it may hold; a curve has about a hundred.
_MOST_POINTS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """How one network learned.

    Attributes:
        steps: After which its loss was looked at.
        losses: Mean over the steps since the last look.
        held_out: Loss and accuracy of the weights that were kept, on the series that early stopping
            looked at; nothing where there were none.
    """

    steps: Int[Tensor, " p"]
    losses: Float[Tensor, " p"]
    held_out: Float[Tensor, " h"]

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and losses as plain numbers."""
        return list(zip(self.steps.tolist(), self.losses.tolist(), strict=True))

    @property
    def in_the_end(self) -> tuple[float, float] | None:
        """Loss and accuracy on series that were held out, where there were any."""
        found: list[float] = self.held_out.tolist()
        return (found[0], found[1]) if found else None


def state_of_curves(curves: Sequence[Curve]) -> dict[str, Tensor]:
    """Return curves as tensors by name."""
    return {
        f"{index}.{name}": getattr(curve, name)
        for index, curve in enumerate(curves)
        for name in _TYPES
    }


def curves_of_state(state: Mapping[str, Tensor]) -> tuple[Curve, ...]:
    """Invert `state_of_curves`, of tensors that may come from anyone.

    Raises:
        ValueError: Tensors that make no curves.
    """
    n = len(state) // len(_TYPES)
    if state.keys() != {f"{index}.{name}" for index in range(n) for name in _TYPES}:
        raise ValueError("a part of a learning curve is missing, or one too many")
    return tuple(
        _sound(index, {name: state[f"{index}.{name}"] for name in _TYPES}) for index in range(n)
    )


def _sound(index: int, parts: Mapping[str, Tensor]) -> Curve:
    """Make a curve.

    Raises:
        ValueError: A tensor of another shape or type, or a value that cannot be.
    """
    for name, dtype in _TYPES.items():
        tensor = parts[name]
        if tensor.dtype != dtype or tensor.ndim != 1 or len(tensor) > _MOST_POINTS:
            raise ValueError(
                f"{name} of learning curve {index} is {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} of learning curve {index} holds a value that is not finite")
    steps, held_out = parts["steps"], parts["held_out"]
    rising = bool((steps.diff(prepend=steps.new_zeros(1)) > 0).all())
    share = all(0 <= accuracy <= 1 for accuracy in held_out[1:].tolist())
    if len(steps) != len(parts["losses"]) or len(held_out) not in {0, 2} or not (rising and share):
        raise ValueError(f"learning curve {index} is none: its parts do not fit each other")
    return Curve(**parts)

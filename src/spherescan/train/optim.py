"""AdamW with the decay where it belongs, and its state under the names of the parameters."""

import inspect
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

_MOMENTS = ("exp_avg", "exp_avg_sq")


class _AdamW(AdamW):
    """AdamW without torch's compiler, whose import takes a third of the time of a short run.

    torch wraps these methods to keep the compiler out of them, and imports it for that.
    """

    add_param_group = inspect.unwrap(AdamW.add_param_group)
    zero_grad = inspect.unwrap(AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(AdamW.step))


def decays(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is decayed.

    Matrices are. A_log is not (decay would pull every rate to -1), nor D and step-size biases
    (they set what the recurrence and the skip do when there is nothing to learn), nor norms,
    biases and prototypes, whose length means nothing.

    Example:
        >>> import torch
        >>> weight = torch.zeros(2, 2)
        >>> decays("layers.0.mixer.in_proj.weight", weight), decays("layers.0.mixer.A_log", weight)
        (True, False)
    """
    return parameter.ndim > 1 and not name.endswith("A_log") and not name.startswith("head.")


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    decay_all: bool = False,
) -> AdamW:
    """Return AdamW over the trainable parameters, split into decayed and not decayed.

    Args:
        parameters: With their names.
        lr: Learning rate.
        betas: Decay of both moments.
        weight_decay: Of those that are decayed.
        decay_all: Whether all of them are, see `decays`.
    """
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in trainable if (decay_all or decays(name, p)) is decayed],
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return _AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, fused=True)


def optimizer_tensors(
    optimizer: AdamW, parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """Return both moments and the step count of every trainable parameter.

    Before the first update they are zero.
    """
    tensors = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            state = optimizer.state.get(parameter, {})
            for moment in _MOMENTS:
                moments = state[moment] if moment in state else torch.zeros_like(parameter)
                tensors[f"{moment}/{name}"] = moments
            tensors[f"step/{name}"] = state.get("step", torch.zeros(()))
    return tensors


def keep_state(new: AdamW, old: AdamW) -> None:
    """Take over the state of the parameters that both optimisers train."""
    for group in new.param_groups:
        for parameter in group["params"]:
            if parameter in old.state:
                new.state[parameter] = old.state[parameter]


def set_step_count(optimizer: AdamW, parameters: Iterable[Tensor], step: int) -> None:
    """Set how many updates the bias correction believes these parameters have had."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state |= {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
        state["step"] = torch.tensor(float(step))


def load_optimizer(
    optimizer: AdamW,
    parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` returned."""
    for name, parameter in parameters:
        if parameter.requires_grad:
            keys = (*_MOMENTS, "step")
            optimizer.state[parameter] = {key: tensors[f"{key}/{name}"].clone() for key in keys}

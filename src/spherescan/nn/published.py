"""Weights under the names of the published Mamba-1 checkpoints."""

from collections.abc import Mapping

from torch import Tensor

from spherescan.nn.model import SequenceModel

_BACKBONE = "backbone."
# Transformers calls the embedding of the same checkpoints by its plural.
_RENAMED = {"embeddings.weight": "embedding.weight"}
# Ours alone: points on a sphere have no counterpart in an unnormalised output matrix.
_OWN = ("projection.", "head.", "local_heads.")


def load_published(model: SequenceModel, state: Mapping[str, Tensor]) -> list[str]:
    """Load the backbone of a published Mamba-1 checkpoint, original or `-hf` layout.

    Embedding, blocks and final norm are replaced; the projection and the prototypes stay.

    Args:
        model: A token model of the same sizes.
        state: Tensors under their published names.

    Returns:
        The names that have no place here (`lm_head.weight`).

    Raises:
        ValueError: A backbone tensor that is missing, unknown or of another shape; the model is
            then unchanged.
    """
    ours = {name: value for name, value in model.state_dict().items() if not name.startswith(_OWN)}
    given = {}
    unused = []
    for name, value in state.items():
        if name.startswith(_BACKBONE):
            short = name.removeprefix(_BACKBONE)
            given[_RENAMED.get(short, short)] = value
        else:
            unused.append(name)
    problems = [f"{name} is missing" for name in sorted(ours.keys() - given.keys())]
    problems += [f"{name} is unknown" for name in sorted(given.keys() - ours.keys())]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, the model {tuple(ours[name].shape)}"
        for name in sorted(ours.keys() & given.keys())
        if given[name].shape != ours[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"the checkpoint does not fit the model: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(given, strict=False)
    return unused

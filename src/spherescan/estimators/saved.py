"""What a saved estimator holds beside its tensors."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherescan.strict_json import typed

# Whole numbers, floats, bools, texts of fixed length, and objects that are texts.
_LABEL_TYPE = re.compile(r"[<>|=][biufU][0-9]{1,9}|\|O")


@dataclass(frozen=True, slots=True)
class Saved:
    """Settings and labels of an estimator, as plain values.

    Raises:
        ValueError: Labels of a type that JSON has no value for.
    """

    n_features: int
    random_state: int | None
    length: int
    n_features_in: int | None
    feature_names: tuple[str, ...]
    label_type: str
    labels: tuple[bool | int | float | str, ...]
    scale: float

    def __post_init__(self) -> None:
        if not _LABEL_TYPE.fullmatch(self.label_type) or (
            self.label_type == "|O" and not all(isinstance(label, str) for label in self.labels)
        ):
            raise ValueError(
                f"labels of type {self.label_type} cannot be saved; use texts or numbers"
            )
        longest = max((len(label) for label in self.labels if isinstance(label, str)), default=0)
        if self.label_type[1] == "U" and int(self.label_type[2:]) > max(1, longest):
            raise ValueError(f"labels of type {self.label_type} are at most {longest} long")

    def state(self, estimator: str) -> dict[str, Any]:
        """Return it as JSON has it, with the name of the estimator."""
        values = asdict(self)
        lists = {name: list(values[name]) for name in ("feature_names", "labels")}
        return {"estimator": estimator, **values, **lists}

    @classmethod
    def of(cls, state: Mapping[str, Any], estimator: str) -> "Saved":
        """Read what `state` returned.

        Raises:
            ValueError: It is of another estimator, or something is missing or of another type.
        """
        values = dict(state)
        found = values.pop("estimator", None)
        if found != estimator:
            raise ValueError(f"it is of {found!r}" if found else "it is of no estimator")
        return typed(cls, values, where="the state")

    def classes(self) -> NDArray[Any]:
        """Return the labels as they were given to `fit`.

        Raises:
            ValueError: They are not of the type that the file says.
        """
        try:
            labels = np.array(self.labels, dtype=self.label_type)
            distinct = len(np.unique(labels)) == len(labels) >= 2
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"labels are not of type {self.label_type}: {error}") from error
        if not distinct:
            raise ValueError("labels are not two or more different ones")
        return labels


def label_type(classes: NDArray[Any]) -> str:
    """Return the type of labels as numpy writes it; of texts, as long as the longest."""
    texts = classes.dtype.kind == "U"
    return (np.array(classes.tolist()) if texts else classes).dtype.str


def seed_of(random_state: object) -> int | None:
    """Return a seed as a plain number; None for what is no seed."""
    return int(random_state) if isinstance(random_state, int | np.integer) else None

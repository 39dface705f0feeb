"""What is to be predicted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from spherescan.strict_json import typed

Kind = Literal["classification", "regression", "next_token"]


@dataclass(frozen=True, slots=True)
class Task:
    """The kind of prediction and what its numbers stand for.

    Attributes:
        kind: A class of a sequence, a number of a sequence, or the next token at each position.
        class_names: Of a classification: the name of each class.
        lower: Of a regression: the value of the lower pole.
        upper: Of a regression: the value of the upper pole.
        channel_names: Of series: the name of each channel, when the training data has names.
    """

    kind: Kind
    class_names: tuple[str, ...] = ()
    lower: float = 0.0
    upper: float = 0.0
    channel_names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the values under their names."""
        return {
            **asdict(self),
            "class_names": list(self.class_names),
            "channel_names": list(self.channel_names),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Task":
        """Invert `to_json`.

        Raises:
            ValueError: A field is missing, unknown or of another type.
        """
        return typed(cls, dict(values), where="the task")

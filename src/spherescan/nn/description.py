"""Everything needed to build a model again, as plain values that a checkpoint can hold."""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from torch import Generator

from spherescan.nn.mamba import Mamba
from spherescan.nn.model import SequenceModel
from spherescan.nn.prototypes import PrototypeHead

MIXERS: dict[str, type[Mamba]] = {"mamba": Mamba}

_TUPLES = ("pooling", "local_heads")


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The arguments of a `SequenceModel` and its head; see there for their meaning."""

    vocab_size: int | None
    n_channels: int | None
    d_model: int
    n_layers: int
    mixer: str
    d_state: int
    d_conv: int
    expand: int
    dt_rank: int | None
    gate: bool
    bidirectional: bool
    pooling: tuple[str, ...]
    n_pool_heads: int
    n_prototypes: int
    prototype_dim: int
    prototype_init: str
    learnable_prototypes: bool
    local_heads: tuple[int, ...] = ()
    n_local_outputs: int | None = None
    averaged: bool = False
    form: str = "standard"
    dropout: float = 0.0

    def build(self, *, generator: Generator | None = None, place: bool = True) -> SequenceModel:
        """Make the model with fresh weights.

        Args:
            generator: Source of the weights and of random prototypes. Separated prototypes are
                placed the same way whatever it is.
            place: Whether to separate the prototypes as described; when saved ones are about to
                be loaded, random ones save the time.

        Raises:
            ValueError: An unknown mixer, or sizes that do not go together.
        """
        if self.mixer not in MIXERS:
            raise ValueError(f"unknown mixer {self.mixer!r}; choose from {', '.join(MIXERS)}")
        init = self.prototype_init if place else "random"
        head = PrototypeHead(
            self.n_prototypes,
            self.prototype_dim,
            init=init,
            learnable=self.learnable_prototypes,
            generator=None if init == "separated" else generator,
        )
        return SequenceModel(
            head=head,
            vocab_size=self.vocab_size,
            n_channels=self.n_channels,
            d_model=self.d_model,
            n_layers=self.n_layers,
            mixer=functools.partial(
                MIXERS[self.mixer],
                d_state=self.d_state,
                d_conv=self.d_conv,
                expand=self.expand,
                dt_rank=self.dt_rank,
                gate=self.gate,
            ),
            bidirectional=self.bidirectional,
            pooling=self.pooling,
            n_pool_heads=self.n_pool_heads,
            local_heads=self.local_heads,
            n_local_outputs=self.n_local_outputs,
            averaged=self.averaged,
            dropout=self.dropout,
            form=self.form,
            generator=generator,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the values under their names."""
        lists = {name: list(getattr(self, name)) for name in _TUPLES}
        return {**asdict(self), **lists}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelDescription":
        """Invert `to_json`.

        A field that has a default may be missing: the description is then older than the field.

        Raises:
            ValueError: A name that is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        wrong = (values.keys() - names) | (needed - values.keys())
        if wrong:
            raise ValueError(f"a model description has other fields: {sorted(wrong)}")
        lists = {name: tuple(values[name]) for name in _TUPLES if name in values}
        return cls(**{**values, **lists})

"""Everything needed to build a model again, as plain values that a checkpoint can hold."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Generator

from spherescan.allocator import memory_bytes
from spherescan.nn.front_end import WIDTHS
from spherescan.nn.mamba import Mamba
from spherescan.nn.model import SequenceModel
from spherescan.nn.prototypes import PrototypeHead
from spherescan.strict_json import typed

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
    n_convolutions: int = 0
    selective: bool = True

    def build(self, *, generator: Generator | None = None, place: bool = True) -> SequenceModel:
        """Make the model with fresh weights.

        Args:
            generator: Source of the weights and of random prototypes. Separated prototypes are
                placed the same way whatever it is.
            place: Whether to separate the prototypes as described; when saved ones are about to
                be loaded, random ones save the time.

        Raises:
            ValueError: An unknown mixer, sizes that do not go together, or a model that takes
                more than half of the machine's memory.
        """
        if self.d_model < 1:
            raise ValueError(f"d_model is {self.d_model}; it must be at least 1")
        # A description may come from a stranger's file, and torch would take what the system gives.
        if 4 * self.n_weights() > memory_bytes() // 2:
            raise ValueError(
                f"its {self.n_weights():.2g} weights take more than half of this machine's memory"
            )
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
                selective=self.selective,
            ),
            bidirectional=self.bidirectional,
            pooling=self.pooling,
            n_pool_heads=self.n_pool_heads,
            local_heads=self.local_heads,
            n_local_outputs=self.n_local_outputs,
            averaged=self.averaged,
            dropout=self.dropout,
            form=self.form,
            n_convolutions=self.n_convolutions,
            generator=generator,
        )

    def n_weights(self) -> int:
        """Return about how many weights the large matrices have together."""
        inner = self.expand * self.d_model
        dt_rank = self.dt_rank or -(-self.d_model // 16)
        scan = inner * (3 * self.d_state + 2 * dt_rank + self.d_conv)
        mixer = (2 + self.gate) * inner * self.d_model + scan
        n_queries = self.n_pool_heads if "attention" in self.pooling else 0
        pooled = self.d_model * max(1, len(set(self.pooling) - {"attention"}) + n_queries)
        rows = self.prototype_dim * pooled + n_queries * self.d_model
        head = rows + self.prototype_dim * self.n_prototypes
        local = rows + self.prototype_dim * (self.n_local_outputs or 0)
        return (
            (self.vocab_size or self.n_channels or 0) * self.d_model
            + self.n_layers * (1 + self.bidirectional) * mixer
            + head
            + len(self.local_heads) * local
            + self.n_convolutions * self.d_model * (2 * self.d_model + 16 * sum(WIDTHS))
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
            ValueError: A field is missing, unknown or of another type.
        """
        return typed(cls, dict(values), where="the description of the model")

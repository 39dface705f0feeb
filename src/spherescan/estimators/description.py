"""What a series is to a ridge: fixed features, what networks say of it, or both.

A sequence of tokens is a series too: where there is a vocabulary, fixed features are n-grams.

Letters: n and m series, l length, c channels, f features, d prototype dimension.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from spherescan.estimators.networks import NetworkPlan, Networks, NetworkSettings
from spherescan.features import (
    LEAST_DEVIATION,
    N_STATISTICS,
    FixedFeatures,
    NGrams,
    channel_statistics,
    ridge,
)

# How much more than each group of fixed features what networks say may weigh.
_WEIGHTS = (0.0, 1.0, 3.0)
# More series do not tell these weights apart any better, and each takes an eigendecomposition.
_ENOUGH = 2000


class SeriesFeatures(nn.Module):
    """Put fixed features and unit vectors of networks side by side.

    The unit vectors are standardised by those of the training series, each by a network that did
    not learn from it, and divided by the root of their number, as every group of fixed features is.

    Networks alone look at shapes, and a series that is far from all others can have the shape of
    one. So statistics of its channels follow: they are not for a ridge, but say how far it is.

    Args:
        fixed: None where networks alone describe.
        networks: None where fixed features alone describe.

    Raises:
        ValueError: Neither, or one of series and one of tokens.
    """

    def __init__(self, fixed: FixedFeatures | NGrams | None, networks: Networks | None) -> None:
        super().__init__()
        if fixed is None and networks is None:
            raise ValueError("a series needs fixed features or networks to describe it")
        self.fixed, self.networks = fixed, networks
        vocabularies = {each.vocab_size for each in (fixed, networks) if each is not None}
        if len(vocabularies) > 1:
            raise ValueError(f"fixed features and networks of other vocabularies: {vocabularies}")
        self.vocab_size = vocabularies.pop()
        dim = 0 if networks is None else networks.description.prototype_dim
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float64))
        self.mean: Tensor
        self.scale: Tensor
        aside = networks is not None and fixed is None and self.vocab_size is None
        self.n_statistics = N_STATISTICS * self.n_channels if aside else 0
        self.register_buffer("statistics_mean", torch.zeros(self.n_statistics, dtype=torch.float64))
        self.register_buffer("statistics_scale", torch.ones(self.n_statistics, dtype=torch.float64))
        self.statistics_mean: Tensor
        self.statistics_scale: Tensor

    @classmethod
    def fitted(
        cls,
        fixed: tuple[FixedFeatures | NGrams, Float[Tensor, "n f"]] | None,
        x: Float[Tensor, "n l c"] | Int[Tensor, "n l"],
        mask: Bool[Tensor, "n l"],
        target: Int[Tensor, " n"],
        prototypes: Float[Tensor, "k d"],
        points: Float[Tensor, "n e"],
        settings: NetworkSettings,
        *,
        vocab_size: int | None,
        generator: Generator,
    ) -> tuple["SeriesFeatures", Float[Tensor, "n g"]]:
        """Fit networks where they are asked for.

        Args:
            fixed: Fixed features, and what they say of the training series; none where networks
                alone describe.
            x: The series, or sequences of tokens.
            mask: True on real positions, which come first, at least one in each series.
            target: Classes that networks learn.
            prototypes: Of these.
            points: Where the training series should be.
            settings: How many networks, and how they are trained.
            vocab_size: Of sequences of tokens.
            generator: Source of networks.

        Returns:
            The features, and what they are of the training series.
        """
        if not settings.n_networks:
            assert fixed is not None
            return cls(fixed[0], None), fixed[1]
        networks, left_out = Networks.fitted(
            x, mask, target, prototypes, settings, vocab_size=vocab_size, generator=generator
        )
        if fixed is None:
            return cls.of_networks(networks, left_out, x, mask)
        return cls.joined(*fixed, networks, left_out, points, generator=generator)

    @classmethod
    def joined(
        cls,
        fixed: FixedFeatures | NGrams,
        rows: Float[Tensor, "n f"],
        networks: Networks,
        left_out: Float[Tensor, "n d"],
        points: Float[Tensor, "n e"],
        *,
        generator: Generator,
    ) -> tuple["SeriesFeatures", Float[Tensor, "n g"]]:
        """Weigh networks by how well a ridge on both predicts series that were left out.

        Args:
            fixed: Fixed features.
            rows: What they say of the training series.
            networks: Networks; they are dropped where fixed features do better alone.
            left_out: Unit vectors of the training series.
            points: Where the training series should be.
            generator: Picks some of many series.

        Returns:
            The features, and what they are of the training series.
        """
        made = cls(fixed, networks)
        made.mean.copy_(left_out.mean(0))
        unit = _unit_scale(left_out)
        some = torch.randperm(len(rows), generator=generator)[:_ENOUGH]
        errors = {}
        for weight in _WEIGHTS:
            made.scale.copy_(weight * unit)
            both = made._beside(rows[some], left_out[some]) if weight else rows[some]
            errors[weight] = float(
                (ridge(both, points[some]).left_out - points[some]).square().sum()
            )
        best = min(_WEIGHTS, key=errors.__getitem__)
        if best == 0:
            return cls(fixed, None), rows
        made.scale.copy_(best * unit)
        return made, made._beside(rows, left_out)

    @classmethod
    def of_networks(
        cls,
        networks: Networks,
        left_out: Float[Tensor, "n d"],
        x: Float[Tensor, "n l c"] | Int[Tensor, "n l"],
        mask: Bool[Tensor, "n l"],
    ) -> tuple["SeriesFeatures", Float[Tensor, "n g"]]:
        """Describe by networks alone, and by statistics; arguments and result as of `fitted`."""
        made = cls(None, networks)
        made.mean.copy_(left_out.mean(0))
        made.scale.copy_(_unit_scale(left_out))
        if not made.n_statistics:
            return made, made.of_unit_vectors(left_out)
        raw = made._statistics(x, mask)
        deviation = raw.std(0, correction=0)
        made.statistics_mean.copy_(raw.mean(0))
        made.statistics_scale.copy_(
            torch.where(deviation > LEAST_DEVIATION, 1 / (deviation * made.n_statistics**0.5), 0.0)
        )
        return made, made.of_stream(left_out, raw)

    @classmethod
    def of_state(
        cls,
        state: Mapping[str, Tensor],
        length: int,
        vocab_size: int | None,
        plan: NetworkPlan | None,
    ) -> "SeriesFeatures":
        """Make them again from their `state_dict`, which may come from anyone.

        Args:
            state: What was saved.
            length: As the fixed features were made with.
            vocab_size: Of sequences of tokens.
            plan: Sizes of the networks, where there are any.

        Raises:
            ValueError: Sizes that do not fit, or a value that cannot be.
            KeyError: A tensor is missing.
            RuntimeError: A tensor is missing, or has another shape than these sizes give it.
        """
        if plan is not None and plan.description.vocab_size != vocab_size:
            of_networks = plan.description.vocab_size
            raise ValueError(f"vocab_size is {vocab_size}, of the networks {of_networks}")
        below = {
            name: {
                key.removeprefix(f"{name}."): tensor
                for key, tensor in state.items()
                if key.startswith(f"{name}.")
            }
            for name in ("fixed", "networks")
        }
        fixed = None
        if below["fixed"]:
            fixed = fixed_of_state(below["fixed"], length, vocab_size)
        networks = None if plan is None else Networks.of_state(below["networks"], plan)
        made = cls(fixed, networks)
        made.load_state_dict(dict(state))
        for name in ("mean", "scale", "statistics_mean", "statistics_scale"):
            if not bool(getattr(made, name).isfinite().all()):
                raise ValueError(f"{name} holds a value that is not finite")
        if fixed and networks and fixed.n_channels != networks.n_channels:
            raise ValueError("fixed features and networks are of other channels")
        return made

    def expect_kind(self, *, causal: bool, selective: bool) -> None:
        """Check that the features are those of an estimator with these settings.

        Raises:
            ValueError: They are not.
        """
        networks = None if self.networks is None else self.networks.description
        reads_on = networks is not None and not networks.bidirectional
        if (self.fixed is None) != causal or (networks is not None and reads_on != causal):
            raise ValueError(f"causal is {causal}, and the features are of another estimator")
        if networks is not None and networks.selective != selective:
            raise ValueError(f"selective is {selective}, and the features are of another estimator")

    @property
    def n_features(self) -> int:
        """How many features a ridge has; statistics of channels may follow."""
        return len(self.mean) + (0 if self.fixed is None else self.fixed.n_features)

    @property
    def n_channels(self) -> int:
        """Channels of a series."""
        if self.fixed is not None:
            return self.fixed.n_channels
        assert self.networks is not None
        return self.networks.n_channels

    @property
    def length(self) -> int:
        """Length that the fixed features were made for; 1 without them."""
        return 1 if self.fixed is None else self.fixed.length

    @property
    def in_words(self) -> str:
        """What describes a series; networks that were dropped are not there."""
        parts = [] if self.fixed is None else ["n-grams" if self.vocab_size else "fixed features"]
        if self.networks is not None:
            parts.append(f"{self.networks.plan.n_networks} networks")
        return " and ".join(parts)

    def forward(
        self, x: Float[Tensor, "m l c"] | Int[Tensor, "m l"], mask: Bool[Tensor, "m l"]
    ) -> Float[Tensor, "m f"]:
        """Return the features of series, in float32.

        Args:
            x: Series, or sequences of tokens.
            mask: True on real positions, which come first, at least one in each series.
        """
        if self.networks is None:
            assert self.fixed is not None
            return self.fixed(x, mask)
        z = self.networks(x, mask)
        if self.fixed is not None:
            return self._beside(self.fixed(x, mask), z)
        return self.of_stream(z, self._statistics(x, mask) if self.n_statistics else None)

    def for_ridge(self, described: Float[Tensor, "m g"]) -> Float[Tensor, "m f"]:
        """Return the features that a ridge has, in float64."""
        return described[:, : self.n_features].double()

    def of_unit_vectors(self, z: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """Return what unit vectors of the networks are among the features."""
        return ((z - self.mean) * self.scale).float()

    def of_stream(
        self, z: Float[Tensor, "m d"], statistics: Float[Tensor, "m s"] | None
    ) -> Float[Tensor, "m f"]:
        """Return the features of series that networks alone describe.

        Args:
            z: Unit vectors of the networks.
            statistics: Of the channels, standardised by the networks; none of tokens.
        """
        own = self.of_unit_vectors(z)
        if statistics is None:
            return own
        far = (statistics - self.statistics_mean) * self.statistics_scale
        return torch.cat([own, far.float()], 1)

    def _statistics(self, x: Tensor, mask: Tensor) -> Float[Tensor, "m s"]:
        assert self.networks is not None
        return channel_statistics(self.networks.standardised(x), mask)

    def _beside(self, rows: Tensor, z: Tensor) -> Tensor:
        return torch.cat([rows, self.of_unit_vectors(z)], 1)


def fixed_of_state(
    state: Mapping[str, Tensor], length: int, vocab_size: int | None
) -> FixedFeatures | NGrams:
    """Make fixed features of series again, or of sequences over a vocabulary.

    Raises:
        ValueError: Sizes that do not fit each other, or a value that cannot be.
        KeyError: A tensor is missing.
        RuntimeError: There is one too many, or one has another shape.
    """
    if (vocab_size is None) == ("codes" in state):
        raise ValueError(f"vocab_size is {vocab_size}, and the fixed features are of another kind")
    if vocab_size is None:
        return FixedFeatures.of_state(state, length)
    return NGrams.of_state(state, vocab_size)


def _unit_scale(left_out: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    deviation = left_out.std(0, correction=0)
    dim = left_out.shape[1]
    return torch.where(deviation > 0, 1 / (deviation * dim**0.5), 0.0)

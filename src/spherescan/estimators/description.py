"""What a series is to a ridge: fixed features, what networks say of it, or both.

A sequence of tokens is a series too: where there is a vocabulary, fixed features are n-grams.

Letters: n and m series, l length, c channels, f features of a ridge, s statistics of channels,
g = f + s, d prototype dimension, k classes, e dimensions of a ridge's outputs.
"""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from spherescan.estimators.clock import Clock
from spherescan.estimators.curves import Curve
from spherescan.estimators.networks import Ask, Learned, NetworkPlan, Networks, NetworkSettings
from spherescan.features import (
    LEAST_DEVIATION,
    N_STATISTICS,
    FixedFeatures,
    NGrams,
    channel_statistics,
    ridge,
)
from spherescan.ops.threads import side_by_side

# How much more than each group of fixed features what networks say may weigh.
_WEIGHTS = (0.0, 1.0, 3.0)
# More series do not tell these weights apart any better, and each takes an eigendecomposition.
_ENOUGH = 2000
# Fewer do not tell before all networks are trained whether they are worth it.
_FEWEST_TO_DROP = 100


class SeriesFeatures(nn.Module):
    """Put fixed features and unit vectors of networks side by side.

    The unit vectors are standardised by those of the training series, each by a network that did
    not learn from it, and divided by the root of their number, as every group of fixed features is.

    Statistics of channels may follow. They are not for a ridge, but say how far a series is from
    others: one that is far can have the shape of one that is known.

    Attributes:
        curves: How networks learned, those that were dropped too; none of old files.
        seconds: What each stage of the fit took, once it has come to its end; nothing of what was
            loaded, so that equal fits make equal files.

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
        self.curves: tuple[Curve, ...] = ()
        self.seconds: dict[str, float] = {}
        vocabularies = {each.vocab_size for each in (fixed, networks) if each is not None}
        if len(vocabularies) > 1:
            raise ValueError(f"fixed features and networks of other vocabularies: {vocabularies}")
        self.vocab_size = vocabularies.pop()
        dim = 0 if networks is None else networks.description.prototype_dim
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float64))
        self.mean: Tensor
        self.scale: Tensor
        self._hold_statistics(0)

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
        statistics: bool,
        clock: Clock,
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
            statistics: Whether statistics of channels follow; of tokens there are none.
            clock: Has run since the fit began, and goes on.
            generator: Source of networks.

        Returns:
            The features, and what they are of the training series.
        """
        if not settings.n_networks:
            assert fixed is not None
            made, rows = cls(fixed[0], None), fixed[1]
        else:
            learned = Networks.fitted(
                x,
                mask,
                target,
                prototypes,
                settings,
                vocab_size=vocab_size,
                clock=clock,
                ask=None if fixed is None else _asked(fixed[1], points),
                generator=generator,
            )
            clock.look("networks")
            made, rows = cls.joined(fixed, learned, points)
            if made.networks is None:
                clock.tell(
                    f"networks dropped after network {len(learned.curves)}: on what is left out "
                    "fixed features do better alone"
                )
            made.curves = learned.curves
        if not statistics or vocab_size is not None:
            return made, rows
        raw = made._statistics(x, mask)
        made._fit_statistics(raw)
        return made, torch.cat([rows, made._far(raw)], 1)

    @classmethod
    def joined(
        cls,
        fixed: tuple[FixedFeatures | NGrams, Float[Tensor, "n f"]] | None,
        learned: Learned,
        points: Float[Tensor, "n e"],
    ) -> tuple["SeriesFeatures", Float[Tensor, "n g"]]:
        """Put networks beside fixed features, or drop them where these do better alone.

        Args:
            fixed: Fixed features, and what they say of the training series; none where networks
                alone describe.
            learned: Networks, and what they say of the training series.
            points: Where the training series should be.

        Returns:
            The features, and what they are of the training series.
        """
        networks, z, _ = learned
        weight = 1.0
        if fixed is not None:
            weight = weight_of(fixed[1], z, points) if networks is not None else 0.0
            if not weight:
                return cls(fixed[0], None), fixed[1]
        made = cls(None if fixed is None else fixed[0], networks)
        made.mean.copy_(z.mean(0))
        made.scale.copy_(weight * _unit_scale(z))
        said = made.of_unit_vectors(z)
        return made, said if fixed is None else torch.cat([fixed[1], said], 1)

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
        if vocab_size is None and state["statistics_mean"].numel():
            made._hold_statistics(N_STATISTICS * made.n_channels)
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
            raise ValueError(
                f"causal is {causal}, and the features are of another estimator; fit it again"
            )
        if networks is not None and networks.selective != selective:
            raise ValueError(
                f"selective is {selective}, and the features are of another estimator; fit it again"
            )

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
    ) -> Float[Tensor, "m g"]:
        """Return the features of series, in float32.

        Args:
            x: Series, or sequences of tokens.
            mask: True on real positions, which come first, at least one in each series.
        """
        parts: list[Tensor] = []
        if self.fixed is not None:
            parts.append(self.fixed(x, mask))
        if self.networks is not None:
            parts.append(self.of_unit_vectors(self.networks(x, mask)))
        if self.n_statistics:
            parts.append(self._far(self._statistics(x, mask)))
        return torch.cat(parts, 1)

    def of_ridge(self, described: Float[Tensor, "m g"]) -> Float[Tensor, "m f"]:
        """Return the features that a ridge has."""
        return described[:, : self.n_features]

    def of_no_network(self, described: Float[Tensor, "m g"]) -> Float[Tensor, "m a"]:
        """Return fixed features and statistics; of tokens, which are often the same, none."""
        if self.vocab_size is not None:
            return described[:, :0]
        n_fixed = 0 if self.fixed is None else self.fixed.n_features
        return torch.cat([described[:, :n_fixed], described[:, self.n_features :]], 1)

    def for_ridge(self, described: Float[Tensor, "m g"]) -> Float[Tensor, "m f"]:
        """Return the same in float64."""
        return self.of_ridge(described).double()

    def of_unit_vectors(self, z: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """Return what unit vectors of the networks are among the features."""
        return ((z - self.mean) * self.scale).float()

    def of_stream(
        self, z: Float[Tensor, "1 d"], statistics: Float[Tensor, "1 s"] | None
    ) -> Float[Tensor, "1 g"]:
        """Return the features of a stream of networks that read one way.

        Args:
            z: Mean of their unit vectors.
            statistics: Of the channels, standardised by the networks, where they follow.
        """
        rows = self.of_unit_vectors(z)
        return rows if statistics is None else torch.cat([rows, self._far(statistics)], 1)

    def _hold_statistics(self, n: int) -> None:
        self.n_statistics = n
        self.register_buffer("statistics_mean", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("statistics_scale", torch.ones(n, dtype=torch.float64))
        self.statistics_mean: Tensor
        self.statistics_scale: Tensor

    def _fit_statistics(self, raw: Float[Tensor, "n s"]) -> None:
        self._hold_statistics(raw.shape[1])
        self.statistics_mean.copy_(raw.mean(0))
        # What never moved in training and does now is the strongest sign of all.
        deviation = raw.std(0, correction=0).clamp(min=LEAST_DEVIATION)
        self.statistics_scale.copy_(1 / (deviation * raw.shape[1] ** 0.5))

    def _statistics(
        self, x: Float[Tensor, "m l c"], mask: Bool[Tensor, "m l"]
    ) -> Float[Tensor, "m s"]:
        by = self.networks if self.networks is not None else self.fixed
        assert isinstance(by, Networks | FixedFeatures)
        return channel_statistics(by.standardised(x).masked_fill(~mask[:, :, None], 0), mask)

    def _far(self, statistics: Float[Tensor, "m s"]) -> Float[Tensor, "m s"]:
        return ((statistics - self.statistics_mean) * self.statistics_scale).float()


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


def weight_of(
    rows: Float[Tensor, "n f"], z: Float[Tensor, "n d"], points: Float[Tensor, "n e"]
) -> float:
    """Return what networks should weigh beside fixed features: 0 where these do better alone.

    It is that of which a ridge on both predicts series best, each left out.

    Args:
        rows: What fixed features say of the training series.
        z: Unit vectors of the same, by networks that did not learn from them.
        points: Where the training series should be.
    """
    some = torch.randperm(len(rows), generator=Generator().manual_seed(0))[:_ENOUGH]
    rows, wanted = rows[some], points[some]
    said = ((z - z.mean(0)) * _unit_scale(z))[some]

    def error(weight: float) -> float:
        both = torch.cat([rows, (weight * said).to(rows.dtype)], 1) if weight else rows
        return float((ridge(both, wanted).left_out - wanted).square().sum())

    errors = side_by_side([partial(error, weight) for weight in _WEIGHTS])
    return _WEIGHTS[errors.index(min(errors))]


def _asked(rows: Float[Tensor, "n f"], points: Float[Tensor, "n e"]) -> Ask:
    """Return what says whether networks are worth to go on with.

    A ridge on fewer series than there are makes less of fixed features, and networks have learned
    from more: where these lose nevertheless, they lose in the end.
    """

    def goes_on(described: Bool[Tensor, " n"], z: Float[Tensor, "n d"]) -> bool:
        which = described.nonzero()[:, 0]
        if len(which) < _FEWEST_TO_DROP:
            return True
        return weight_of(rows[which], z[which], points[which]) > 0

    return goes_on


def _unit_scale(left_out: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    deviation = left_out.std(0, correction=0)
    dim = left_out.shape[1]
    return torch.where(deviation > 0, 1 / (deviation * dim**0.5), 0.0)

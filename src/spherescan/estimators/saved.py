"""What a saved estimator holds beside its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor

from spherescan.estimators.curves import curves_of_state
from spherescan.estimators.description import SeriesFeatures
from spherescan.estimators.networks import NetworkPlan
from spherescan.estimators.settings import (
    expect_vocabulary_of_fit,
    expect_whole,
    network_settings,
)
from spherescan.features import expect_vocabulary
from spherescan.strict_json import typed

# Whole numbers, floats, bools, texts of fixed length, and objects that are texts.
_LABEL_TYPE = re.compile(r"[<>|=]([biu][1248]|f[248]|U[0-9]{1,9})|\|O")

S = TypeVar("S", bound="Saved")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Settings of an estimator, as plain values."""

    n_features: int
    n_networks: int | Literal["auto"]
    causal: bool
    selective: bool
    max_steps: int | None
    time_budget: float | None
    early_stopping: bool
    verbose: bool | int
    plan: dict[str, Any] | None
    random_state: int | None
    length: int
    n_features_in: int | None
    feature_names: tuple[str, ...]
    missing: Literal["refuse", "mask"]
    channel_means: tuple[float, ...] | None
    vocab_size: int | None = None
    channel_names: tuple[str, ...] = ()

    @staticmethod
    def common(estimator: BaseEstimator, features: SeriesFeatures, n_series: int) -> dict[str, Any]:
        """Return the values of what all of them have.

        Raises:
            ValueError: Settings of another fit, or one that `fit` refuses.
            TypeError: A setting of another type.
        """
        expect_whole("n_features", estimator.n_features)
        features.expect_kind(causal=bool(estimator.causal), selective=bool(estimator.selective))
        settings = network_settings(estimator, n_series)
        asked, verbose, networks = estimator.n_networks, estimator.verbose, features.networks
        expect_vocabulary_of_fit(estimator, features.vocab_size)
        means = None
        if estimator.missing == "mask":
            if not hasattr(estimator, "channel_means_"):
                raise ValueError('it was fitted with missing="refuse"; fit it again')
            means = tuple(estimator.channel_means_.tolist())
        return {
            **asdict(settings),
            "n_networks": asked if isinstance(asked, str) else settings.n_networks,
            "verbose": verbose if isinstance(verbose, bool) else int(verbose),
            "plan": None if networks is None else networks.plan.to_json(),
            "n_features": int(estimator.n_features),
            "random_state": seed_of(estimator.random_state),
            "length": features.length,
            "n_features_in": getattr(estimator, "n_features_in_", None),
            "feature_names": tuple(getattr(estimator, "feature_names_in_", ())),
            "missing": estimator.missing,
            "channel_means": means,
            "vocab_size": features.vocab_size,
            "channel_names": tuple(getattr(estimator, "channel_names_", ())),
        }

    def parameters(self) -> dict[str, Any]:
        """Return the settings of the constructor that all of them have."""
        return {
            "n_features": self.n_features,
            "n_networks": self.n_networks,
            "causal": self.causal,
            "selective": self.selective,
            "max_steps": self.max_steps,
            "time_budget": self.time_budget,
            "early_stopping": self.early_stopping,
            "verbose": self.verbose,
            "vocab_size": self.vocab_size,
            "missing": self.missing,
            "random_state": self.random_state,
        }

    def features(self, state: Mapping[str, Tensor], curves: Mapping[str, Tensor]) -> SeriesFeatures:
        """Make features again, with their learning curves.

        What is raised, `SeriesFeatures.of_state`, `NetworkPlan` and `curves_of_state` say.
        """
        plan = None if self.plan is None else NetworkPlan.from_json(self.plan)
        features = SeriesFeatures.of_state(state, self.length, self.vocab_size, plan)
        features.curves = curves_of_state(curves)
        if features.curves and plan is not None and len(features.curves) != plan.n_networks:
            raise ValueError(
                f"{len(features.curves)} learning curves of {plan.n_networks} networks"
            )
        return features

    def restore(self, estimator: BaseEstimator, features: SeriesFeatures, n_series: int) -> None:
        """Give a new estimator what fitting to X gave the saved one.

        Raises:
            ValueError: A setting that `fit` refuses, a vocabulary outside its range or with missing
                tokens, a length below 1, names of another number of columns, or means of another
                number of channels.
        """
        network_settings(estimator, n_series)
        features.expect_kind(causal=self.causal, selective=self.selective)
        if self.length < 1 or self.n_features < 1:
            raise ValueError(f"length is {self.length} and n_features {self.n_features}")
        estimator.n_channels_ = features.n_channels
        self._restore_names(estimator, features.n_channels)
        if self.vocab_size is not None:
            expect_vocabulary(self.vocab_size)
            if self.missing == "mask":
                raise ValueError("tokens cannot be missing")
        if self.missing == "mask":
            means = np.array(self.channel_means or (), dtype=np.float64)
            if len(means) != features.n_channels or not np.isfinite(means).all():
                raise ValueError(f"{len(means)} finite means of {features.n_channels} channels")
            estimator.channel_means_ = means

    def _restore_names(self, estimator: BaseEstimator, n_channels: int) -> None:
        n, names = self.n_features_in, self.feature_names
        if (n is not None and n < 1) or (names and len(names) != n):
            raise ValueError(f"n_features_in is {n}, with {len(names)} names")
        if self.n_features_in is not None:
            estimator.n_features_in_ = self.n_features_in
        if self.feature_names:
            estimator.feature_names_in_ = np.array(self.feature_names, dtype=object)
        if self.channel_names:
            if len(self.channel_names) != n_channels:
                raise ValueError(f"{len(self.channel_names)} names of {n_channels} channels")
            estimator.channel_names_ = list(self.channel_names)

    def state(self, estimator: str) -> dict[str, Any]:
        """Return it as JSON has it, with the name of the estimator."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        return {"estimator": estimator, **values}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedClassifier(Saved):
    """Settings and labels of a classifier.

    Raises:
        ValueError: Labels of a type that JSON has no value for, or a number below 0.
    """

    reserve_classes: int
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
        if self.reserve_classes < 0:
            raise ValueError(f"reserve_classes is {self.reserve_classes}, which is below 0")
        longest = max((len(label) for label in self.labels if isinstance(label, str)), default=0)
        if self.label_type[1] == "U" and int(self.label_type[2:]) > max(1, longest):
            raise ValueError(f"labels of type {self.label_type} are at most {longest} long")

    def classes(self) -> NDArray[Any]:
        """Return the labels as they were given to `fit`.

        Raises:
            ValueError: They are not of the type that the file says.
        """
        try:
            with np.errstate(over="raise"):
                labels = np.array(self.labels, dtype=self.label_type)
            same = labels.tolist() == list(self.labels)
            distinct = same and len(np.unique(labels)) == len(labels) >= 2
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"labels are not of type {self.label_type}: {error}") from error
        if not same:
            raise ValueError(f"labels are not of type {self.label_type}: they would be others")
        if not distinct:
            raise ValueError("labels are not two or more different ones")
        return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRegressor(Saved):
    """Settings and range of a regressor.

    Raises:
        ValueError: An empty range, or one that is not finite.
    """

    margin: float
    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not (self.lower < self.upper and math.isfinite(2 * (self.upper - self.lower))):
            raise ValueError(f"the range {self.lower}..{self.upper} is empty or not finite")


def saved_of(kind: type[S], state: Mapping[str, Any], estimator: str) -> S:
    """Read what `state` returned.

    Raises:
        ValueError: It is of another estimator, or something is missing or of another type.
    """
    values = dict(state)
    found = values.pop("estimator", None)
    if found != estimator:
        raise ValueError(f"it is of {found!r}" if found else "it is of no estimator")
    return typed(kind, values, where="the state")


def label_type(classes: NDArray[Any]) -> str:
    """Return the type of labels as numpy writes it; of texts, as long as the longest."""
    texts = classes.dtype.kind == "U"
    return (np.array(classes.tolist()) if texts else classes).dtype.str


def seed_of(random_state: object) -> int | None:
    """Return a seed as a plain number; None for what is no seed."""
    return int(random_state) if isinstance(random_state, int | np.integer) else None

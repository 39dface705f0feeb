"""What the estimators have in common: tags, fitted features, what a notebook shows, and files.

Letters: n series, g features of a ridge with the statistics that may follow, k classes that
networks learn, d prototype dimension, e dimensions of the ridge's outputs.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, estimator_html_repr
from torch import Tensor

from spherescan.errors import CheckpointError
from spherescan.estimators.clock import Clock
from spherescan.estimators.curves import state_of_curves
from spherescan.estimators.description import SeriesFeatures
from spherescan.estimators.networks import full_precision
from spherescan.estimators.pages import short_form
from spherescan.estimators.saved import Saved
from spherescan.estimators.sequences import Padded, fitted_features, seeded
from spherescan.estimators.settings import network_settings, say_what_is_ignored, vocabulary_of
from spherescan.paths import user_path
from spherescan.runs import write_checkpoint

FEATURES = "features."  # begins the names of their tensors in a file
CURVES = "curves."  # and of learning curves


# What a fit may leave out, so that an earlier one's would stay.
_FOUND = (
    "_fitted",
    "n_channels_",
    "n_features_in_",
    "feature_names_in_",
    "channel_names_",
    "channel_means_",
)


class SeriesEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """An estimator of series; `_fitted` is what fitting found."""

    n_features: int
    n_networks: int | str
    causal: bool
    selective: bool
    max_steps: int | None
    time_budget: float | None
    early_stopping: bool
    verbose: bool | int
    vocab_size: int | None
    missing: str
    random_state: int | np.random.RandomState | None

    def __sklearn_tags__(self) -> Tags:
        """Say whether values may be missing."""
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "mask"
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether `fit` has come to its end."""
        return "_fitted" in self.__dict__

    @contextmanager
    def _all_or_nothing(self, *, anew: bool = False) -> Iterator[None]:
        """Put everything back as it was when what is done within fails or is interrupted.

        Args:
            anew: Whether to forget what an earlier fit has found.
        """
        before = dict(self.__dict__)
        try:
            if anew:
                for name in _FOUND:
                    self.__dict__.pop(name, None)
            # Networks learn whatever the caller has switched on or off for itself.
            with torch.inference_mode(False), torch.enable_grad(), full_precision():
                yield
        except BaseException:
            self.__dict__ = before
            raise

    def _fit_features(
        self,
        batch: Padded,
        target: Int[Tensor, " n"],
        prototypes: Float[Tensor, "k d"],
        points: Float[Tensor, "n e"],
        *,
        statistics: bool,
        clock: Clock,
    ) -> tuple[SeriesFeatures, Float[Tensor, "n g"]]:
        """Fit what describes series as the settings say.

        Args:
            batch: The training series.
            target: Classes that networks learn.
            prototypes: Of these.
            points: Where the training series should be.
            statistics: Whether statistics of channels follow.
            clock: Has run since the fit began.

        Returns:
            The features, and what they are of the training series.
        """
        settings = network_settings(self, len(target))
        clock.verbose = settings.verbose
        clock.look("reading the series")
        generator = seeded(self)
        fixed = None
        if not settings.causal:
            fixed = fitted_features(self, batch, clock=clock, generator=generator)
        say_what_is_ignored(self, settings, clock, n_series=len(target))
        return SeriesFeatures.fitted(
            fixed,
            *batch,
            target,
            prototypes,
            points,
            settings,
            vocab_size=None if self.vocab_size is None else vocabulary_of(self),
            statistics=statistics,
            clock=clock,
            generator=generator,
        )

    @abstractmethod
    def _facts(self) -> dict[str, str]:
        """Return what fitting found, in words."""

    def _html_repr(self) -> str:
        """Return what a notebook shows: scikit-learn's diagram, and what fitting found."""
        shown: str = estimator_html_repr(self)
        if not self.__sklearn_is_fitted__():
            return shown
        more = {
            "series are described by": self._fitted.features.in_words,
            "more": f"{type(self).__name__}.report(path) writes a page",
        }
        return shown + short_form(self._facts() | more)

    def _write(
        self,
        path: str | Path,
        saved: Saved,
        tensors: Mapping[str, Tensor],
        features: SeriesFeatures,
    ) -> None:
        described = features.state_dict(prefix=FEATURES)
        curves = {CURVES + name: t for name, t in state_of_curves(features.curves).items()}
        state = saved.state(type(self).__name__)
        write_checkpoint(user_path(path), {**tensors, **described, **curves}, state)

    @classmethod
    @contextmanager
    def _reading(cls, path: str | Path) -> Iterator[None]:
        """Say of which file, whatever a value in it breaks."""
        try:
            yield
        except (ValueError, KeyError, RuntimeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} holds no {cls.__name__}: {reason}") from error

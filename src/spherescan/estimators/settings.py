"""Settings of estimators, which scikit-learn has looked at when they are fitted."""

import math
import warnings
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from spherescan.estimators.clock import Clock
from spherescan.estimators.networks import NetworkSettings
from spherescan.features import expect_vocabulary

# Networks by default, and the series or sequences of tokens that are worth them; by
# experiments/networks.py and experiments/tokens.py.
_USUAL_NETWORKS, _MANY_SERIES, _MANY_SEQUENCES = 6, 500, 2000


def expect_whole(name: str, value: object) -> None:
    """Check the type of a setting.

    Raises:
        TypeError: It is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; it must be a whole number")


def expect_flag(name: str, value: object) -> None:
    """Check the type of a setting.

    Raises:
        TypeError: It is neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; it must be True or False")


def vocabulary_of(estimator: BaseEstimator) -> int:
    """Check the setting `vocab_size`, which is set.

    Raises:
        ValueError: A size outside its range.
        TypeError: It is no whole number.
    """
    expect_whole("vocab_size", estimator.vocab_size)
    expect_vocabulary(int(estimator.vocab_size))
    return int(estimator.vocab_size)


def expect_vocabulary_of_fit(estimator: BaseEstimator, vocab_size: int | None) -> None:
    """Check that the setting `vocab_size` is still the one of the last fit.

    Raises:
        ValueError: It is another.
    """
    if estimator.vocab_size != vocab_size:
        raise ValueError(f"this estimator was fitted with vocab_size={vocab_size}; fit it again")


def _expect_flags(estimator: BaseEstimator) -> None:
    for name in ("causal", "selective", "early_stopping"):
        expect_flag(name, getattr(estimator, name))
    if not isinstance(estimator.verbose, Integral | np.bool_):
        raise TypeError(f"verbose is {estimator.verbose!r}; it must be True, False or a number")


def _limits_of(estimator: BaseEstimator) -> float | None:
    """Check how long networks may train, and return the seconds."""
    if estimator.max_steps is not None:
        expect_whole("max_steps", estimator.max_steps)
        if estimator.max_steps < 1:
            raise ValueError(f"max_steps is {estimator.max_steps}; it must be at least 1, or None")
    budget: Any = estimator.time_budget
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, int | float | np.number):
            raise TypeError(f"time_budget is {budget!r}; it must be a number of seconds")
        if not 0 < budget < math.inf:
            raise ValueError(f"time_budget is {budget}; it must be above 0, or None for no end")
    return None if budget is None else float(budget)


def network_settings(estimator: BaseEstimator, n_series: int) -> NetworkSettings:
    """Check the settings of networks, and say how many so many series get.

    Raises:
        ValueError: One that is outside its range, or that needs another one.
        TypeError: One of another type.
    """
    _expect_flags(estimator)
    n_networks: Any = estimator.n_networks
    if isinstance(n_networks, str):
        if n_networks != "auto":
            raise ValueError(f'n_networks is {n_networks!r}; it must be a number or "auto"')
        many = n_series >= _many(estimator)
        n_networks = _USUAL_NETWORKS if estimator.causal or many else 0
    expect_whole("n_networks", n_networks)
    if n_networks < 0 or n_networks == 1:
        raise ValueError(
            f"n_networks is {n_networks}; it takes at least 2, so that each series is "
            "described by one that did not learn from it, or 0 for none"
        )
    if estimator.causal and not n_networks:
        raise ValueError("causal is True and n_networks is 0; networks are what reads a stream")
    budget = _limits_of(estimator)
    return NetworkSettings(
        n_networks=int(n_networks),
        causal=bool(estimator.causal),
        selective=bool(estimator.selective),
        max_steps=None if estimator.max_steps is None else int(estimator.max_steps),
        time_budget=budget,
        early_stopping=bool(estimator.early_stopping),
        verbose=bool(estimator.verbose),
    )


def say_what_is_ignored(
    estimator: BaseEstimator, settings: NetworkSettings, clock: Clock, *, n_series: int
) -> None:
    """Say, when fixed features are found, which settings of networks do nothing, and why.

    Warns:
        UserWarning: Fixed features took all of `time_budget`, or it is set and no network is
            trained, or `early_stopping` is and n_networks=0. That `early_stopping` waits for more
            series is told with `verbose` alone: a search over settings fits to parts of them.
    """
    limit, spent = settings.time_budget, clock.so_far
    if limit is not None and spent > limit and not settings.causal:
        took = f"time_budget is {limit} s and the fixed features of {n_series} series took "
        took += f"{spent:.1f} s"
        fewer = f"choose fewer than n_features={estimator.n_features}"
        if settings.n_networks:
            _warn(f"{took}, so each network gets a single step; {fewer}, or a larger time_budget")
        else:
            none = f"{_no_network(estimator)}, and nothing else is cut short"
            _warn(f"{took}; {none}; {fewer}, or leave time_budget out")
        return
    names = ("max_steps", "time_budget", "early_stopping")
    ignored = " and ".join(name for name in names if getattr(settings, name))
    if settings.n_networks or not ignored:
        return
    nothing = (
        f"{_no_network(estimator)}, and {ignored} is for networks alone; set "
        f"n_networks={_USUAL_NETWORKS} to train some, or leave {ignored} out"
    )
    auto = isinstance(estimator.n_networks, str)
    if limit is not None or (settings.early_stopping and not auto):
        _warn(nothing)
    else:
        clock.tell(nothing)


def _no_network(estimator: BaseEstimator) -> str:
    """Say that no network is trained, and why."""
    auto = isinstance(estimator.n_networks, str)
    why = f"fewer than {_many(estimator)} get none" if auto else "n_networks is 0"
    return f"no network is trained ({why})"


def _many(estimator: BaseEstimator) -> int:
    """Return how many series, or sequences of tokens, are worth networks."""
    return _MANY_SERIES if estimator.vocab_size is None else _MANY_SEQUENCES


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=6)  # to whoever called `fit`

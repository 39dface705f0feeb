"""What a fit says while it goes on, and of settings that do nothing: no silence, no noise."""

import re
import time
import warnings

import numpy as np
import pytest

from spherescan.estimators import SequenceClassifier, SequenceRegressor


def waves(n=24, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    t = np.linspace(0, 6, 30)
    return np.sin((1 + y[:, None]) * t) + 0.3 * rng.standard_normal((n, 30)), y


QUICK = {"n_features": 84, "random_state": 0}
BOTH = pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])


class Seconds:
    """A clock that stands still but where it is set on."""

    def __init__(self, monkeypatch, features):
        """Let fixed features take so long."""
        from spherescan.estimators import sequences

        self.now = 0.0
        fit = sequences.FixedFeatures.fit

        def slow(made, *batch, **more):
            self.now += features
            return fit(made, *batch, **more)

        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(sequences.FixedFeatures, "fit", slow)


@BOTH
def test_a_fit_without_networks_tells_what_it_does(kind, capsys):
    made = kind(**QUICK, verbose=True).fit(*waves())
    first, last = capsys.readouterr().err.splitlines()
    n = made._fitted.features.fixed.n_features
    assert re.fullmatch(rf"fixed features, 24 series, {n} features, \d+\.\d s", first)
    assert re.fullmatch(r"ridge and decisions, 24 series, \d+\.\d s, the whole fit \d+\.\d s", last)
    kind(**QUICK).fit(*waves())
    assert capsys.readouterr().err == ""


def test_a_fit_to_tokens_tells_what_it_does(capsys):
    texts = ["abab", "abba", "cdcd", "cddc"]
    made = SequenceClassifier(vocab_size=256, verbose=True, early_stopping=True)
    made.fit(texts, [0, 0, 1, 1])
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first.startswith("fixed features, 4 series, ")
    assert "fewer than 2000 get none" in second


def test_fixed_features_that_take_long_tell_how_far_they_are(monkeypatch, capsys):
    from spherescan.estimators import sequences

    monkeypatch.setattr(sequences, "_LONG", -1.0)
    made = SequenceClassifier(**QUICK, verbose=True).fit(*waves())
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(",")[0] for line in lines[:2]] == [
        "fixed features, group 1 of 3",
        "fixed features, group 2 of 3",
    ]
    assert len(lines) == 4
    made.predict(waves()[0])
    assert capsys.readouterr().err == ""


@BOTH
def test_networks_get_the_time_that_fixed_features_leave(kind, monkeypatch):
    from spherescan.estimators import networks

    clock, budgets = Seconds(monkeypatch, features=3.0), []

    def fit_series(model, series, plan, **more):
        budgets.append(plan.seconds)
        clock.now += 1.0
        return model.eval()

    monkeypatch.setattr(networks, "fit_series", fit_series)
    kind(**QUICK, n_networks=2, time_budget=11).fit(*waves())
    assert budgets == [4.0, 7.0]


@BOTH
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"time_budget": 3}, "fixed features of 24 series took 5.0 s; no network is trained"),
        ({"time_budget": 3}, "choose fewer than n_features=84, or leave time_budget out"),
        ({"time_budget": 3, "n_networks": 2, "max_steps": 2}, "each network gets a single step"),
        ({"time_budget": 3, "n_networks": 0}, "no network is trained .n_networks is 0"),
        ({"time_budget": 60}, "fewer than 500 get none.*, and time_budget is for networks alone"),
        ({"n_networks": 0, "early_stopping": True}, "set n_networks=6 to train some, or leave ear"),
        ({"n_networks": 0, "early_stopping": True, "time_budget": 60}, "time_budget and early_sto"),
    ],
)
def test_a_limit_that_was_not_kept_is_said_once(kind, settings, said, monkeypatch):
    Seconds(monkeypatch, features=5.0)
    made = kind(**QUICK, **settings)
    with pytest.warns(UserWarning, match=said) as caught:
        made.fit(*waves())
    assert len(caught) == 1


@pytest.mark.unwatched
@BOTH
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"early_stopping": True},
        {"max_steps": 3},
        {"time_budget": 60, "n_networks": 2, "max_steps": 1},
        {"time_budget": 60, "n_networks": 2, "max_steps": 1, "causal": True},
    ],
)
def test_what_was_kept_or_waits_for_more_series_is_no_reason_to_warn(kind, settings, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(**QUICK, **settings).fit(*waves())
    assert capsys.readouterr().err == ""


@BOTH
def test_early_stopping_that_does_nothing_is_told_to_those_who_listen(kind, capsys):
    kind(**QUICK, early_stopping=True, verbose=True).fit(*waves())
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == (
        "no network is trained (fewer than 500 get none), and early_stopping is for networks "
        "alone; set n_networks=6 to train some, or leave early_stopping out"
    )
    few = {"n_networks": 2, "max_steps": 1, "early_stopping": True, "verbose": True, "causal": True}
    kind(**QUICK, **few).fit(*waves())
    lines = capsys.readouterr().err.splitlines()
    told = "early_stopping is ignored: it learns from 12 series, and a part is kept apart from 20"
    assert sum(told in line for line in lines) == 2
    kind(**QUICK, **few).fit(*waves(48))
    lines = capsys.readouterr().err.splitlines()
    assert not any("ignored" in line for line in lines)
    assert sum(", weights kept, held-out loss " in line for line in lines) == 2

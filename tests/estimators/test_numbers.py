"""State-space models in the regressor: beside fixed features, alone, and in streams."""

import joblib
import numpy as np
import pytest
import torch

from spherescan.estimators import SequenceRegressor
from spherescan.estimators.regressor import _bins_of
from tests.estimators.forging import Forger

pytestmark = pytest.mark.unwatched

QUICK = {"n_features": 84, "n_networks": 2, "max_steps": 60, "random_state": 0}


def ramps(n=60, length=30, seed=0):
    """Series of two channels whose value is the slope of the first."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1, 1, size=n)
    first = y[:, None] * np.linspace(0, 3, length)
    return np.stack([first, first[:, ::-1]], 1) + 0.1 * rng.standard_normal((n, 2, length)), y


@pytest.fixture(scope="module")
def both():
    return SequenceRegressor(**QUICK).fit(*ramps())


@pytest.fixture(scope="module")
def causal():
    return SequenceRegressor(**QUICK, causal=True).fit(*ramps())


def test_networks_predict_alone_and_beside_fixed_features(both, causal):
    X, y = ramps(40, seed=1)
    assert both.score(X, y) > 0.9
    assert causal.score(X, y) > 0.7
    assert causal._fitted.features.fixed is None
    # Not what the networks give a series that they have learnt.
    left_out = causal.left_out_predictions_
    error = np.sqrt(np.mean((left_out - ramps()[1]) ** 2))
    assert error > np.sqrt(np.mean((causal.predict(ramps()[0]) - ramps()[1]) ** 2))
    low, high = causal.predict_interval(X, coverage=0.8).T
    assert ((low <= y) & (y <= high)).mean() > 0.6


def test_bins_are_even_and_follow_the_values():
    target = torch.tensor([5.0, -1.0, 7.0, 7.0, 0.5, 7.0, 2.0, 3.0] * 5, dtype=torch.float64)
    bins, prototypes = _bins_of(target)
    assert prototypes.shape == (4, 3)
    assert torch.allclose(prototypes.norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert torch.linalg.matrix_rank(prototypes) == 3
    cosines = prototypes @ prototypes.T
    assert (cosines[0].diff() < 0).all()  # the further, the less alike
    order = target.argsort(stable=True)
    assert (bins[order].diff() >= 0).all()
    assert torch.equal(_bins_of(-target)[0], 3 - bins)
    assert torch.bincount(_bins_of(torch.arange(1000.0))[0]).tolist() == [100] * 10
    two, opposite = _bins_of(torch.tensor([0.0] * 6 + [1.0]))
    assert two.tolist() == [0] * 6 + [1]
    assert torch.allclose(opposite, torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64))


def test_values_that_are_all_the_same_are_learnt_by_networks_too():
    X, _ = ramps(12)
    made = SequenceRegressor(**QUICK | {"max_steps": 2}, causal=True).fit(X, np.full(12, 3.0))
    np.testing.assert_allclose(made.predict(X), 3)


@pytest.mark.parametrize("length", [1, 30])
def test_a_stream_equals_the_whole_series_at_every_sample(causal, length):
    X, _ = ramps(1, length=length, seed=3)
    stream = causal.stream()
    for t in range(length):
        answer = stream.push(X[0, :, t])
        assert answer.value == pytest.approx(causal.predict(X[:, :, : t + 1])[0], abs=1e-5)
        assert answer.n_steps == stream.n_steps == t + 1


def test_a_stream_goes_on_where_its_state_was_taken(causal, tmp_path):
    X, _ = ramps(1, seed=4)
    stream, other = causal.stream(), causal.stream()
    stream.push(X[0, :, :11])
    other.load_state_dict(stream.state_dict())
    assert stream.push(X[0, :, 11:]) == other.push(X[0, :, 11:])
    joblib.dump(stream, tmp_path / "stream")
    assert joblib.load(tmp_path / "stream").push(X[0]) == stream.push(X[0])
    assert causal._fitted.features.n_statistics == 0  # nothing is unknown to a regressor
    another = SequenceRegressor(**QUICK | {"random_state": 1}, causal=True).fit(*ramps()).stream()
    with pytest.raises(ValueError, match="of another estimator"):
        another.load_state_dict(stream.state_dict())


def test_a_stream_of_tokens_takes_texts_and_tokens():
    rng = np.random.default_rng(0)
    X = [rng.integers(0, 3, size=12) for _ in range(30)]
    y = np.array([np.mean(x == 1) for x in X])
    made = SequenceRegressor(**QUICK, vocab_size=3, causal=True).fit(X, y)
    answer = made.stream().push(X[0])
    assert answer.value == pytest.approx(made.predict(X[:1])[0], abs=1e-5)


def test_a_stream_keeps_to_the_fit_that_it_was_made_of():
    X, y = ramps(20)
    made = SequenceRegressor(**QUICK | {"max_steps": 2}, causal=True).fit(X, y)
    stream = made.stream()
    before = stream.push(X[0])
    made.fit(X, 100 * y + 700)
    assert stream.push([]) == before


def test_a_regressor_that_needs_whole_series_has_no_stream(both):
    for fitted in (both, SequenceRegressor(n_features=84).fit(*ramps())):
        with pytest.raises(ValueError, match="causal=True"):
            fitted.stream()


@pytest.mark.parametrize("name", ["both", "causal"])
def test_what_is_saved_answers_with_the_same_bits(tmp_path, request, name):
    made = request.getfixturevalue(name)
    made.save(tmp_path / "model")
    again = SequenceRegressor.load(tmp_path / "model")
    X, _ = ramps(9, seed=5)
    assert again.get_params() == made.get_params()
    assert np.array_equal(again.predict(X), made.predict(X))
    if name == "causal":
        assert again.stream().push(X[0]) == made.stream().push(X[0])


def test_a_forged_file_is_refused(tmp_path, causal):
    forger = Forger(causal, tmp_path)
    good, refused = forger.good, forger.refused
    plan = good.state["plan"]
    refused("needs fixed features or networks", state=good.state | {"plan": None})
    refused("do not fit into", state=good.state | {"plan": {**plan, "n_networks": 10**9}})
    refused("at least 2", state=good.state | {"n_networks": 1})
    refused("length is 0", state=good.state | {"length": 0})
    refused("n_features -1", state=good.state | {"n_features": -1})
    refused("of another estimator", state=good.state | {"causal": False})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_networks": 1}, ValueError, "at least 2"),
        ({"n_networks": 0, "causal": True}, ValueError, "networks are what reads a stream"),
        ({"max_steps": 0}, ValueError, "at least 1"),
        ({"time_budget": "1"}, TypeError, "number of seconds"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        SequenceRegressor(**QUICK | settings).fit(*ramps(8))

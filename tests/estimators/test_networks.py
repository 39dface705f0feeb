"""State-space models in the classifier: cross-fitted, weighed by a ridge, streamed."""

import copy
import re
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from spherescan.errors import CheckpointError
from spherescan.estimators import SequenceClassifier
from spherescan.estimators.networks import Networks, NetworkSettings, parts_of
from spherescan.runs import read_checkpoint, write_checkpoint
from tests.estimators.forging import Forger


def waves(n=30, length=30, seed=0, channels=2):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    t = np.linspace(0, 6, length)
    X = np.sin((1 + y[:, None, None]) * t + np.arange(channels)[:, None])
    return X + 0.3 * rng.standard_normal((n, channels, length)), y


QUICK = {"n_features": 84, "n_networks": 2, "max_steps": 40, "random_state": 0}


@pytest.fixture(scope="module")
def both():
    return SequenceClassifier(**QUICK).fit(*waves())


@pytest.fixture(scope="module")
def causal():
    return SequenceClassifier(**QUICK, causal=True).fit(*waves())


@pytest.mark.unwatched
def test_networks_and_fixed_features_answer_together(both, causal):
    X, y = waves(30, seed=1)
    assert both.score(X, y) > 0.9
    assert causal.score(X, y) > 0.9
    assert causal._fitted.features.fixed is None
    assert len(causal._fitted.weight) == 3
    for fitted in (both, causal):
        np.testing.assert_allclose(fitted.predict_proba(X).sum(1), 1)
        np.testing.assert_allclose(np.linalg.norm(fitted.transform(X), axis=1), 1)


@pytest.mark.unwatched
def test_the_same_seed_gives_the_same_bits(causal):
    again = SequenceClassifier(**QUICK, causal=True).fit(*waves())
    X = waves(6, seed=1)[0]
    assert np.array_equal(again.decision_function(X), causal.decision_function(X))


@pytest.mark.unwatched
@pytest.mark.parametrize(("n_networks", "left_out_by"), [(3, 1), (5, 1), (6, 2), (9, 3)])
def test_a_series_is_described_by_networks_that_never_saw_it(monkeypatch, n_networks, left_out_by):
    X, y = waves(20)
    x = torch.from_numpy(X.transpose(0, 2, 1))
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    seen = []
    from spherescan.estimators import networks

    def fit_series(model, series, plan, **more):
        seen.append(series.x)
        return model.eval()

    monkeypatch.setattr(networks, "fit_series", fit_series)
    made, left_out, _ = Networks.fitted(
        x, mask, torch.from_numpy(y), torch.eye(3), NetworkSettings(n_networks),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    rows = made.prepared(x, mask)[0]
    learned = torch.stack([(rows[:, None] == each[None]).flatten(2).all(2).any(1) for each in seen])
    assert (learned.sum(0) == n_networks - left_out_by).all()
    assert learned.any(1).all()
    z = torch.stack([functional.normalize(model.embed(rows), dim=1) for model in made.each()])
    of_others = (z * ~learned[:, :, None]).sum(0) / left_out_by
    assert torch.allclose(left_out.float(), of_others, atol=1e-6)


@pytest.mark.parametrize(("n_networks", "looks"), [(6, 3), (7, 4), (9, 3), (5, 4)])
def test_it_is_asked_whether_to_go_on_until_every_series_is_described(
    monkeypatch, n_networks, looks
):
    X, y = waves(20)
    x = torch.from_numpy(X.transpose(0, 2, 1))
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    from spherescan.estimators import networks

    monkeypatch.setattr(networks, "fit_series", lambda model, *_, **__: model.eval())
    asked = []

    def fitted(stop_after):
        def ask(described, z):
            assert torch.equal(described, z.norm(dim=1) > 0)
            asked.append(int(described.sum()))
            return len(asked) < stop_after

        asked.clear()
        return Networks.fitted(
            x, mask, torch.from_numpy(y), torch.eye(3), NetworkSettings(n_networks),
            ask=ask, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    made, _, curves = fitted(stop_after=99)
    assert (len(made.each()), len(curves)) == (n_networks, n_networks)
    assert len(asked) == looks
    assert asked == sorted(set(asked))
    assert (asked[-1] == 20) is (n_networks > 5)
    for stop_after in range(1, looks + 1):
        made, _, curves = fitted(stop_after)
        assert made is None
        assert len(curves) == stop_after


def test_parts_are_even_and_so_is_every_class_in_them():
    target = torch.tensor([0] * 11 + [1] * 6 + [2])
    part = parts_of(target, 4, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(part).tolist() == [5, 5, 4, 4]
    for label in range(3):
        counts = torch.bincount(part[target == label], minlength=4)
        assert int(counts.max() - counts.min()) <= 1


def test_networks_that_say_nothing_are_dropped(capsys):
    X, y = waves(30)
    fitted = SequenceClassifier(**QUICK | {"max_steps": 1}, verbose=True).fit(X, y)
    assert fitted._fitted.features.networks is None
    assert "networks dropped after network 2: on what is left out" in capsys.readouterr().err
    plain = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    assert np.array_equal(fitted.decision_function(X), plain.decision_function(X))
    assert "described by</th><td>fixed features</td>" in fitted._repr_html_()


@pytest.mark.parametrize(("n", "trained"), [(306, 1), (30, 6)])
def test_networks_that_say_nothing_are_dropped_as_soon_as_enough_series_tell(
    capsys, tmp_path, n, trained
):
    X, y = waves(n)
    settings = QUICK | {"max_steps": 1, "n_networks": 6}
    made = SequenceClassifier(**settings, verbose=True).fit(X, y)
    assert f"networks dropped after network {trained}: " in capsys.readouterr().err
    assert len(made._fitted.features.curves) == trained
    made.save(tmp_path / "model")
    again = SequenceClassifier.load(tmp_path / "model")
    assert len(again._fitted.features.curves) == trained
    text = made.report(tmp_path / "page.html").read_text()
    assert f"All were dropped after {trained}: " in text


def test_a_notebook_and_a_page_tell_what_describes_the_series(both, causal, tmp_path):
    for made, words in ((both, "fixed features and 2 networks"), (causal, "2 networks")):
        assert f"described by</th><td>{words}</td>" in made._repr_html_()
        assert f">{words}<" in made.report(tmp_path / "page.html").read_text()


def test_long_series_are_averaged_to_a_few_hundred_positions():
    x = torch.arange(1300.0)[None, :, None].expand(2, 1300, 1)
    mask = torch.arange(1300) < torch.tensor([[1300], [1000]])
    made, _, _ = Networks.fitted(
        x, mask, torch.tensor([0, 1]), torch.eye(2), NetworkSettings(2, max_steps=1),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert made.stride == 3
    rows, kept = made.prepared(x, mask)
    assert rows.shape == (2, 434, 1)
    assert kept.sum(1).tolist() == [434, 334]
    scaled = (x[1, :, 0].double() - made.channel_mean) / made.channel_std
    assert rows[1, 0, 0] == pytest.approx(float(scaled[:3].mean()))
    assert rows[1, 333, 0] == pytest.approx(float(scaled[999]))  # one position is left


@pytest.mark.unwatched
@pytest.mark.parametrize("length", [1, 7, 30])
def test_a_stream_equals_the_whole_series_at_every_sample(causal, length):
    X, _ = waves(1, length=length, seed=3)
    stream = causal.stream()
    for t in range(length):
        answer = stream.push(X[0, :, t])
        whole = causal.decision_function(X[:, :, : t + 1])[0]
        np.testing.assert_allclose(answer.cosines, whole, atol=1e-5)
        np.testing.assert_allclose(
            answer.probabilities, causal.predict_proba(X[:, :, : t + 1])[0], atol=1e-4
        )
        assert answer.label == causal.predict(X[:, :, : t + 1])[0]
        assert answer.n_steps == stream.n_steps == t + 1


def test_a_stream_of_a_long_series_equals_the_whole_in_the_middle_of_a_stride():
    X, y = waves(12, length=1100, channels=1)
    causal = SequenceClassifier(**QUICK | {"max_steps": 3}, causal=True).fit(X, y)
    assert causal._fitted.features.networks.stride == 3
    stream = causal.stream()
    for begin, end in ((0, 1), (1, 2), (2, 3), (3, 10), (10, 1100)):
        answer = stream.push(X[0, :, begin:end])
        np.testing.assert_allclose(
            answer.cosines, causal.decision_function(X[:1, :, :end])[0], atol=1e-5
        )


def test_a_stream_goes_on_where_its_state_was_taken(causal):
    X, _ = waves(1, seed=4)
    stream, other = causal.stream(), causal.stream()
    stream.push(X[0, :, :11])
    state = stream.state_dict()
    other.load_state_dict(state)
    answers = [each.push(X[0, :, 11:]) for each in (stream, other)]
    assert np.array_equal(answers[0].cosines, answers[1].cosines)
    assert answers[0].known_score == answers[1].known_score
    both = stream.state_dict(), other.state_dict()
    assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())
    assert answers[1].n_steps == 30
    with pytest.raises(ValueError, match="not a state"):
        other.load_state_dict({**state, "open": torch.zeros(5, 2)})
    with pytest.raises(ValueError, match="not a state"):
        other.load_state_dict({"n_steps": torch.tensor(3)})
    for wrong in (None, {**state, "n_steps": 11}):
        with pytest.raises(TypeError, match="holds tensors by name"):
            other.load_state_dict(wrong)
    for name, value in (
        ("n_steps", torch.tensor(-3)), ("open", state["open"].float()),
        ("0/mixers/0/ssm", 0 * state["0/mixers/0/ssm"] / 0),
        ("statistics/squares", -1 - state["statistics/squares"]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="not a state"):
            other.load_state_dict({**state, name: value})
    another = SequenceClassifier(**QUICK | {"random_state": 1}, causal=True).fit(*waves()).stream()
    with pytest.raises(ValueError, match="of another estimator"):
        another.load_state_dict(state)
    assert other.n_steps == 30
    stream.reset()
    assert stream.n_steps == 0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "nothing has been pushed"),
        (np.ma.masked_all(2), "masked"),
        ([np.ma.masked_all(2), np.ones(2)], "masked"),
        ([1.0, 2.0, 3.0], r"wanted \(2,\)"),
        ([1.0, np.nan], "hold nan in channel 1 at time 0"),
        ([1.0, pd.NA], "hold nan in channel 1 at time 0"),
        (pd.DataFrame({"a": [1.0], "b": ["x"]}), "the column 'b', which holds no numbers"),
        (["a", "b"], "no numbers"),
        (np.zeros((3, 4)), r"shape \(3, 4\)"),
        (np.zeros((2, 3, 4)), "shape"),
    ],
)
def test_samples_that_are_none_change_nothing(causal, samples, message):
    stream = causal.stream()
    with pytest.raises(ValueError, match=message):
        stream.push(samples)
    assert stream.n_steps == 0
    assert stream.push([0.1, 0.2]).n_steps == 1


def test_a_frame_has_channels_in_columns_in_a_stream_too(causal):
    X, _ = waves(1, seed=4)
    samples = X[0, :, :2]  # as many as channels
    answers = [causal.stream().push(each) for each in (samples, pd.DataFrame(samples.T))]
    assert np.array_equal(answers[0].cosines, answers[1].cosines)


def test_a_stream_is_saved_and_restored(causal, tmp_path):
    X, _ = waves(1, seed=4)
    stream, other = causal.stream(), causal.stream()
    for _ in range(2):  # the second one takes the place of the first
        stream.push(X[0, :, :11])
        stream.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    answers = [each.push(X[0, :, 11:]) for each in (stream, other)]
    assert np.array_equal(answers[0].cosines, answers[1].cosines)
    assert other.n_steps == 41
    causal.save(tmp_path / "causal")
    with pytest.raises(CheckpointError, match="no state of a stream"):
        other.restore(tmp_path / "causal")
    with pytest.raises(CheckpointError, match="not overwritten"):
        stream.save(tmp_path / "causal")
    another = SequenceClassifier(**QUICK | {"random_state": 1}, causal=True).fit(*waves()).stream()
    with pytest.raises(CheckpointError, match="state: the state belongs to a stream of another"):
        another.restore(tmp_path / "state")


@pytest.mark.unwatched
@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_networks_learn_whatever_the_caller_has_switched_off(causal, switched_off):
    X, y = waves()
    with switched_off():
        made = SequenceClassifier(**QUICK, causal=True).fit(X, y)
    np.testing.assert_array_equal(made.decision_function(X), causal.decision_function(X))


@pytest.mark.unwatched
def test_an_autocast_around_a_fit_or_an_answer_changes_nothing(causal):
    X, y = waves()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = SequenceClassifier(**QUICK, causal=True).fit(X, y)
        inside, streamed = made.decision_function(X), made.stream().push(X[0]).cosines
    np.testing.assert_array_equal(inside, causal.decision_function(X))
    np.testing.assert_array_equal(streamed, causal.stream().push(X[0]).cosines)


@pytest.mark.unwatched
def test_a_fit_under_another_default_type():
    X, y = waves()
    plain = SequenceClassifier(n_features=84, random_state=0).fit(X, y).decision_function(X)
    torch.set_default_dtype(torch.float64)
    try:
        # Weights of networks are drawn in the default type, so they are others.
        made = SequenceClassifier(**QUICK, causal=True).fit(X, y)
        assert made.score(X, y) == 1
        assert made.stream().push(X[0]).label == y[0]
        again = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
        assert np.array_equal(again.decision_function(X), plain)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_stream_keeps_to_the_fit_that_it_was_made_of():
    X, y = waves(20)
    made = SequenceClassifier(**QUICK | {"max_steps": 2}, causal=True).fit(X, y)
    stream = made.stream()
    before = stream.push(X[0])
    made.fit(X, np.array(["a", "b", "c"])[y])
    assert stream.push([[], []]).label == before.label


@pytest.mark.unwatched
def test_a_stream_says_unknown_where_the_classifier_does(causal):
    X, _ = waves(20, seed=6)
    X[10:] = np.random.default_rng(0).standard_normal(X[10:].shape)
    said = []
    for series in X:
        stream = causal.stream(rejection=0.2, unknown_label="?")
        answer = [stream.push(sample) for sample in series.T][-1]
        assert answer.known_score == pytest.approx(causal.known_score(series[None])[0], abs=1e-5)
        said.append(answer.label)
    wanted = causal.predict_open(X, rejection=0.2, unknown_label="?").tolist()
    assert said == wanted
    assert 0 < wanted.count("?") < 20
    assert causal.stream().push(1e3 * X[0]).label in {0, 1, 2}  # nothing is unknown if not asked
    for asked in ({"rejection": 0.2, "unknown_label": 1}, {"rejection": 0.001}):
        with pytest.raises(ValueError, match=r"is a class|cannot promise"):
            causal.stream(**asked)


def test_a_stream_can_go_to_another_process(causal, tmp_path):
    X, _ = waves(1, seed=4)
    stream = causal.stream(rejection=0.2)
    stream.push(X[0, :, :11])
    joblib.dump(stream, tmp_path / "stream")
    other = joblib.load(tmp_path / "stream")
    answers = [each.push(X[0, :, 11:]) for each in (stream, other)]
    assert np.array_equal(answers[0].cosines, answers[1].cosines)
    assert answers[1].n_steps == 30


def test_a_classifier_that_needs_whole_series_has_no_stream(both):
    for fitted in (both, SequenceClassifier(n_features=84).fit(*waves())):
        with pytest.raises(ValueError, match="causal=True"):
            fitted.stream()


@pytest.mark.parametrize("name", ["both", "causal"])
def test_what_is_saved_answers_with_the_same_bits(tmp_path, request, name):
    made = request.getfixturevalue(name)
    path = tmp_path / "model.safetensors"
    made.save(path)
    again = SequenceClassifier.load(path)
    X = waves(9, seed=5)[0]
    assert again.get_params() == made.get_params()
    assert np.array_equal(again.decision_function(X), made.decision_function(X))
    if name == "causal":
        assert np.array_equal(again.stream().push(X[0]).cosines, made.stream().push(X[0]).cosines)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    made = SequenceClassifier(n_features=84).fit(*waves()).set_params(causal=True)
    with pytest.raises(ValueError, match="of another estimator"):
        made.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_learning_curves_are_saved_and_files_without_them_still_load(tmp_path, causal):
    causal.save(tmp_path / "model")
    loaded = SequenceClassifier.load(tmp_path / "model")
    curves = causal._fitted.features.curves
    assert [curve.steps.tolist() for curve in curves] == 2 * [[*range(1, 41)]]
    assert all(curve.losses[-8:].mean() < curve.losses[:8].mean() for curve in curves)
    again = loaded._fitted.features.curves
    assert [curve.points for curve in again] == [curve.points for curve in curves]
    # As an earlier version wrote it.
    file = read_checkpoint(tmp_path / "model")
    kept = {name: t for name, t in file.tensors.items() if not name.startswith("curves.")}
    assert len(file.tensors) - len(kept) == 6
    write_checkpoint(tmp_path / "old", kept, file.state)
    old = SequenceClassifier.load(tmp_path / "old")
    assert old._fitted.features.curves == ()
    X = waves(6, seed=5)[0]
    assert np.array_equal(old.decision_function(X), causal.decision_function(X))
    page = old.report(tmp_path / "page.html").read_text()
    assert "Learning curves" not in page


@pytest.mark.unwatched
def test_equal_fits_make_equal_files_however_long_they_took(tmp_path):
    X, y = waves(12)
    for name in "ab":
        SequenceClassifier(**QUICK | {"max_steps": 2}).fit(X, y).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_described_tensors_of_curves_are_in_the_file(tmp_path):
    X, y = waves(48)
    made = SequenceClassifier(**QUICK | {"max_steps": 4}, early_stopping=True, causal=True)
    made.fit(X, y).save(tmp_path / "model")
    tensors = read_checkpoint(tmp_path / "model").below("curves.")
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    section = text.split("## Saved estimators\n")[1]
    row = r"^\| `curves\.I\.(\w+)` \| (\w+) \| (\w+)(?:, or 0)? \|"
    rows = re.findall(row, section, re.MULTILINE)
    assert tensors.keys() == {f"{index}.{name}" for index in (0, 1) for name, _, _ in rows}
    for index in (0, 1):
        p = len(tensors[f"{index}.steps"])
        for name, kind, size in rows:
            tensor = tensors[f"{index}.{name}"]
            assert tensor.dtype == {"I64": torch.int64, "F64": torch.float64}[kind]
            assert len(tensor) == (p if size == "p" else int(size))


def test_a_forged_file_is_refused(tmp_path, causal):
    forger = Forger(causal, tmp_path)
    good, refused = forger.good, forger.refused
    plan = good.state["plan"]

    def with_plan(**changes):
        return good.state | {"plan": {**plan, **changes}}

    refused("needs fixed features or networks", state=good.state | {"plan": None})
    refused("description", state=with_plan(description=None))
    refused("n_networks", state=with_plan(n_networks="2"))
    refused("do not fit into", state=with_plan(n_networks=10**9))
    refused("do not fit into", state=with_plan(n_networks=0))
    refused("do not fit into", state=with_plan(n_networks=3))
    refused("Unexpected key", state=with_plan(n_networks=1))
    refused("the stride 0 is outside", state=with_plan(stride=0))
    refused("the stride .* is outside", state=with_plan(stride=2**62))
    for d_model in (2**40, 4000):
        larger = {**plan["description"], "d_model": d_model}
        refused("do not fit into", state=with_plan(description=larger))
    nothing = {**plan["description"], "d_model": 0}
    refused("must be at least 1", state=with_plan(description=nothing))
    refused("at least 2", state=good.state | {"n_networks": 1})
    refused("above 0", state=good.state | {"time_budget": -1.0})
    refused("of another estimator", state=good.state | {"causal": False})
    refused("selective is False", state=good.state | {"selective": False})
    wide = {**plan["description"], "n_channels": 5}
    refused("size mismatch", state=with_plan(description=wide))
    per_token = {**plan["description"], "pooling": []}
    refused("do not read series", state=with_plan(description=per_token))
    tokens = {**plan["description"], "vocab_size": 5, "n_channels": None}
    refused("vocab_size is None, of the networks 5", state=with_plan(description=tokens))
    name = "features.networks.models.0.projection.weight"
    refused("not finite", **{name.replace(".", "__"): good.tensors[name] / 0})
    refused("deviation", features__networks__channel_std=torch.zeros(2, dtype=torch.float64))
    refused("scale holds", features__scale=torch.full((3,), torch.nan, dtype=torch.float64))


def test_forged_learning_curves_are_refused(tmp_path, causal):
    refused = Forger(causal, tmp_path).refused
    steps, wide = torch.arange(1, 41), torch.ones(40, dtype=torch.float64)
    refused("missing, or one too many", curves__1__losses=None)
    refused("missing, or one too many", curves__2__losses=wide)
    missing = dict.fromkeys(("curves__1__steps", "curves__1__losses", "curves__1__held_out"))
    refused("1 learning curves of 2 networks", **missing)
    for values in (steps.float(), steps[:, None], torch.arange(1, 2000)):
        refused("steps of learning curve 1 is", curves__1__steps=values)
    refused("losses of learning curve 0 holds a value that", curves__0__losses=wide * torch.nan)
    for values in (steps[:3], steps - 1, steps.flip(0)):
        refused("do not fit each other", curves__0__steps=values)
    for values in (wide[:1], 2 * wide[:2]):
        refused("do not fit each other", curves__0__held_out=values)


@pytest.mark.unwatched
def test_classes_and_series_can_be_added(both, causal):
    X, y = waves(40, seed=6)
    for made in (both, causal):
        first = SequenceClassifier(**made.get_params()).fit(X[y < 2], y[y < 2])
        before = first.decision_function(X)
        first.add_classes(X[y == 2][:5], y[y == 2][:5])
        after = first.decision_function(X)
        assert np.array_equal(after[:, 1] - after[:, 0], before)
        more = copy.deepcopy(made)
        assert more.partial_fit(X, y).score(*waves(30, seed=8)) > 0.8


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_networks": 1}, ValueError, "at least 2"),
        ({"n_networks": -2}, ValueError, "at least 2"),
        ({"n_networks": "many"}, ValueError, 'number or "auto"'),
        ({"n_networks": 2.0}, TypeError, "whole number"),
        ({"n_networks": 0, "causal": True}, ValueError, "networks are what reads a stream"),
        ({"max_steps": 0}, ValueError, "at least 1"),
        ({"max_steps": "9"}, TypeError, "whole number"),
        ({"time_budget": 0}, ValueError, "above 0"),
        ({"time_budget": float("inf")}, ValueError, "above 0"),
        ({"time_budget": float("nan")}, ValueError, "above 0"),
        ({"time_budget": "1"}, TypeError, "number of seconds"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_fitted(
    settings, error, message
):
    with pytest.raises(error, match=message):
        SequenceClassifier(**QUICK | settings).fit(*waves())


@pytest.mark.unwatched
def test_progress_is_told_when_it_is_asked_for(tmp_path, capsys):
    X, y = waves(12)
    made = SequenceClassifier(**QUICK, verbose=2).fit(X, y)
    lines = capsys.readouterr().err.splitlines()
    made.save(tmp_path / "model")
    assert SequenceClassifier.load(tmp_path / "model").verbose == 2
    assert len(lines) == 22
    assert lines[-2].startswith("network 2 of 2, step 40 of 40, loss ")
    SequenceClassifier(**QUICK).fit(X, y)
    assert capsys.readouterr().err == ""
    long = QUICK | {"max_steps": 10**6, "time_budget": 0.4, "causal": True}
    SequenceClassifier(**long, verbose=True).fit(X, y)
    ended = capsys.readouterr().err.splitlines()[-2]  # though not a tenth of the steps was taken
    assert ended.startswith("network 2 of 2, step ")


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_networks_are_the_same_bits_for_any_number_of_threads(threads):
    X, y = waves(12)
    quick = QUICK | {"n_networks": 3, "max_steps": 3, "causal": True}
    expected = SequenceClassifier(**quick).fit(X, y)
    torch.set_num_threads(threads)
    found = SequenceClassifier(**quick).fit(X, y)
    assert torch.get_num_threads() == threads
    state, other = (each._fitted.features.networks.state_dict() for each in (expected, found))
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    x, mask = torch.from_numpy(X.transpose(0, 2, 1)), torch.ones(12, 30, dtype=torch.bool)
    assert torch.equal(*(each._fitted.features.networks(x, mask) for each in (expected, found)))


def test_a_network_that_fails_ends_those_beside_it(monkeypatch):
    from spherescan.estimators import networks

    ended, waits = threading.Event(), threading.Event()

    def fit_series(model, series, plan, *, watch, **more):
        if not waits.is_set():
            waits.set()
            try:
                while True:
                    watch(1, 0.5)
                    time.sleep(0.001)
            finally:
                ended.set()
        raise RuntimeError("not finite")

    monkeypatch.setattr(networks, "fit_series", fit_series)
    torch.set_num_threads(2)
    made = SequenceClassifier(**QUICK | {"causal": True, "n_networks": 5})
    with pytest.raises(RuntimeError, match="not finite"):
        made.fit(*waves(12))
    assert ended.is_set()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "expected"), [(1, [4.0, 4.5, 6.0]), (3, [12.0, 12.0, 12.0])])
def test_the_time_there_is_is_shared_by_the_networks(monkeypatch, threads, expected):
    from spherescan.estimators import networks

    budgets, begun = [], threading.Barrier(threads)

    def fit_series(model, series, plan, **more):
        budgets.append(plan.seconds)
        begun.wait(60)
        now[0] += 3.0
        return model.eval()

    now = [0.0]
    monkeypatch.setattr(networks.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(networks, "fit_series", fit_series)
    settings = {"n_networks": 3, "time_budget": 12, "n_features": 84, "causal": True}
    torch.set_num_threads(threads)
    SequenceClassifier(**settings).fit(*waves(12))
    assert budgets == expected


@pytest.mark.unwatched
def test_few_series_get_no_networks_unless_they_are_to_be_streamed(tmp_path, monkeypatch):
    from spherescan.estimators import settings

    few = {"n_features": 84, "max_steps": 20, "random_state": 0}
    assert SequenceClassifier(**few).fit(*waves(30))._fitted.features.networks is None
    streamed = SequenceClassifier(**few, causal=True).fit(*waves(30))
    assert len(streamed._fitted.features.networks.each()) == 6
    monkeypatch.setattr(settings, "_MANY_SERIES", 30)
    many = SequenceClassifier(**few).fit(*waves(30))
    assert len(many._fitted.features.networks.each()) == 6
    many.save(tmp_path / "many")
    assert SequenceClassifier.load(tmp_path / "many").n_networks == "auto"


@pytest.mark.unwatched
def test_early_stopping_and_time_invariant_models_fit_too():
    X, y = waves(24)
    made = SequenceClassifier(**QUICK, early_stopping=True, selective=False, causal=True).fit(X, y)
    model = made._fitted.features.networks.each()[0]
    assert not model.layers[0].mixer.selective
    assert made.score(*waves(24, seed=9)) > 0.8
    stream = made.stream()
    np.testing.assert_allclose(
        stream.push(X[0]).cosines, made.decision_function(X[:1])[0], atol=1e-5
    )


@pytest.mark.unwatched
def test_a_class_of_one_series_and_sets_smaller_than_parts_are_fitted():
    X, y = waves(7)
    y = np.array([0, 0, 0, 0, 1, 1, 2])
    made = SequenceClassifier(**QUICK | {"n_networks": 4, "max_steps": 2}, causal=True).fit(X, y)
    assert made.predict(X).shape == (7,)
    for n in (2, 3):
        few = SequenceClassifier(**QUICK | {"n_networks": 4, "max_steps": 2}, causal=True)
        assert few.fit(X[:n], [0, 1, 1][:n]).predict(X).shape == (7,)


def test_early_stopping_looks_at_series_of_its_own(monkeypatch):
    from spherescan.estimators import networks

    looks = []

    def fit_series(model, series, plan, held_out=None, **more):
        looks.append((series, held_out, plan.early_stopping))
        return model.eval()

    monkeypatch.setattr(networks, "fit_series", fit_series)
    X, y = waves(60)
    x, mask = torch.from_numpy(X.transpose(0, 2, 1)), torch.ones(60, 30, dtype=torch.bool)
    made, _, _ = Networks.fitted(
        x, mask, torch.from_numpy(y), torch.eye(3), NetworkSettings(2, early_stopping=True),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for learned, held, stops in looks:
        assert stops
        assert (len(learned.target), len(held.target)) == (27, 3)
    # What neither has seen is what the network describes.
    seen = [torch.cat([learned.x, held.x]) for learned, held, _ in looks]
    rows = made.prepared(x, mask)[0]
    known = [(rows[:, None] == each[None]).flatten(2).all(2).any(1) for each in seen]
    assert [int(each.sum()) for each in known] == [30, 30]
    assert bool((known[0] ^ known[1]).all())

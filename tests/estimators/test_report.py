"""The page of an estimator, and its short form in notebooks."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.exceptions import NotFittedError

from spherescan.calibration import auroc
from spherescan.errors import ConfigError
from spherescan.estimators import SequenceClassifier, SequenceRegressor
from spherescan.estimators.classifier import _answers
from spherescan.estimators.sequences import class_indices
from spherescan.report import slowest_parts


def waves(n=60, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    t = np.linspace(0, 6, 40)
    X = np.sin((y[:, None] + 1) * t) + 0.3 * rng.standard_normal((n, 40))
    return X, np.array(["a<b", "b&c", "c"])[y]


def figures(path):
    found = re.search(
        r'<script id="figures" type="application/json">(.*?)</script>', path.read_text()
    )
    return json.loads(found[1])


@pytest.fixture(scope="module")
def classifier():
    return SequenceClassifier(n_features=84, random_state=0).fit(*waves())


@pytest.fixture(scope="module")
def regressor():
    X, y = waves()
    return SequenceRegressor(n_features=84, random_state=0).fit(
        X, np.unique(y, return_inverse=True)[1]
    )


def test_without_series_it_is_about_those_of_training_left_out(classifier, tmp_path):
    path = classifier.report(tmp_path / "page.html")
    drawn = figures(path)
    assert drawn.keys() == {"confusion", "sphere", "reliability", "open-set", "parts"}
    left_out = classifier.left_out_cosines_.argmax(1)
    target = np.unique(waves()[1], return_inverse=True)[1]
    counts = np.array(drawn["confusion"]["data"][0]["customdata"])
    assert counts.trace() == (left_out == target).sum()
    assert counts.sum() == 60
    text = path.read_text()
    assert "each left out" in text
    # What was fitted to these very series is said to be.
    assert "scale of its answers was fitted to these series" in text
    assert "Measured on the series that set their sizes" in text


def test_with_series_it_is_about_these(classifier, tmp_path):
    X, y = waves(30, seed=1)
    unknown = 9 * np.random.default_rng(2).standard_normal((7, 40))
    path = classifier.report(tmp_path / "page.html", X, y, unknown=unknown)
    drawn = figures(path)
    assert np.array(drawn["confusion"]["data"][0]["customdata"]).sum() == 30
    text = path.read_text()
    assert f"<dd>{classifier.score(X, y):.3f}</dd>" in text
    assert "7 series given as unknown" in text
    assert "less how far the nearest training series of that class is" in text
    scores = (torch.from_numpy(classifier.known_score(each)) for each in (X, unknown))
    assert f"AUROC {auroc(*scores):.3f}" in text
    points = [trace for trace in drawn["sphere"]["data"] if trace.get("name") == "a&lt;b"]
    assert len(points[0]["x"]) == 10


def test_sets_of_the_page_are_those_of_predict_set(classifier, tmp_path):
    X, y = waves(30, seed=1)
    noise = 9 * np.random.default_rng(2).standard_normal((10, 40))
    X, y = np.concatenate([X, noise]), np.concatenate([y, y[:10]])
    text = classifier.report(tmp_path / "page.html", X, y).read_text()
    for coverage in (0.8, 0.9, 0.95):
        sets = classifier.predict_set(X, coverage=coverage)
        held = sets[np.arange(40), np.unique(y, return_inverse=True)[1]]
        sizes = sets.sum(1)
        assert (sizes == 0).any()
        cells = [
            f"{held.mean():.1%}", f"{sizes.mean():.2f}",
            str((sizes == 0).sum()), str((sizes > 1).sum()),
        ]  # fmt: skip
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        assert f'<th scope="row">{coverage:.0%}</th>{row}' in text


def test_points_of_the_sphere_are_those_of_transform(classifier):
    X, y = waves(30, seed=1)
    fitted = classifier._fitted
    cosines, known = classifier._cosines_and_known(fitted, X)
    target = class_indices(classifier.classes_, y)
    answers = _answers(fitted, "", cosines, target, known, fitted.familiarity.rows[:30])
    assert np.allclose(answers.embeddings, classifier.transform(X), atol=1e-9)


def test_classes_that_were_added_are_on_the_page(tmp_path):
    X, y = waves()
    base = SequenceClassifier(n_features=84, random_state=0).fit(X[y != "c"], y[y != "c"])
    base.add_classes(X[y == "c"][:5], y[y == "c"][:5])
    path = base.report(tmp_path / "page.html", X, y)
    assert np.array(figures(path)["confusion"]["data"][0]["customdata"]).shape == (3, 3)


def test_bad_input_is_refused_and_nothing_is_written(classifier, regressor, tmp_path):
    X, y = waves(6)
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match="label 'z', which is none of the classes"):
        classifier.report(path, X, np.array([*y[:-1], "z"]))
    with pytest.raises(ValueError, match="y is None"):
        classifier.report(path, X)
    with pytest.raises(ConfigError, match="folder does not exist"):
        classifier.report(tmp_path / "nowhere" / "page.html")
    with pytest.raises(ValueError, match="y is None"):
        regressor.report(path, X)
    with pytest.raises(NotFittedError):
        SequenceClassifier().report(path)
    with pytest.raises(NotFittedError):
        SequenceRegressor().report(path)
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_a_regressor_has_its_intervals(regressor, tmp_path):
    X, y = waves(30, seed=1)
    values = np.unique(y, return_inverse=True)[1].astype(float)
    path = regressor.report(tmp_path / "page.html", X, values)
    drawn = figures(path)
    assert drawn["numbers"]["data"][1]["y"] == pytest.approx(regressor.predict(X).tolist())
    lower, upper = regressor.predict_interval(X, coverage=0.9).T
    inside = ((lower <= values) & (values <= upper)).mean()
    assert f"hold {inside:.1%} of these values." in path.read_text()
    assert "was set by these series" not in path.read_text()
    left_out = figures(regressor.report(tmp_path / "page.html"))
    assert left_out["numbers"]["data"][1]["y"] == pytest.approx(
        regressor.left_out_predictions_.tolist()
    )
    assert "That width was set by these series." in (tmp_path / "page.html").read_text()


def test_few_series_have_a_page_without_intervals_and_sets(tmp_path):
    X, y = waves(6)
    page = SequenceClassifier(n_features=84, random_state=0).fit(X, y).report(tmp_path / "a.html")
    assert "6 series are too few to tell a coverage" in page.read_text()
    regressor = SequenceRegressor(n_features=84, random_state=0).fit(X, np.arange(6.0))
    text = regressor.report(tmp_path / "b.html").read_text()
    assert "Intervals at 90" not in text


def test_a_notebook_shows_what_was_learned(classifier, regressor):
    text = classifier._repr_mimebundle_()["text/html"]
    # scikit-learn numbers its diagrams.
    assert re.sub(r"id-\d+", "", classifier._repr_html_()) == re.sub(r"id-\d+", "", text)
    right = classifier.left_out_cosines_.argmax(1) == np.unique(waves()[1], return_inverse=True)[1]
    assert f"<td>{right.mean():.3f}</td>" in text
    assert "a&lt;b, b&amp;c, c" in text
    assert "each left out (rmse)" in regressor._repr_html_()
    assert "each left out" not in SequenceClassifier()._repr_html_()
    assert "each left out" not in SequenceRegressor()._repr_html_()
    with config_context(display="text"):
        assert not hasattr(classifier, "_repr_html_")


def learned(kind, **settings):
    X, y = waves(48)
    few = {"n_features": 84, "n_networks": 2, "max_steps": 7, "random_state": 0}
    return kind(**few | settings).fit(X, np.unique(y, return_inverse=True)[1])


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])
def test_how_networks_learned_is_on_the_page_of_a_loaded_one_too(kind, tmp_path):
    made = learned(kind, causal=True)
    made.save(tmp_path / "model")
    for each in (made, kind.load(tmp_path / "model")):
        path = each.report(tmp_path / "page.html")
        lines = figures(path)["learning"]["data"]
        assert [line["name"] for line in lines] == ["network 1", "network 2"]
        assert [line["x"] for line in lines] == 2 * [[*range(1, 8)]]
        curves = each._fitted.features.curves
        assert [line["y"] for line in lines] == [curve.losses.tolist() for curve in curves]
        # Told apart without colours, and read without a figure.
        assert len({line["line"]["dash"] for line in lines}) == 2
        text = path.read_text()
        early = curves[0].losses[:1].mean()
        assert re.search(rf'<th scope="row">network 1</th><td>7</td><td>{early:.4g}<', text)
        assert "held out" not in text


def test_what_early_stopping_looked_at_is_on_the_page(tmp_path):
    made = learned(SequenceClassifier, causal=True, early_stopping=True)
    path = made.report(tmp_path / "page.html")
    *lines, held_out = figures(path)["learning"]["data"]
    assert held_out["x"] == [line["x"][-1] for line in lines]
    curves = made._fitted.features.curves
    assert held_out["y"] == [float(curve.held_out[0]) for curve in curves]
    loss, share = curves[0].in_the_end
    assert f"<td>{loss:.4g}</td><td>{share:.4g}</td></tr>" in path.read_text()


def test_networks_that_were_dropped_have_curves_and_it_is_said(tmp_path):
    made = learned(SequenceClassifier, max_steps=1)
    assert made._fitted.features.networks is None
    made.save(tmp_path / "model")
    for each in (made, SequenceClassifier.load(tmp_path / "model")):
        assert "All were dropped after 2: " in each.report(tmp_path / "page.html").read_text()


@pytest.mark.unwatched
def test_the_time_of_the_fit_is_told_by_stage(classifier, regressor, tmp_path):
    X, y = waves(12)
    stages = ["reading the series", "fixed features", "ridge and decisions"]
    for made in (classifier, regressor):
        seconds = made._fitted.features.seconds
        assert [*seconds] == stages
        path = made.report(tmp_path / "page.html")
        shown = figures(path)["parts"]["data"][0]
        unit = {"seconds": 1, "milliseconds": 1000}[
            figures(path)["parts"]["layout"]["xaxis"]["title"]["text"]
        ]
        taken = [unit * seconds[name] for name in shown["y"]]
        assert shown["x"] == pytest.approx(taken)
        assert shown["x"] == sorted(taken)
        text = path.read_text()
        assert "for the last call of fit" in text
        for name in stages:
            assert f'<th scope="row">{name}</th><td>{seconds[name]:.2f}</td>' in text
    # Series that are asked about are measured themselves.
    text = classifier.report(tmp_path / "page.html", X, y).read_text()
    assert "for the answers to 12 series" in text
    assert "Seconds of the last call of fit" in text
    with_networks = learned(SequenceClassifier)
    assert [*with_networks._fitted.features.seconds] == [*stages[:2], "networks", stages[2]]


def test_what_was_loaded_does_not_know_how_long_its_fit_took(classifier, tmp_path):
    classifier.save(tmp_path / "model")
    loaded = SequenceClassifier.load(tmp_path / "model")
    path = loaded.report(tmp_path / "page.html")
    assert "parts" not in figures(path)
    assert "Seconds of the last call of fit" not in path.read_text()


def test_parts_that_take_long_are_told_in_seconds():
    section = slowest_parts({"a": 30.0, "b": 90.0}, whole=120.0, of="x")
    assert section.text.startswith("120 s for x")
    assert section.data[0]["x"] == [30.0, 90.0]
    assert section.table.rows[0] == ("b", "90.000", "75.0%")

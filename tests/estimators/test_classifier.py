"""What users do with a classifier, on the utterances that ship with the package."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spherescan.data import locate, read_series
from spherescan.errors import CheckpointError
from spherescan.estimators import SequenceClassifier
from spherescan.runs import read_checkpoint, write_checkpoint
from tests.estimators.forging import Forger


def speakers(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    table = read_series(locate(f"sample:JapaneseVowels_{split}.ts"))
    return [np.ascontiguousarray(values.T) for values in table.series], np.array(table.labels)


@pytest.fixture(scope="module")
def train():
    return speakers("TRAIN")


@pytest.fixture(scope="module")
def test():
    return speakers("TEST")


@pytest.fixture(scope="module")
def fitted(train):
    return SequenceClassifier(n_features=504, random_state=0).fit(*train)


def waves(n: int, length: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    t = np.linspace(0, 6, length)
    return np.sin((1 + y[:, None]) * t) + 0.2 * rng.standard_normal((n, length)), y


@pytest.mark.unwatched
def test_it_tells_speakers_apart_by_utterances_of_different_lengths(fitted, test):
    assert fitted.score(*test) > 0.97
    assert fitted.n_channels_ == 12
    assert not hasattr(fitted, "n_features_in_")


def test_every_answer_follows_from_the_cosines(fitted, test):
    X = test[0][:50]
    cosines = fitted.decision_function(X)
    embeddings = fitted.transform(X)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(fitted.prototypes_, axis=1), 1)
    np.testing.assert_allclose(cosines, embeddings @ fitted.prototypes_.T)
    proba = fitted.predict_proba(X)
    expected = np.exp(fitted.scale_ * cosines)
    np.testing.assert_allclose(proba, expected / expected.sum(1, keepdims=True))
    nearest = fitted.classes_[cosines.argmax(1)]
    assert (fitted.predict(X) == nearest).all()


def test_prototypes_are_the_corners_of_a_simplex_at_height_one(fitted):
    k = len(fitted.classes_)
    cosines = (np.where(np.eye(k) > 0, 1, -1 / (k - 1)) + 1) / 2
    np.testing.assert_allclose(fitted.prototypes_ @ fitted.prototypes_.T, cosines, atol=1e-9)
    np.testing.assert_allclose(fitted.prototypes_[:, -1], np.sqrt(0.5))


def test_left_out_cosines_are_those_of_a_fit_without_the_series(train):
    X, y = waves(12)
    whole = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    assert whole.left_out_cosines_.shape == (12, 3)
    # Kernels and statistics come from all series; the regression does not see the one left out.
    right = whole.left_out_cosines_.argmax(1) == y
    assert right.mean() > 0.9
    assert not np.allclose(whole.left_out_cosines_, whole.decision_function(X))


@pytest.mark.parametrize("rejection", [0.05, 0.2])
def test_known_speakers_are_rejected_at_the_rate_that_was_asked_for(fitted, test, rejection):
    left_out = fitted.left_out_known_scores_
    threshold = np.sort(left_out)[int(271 * rejection) - 1]
    assert (left_out < threshold).mean() == pytest.approx(rejection, abs=2 / 270)
    found = fitted.predict_open(test[0], rejection=rejection, unknown_label=None)
    unknown = np.array([label is None for label in found])
    assert 0 < unknown.mean() < 2 * rejection
    assert (unknown == (fitted.known_score(test[0]) < threshold)).all()
    assert (found[~unknown] == fitted.predict(test[0])[~unknown]).all()


def test_noise_is_unknown_and_speakers_are_not(fitted, test):
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((12, 20)) for _ in range(20)]
    assert (fitted.predict_open(noise) == "unknown").mean() > 0.9
    assert (fitted.predict_open(test[0]) == "unknown").mean() < 0.1
    with pytest.raises(ValueError, match="is a class"):
        fitted.predict_open(noise, unknown_label=fitted.classes_[0])


@pytest.mark.unwatched
def test_sets_hold_the_true_class_as_often_as_promised():
    inside = {0.5: [], 0.9: []}
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, y = waves(225, seed=seed)
        X = X + rng.standard_normal(X.shape)
        classifier = SequenceClassifier(n_features=84, random_state=0).fit(X[:75], y[:75])
        small, large = (classifier.predict_set(X[75:], coverage=c) for c in inside)
        assert (small <= large).all()
        for coverage, sets in zip(inside, (small, large), strict=True):
            inside[coverage].append(sets[np.arange(150), y[75:]].mean())
        never = classifier.predict_set(X[75:], coverage=0.5, never_empty=True)
        assert (never >= small).all()
        assert never.any(1).all()
        assert not small.any(1).all()
    for coverage, found in inside.items():
        assert np.mean(found) == pytest.approx(coverage, abs=0.1)


def test_one_seed_is_one_classifier_and_another_seed_another():
    X, y = waves(20)
    make = SequenceClassifier(n_features=84)
    first, second, other = (
        clone(make).set_params(random_state=seed).fit(X, y).decision_function(X)
        for seed in (0, 0, 1)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_the_form_of_the_input_does_not_matter():
    X, y = waves(20)
    made = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    expected = made.decision_function(X)
    for same in (X[:, None], list(X), [x[None] for x in X], X.tolist(), pd.DataFrame(X).to_numpy()):
        again = SequenceClassifier(n_features=84, random_state=0).fit(same, y)
        assert (again.decision_function(same) == expected).all()
        assert (made.decision_function(same) == expected).all()
    ragged = [x[: 20 + i % 3] for i, x in enumerate(X)]
    boxed = np.empty(20, dtype=object)
    boxed[:] = ragged
    assert (made.decision_function(boxed) == made.decision_function(ragged)).all()
    with pytest.raises(ValueError, match="Expected 2D array"):
        made.predict(np.array([1.0, 2.0], dtype=object))
    frame = pd.DataFrame(X, columns=[f"t{i}" for i in range(X.shape[1])])
    named = SequenceClassifier(n_features=84, random_state=0).fit(frame, pd.Series(y))
    assert (named.decision_function(frame) == expected).all()
    assert named.feature_names_in_[0] == "t0"


@pytest.mark.unwatched
def test_it_works_in_pipelines_searches_and_cross_validation():
    X, y = waves(30)
    pipeline = make_pipeline(StandardScaler(), SequenceClassifier(n_features=84, random_state=0))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    search = GridSearchCV(
        SequenceClassifier(random_state=0), {"n_features": [84, 168]}, cv=2, n_jobs=1
    )
    assert search.fit(X, y).best_score_ > 0.9
    # As joblib sends an estimator to another process; the bytes are our own, of this line.
    again = pickle.loads(pickle.dumps(search.best_estimator_))  # noqa: S301
    assert again.score(X, y) == search.score(X, y)


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "b\n", "\u00e9"],
        [-1, 0, 2**40],
        [0.5, 1.5, 2.5],
        np.array(["x", "yy", "z"], dtype=object),
    ],
)
def test_what_is_saved_answers_with_the_same_bits(tmp_path, labels):
    X, y = waves(18)
    labels = np.asarray(labels)[y]
    if np.asarray(labels).dtype.kind == "f":
        labels = labels.astype(str)  # scikit-learn takes fractions for a regression
    made = SequenceClassifier(n_features=84, random_state=np.int64(3)).fit(X, labels)
    made.save(tmp_path / "model.safetensors")
    again = SequenceClassifier.load(str(tmp_path / "model.safetensors"))
    assert again.get_params() == made.get_params()
    assert again.classes_.dtype.kind == made.classes_.dtype.kind
    assert again.classes_.tolist() == made.classes_.tolist()
    assert (again.decision_function(X) == made.decision_function(X)).all()
    assert (again.predict(X) == made.predict(X)).all()
    assert (again.predict_open(X, rejection=0.2) == made.predict_open(X, rejection=0.2)).all()
    assert (again.predict_set(X) == made.predict_set(X)).all()
    assert (again.left_out_cosines_ == made.left_out_cosines_).all()
    assert (again.known_score(X) == made.known_score(X)).all()
    assert (again.left_out_known_scores_ == made.left_out_known_scores_).all()
    with pytest.raises(ValueError, match="30 features"):
        again.predict(X[:, :10])
    with pytest.raises(CheckpointError, match="not overwritten"):
        SequenceClassifier(n_features=84).fit(X, labels).save(tmp_path / "model.safetensors")


def test_a_forged_file_is_refused(tmp_path):
    X, y = waves(18)
    made = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    forger = Forger(made, tmp_path)
    good, refused = forger.good, forger.refused
    refused("of no estimator", state={})
    refused("of 'Other'", state=good.state | {"estimator": "Other"})
    refused("n_features", state=good.state | {"n_features": "84"})
    refused("length", state=good.state | {"length": 1 << 60})
    refused("for the length", state=good.state | {"length": 10**6})
    refused("cannot be saved", state=good.state | {"label_type": "<M8[s]"})
    refused("not of type", state=good.state | {"label_type": "<i8", "labels": ["a", "b", "c"]})
    refused("weight", weight=None)
    channels = good.tensors["features.fixed.rocket.channels"]
    refused("cannot have", features__fixed__rocket__channels=channels + 1)
    refused("cannot have", features__fixed__rocket__channels=channels - 1)
    refused("cannot have", features__fixed__scale=good.tensors["features.fixed.scale"] / 0)
    refused("size mismatch|shape", features__fixed__scale=good.tensors["features.fixed.scale"][1:])
    refused("fit", weight=good.tensors["weight"][1:])
    refused("shape", features__fixed__hydra__weights=torch.zeros(1, 2, 50, 0, 9))
    refused("shape", features__fixed__channel_mean=torch.zeros(10**8, 0))
    refused("shape", features__fixed__rocket__biases=torch.tensor(1.0))
    refused("cannot have", features__fixed__channel_std=torch.zeros(1, dtype=torch.float64))
    refused("unit vectors", prototypes=2 * good.tensors["prototypes"])
    refused("depend on each other", prototypes=good.tensors["prototypes"][[0] * 3])
    refused("at most 0 long", state=good.state | {"label_type": "<U100000000"})
    refused("different", state=good.state | {"labels": [1, 1, 1]})
    refused("class outside", target=good.tensors["target"] + 1)
    refused("not finite", bias=good.tensors["bias"] / 0)
    refused("class outside", state=good.state | {"scale": -1.0})
    refused("does not fit", state=good.state | {"labels": [0, 1]})
    refused("no cosine", left_out=2 + good.tensors["left_out"])
    refused("too large", weight=1e300 + good.tensors["weight"])
    many = torch.zeros(1, 1, 10000, 1, 1)
    refused("hydra", features__fixed__hydra__weights=many, state=good.state | {"length": 1 << 40})
    refused("reserve_classes", state=good.state | {"reserve_classes": -1})
    refused("added_bias", added_bias=None)
    added = torch.zeros(2, dtype=torch.float64)
    refused("does not fit", added_bias=added)
    refused("does not fit", added_bias=added, added_weight=torch.zeros(2, 5).double())
    refused("described .* does not fit", described=torch.zeros(18, 5))
    rows = torch.full((18, len(good.tensors["weight"]) + 4), torch.inf)
    refused("described holds a value", described=rows)
    refused("no rows of known scores", near__rows=None)
    refused("no stretch of known scores.* fit it again", near__stretch=None)
    refused("rows of known scores is .* does not fit", near__rows=good.tensors["near.rows"][1:])
    refused("without training series", target=good.tensors["target"].clamp(max=1))
    refused("size mismatch", features__statistics_mean=good.tensors["features.mean"].new_ones(3))
    refused("not finite", features__statistics_scale=good.tensors["features.mean"].new_ones(4) / 0)
    with pytest.raises(CheckpointError):
        SequenceClassifier.load(tmp_path / "missing")


def test_a_file_of_too_few_classes_or_series_is_refused(tmp_path):
    made = SequenceClassifier(n_features=84, random_state=0).fit(*waves(18))
    forger = Forger(made, tmp_path)
    good, refused = forger.good.tensors, forger.refused
    # One class that is no added one, and all tensors fit to it.
    refused(
        "does not fit",
        weight=good["weight"][:, :0],
        bias=good["bias"][:0],
        prototypes=torch.ones(1, 1).double(),
        added_bias=torch.zeros(2).double(),
        added_weight=torch.zeros(2, len(good["weight"])).double(),
        added_reach=torch.ones(2).double(),
    )
    nothing = {name: good[name][:0] for name in ("target", "left_out")}
    of_known = {f"near__{name}": good[f"near.{name}"][:0] for name in ("rows", "left_out")}
    refused("left_out .* does not fit", **nothing, **of_known)
    refused("target is torch.int32", target=good["target"].int())


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("<f4", [1e300, 2.0, 3.0]),
        ("<f16", [1.0, 2.0, 3.0]),
        ("<U1", ["ax", "bx", "cx"]),
        ("<i8", ["1", "2", "3"]),
        ("<i8", [1.5, 2.5, 3.5]),
    ],
)
def test_labels_that_a_type_does_not_have_are_refused(tmp_path, kind, labels):
    SequenceClassifier(n_features=84).fit(*waves(18)).save(tmp_path / "good")
    good = read_checkpoint(tmp_path / "good")
    forged = good.state | {"label_type": kind, "labels": labels}
    write_checkpoint(tmp_path / "bad", good.tensors, forged)
    with pytest.raises(CheckpointError, match="labels"):
        SequenceClassifier.load(tmp_path / "bad")


def test_how_series_were_normalised_or_rounded_is_no_feature():
    X, y = waves(60, length=100)
    X = (X - X.mean(1, keepdims=True)) / X.std(1, keepdims=True)
    classifier = SequenceClassifier(n_features=252, random_state=0).fit(np.round(X, 4), y)
    for changed in (1.01 * X, X + 0.01, np.round(X, 2)):
        assert classifier.score(changed, y) == 1
        assert (classifier.predict_open(changed) == "unknown").mean() < 0.2


def test_a_large_offset_costs_nothing():
    X, y = waves(40)
    classifier = SequenceClassifier(n_features=84, random_state=0).fit(X[:20] + 2**31, y[:20])
    assert classifier.score(X[20:] + 2**31, y[20:]) == 1


def test_a_failed_fit_leaves_what_was_there():
    X, y = waves(12)
    classifier = SequenceClassifier(n_features=10, random_state=0)
    with pytest.raises(ValueError, match="at least 84"):
        classifier.fit(X, y)
    with pytest.raises(NotFittedError):
        classifier.predict(X)
    classifier.set_params(n_features=84).fit(X, y)
    before, cosines = dict(vars(classifier)), classifier.decision_function(X)
    with pytest.raises(ValueError, match="inconsistent"):
        classifier.fit(X[:, None, :20], np.array(["x", "y", "z"])[y[:-1]])
    assert vars(classifier) == before
    np.testing.assert_array_equal(classifier.decision_function(X), cosines)


@pytest.mark.parametrize("call", ["fit", "partial_fit", "add_classes"])
@pytest.mark.parametrize("where", ["scale_of", "Familiarity.of"])
def test_an_interrupted_call_leaves_what_was_there(monkeypatch, call, where):
    X, y = waves(24)
    classifier = SequenceClassifier(n_features=84, random_state=0).fit(X[y < 2], y[y < 2])
    before, cosines = dict(vars(classifier)), classifier.decision_function(X)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"spherescan.estimators.classifier.{where}", interrupt)
    chosen = np.ones(24, dtype=bool) if call == "fit" else y == 2
    with pytest.raises(KeyboardInterrupt):
        getattr(classifier, call)(X[chosen], y[chosen])
    assert vars(classifier) == before
    np.testing.assert_array_equal(classifier.decision_function(X), cosines)
    monkeypatch.undo()
    classifier.add_classes(X[y == 2], y[y == 2])
    assert classifier.predict_proba(X).shape == (24, 3)


def test_a_new_fit_forgets_what_the_last_one_found():
    X, y = waves(12)
    classifier = SequenceClassifier(n_features=84, random_state=0, missing="mask").fit(X + 1000, y)
    assert classifier.channel_means_[0] > 900
    classifier.set_params(missing="refuse").fit(X[:, None], y).set_params(missing="mask")
    assert not hasattr(classifier, "channel_means_")
    assert not hasattr(classifier, "n_features_in_")
    with pytest.raises(ValueError, match="fitted with missing"):
        classifier.predict(X[:, None])


def test_logarithms_of_probabilities_reach_where_probabilities_are_zero(fitted, test):
    X = test[0][:20]
    found = fitted.predict_log_proba(X)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found), fitted.predict_proba(X))


def test_data_frames_in_a_list_have_channels_in_columns():
    X, y = waves(12)
    names = ("a", "b")
    frames = [pd.DataFrame(dict.fromkeys(names, values)) for values in X]
    classifier = SequenceClassifier(n_features=84, random_state=0).fit(frames, y)
    assert classifier.n_channels_ == 2
    same = classifier.decision_function([np.stack([values, values]) for values in X])
    np.testing.assert_array_equal(classifier.decision_function(frames), same)
    column = pd.Series(list(X))
    found = SequenceClassifier(n_features=84, random_state=0).fit(column, y).predict(column)
    assert (found == y).all()
    of_lists = pd.Series([values.tolist() for values in X])
    assert (SequenceClassifier(n_features=84).fit(of_lists, y).predict(X) == y).all()


def test_an_unknown_label_may_be_a_tuple():
    X, y = waves(40)
    classifier = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    found = classifier.predict_open(X[:3] + 100, rejection=0.1, unknown_label=("no", "class"))
    assert found.tolist() == [("no", "class")] * 3


@pytest.mark.parametrize(
    ("X", "reason"),
    [
        ([np.zeros((5, 2)), np.zeros((6, 2))], "transpose"),
        (np.zeros((2, 1, 1, 5)), "4 axes"),
        ([[[1, 2, 3], [1, 2]]] * 2, "several lengths"),
        (None, "of type NoneType"),
        ((np.zeros(5) for _ in range(2)), "of type generator"),
        ({"a": [1, 2]}, "of type dict"),
        ([[np.ma.masked_greater([1.0, 9.0], 5)] * 2] * 2, "masked"),
        (pd.Series([np.ma.masked_greater([1.0, 9.0], 5), np.ones(3)]), "masked"),
        (np.array([np.ma.masked_greater([1.0, 9.0], 5), np.ones(3)], dtype=object), "masked"),
    ],
)
def test_what_is_no_series_is_refused_in_words_that_help(X, reason):
    with pytest.raises(ValueError, match=reason):
        SequenceClassifier(n_features=84).fit(X, [0, 1])


@pytest.mark.parametrize("shape", [(4, 30), (4, 1, 30), "list"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_named_with_its_place(shape, value):
    X = np.random.default_rng(0).standard_normal((4, 1, 30))
    X[3, 0, 4] = value
    given = list(X) if shape == "list" else X.reshape(shape)
    with pytest.raises(ValueError, match=r"series 3 of X has .* in channel 0 at time 4"):
        SequenceClassifier(n_features=84).fit(given, [0, 1, 0, 1])


def test_masked_labels_are_refused():
    X, y = waves(12)
    with pytest.raises(ValueError, match="masked labels"):
        SequenceClassifier(n_features=84).fit(X, np.ma.masked_equal(y, 2))


@pytest.mark.parametrize("setting", ["causal", "selective", "early_stopping", "verbose"])
def test_a_flag_that_is_none_is_refused(setting):
    X, y = waves(12)
    with pytest.raises(TypeError, match=f"{setting} is 'no'"):
        SequenceClassifier(n_features=84).set_params(**{setting: "no"}).fit(X, y)


def test_one_long_series_among_many_does_not_exhaust_the_memory(monkeypatch):
    X, y = waves(12)
    classifier = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    monkeypatch.setattr("spherescan.estimators.sequences.memory_bytes", lambda: 4 * 8 * 11 * 1000)
    with pytest.raises(ValueError, match=r"X\[11\] has 1000 values"):
        classifier.predict([*X[:11], np.zeros(1000)])
    assert len(classifier.predict([*X[:10], np.zeros(1000)])) == 11
    assert len(classifier.predict(np.zeros((20, 1, 1000)))) == 20  # nothing of it is padding


def test_a_list_of_arrays_is_series_whatever_their_lengths():
    X, y = waves(12)
    classifier = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    assert classifier.n_features_in_ == 30
    classifier.fit(list(X), y)
    assert not hasattr(classifier, "n_features_in_")
    same = [classifier.predict([X[0][:15]]), classifier.predict([X[0][:15], X[1][:15]])[:1]]
    assert same[0] == same[1] == classifier.predict([X[0][:15], X[1]])[0]


def test_values_far_from_those_of_training_are_refused_by_every_method():
    X, y = waves(30)
    classifier = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    for ask in (classifier.predict, classifier.decision_function, classifier.predict_open):
        with pytest.raises(ValueError, match="series 1 of X has values too far"):
            ask(np.stack([X[0], 1e30 * X[1]]))


def test_time_and_channels_in_each_others_place_are_warned_of():
    X, y = waves(12)
    turned = X[:, :, None]
    with pytest.warns(UserWarning, match=r"channels and a single time point.*transpose it"):
        fitted = SequenceClassifier(n_features=84).fit(turned, y)
    fitted.predict(turned)  # says nothing more


def test_a_value_that_spoils_what_is_learned_of_the_others_is_told():
    X, y = waves(30)
    X = np.stack(
        [X, X, 0 * X], 1
    )  # a channel that never moves but once says nothing of what is far
    X[4, 2, 1] = 7
    make = SequenceClassifier(n_features=84, random_state=0)
    X[3, 1, 5] = 1e5
    make.fit(X, y)
    X[3, 1, 5] = -1e12
    with pytest.warns(UserWarning, match=r"series 3 of X has -1e\+12 in channel 1 at time 5"):
        make.fit(X, y)


@pytest.mark.parametrize(
    ("X", "reason"),
    [
        ([[1.0, float("nan")], [1.0, 2.0]], "NaN"),
        ([np.array([1.0, np.inf]), np.array([1.0])], "0 of X has infinity in channel 0 at time 1"),
        ([np.ones((2, 3)), np.ones((3, 3))], "series 1 of X has 3 channels"),
        (np.ones((2, 0)), "0 feature"),
        (np.ones((2, 1, 0)), "shape"),
        ([np.ones(0), np.ones(2)], r"X\[0\] has the shape"),
        (np.ones((0, 3)), "0 sample"),
        ([], "1D array|0 sample|empty"),
        (np.ones((2, 1, 3, 1)), "dim|shape"),
        ([["a", "b"], ["c", "d"]], "could not convert string"),
        (np.full((2, 3), 1e300), "too large"),
        ([np.ones(3), "abc"], r"X\[1\] has the shape \(\)"),
        ([np.array(3.0), np.ones(3)], r"X\[0\] has the shape \(\)"),
        (np.ma.masked_equal([[1.0, 2.0], [3.0, 4.0]], 4.0), "masked values"),
        ([np.ones(3), np.ma.masked_equal([1.0, 2.0], 2.0)], "masked values"),
    ],
)
def test_input_that_is_no_series_is_refused(X, reason):
    with pytest.raises((ValueError, TypeError), match=reason):
        SequenceClassifier(n_features=84).fit(X, [0, 1])


def test_targets_that_are_no_classes_are_refused():
    X, y = waves(6)
    make = SequenceClassifier(n_features=84)
    for bad, reason in (
        ([0] * 6, "at least two classes"),
        ([0, 1], "inconsistent"),
        ([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], "Unknown label type"),
        ([0, 1, float("nan"), 0, 1, 0], "NaN"),
        (None, "requires y"),
    ):
        with pytest.raises(ValueError, match=reason):
            make.fit(X, bad)
    with pytest.raises(NotFittedError):
        make.predict(X)
    for n_features, reason in ((83, "at least 84"), (84.5, "whole number"), ("84", "whole")):
        with pytest.raises((TypeError, ValueError), match=reason):
            SequenceClassifier(n_features=n_features).fit(X, y)


def test_one_series_of_each_class_is_enough():
    X, y = waves(3)
    made = SequenceClassifier(n_features=84, random_state=0).fit(X, y)
    assert (made.predict(X) == y).all()
    with pytest.raises(ValueError, match="cannot promise"):
        made.predict_open(X)

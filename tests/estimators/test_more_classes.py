"""Classes and series that come after the first fit."""

import numpy as np
import pytest
import torch

from spherescan.data import locate, read_series
from spherescan.estimators import SequenceClassifier
from spherescan.features import ridge
from tests.estimators.forging import Forger

pytestmark = pytest.mark.unwatched

BASE, LATER = (3, 8, 1, 5, 9, 2), (7, 4, 6)


def speakers(split: str) -> tuple[list[np.ndarray], np.ndarray]:
    table = read_series(locate(f"sample:JapaneseVowels_{split}.ts"))
    assert table.labels is not None
    return [series.T for series in table.series], np.array([int(label) for label in table.labels])


def chosen(data, keep) -> tuple[list[np.ndarray], np.ndarray]:
    return [series for series, k in zip(data[0], keep, strict=True) if k], data[1][keep]


def first_five(data, speaker: int) -> tuple[list[np.ndarray], np.ndarray]:
    keep = np.zeros(len(data[1]), dtype=bool)
    keep[np.nonzero(data[1] == speaker)[0][:5]] = True
    return chosen(data, keep)


@pytest.fixture(scope="module")
def train():
    return speakers("TRAIN")


@pytest.fixture(scope="module")
def test():
    return speakers("TEST")


def base_of(train, **settings) -> SequenceClassifier:
    made = SequenceClassifier(n_features=252, random_state=0, **settings)
    return made.fit(*chosen(train, np.isin(train[1], BASE)))


def test_speakers_are_added_from_five_utterances_and_old_decisions_stay(train, test):
    classifier = base_of(train)
    known = np.isin(test[1], BASE)
    at_first = classifier.score(*chosen(test, known))
    for n_added, speaker in enumerate(LATER):
        before = classifier.decision_function(test[0])
        classifier.add_classes(*first_five(train, speaker))
        after = classifier.decision_function(test[0])
        assert (after[:, : 6 + n_added] == before).all()
        assert classifier.classes_.tolist() == sorted(BASE) + list(LATER[: n_added + 1])
        assert classifier.left_out_cosines_.shape == (180 + 5 * (n_added + 1), 7 + n_added)
    assert at_first > 0.97
    assert classifier.score(*test) > 0.95 * at_first
    later = ~known
    assert classifier.score(*chosen(test, later)) > 0.9
    np.testing.assert_allclose(classifier.predict_proba(test[0]).sum(1), 1)
    assert classifier.predict_set(test[0]).shape == (370, 9)
    assert (classifier.predict_open(test[0]) == "unknown").mean() < 0.15


def test_what_is_like_no_class_stays_unknown_when_classes_are_added(train, test):
    classifier = base_of(train)
    far = [[10 + x for x in test[0][::9]], [99 * x for x in test[0][::9]]]
    assert all((classifier.predict_open(X) == "unknown").all() for X in far)
    for speaker in LATER:
        classifier.add_classes(*first_five(train, speaker))
    assert all((classifier.predict_open(X) == "unknown").all() for X in far)


def test_probabilities_of_added_classes_are_calibrated(train, test):
    classifier = base_of(train)
    before = classifier.scale_
    for speaker in LATER:
        classifier.add_classes(*first_five(train, speaker))
    assert classifier.scale_ != before
    sure = classifier.predict_proba(test[0]).max(1).mean()
    assert abs(sure - classifier.score(*test)) < 0.06


@pytest.mark.parametrize(
    ("first", "more", "classes"),
    [
        (["a", "b"], np.array(["long"], dtype=object), ["a", "b", "long"]),
        (np.array(["a", "b"], dtype=object), ["c"], ["a", "b", "c"]),
        ([1, 2], [3.0], [1, 2, 3]),
        ([-1, 2], np.array([3], dtype=np.uint64), [-1, 2, 3]),
        ([2**60, 2**60 + 1], [2.0], [2**60, 2**60 + 1, 2]),
    ],
)
def test_labels_take_the_type_of_the_classes(train, first, more, classes):
    X, y = chosen(train, np.isin(train[1], (1, 2)))
    made = SequenceClassifier(n_features=84, random_state=0).fit(X, np.asarray(first)[y - 1])
    kind = made.classes_.dtype.kind
    series, _ = first_five(train, 3)
    for learn in (made.add_classes, made.partial_fit):
        learn(series, np.asarray(more)[np.zeros(5, dtype=int)])
        assert sorted(made.classes_.tolist()) == sorted(classes)
        assert [type(label) for label in made.classes_.tolist()] == [type(classes[0])] * 3
        assert made.classes_.dtype.kind == kind
        if learn == made.add_classes:
            made.fit(X, np.asarray(first)[y - 1])


@pytest.mark.parametrize(
    ("first", "more"),
    [([1, 2], [2.5]), ([False, True], [2]), ([1, 2], [True]), ([1, 2], ["3"])],
)  # fmt: skip
def test_labels_of_another_type_are_refused(train, first, more):
    X, y = chosen(train, np.isin(train[1], (1, 2)))
    made = SequenceClassifier(n_features=84, random_state=0).fit(X, np.asarray(first)[y - 1])
    series, _ = first_five(train, 3)
    for learn in (made.add_classes, made.partial_fit):
        with pytest.raises(ValueError, match=r"same kind of labels|Unknown label type"):
            learn(series, np.asarray(more)[np.zeros(5, dtype=int)])
    assert made.classes_.tolist() == list(first)


def test_several_classes_in_one_call_see_each_other(train, test):
    classifier = base_of(train)
    examples = [first_five(train, speaker) for speaker in LATER]
    series = [each for part in examples for each in part[0]]
    classifier.add_classes(series, np.concatenate([part[1] for part in examples]))
    assert classifier.classes_.tolist() == sorted(BASE) + sorted(LATER)
    assert classifier.score(*test) > 0.94
    assert classifier.score(series, np.concatenate([part[1] for part in examples])) == 1


def test_one_utterance_is_a_class_too(train, test):
    classifier = base_of(train)
    series, label = first_five(train, LATER[0])
    classifier.add_classes(series[:1], label[:1])
    assert classifier.score(*chosen(test, test[1] == LATER[0])) > 0.5


@pytest.mark.parametrize("k", [2, 3, 5])
def test_one_example_is_a_class_beside_few_others(k):
    rng = np.random.default_rng(0)
    y = np.arange(40 * (k + 1)) % (k + 1)
    X = np.sin((2 + y[:, None]) * np.linspace(0, 6, 40)) + 0.2 * rng.standard_normal((len(y), 40))
    old, new = y < k, np.flatnonzero(y == k)
    classifier = SequenceClassifier(n_features=500, random_state=0)
    classifier.fit(X[old][: 10 * k], y[old][: 10 * k]).add_classes(X[new[:1]], y[new[:1]])
    assert classifier.predict(X[new[:1]]).tolist() == [k]
    assert classifier.score(X[old], y[old]) > 0.97
    assert classifier.score(X[new], y[new]) > 0.5


def test_what_is_saved_can_be_added_to(train, test, tmp_path):
    classifier = base_of(train, reserve_classes=2)
    classifier.add_classes(*first_five(train, LATER[0]))
    classifier.save(tmp_path / "kept")
    again = SequenceClassifier.load(tmp_path / "kept")
    assert again.classes_.tolist() == classifier.classes_.tolist()
    for each in (classifier, again):
        each.add_classes(*first_five(train, LATER[1]))
    assert (again.decision_function(test[0]) == classifier.decision_function(test[0])).all()
    assert (again.left_out_cosines_ == classifier.left_out_cosines_).all()
    classifier.save(tmp_path / "full")  # there was room for two
    full = SequenceClassifier.load(tmp_path / "full")
    assert (tmp_path / "full").stat().st_size < 0.4 * (tmp_path / "kept").stat().st_size
    for learn in (full.add_classes, full.partial_fit):
        with pytest.raises(ValueError, match="saved without the features of its training series"):
            learn(*first_five(train, LATER[2]))
    assert (full.decision_function(test[0]) == classifier.decision_function(test[0])).all()
    assert (full.known_score(test[0]) == classifier.known_score(test[0])).all()


def test_a_forged_reach_of_added_classes_is_refused(train, tmp_path):
    made = base_of(train, reserve_classes=2).add_classes(*first_five(train, LATER[0]))
    forger = Forger(made, tmp_path)
    for reach in (0.0, -1.0):
        forger.refused("not above 0", added_reach=torch.tensor([reach], dtype=torch.float64))
    forger.refused("not finite", added_reach=torch.tensor([torch.inf], dtype=torch.float64))


def test_what_cannot_be_added_is_refused_and_changes_nothing(train):
    classifier = base_of(train)
    new, old = first_five(train, LATER[0]), first_five(train, BASE[0])
    before = classifier._fitted
    for X, y, reason in [
        (*old, f"{BASE[0]} is a class already; partial_fit"),
        ([*new[0], *old[0]], [7] * 5 + [3] * 5, "3 is a class already"),
        (new[0], ["seven"] * 5, "give the same kind of labels"),
        (new[0], new[1][:4], "inconsistent"),
        (new[0], None, "requires y"),
    ]:
        with pytest.raises(ValueError, match=reason):
            classifier.add_classes(X, y)
    assert classifier._fitted is before
    for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="reserve_classes"):
            base_of(train, reserve_classes=wrong)


def test_partial_fit_is_the_ridge_over_everything_given_so_far(train, test):
    parts = [chosen(train, np.arange(270) % 3 == i) for i in range(3)]
    classifier = SequenceClassifier(n_features=500, random_state=0)
    scores = [classifier.partial_fit(*part).score(*test) for part in parts]
    assert scores[2] > max(0.97, scores[0])
    fitted = classifier._fitted
    labels = np.concatenate([part[1] for part in parts])
    assert (classifier.classes_[fitted.target.numpy()] == labels).all()
    order = np.argsort(np.arange(270) % 3, kind="stable")
    assert fitted.described is not None
    with torch.inference_mode():
        for row, index in enumerate(order[::40]):
            series = torch.from_numpy(train[0][index].T.copy())[None]
            again = fitted.features(series, torch.ones(series.shape[:2]) > 0)
            torch.testing.assert_close(again[0], fitted.described[40 * row])
    targets = _unlifted(fitted.prototypes)[fitted.target]
    expected = ridge(fitted.features.for_ridge(fitted.described), targets)
    torch.testing.assert_close(fitted.weight, expected.weight)
    torch.testing.assert_close(fitted.bias, expected.bias)


def _unlifted(prototypes: torch.Tensor) -> torch.Tensor:
    return prototypes[:, :-1] / prototypes[:, -1:]


def test_partial_fit_takes_new_classes_and_makes_added_ones_like_the_others(train, test):
    classifier = base_of(train)
    classifier.add_classes(*first_five(train, LATER[0]))
    classifier.partial_fit(*first_five(train, LATER[1]))
    assert classifier.classes_.tolist() == sorted([*BASE, *LATER[:2]])
    assert len(classifier.prototypes_) == 8
    assert classifier.score(*chosen(test, test[1] == LATER[1])) > 0.5
    assert classifier.score(*chosen(test, np.isin(test[1], BASE))) > 0.97


def test_partial_fit_refuses_what_it_cannot_take(train):
    new = first_five(train, LATER[0])
    with pytest.raises(ValueError, match="label 7, which classes does not have"):
        SequenceClassifier().partial_fit(*new, classes=[1, 2])
    with pytest.raises(ValueError, match="at least two classes"):
        SequenceClassifier().partial_fit(*new, classes=list(range(10)))


@pytest.mark.parametrize("name", ["predict", "predict_open", "decision_function", "predict_proba"])
def test_an_answer_keeps_to_the_fit_it_began_with(train, test, monkeypatch, name):
    """Another thread may learn a class that comes first among the labels while one is asked."""
    from spherescan.estimators import classifier as module

    made = base_of(train)
    X = test[0][:40]
    expected = getattr(made, name)(X)

    def in_parts(*args):
        if not learned:
            learned.append(made.add_classes(*first_five(train, 7)))
            made.partial_fit(train[0][:1], [0])
        yield from before(*args)

    learned, before = [], module.described_in_parts
    monkeypatch.setattr(module, "described_in_parts", in_parts)
    assert np.array_equal(getattr(made, name)(X), expected)
    assert 0 in made.classes_

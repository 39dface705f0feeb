"""How much a series is like those that were learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spherescan.calibration import auroc
from spherescan.estimators import SequenceClassifier
from spherescan.estimators.familiarity import Familiarity, Kept, _Telling, _units
from spherescan.estimators.sequences import described

pytestmark = pytest.mark.unwatched

T = np.linspace(0, 6, 40)


def waves(n, k, *, level=0.0, spread=0.0, noise=0.3, seed=0):
    """Return series of k frequencies; each class has a level, from which each series departs."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    offset = level * y + spread * rng.standard_normal(n)
    X = np.sin((1 + y[:, None]) * T) + offset[:, None] + noise * rng.standard_normal((n, 40))
    return X, y


def fitted(X, y, **settings):
    return SequenceClassifier(n_features=84, random_state=0, **settings).fit(X, y)


def told_apart(classifier, known, unknown) -> float:
    return auroc(*(torch.from_numpy(classifier.known_score(X)) for X in (known, unknown)))


@pytest.fixture
def kept():
    # Two features of convolutions, the first of which stands for four, and one statistic.
    return Kept(torch.tensor([0, 2, 3]), torch.tensor([2.0, 1.0, 1.0]).double(), 1)


def test_distances_are_those_to_the_nearest_of_the_nearest_class(kept):
    rng = np.random.default_rng(0)
    x, rows = (rng.standard_normal((n, 3)).astype(np.float32) for n in (300, 20))
    nearest, target = rng.integers(0, 4, 300), np.arange(20) % 4
    found = kept.distances(*map(torch.from_numpy, (x, nearest, rows, target)))
    square = (x[:, None].astype(np.float64) - rows) ** 2 * np.array([4.0, 1.0, 1.0])
    other = nearest[:, None] != target
    for column, of in enumerate((square[:, :, 2], square.sum(2))):
        wanted = np.sqrt(np.where(other, np.inf, of).min(1))
        np.testing.assert_allclose(found[:, column], wanted, rtol=1e-12)
    assert kept(torch.arange(8.0).reshape(2, 4)).tolist() == [[0, 2, 3], [4, 6, 7]]


def stretch_by_formula(kept, rows, target):
    """Return what `_Telling` says, feature by feature."""
    n, k = len(rows), len(set(target.tolist()))
    wide, ratios = rows.numpy().astype(np.float64), []
    for column in wide.T:
        inside = sum(
            column[target == c].var() * int((target == c).sum()) for c in set(target.tolist())
        )
        within = (inside + 5 * column.var()) / (n - k + 5)
        ratios.append(column.var() / within if np.ptp(column) else np.nan)
    first = len(ratios) - kept.n_statistics
    ratios = np.array(ratios)
    ratios[:first] = np.nan_to_num(ratios[:first], nan=1)
    ratios[first:] = np.nan_to_num(ratios[first:], nan=np.nanmax([*ratios[first:], 1 / n]))
    variance = wide.var(0) * kept.stretch.numpy() ** 2
    for part in (slice(0, first), slice(first, None)):
        ratios[part] /= np.sqrt((variance[part] * ratios[part] ** 2).sum() / variance[part].sum())
    return kept.stretch.numpy() * ratios


@pytest.fixture
def uneven():
    """Five features of 40 series of three classes: the last but one never varied."""
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.permutation(np.arange(40) % 3))
    rows = torch.from_numpy(rng.standard_normal((40, 5)).astype(np.float32))
    rows[:, 1] = target + 0.1 * rows[:, 1]
    rows[:, 2] += 2 * target
    rows[:, 3] = 7.1
    stretch = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]).double()
    return Kept(torch.arange(5), stretch, 3), rows, target


def test_what_tells_classes_apart_counts_more(uneven):
    kept, rows, target = uneven
    stretch = _Telling(kept, rows, target).kept().stretch
    np.testing.assert_allclose(stretch, stretch_by_formula(kept, rows, target), rtol=1e-12)
    assert stretch[1] > 3 * stretch[0]
    assert stretch[3] == stretch[2] > 1.5 * stretch[4]
    # One series of each class tells nothing; classes may have any numbers.
    few = _Telling(kept, rows[:3], torch.tensor([9, 2, 4])).kept()
    assert few.stretch.tolist() == pytest.approx(kept.stretch.tolist())


def test_a_left_out_series_is_seen_as_if_it_was_never_there(uneven, monkeypatch):
    monkeypatch.setattr("spherescan.estimators.familiarity._AT_ONCE", 7)
    kept, rows, target = uneven
    target[0] = 3  # alone in its class
    rows[5, 3] = 8.0  # what never varied without it
    nearest = torch.arange(40) % 3
    found = _Telling(kept, rows, target).left_out(nearest)
    for i in range(40):
        rest = torch.arange(40) != i
        others = _Telling(kept, rows[rest], target[rest]).kept()
        wanted = others.distances(rows[i : i + 1], nearest[i : i + 1], rows[rest], target[rest])
        np.testing.assert_allclose(found[i : i + 1], wanted, rtol=1e-9)


def test_a_lone_series_is_near_any_other(kept):
    rows = torch.tensor([[0.0, 0, 0], [0, 0, 3], [0, 4, 3], [0, 10, 0]])
    target = torch.tensor([0, 0, 0, 1])
    found = _Telling(kept, rows, target).left_out(target)
    rest = _Telling(kept, rows[:3], target[:3]).kept()
    wanted = rest.distances(rows[3:], target[:1], rows[:3], target[:3])
    np.testing.assert_allclose(found[3:], wanted, rtol=1e-9)


def test_unknown_classes_are_told_by_what_tells_classes_apart():
    """Levels of two channels are noise of each series, as wide as what the first one says."""
    X, y = waves(160, 4)
    level = np.random.default_rng(1).standard_normal((160, 2, 1))
    X = np.concatenate([(X + y[:, None])[:, None], np.repeat(level, 40, 2)], 1)
    known = y < 3
    classifier = fitted(X[known][:90], y[known][:90])
    fit = classifier._fitted
    of = described(classifier, fit.features, X)

    def area(kept):
        scores = replace(fit.familiarity, kept=kept).score(fit.cosines(of), kept(of))
        return auroc(scores[known][90:], scores[~known])

    assert area(fit.familiarity.kept) > area(Kept.of(fit.features)) + 0.02


def test_few_series_of_known_classes_are_called_unknown_as_often_as_asked():
    rates = []
    for seed in range(4):
        X, y = waves(25, 5, level=0.5, spread=0.2, seed=seed)
        new = waves(200, 5, level=0.5, spread=0.2, seed=100 + seed)[0]
        open_set = fitted(X, y).predict_open(new, rejection=0.2)
        rates.append((open_set == "unknown").mean())
    assert 0.1 < np.mean(rates) < 0.25


def test_scores_of_new_series_do_not_depend_on_which_others_are_asked():
    X, y = waves(60, 4)
    classifier = fitted(X, y)
    strange = waves(30, 6, seed=1)[0]
    familiarity = classifier._fitted.familiarity
    rows = familiarity.kept(described(classifier, classifier._fitted.features, strange))
    cosines = torch.from_numpy(classifier.decision_function(strange))
    whole = familiarity.score(cosines, rows)
    alone = [familiarity.score(cosines[i : i + 1], rows[i : i + 1]) for i in range(30)]
    assert (whole == torch.cat(alone)).all()


def test_left_out_scores_are_like_those_of_new_series():
    X, y = waves(300, 5, level=0.5)
    classifier = fitted(X, y)
    assert (classifier._fitted.familiarity.weights > 0).any()
    new = waves(400, 5, level=0.5, seed=1)[0]
    assert (classifier.predict_open(new) == "unknown").mean() == pytest.approx(0.05, abs=0.03)
    # Training series themselves are at no distance, which says nothing of new ones.
    assert classifier.known_score(X).mean() > classifier.left_out_known_scores_.mean()


def test_leaving_classes_out_finds_out_whether_the_level_tells_them_apart():
    by_level = fitted(*waves(90, 6, level=1.0, spread=0.05))._fitted.familiarity.weights
    by_shape = fitted(*waves(90, 6, level=0.0, spread=5.0))._fitted.familiarity.weights
    again = fitted(*waves(90, 6, level=1.0, spread=0.05))._fitted.familiarity.weights
    assert by_level[0] > 0
    assert by_shape[0] * 5 < by_level[0]
    assert again.tolist() == by_level.tolist()


def test_what_is_left_out_for_weights_stretches_nothing(monkeypatch):
    X, y = waves(60, 4, level=1.0)
    seen = []

    class Watched(_Telling):
        def __init__(self, kept, rows, target):
            seen.append((len(rows), len(target.unique())))
            super().__init__(kept, rows, target)

    monkeypatch.setattr("spherescan.estimators.familiarity._Telling", Watched)
    fitted(X, y)
    assert seen == [(60, 4)] + [(45, 3)] * 4


def relative(classifier):
    """Return weights in units of the spread of distances."""
    familiarity, left_out = classifier._fitted.familiarity, classifier._fitted.left_out
    plain = Kept.of(classifier._fitted.features)
    near = _Telling(plain, familiarity.rows, familiarity.target).left_out(left_out.argmax(1))
    return (familiarity.weights / _units(left_out, near)).round(decimals=9).tolist()


@pytest.mark.slow
def test_networks_that_have_learned_a_class_do_not_judge_by_its_absence():
    X, y = waves(90, 6, spread=1.0, noise=1.0)
    alone, beside = fitted(X, y), fitted(X, y, n_networks=2, max_steps=100)
    assert beside._fitted.features.networks is not None
    assert alone._fitted.left_out.tolist() != beside._fitted.left_out.tolist()
    assert relative(beside) == relative(alone) != [0.5, 0.5]


def test_one_strange_training_series_changes_little():
    X, y = waves(80, 2, spread=0.1)
    new = waves(80, 2, spread=0.1, seed=1)[0] + 2
    for offset in (0, 30):
        X[0] += offset
        assert (fitted(X, y).predict_open(new) == "unknown").mean() > 0.95


@pytest.mark.parametrize("settings", [{}, {"causal": True, "n_networks": 2, "max_steps": 5}])
def test_a_channel_that_never_moved_makes_a_series_unknown_when_it_does(settings):
    def silent(n, seed):
        X, y = waves(n, 3, spread=0.1, seed=seed)
        return np.stack([X, np.zeros_like(X)], 1), y

    classifier = fitted(*silent(60, 0), **settings)
    new = silent(60, 1)[0]
    assert (classifier.predict_open(new) == "unknown").mean() < 0.25
    new[:, 1] += 0.5
    assert (classifier.predict_open(new) == "unknown").all()


def test_features_are_kept_evenly_from_each_group():
    X, y = waves(30, 3)
    features = SequenceClassifier(n_features=504, random_state=0).fit(X, y)._fitted.features
    kept = Kept.of(features)
    sizes = features.fixed.sizes[:-1]
    assert min(sizes) > 256
    assert kept.n_statistics == 4
    groups = kept.columns[:-4].split(256)
    for first, size, columns in zip(np.cumsum([0, *sizes]), sizes, groups, strict=False):
        assert columns[0] == first
        assert first + size - size // 256 - 1 <= columns[-1] < first + size
        assert set(columns.diff().tolist()) <= {size // 256, size // 256 + 1}
    np.testing.assert_allclose(kept.stretch[:-4].square(), np.repeat(sizes, 256) / 256)
    assert kept.columns[-4:].tolist() == [features.n_features + i for i in range(4)]
    assert kept.stretch[-4:].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_what_has_the_shape_of_a_class_at_another_level_is_less_known(k, noise):
    X, y = waves(20 * k, k, spread=0.1, noise=noise)
    classifier = fitted(X, y)
    new = waves(40, k, spread=0.1, noise=noise, seed=1)[0]
    assert told_apart(classifier, new, new + 2) > 0.95
    assert told_apart(classifier, new, 3 * new) > 0.95
    assert (classifier.predict_open(new + 2) == "unknown").mean() > 0.9


def test_distances_add_to_what_cosines_know():
    X, y = waves(120, 6, level=0.5, spread=0.1)
    known = y < 4
    classifier = fitted(X[known], y[known])
    new, of = waves(240, 6, level=0.5, spread=0.1, seed=1)
    cosines = torch.from_numpy(classifier.decision_function(new).max(1))
    by_cosine = auroc(cosines[of < 4], cosines[of >= 4])
    assert told_apart(classifier, new[of < 4], new[of >= 4]) > by_cosine
    assert told_apart(classifier, new[of < 4], new[of >= 4]) > 0.98


def test_networks_alone_know_what_is_far_away_by_its_statistics():
    settings = {"causal": True, "n_networks": 2, "max_steps": 40}
    for k in (2, 3):
        X, y = waves(60, k, spread=0.1)
        classifier = fitted(X, y, **settings)
        assert classifier._fitted.features.n_statistics == 4
        new = waves(60, k, spread=0.1, seed=1)[0]
        assert told_apart(classifier, new, new + 3) > 0.9
        assert told_apart(classifier, new, 5 * new) > 0.9
        assert (classifier.predict_open(new, rejection=0.1) == "unknown").mean() < 0.25
    # Both distances would be the same one.
    weights = classifier._fitted.familiarity.weights
    assert weights[0] > 0 == weights[1]
    # What follows the features of the ridge is for distances alone.
    assert classifier._fitted.weight.shape == (3, 2)
    rows = described(classifier, classifier._fitted.features, X)
    assert rows.shape == (60, 7)
    rows = torch.cat([rows[:, :3], 99 + rows[:, 3:]], 1)
    cosines = classifier._fitted.cosines(rows)
    np.testing.assert_array_equal(cosines, classifier.decision_function(X))


@pytest.mark.parametrize("settings", [{}, {"causal": True, "n_networks": 2, "max_steps": 5}])
def test_of_tokens_it_is_the_largest_cosine(settings):
    y = np.arange(30) % 3
    X = np.random.default_rng(0).integers(0, 8, (30, 20))
    classifier = fitted(X, y, vocab_size=8, **settings)
    cosines = classifier.decision_function(X).max(1)
    np.testing.assert_array_equal(classifier.known_score(X), cosines)
    np.testing.assert_array_equal(
        classifier.left_out_known_scores_, classifier.left_out_cosines_.max(1)
    )


def test_added_classes_are_scored_with_the_weights_there_are():
    X, y = waves(150, 5, level=0.5)
    classifier = fitted(X[y < 4], y[y < 4])
    before = classifier._fitted.familiarity
    strange = waves(100, 5, level=0.5, seed=1)
    strange = strange[0][strange[1] == 4]
    unknown = classifier.predict_open(strange) == "unknown"
    classifier.add_classes(X[y == 4][:10], y[y == 4][:10])
    after = classifier._fitted.familiarity
    assert after.weights.tolist() == before.weights.tolist()
    assert len(after.rows) == len(after.left_out) == 130
    assert unknown.mean() > 0.9
    assert (classifier.predict_open(strange) == "unknown").mean() < 0.4
    again = classifier.partial_fit(X[y == 4][10:], y[y == 4][10:])
    assert len(again.left_out_known_scores_) == 150


def test_series_that_are_all_the_same_give_distances_no_weight():
    X, y = np.tile(np.sin(T), (8, 1)), np.arange(8) % 2
    with pytest.warns(UserWarning, match="8 of 8 training series are copies"):
        familiarity = fitted(X, y)._fitted.familiarity
    assert familiarity.weights.tolist() == [0, 0]
    assert familiarity.left_out.isfinite().all()


def test_what_a_state_holds_is_checked(kept):
    target = torch.tensor([0, 1])
    good = {
        "rows": torch.zeros(2, 3),
        "stretch": torch.tensor([1.0, 2.0, 3.0]).double(),
        "weights": torch.ones(2).double(),
        "left_out": torch.zeros(2).double(),
    }
    made = Familiarity.of_state(good, kept, target)
    assert (
        made.score(torch.eye(2).double(), torch.ones(2, 3)).tolist()
        == [pytest.approx(1 - 3 - 14**0.5)] * 2
    )
    for name, tensor, reason in (
        ("rows", torch.zeros(3, 3), "rows of known scores is"),
        ("weights", torch.zeros(3).double(), "weights of known scores is"),
        ("weights", -torch.ones(2).double(), "below 0"),
        ("stretch", torch.ones(3), "stretch of known scores is"),
        ("stretch", -torch.ones(3).double(), "below 0"),
        ("weights", torch.full((2,), 1e308, dtype=torch.float64), "not finite"),
        ("left_out", torch.full((2,), torch.nan).double(), "not finite"),
        ("left_out", None, "no left_out"),
    ):
        changed = {n: t for n, t in (good | {name: tensor}).items() if t is not None}
        with pytest.raises(ValueError, match=reason):
            Familiarity.of_state(changed, kept, target)

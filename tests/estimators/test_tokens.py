"""Sequences of tokens and texts in the estimators."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from spherescan.data.augment import windows
from spherescan.estimators import SequenceClassifier, SequenceRegressor, networks, sequences
from spherescan.runs import read_checkpoint, write_checkpoint
from tests.estimators.forging import Forger

# A line of each: the one language has words with "the", the other with "der".
ENGLISH = ["the cat and the dog", "on the other side", "there was nothing", "they gather them"]
GERMAN = ["der Hund und der Wolf", "in der anderen Stadt", "wieder oder weder", "der Bruder redet"]
TEXTS, LABELS = ENGLISH + GERMAN, ["en"] * 4 + ["de"] * 4
NEW = ["the others", "der andere"]
QUICK = {"n_networks": 2, "max_steps": 30, "random_state": 0}


def order(n, length=12, seed=0):
    """Which of two tokens, anywhere among others, comes first: no n-gram can tell."""
    rng = np.random.default_rng(seed)
    X, y = rng.integers(2, 8, (n, length)), np.arange(n) % 2
    for row, label in zip(X, y, strict=True):
        first, second = np.sort(rng.choice(length, 2, replace=False))
        row[first], row[second] = label, 1 - label
    return X, y


@pytest.fixture(scope="module")
def causal():
    X, y = order(40)
    return SequenceClassifier(vocab_size=8, causal=True, **QUICK).fit(X, y)


@pytest.fixture(scope="module")
def both():
    X, y = order(200, length=8)
    return SequenceClassifier(vocab_size=8, **QUICK | {"max_steps": 150}).fit(X, y)


@pytest.fixture(scope="module")
def languages():
    return SequenceClassifier(vocab_size=256, random_state=0).fit(TEXTS, LABELS)


def test_texts_are_told_apart_and_may_come_in_many_forms(languages):
    assert languages.predict(NEW).tolist() == ["en", "de"]
    expected = languages.decision_function(NEW)
    as_bytes = [text.encode() for text in NEW]
    for X in (
        as_bytes, [list(text) for text in as_bytes], tuple(NEW), pd.Series(NEW),
        np.array(NEW), np.array(NEW, dtype=object), [np.frombuffer(t, np.uint8) for t in as_bytes],
    ):  # fmt: skip
        assert np.array_equal(languages.decision_function(X), expected)
    assert languages.n_channels_ == 1
    assert not hasattr(languages, "n_features_in_")
    numbers = np.array([list(b"the"), list(b"der")])
    for X in (numbers.astype(object), pd.DataFrame(numbers).astype("Int64"), numbers.tolist()):
        assert np.array_equal(languages.predict(X), languages.predict(numbers))
    # Bytes, not letters: one of these has two.
    assert languages.predict(["größer der"]).tolist() == ["de"]


def test_an_array_of_tokens_is_a_list_of_its_rows():
    X, y = order(20)
    made = SequenceClassifier(vocab_size=8, random_state=0).fit(X, y)
    assert np.array_equal(made.decision_function(X), made.decision_function(X.tolist()))
    # What is behind the end of a shorter sequence is no token.
    short = [X[0], X[1][:3]]
    alone = made.decision_function([X[1][:3]])[0]
    assert made.decision_function(short)[1] == pytest.approx(alone, abs=1e-9)


@pytest.mark.unwatched
def test_networks_learn_an_order_that_no_n_gram_has(both):
    X, y = order(200, length=8)
    test_x, test_y = order(200, length=8, seed=1)
    alone = SequenceClassifier(vocab_size=8, n_networks=0, random_state=0).fit(X, y)
    assert both._fitted.features.networks is not None
    assert both.score(test_x, test_y) > 0.9
    assert alone.score(test_x, test_y) < 0.8


@pytest.mark.unwatched
@pytest.mark.parametrize("length", [1, 12, 600])
def test_a_stream_of_tokens_equals_the_whole_at_every_token(causal, length):
    tokens = np.random.default_rng(2).integers(0, 8, length)
    stream = causal.stream()
    for end in range(1, min(length, 12) + 1):
        answer = stream.push(int(tokens[end - 1]))
        whole = causal.decision_function([tokens[:end]])
        assert answer.cosines[1] - answer.cosines[0] == pytest.approx(whole[0], abs=1e-5)
    other = causal.stream()
    other.load_state_dict(stream.state_dict())
    for each in (stream, other):
        answer = each.push(tokens[12:])
        whole = causal.decision_function([tokens])
        assert answer.cosines[1] - answer.cosines[0] == pytest.approx(whole[0], abs=1e-5)
        assert answer.n_steps == length


@pytest.mark.unwatched
def test_a_stream_of_bytes_takes_text():
    made = SequenceClassifier(vocab_size=256, causal=True, **QUICK).fit(TEXTS, LABELS)
    stream = made.stream()
    stream.push("the ")
    answer = stream.push(b"others")
    np.testing.assert_allclose(
        answer.probabilities, made.predict_proba(["the others"])[0], atol=1e-4
    )


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "nothing has been pushed"),
        (8, ValueError, "has 8, which is no token"),
        ([-1], ValueError, "has -1"),
        ([0.5], TypeError, "whole numbers"),
        ([[1, 2]], ValueError, "one axis"),
        (np.ma.array([1, 2], mask=[0, 1]), ValueError, "masked values"),
    ],
)
def test_what_is_no_token_changes_nothing(causal, samples, error, message):
    stream = causal.stream()
    with pytest.raises(error, match=message):
        stream.push(samples)
    assert stream.n_steps == 0


@pytest.mark.parametrize("name", ["languages", "causal", "both", "regressor"])
def test_what_is_saved_answers_with_the_same_bits(tmp_path, request, name):
    X = NEW
    if name == "regressor":
        made = SequenceRegressor(vocab_size=256, random_state=0).fit(TEXTS, np.arange(8.0))
    else:
        made = request.getfixturevalue(name)
        X = X if name == "languages" else order(3, length=8)[0]
    made.save(tmp_path / "model")
    again = type(made).load(tmp_path / "model")
    assert again.get_params() == made.get_params()
    assert np.array_equal(again.predict(X), made.predict(X))
    assert np.array_equal(again.transform(X), made.transform(X))


def test_a_file_of_another_vocabulary_is_refused(tmp_path, languages, causal):
    refused = (
        (languages, {100: "out of range", None: "of another kind", 0: "vocab_size is 0"}),
        (causal, {9: "vocab_size is 9", None: "vocab_size is None"}),
    )
    for made, reasons in refused:
        folder = tmp_path / str(made.vocab_size)
        folder.mkdir()
        forger = Forger(made, folder)
        for vocab_size, reason in reasons.items():
            forger.refused(reason, state=forger.good.state | {"vocab_size": vocab_size})


def test_a_file_from_before_there_were_vocabularies_is_read(tmp_path):
    X = np.random.default_rng(0).standard_normal((8, 20))
    made = SequenceClassifier(n_features=84, random_state=0).fit(X, LABELS)
    made.save(tmp_path / "new")
    saved = read_checkpoint(tmp_path / "new")
    state = {name: value for name, value in saved.state.items() if name != "vocab_size"}
    write_checkpoint(tmp_path / "old", saved.tensors, state)
    again = SequenceClassifier.load(tmp_path / "old")
    assert np.array_equal(again.decision_function(X), made.decision_function(X))


def test_a_regressor_counts_tokens():
    rng = np.random.default_rng(0)
    X = [rng.integers(0, 4, 30) for _ in range(80)]
    y = np.array([(row == 3).mean() for row in X])
    made = SequenceRegressor(vocab_size=4, random_state=0).fit(X[:60], y[:60])
    assert made.score(X[60:], y[60:]) > 0.9


def test_more_of_what_is_known_and_new_languages_can_be_added(languages):
    french = ["le chat est sur la table", "elle est belle et douce", "les amis de la ville"]
    made = SequenceClassifier(vocab_size=256, random_state=0).fit(TEXTS, LABELS)
    before = made.decision_function(NEW)
    made.add_classes(french, ["fr"] * 3)
    after = made.decision_function(NEW)
    assert np.array_equal(after[:, 1] - after[:, 0], before)
    assert made.predict(["elle est la"]).tolist() == ["fr"]
    made = SequenceClassifier(vocab_size=256, random_state=0).fit(TEXTS, LABELS)
    assert made.partial_fit(["them or this"], ["en"]).predict(NEW).tolist() == ["en", "de"]


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ("text", ValueError, "X must be an array"),
        (7, ValueError, "X must be an array"),
        (np.zeros((2, 2, 2), dtype=int), ValueError, "X must be an array"),
        ([], ValueError, "0 sample"),
        (["", "a"], ValueError, r"X\[0\] is empty"),
        (np.zeros((2, 0), dtype=int), ValueError, r"X\[0\] is empty"),
        ([[1, 2], [300]], ValueError, r"X\[1\] has 300, which is no token"),
        ([[-1]], ValueError, "has -1"),
        ([[1.0]], TypeError, "whole numbers"),
        ([["a"]], TypeError, "whole numbers"),
        ([[True]], TypeError, "whole numbers"),
        ([["a", "b"]], TypeError, "has 'a'; tokens are whole numbers"),
        ([[[1]]], ValueError, "one axis"),
        ([[[1], [1, 2]]], ValueError, r"X\[0\] is no sequence of tokens"),
        ([1, 2, 3], ValueError, r"X\[0\] is 1, .* give \[X\]"),
        (["a", None], ValueError, r"X\[1\] is None"),
        (["a", "\ud800"], ValueError, r"X\[1\] is no sequence of tokens"),
        ([[2**63, 1]], ValueError, "has 9223372036854775808, which is no token"),
        ([[2**64, -1]], ValueError, "has 18446744073709551616, which is no token"),
        (np.ma.array([[1, 2]], mask=[[0, 1]]), ValueError, "masked values"),
        ([np.ma.array([1, 2], mask=[0, 1])], ValueError, "masked values"),
        ({"abc": "xyz"}, ValueError, "X must be an array"),
        ({"abc", "xyz"}, ValueError, "X must be an array"),
        (bytearray(b"abc"), ValueError, "X must be an array"),
        (np.array("abc"), ValueError, "X must be an array"),
        (sparse.csr_array([[1, 2]]), ValueError, "X must be an array"),
    ],
)
def test_what_is_no_sequence_of_tokens_is_refused(languages, X, error, message):
    with pytest.raises(error, match=message):
        languages.predict(X)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size is 0"),
        ({"vocab_size": 2.0}, TypeError, "whole number"),
        ({"vocab_size": True}, TypeError, "whole number"),
        ({"missing": "mask"}, ValueError, "no line between tokens"),
        ({"n_features": 0}, ValueError, "n_features is 0"),
    ],
)
@pytest.mark.parametrize("estimator", [SequenceClassifier, SequenceRegressor])
def test_settings_that_make_no_sense_are_refused(estimator, settings, error, message):
    with pytest.raises(error, match=message):
        estimator(**{"vocab_size": 256, **settings}).fit(TEXTS, range(8))


def test_texts_without_a_vocabulary_say_how_to_give_one():
    with pytest.raises(ValueError, match="set vocab_size=256"):
        SequenceClassifier().fit(TEXTS, LABELS)


def test_one_long_text_among_many_is_refused_before_it_takes_the_memory(languages, monkeypatch):
    monkeypatch.setattr(sequences, "memory_bytes", lambda: 4 * 8 * 3 * 100)
    assert languages.predict(["a", "b", "c" * 100]).shape == (3,)
    with pytest.raises(ValueError, match=r"X\[2\] has 101 tokens; 3 sequences as long"):
        languages.predict(["a", "b", "c" * 101])


def test_networks_of_too_many_tokens_are_refused_before_they_take_the_memory():
    X, y = order(12)
    few = SequenceClassifier(vocab_size=2**31, random_state=0).fit(X, y)
    assert few.predict(X).shape == (12,)
    with pytest.raises(ValueError, match="set n_networks=0"):
        SequenceClassifier(vocab_size=2**31, n_networks=2).fit(X, y)


def test_sequences_go_through_networks_by_positions_as_long_as_they_are(causal, monkeypatch):
    X = [order(1, length=length)[0][0] for length in (2, 40, 3, 7)]
    expected = causal.decision_function(X)
    monkeypatch.setattr(networks, "_POSITIONS", 40)
    np.testing.assert_allclose(causal.decision_function(X), expected, atol=1e-5)


def test_the_page_speaks_of_tokens(languages, tmp_path):
    text = languages.report(tmp_path / "page.html").read_text()
    assert "Fitted to 8 sequences over 256 tokens" in text


def test_a_vocabulary_that_was_changed_after_the_fit_is_refused(tmp_path):
    made = SequenceClassifier(vocab_size=256, random_state=0).fit(TEXTS, LABELS)
    made.set_params(vocab_size=300)
    with pytest.raises(ValueError, match="fitted with vocab_size=256"):
        made.predict(NEW)
    with pytest.raises(ValueError, match="fitted with vocab_size=256"):
        made.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_series_masked_after_the_fit_are_not_saved(tmp_path):
    X = np.random.default_rng(0).standard_normal((8, 20))
    made = SequenceClassifier(n_features=84).fit(X, LABELS).set_params(missing="mask")
    with pytest.raises(ValueError, match='fitted with missing="refuse"'):
        made.save(tmp_path / "model")


def test_a_part_of_a_long_sequence_lies_within_it():
    x = torch.arange(30).expand(40, 30)
    mask = torch.arange(30) < torch.tensor([30, 12, 5, 1]).repeat(10)[:, None]
    generator = torch.Generator().manual_seed(0)
    part, kept = windows(x, mask, longest=10, generator=generator)
    assert part.shape == kept.shape == (40, 10)
    assert kept.sum(1).tolist() == [10, 10, 5, 1] * 10
    assert (part.diff(dim=1) == 1).all()
    begins = part[:, 0]
    assert set(begins[::4].tolist()) > {begins[0].item()}
    assert begins[1::4].max() <= 2
    assert not begins[2::4].any()
    assert windows(x, mask, longest=30, generator=generator)[0] is x

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer

from spherescan.features import NGrams, ngrams

TEXTS = ["banana", "bandana band", "an", "a", "nab a cab", "zzz"]


def batch(texts, dtype=torch.int64):
    rows = [list(text.encode()) for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    # What is behind the end is no token of the sequence, and must not matter.
    x = torch.full((len(rows), int(lengths.max())), 97, dtype=dtype)
    for row, tokens in zip(x, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return x, torch.arange(x.shape[1]) < lengths[:, None]


def expected(texts, of):
    """The same by scikit-learn's counts."""
    found = []
    for order in range(1, 5):
        counter = CountVectorizer(
            analyzer="char", lowercase=False, ngram_range=(order, order),
            min_df=1 if order == 1 else 2,
        )  # fmt: skip
        try:
            counts = counter.fit_transform(texts).toarray()
        except ValueError:  # no such n-gram
            continue
        rarity = 1 + np.log((1 + len(texts)) / (1 + (counts > 0).sum(0)))
        rows = np.log1p(counter.transform(of).toarray()) * rarity
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        found.append(rows / np.where(norm > 0, norm, 1))
    return np.concatenate(found, 1)


@pytest.mark.parametrize("positions", [1, 20, 1 << 22])
def test_they_are_weighed_counts_as_scikit_learn_counts(monkeypatch, positions):
    monkeypatch.setattr(ngrams, "_POSITIONS", positions)
    made = NGrams(256)
    rows = made.fit(*batch(TEXTS))
    np.testing.assert_allclose(rows, expected(TEXTS, TEXTS), rtol=1e-5)
    new = ["band", "x", "bananas and cabs"]
    np.testing.assert_allclose(made(*batch(new)), expected(TEXTS, new), rtol=1e-5)
    assert made.n_features == rows.shape[1]


def test_the_most_frequent_are_kept():
    made = NGrams(256, n_features=2)
    made.fit(*batch(TEXTS))
    assert made.sizes.tolist() == [2, 2, 2, 0]
    assert made.codes[:2].tolist() == [ord("a"), ord("n")]
    assert made.codes[2:4].tolist() == [256 * ord(a) + ord(b) for a, b in ("an", "na")]


def test_sequences_of_one_token_and_of_none_in_common():
    x, mask = torch.tensor([[3], [5]]), torch.ones(2, 1) > 0
    made = NGrams(7)
    assert made.fit(x, mask).tolist() == [[1, 0], [0, 1]]
    assert made(torch.tensor([[6]]), mask[:1]).tolist() == [[0, 0]]
    assert made(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3) > 0).shape == (0, 2)


@pytest.mark.parametrize(("vocab_size", "orders"), [(1, 4), (46340, 4), (2**31, 2), (2**16, 3)])
def test_no_code_overflows(vocab_size, orders):
    made = NGrams(vocab_size)
    assert len(made.orders) == orders
    x = torch.full((2, 6), vocab_size - 1)
    made.fit(x, torch.ones(2, 6) > 0)
    assert made.codes.tolist() == [vocab_size**n - 1 for n in range(1, orders + 1)]


@pytest.mark.parametrize("settings", [{"vocab_size": 0}, {"vocab_size": 2**31 + 1}])
def test_sizes_outside_their_range_are_refused(settings):
    with pytest.raises(ValueError, match="vocab_size"):
        NGrams(**settings)
    with pytest.raises(ValueError, match="n_features is 0"):
        NGrams(3, n_features=0)


def test_what_was_saved_comes_back_and_nothing_else():
    made = NGrams(256)
    rows = made.fit(*batch(TEXTS))
    state = made.state_dict()
    assert torch.equal(NGrams.of_state(state, 256)(*batch(TEXTS)), rows)
    codes = state["codes"]
    for changes, reason in (
        ({"codes": codes.float()}, "codes is"),
        ({"codes": codes.flip(0)}, "not sorted"),
        ({"codes": codes - 98}, "out of range"),
        ({"rarity": state["rarity"] * torch.nan}, "rarity holds"),
        ({"rarity": state["rarity"] - 1}, "rarity holds"),
        ({"rarity": state["rarity"][1:]}, "rarity is"),
        ({"sizes": state["sizes"] - 1}, "of sizes"),
        ({"sizes": torch.tensor([len(codes) + 1, -1, 0, 0])}, "of sizes"),
        ({"sizes": state["sizes"][:2]}, "sizes is"),
        ({"codes": codes[:0], "rarity": codes[:0].float(), "sizes": 0 * state["sizes"]}, "0 n-g"),
    ):
        with pytest.raises(ValueError, match=reason):
            NGrams.of_state({**state, **changes}, 256)
    with pytest.raises(ValueError, match="out of range"):
        NGrams.of_state(state, 100)
    with pytest.raises(KeyError):
        NGrams.of_state({"codes": codes}, 256)
    with pytest.raises(RuntimeError):
        NGrams.of_state({**state, "more": codes}, 256)

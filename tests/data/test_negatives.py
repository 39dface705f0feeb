import pytest
import torch

from spherescan.data import (
    NEGATIVES,
    rust_trainer_negative,
    shuffled_segments,
    time_shift,
    wrong_label,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(lengths, width=3):
    length = max(lengths)
    x = torch.randn(len(lengths), length, width, generator=generator(9))
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    return x, mask


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_a_wrong_label_is_never_right_and_every_other_one_comes_up(n_classes):
    target = torch.arange(n_classes).repeat(200)
    wrong = wrong_label(target, n_classes=n_classes, generator=generator())
    assert not bool((wrong == target).any())
    pairs = set(zip(target.tolist(), wrong.tolist(), strict=True))
    assert len(pairs) == n_classes * (n_classes - 1)
    assert 0 <= int(wrong.min()) <= int(wrong.max()) < n_classes


@pytest.mark.parametrize("negative", NEGATIVES.values(), ids=NEGATIVES)
def test_positions_are_kept_but_not_their_order(negative):
    x, mask = rows([17, 8, 4, 3, 2, 1])
    given = x.clone()
    out = negative(x, mask, generator=generator())
    assert torch.equal(x, given)
    for row, length in enumerate(mask.sum(1).tolist()):
        assert torch.equal(out[row, length:].abs(), x[row, length:].abs())
        before, after = (values[row, :length, 0].abs().tolist() for values in (x, out))
        assert sorted(before) == sorted(after)
        assert (before != after) is (length > 1), length


def test_time_shift_is_a_rotation_by_a_quarter_at_least():
    x, mask = rows([20])
    for seed in range(20):
        out = time_shift(x, mask, generator=generator(seed))
        shifts = [s for s in range(20) if torch.equal(out[0], x[0].roll(-s, dims=0))]
        assert len(shifts) == 1
        assert 5 <= shifts[0] <= 15


def test_shuffled_pieces_stay_whole():
    x, mask = rows([16])
    out = shuffled_segments(x, mask, generator=generator())
    pieces = [x[0, i : i + 4] for i in range(0, 16, 4)]
    for i in range(0, 16, 4):
        assert any(torch.equal(out[0, i : i + 4], piece) for piece in pieces)


@pytest.mark.parametrize("negative", NEGATIVES.values(), ids=NEGATIVES)
def test_the_same_generator_gives_the_same_negatives(negative):
    x, mask = rows([12, 9])
    first, again = (negative(x, mask, generator=generator(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_the_negative_of_rust_trainer_by_hand():
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    expected = torch.tensor([[[5.0, -6.0], [-1.0, 2.0], [3.0, -4.0]]])
    everything = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(rust_trainer_negative(x, everything), expected)
    padded = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]])
    expected = torch.tensor([[[3.0, -4.0], [-1.0, 2.0], [0.0, 0.0]]])
    assert torch.equal(rust_trainer_negative(padded, padded[:, :, 0] != 0), expected)

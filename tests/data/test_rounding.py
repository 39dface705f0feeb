"""Values whose differences float32 would lose are refused in training data, in every format."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spherescan.data import SERIES_READERS, locate, read_series
from spherescan.data.rounding import Narrowing
from spherescan.data.series import expect_resolved
from spherescan.errors import DataError

Series = list[NDArray[np.float64]]


def write_csv(path: Path, series: Series) -> None:
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["case", *(f"x{channel}" for channel in range(series[0].shape[1]))])
        for case, values in enumerate(series):
            rows.writerows([case, *row] for row in values.tolist())


def write_ts(path: Path, series: Series) -> None:
    lines = (":".join(",".join(map(repr, x.tolist())) for x in values.T) for values in series)
    path.write_text("\n".join(["@data", *lines]))


def write_npz(path: Path, series: Series) -> None:
    longest = max(map(len, series))
    x = np.zeros((len(series), series[0].shape[1], longest))
    for row, values in zip(x, series, strict=True):
        row[:, : len(values)] = values.T
    np.savez(path, x=x, lengths=[len(values) for values in series])


def write_npy(path: Path, series: Series) -> None:
    np.save(path, np.stack([values.T for values in series]))


WRITERS: dict[str, Callable[[Path, Series], None]] = {
    ".csv": write_csv,
    ".npy": write_npy,
    ".npz": write_npz,
    ".ts": write_ts,
}


def moving(n: int = 4, length: int = 50, *, offset: float = 0.0, seed: int = 0) -> Series:
    """Return series of one channel that differ by about 0.1."""
    rng = np.random.default_rng(seed)
    return [offset + 0.1 * rng.normal(size=(length, 1)) for _ in range(n)]


def side_by_side(*channels: Series) -> Series:
    return [np.concatenate(values, axis=1) for values in zip(*channels, strict=True)]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        expect_resolved(read_series(path))
    return str(caught.value)


def accepted(path: Path, series: Series) -> bool:
    WRITERS[path.suffix](path, series)
    try:
        expect_resolved(read_series(path))
    except DataError:
        return False
    return True


def test_every_format_has_a_case():
    assert WRITERS.keys() == SERIES_READERS.keys()


@pytest.mark.parametrize("ending", WRITERS)
def test_an_offset_that_hides_the_differences_is_refused_in_every_format(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    assert accepted(path, side_by_side(moving(), moving()))
    WRITERS[ending](path, side_by_side(moving(), moving(offset=5812345.0)))
    text = refusal(path)
    assert str(path) in text
    assert f"channel {'x1' if ending == '.csv' else '1'!r} has values of about 5812345" in text
    assert "float32 tells no less than 0.5 apart; they differ by 0." in text
    assert "subtract an offset that all sequences share, or leave the channel out" in text
    assert "likewise" not in text


def test_a_time_stamp_beside_a_good_channel_is_told_and_every_other_one(tmp_path):
    path = tmp_path / "a.csv"
    stamps = [1.7e9 + 1000 * case + np.arange(50.0)[:, None] for case in range(4)]
    write_csv(path, side_by_side(stamps, moving(), moving(offset=1e7)))
    text = refusal(path)
    assert "channel 'x0' has values of about 1.7" in text
    assert "within a sequence" in text
    assert text.endswith("likewise 'x2'")


@pytest.mark.parametrize(("offset", "fine"), [(0, True), (6e4, True), (3e5, True), (2e6, False)])
def test_what_is_left_decides_and_not_the_offset(tmp_path, offset, fine):
    # One step of float32 at 300 000 is a third of 0.1, at 2 000 000 more than all of it.
    assert accepted(tmp_path / "a.csv", moving(offset=offset)) == fine


def test_sequences_far_from_each_other_do_not_hide_what_is_lost_in_each(tmp_path):
    places = [values + 6e6 + 1e5 * i for i, values in enumerate(moving())]
    assert not accepted(tmp_path / "a.csv", places)


def test_sequences_of_one_position_are_compared_with_each_other(tmp_path):
    single = [np.array([[value]]) for value in (0.1, 0.2, 0.3)]
    assert accepted(tmp_path / "a.csv", single)
    assert not accepted(tmp_path / "a.csv", [values + 5812345 for values in single])
    WRITERS[".csv"](tmp_path / "a.csv", [values + 5812345 for values in single])
    assert "over all sequences" in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "constant",
    [
        [5812345.1] * 4,  # everywhere
        [37.1, 41.3, 5.7, 22.9],  # in each sequence
        [1.7e9 + 1e6 * i for i in range(4)],
    ],
)
def test_a_channel_that_stands_still_is_no_mistake(tmp_path, constant):
    still = [np.full((50, 1), value) for value in constant]
    assert accepted(tmp_path / "a.csv", side_by_side(still, moving()))


def test_what_float64_itself_rounds_is_no_difference(tmp_path):
    noisy = [np.array([[0.1 + 0.2], [0.3]] * 25) for _ in range(4)]
    assert accepted(tmp_path / "a.csv", side_by_side(noisy, moving()))


def test_what_computing_leaves_in_a_channel_that_stands_still_is_no_difference(tmp_path):
    jitter = moving(seed=1)
    levels = [1e-9 * values + 10 * i + 37 for i, values in enumerate(jitter)]
    assert accepted(tmp_path / "a.csv", side_by_side(levels, moving()))


def test_values_too_small_for_float32_are_to_be_made_larger(tmp_path):
    write_csv(tmp_path / "a.csv", [1e-44 * values for values in moving()])
    assert "multiply it by a power of ten, or leave" in refusal(tmp_path / "a.csv")


def test_numbers_that_float32_has_are_never_refused(tmp_path):
    whole = [np.array([[16777210.0], [16777211.0], [16777213.0]])] * 2
    assert accepted(tmp_path / "a.csv", whole)
    np.savez(tmp_path / "a.npz", x=np.stack([v.T for v in moving(offset=6e6)]).astype(np.float32))
    expect_resolved(read_series(tmp_path / "a.npz"))  # what was lost was lost before


def test_a_quiet_sequence_beside_one_that_moves_is_fine(tmp_path):
    loud = [101325 + 50 * values for values in moving()]
    assert accepted(tmp_path / "a.csv", [*loud, *moving(n=1, offset=101325.0)])


@pytest.mark.parametrize("name", ["JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts"])
def test_samples_lose_nothing(name):
    expect_resolved(read_series(locate(f"sample:{name}")))


def test_the_account_is_that_of_the_definition():
    series = [values * 10 + 1e6 * i for i, values in enumerate(moving(n=5, offset=1e6))]
    series[2] = series[2][:7]
    narrowing = Narrowing()
    narrow = [narrowing.narrowed(values) for values in series]
    rounding = narrowing.rounding()
    assert rounding is not None
    lost = [wide - values for wide, values in zip(series, narrow, strict=True)]
    for found, parts in ((rounding.deviation, series), (rounding.lost, lost)):
        centred = np.concatenate([part - part.mean(axis=0) for part in parts])
        np.testing.assert_allclose(found, np.sqrt((centred**2).mean(axis=0)), rtol=1e-6)
    assert rounding.where.tolist() == [0]
    assert rounding.magnitude == pytest.approx(np.sqrt((np.concatenate(series) ** 2).mean()))

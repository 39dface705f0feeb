import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.data import BatchStream, SeriesSource, SeriesTable, locate, read_series
from spherescan.data.series import (
    channel_statistics,
    class_indices,
    class_names,
    collate,
    expect_channels,
    fingerprint,
    regression_targets,
    series_batches,
    stratified_split,
)
from spherescan.errors import DataError


def ragged(n: int, n_channels: int = 2, seed: int = 0) -> list[np.ndarray]:
    """Return n series whose first value is their index."""
    rng = np.random.default_rng(seed)
    series = [
        rng.normal(size=(rng.integers(1, 9), n_channels)).astype(np.float32) for _ in range(n)
    ]
    for i, values in enumerate(series):
        values[0, 0] = i
    return series


def table(**changes) -> SeriesTable:
    fields = {
        "series": tuple(ragged(4)), "labels": ("b", "a", "b", "a"), "targets": None,
        "class_names": None, "source": "x.ts",
    }  # fmt: skip
    return SeriesTable(**(fields | changes))


def test_padding_is_zero_and_masked():
    series = [np.ones((2, 3), np.float32), np.full((4, 3), 2, np.float32)]
    batch = collate(series, np.array([1, 0]))
    assert batch.inputs.shape == (2, 4, 3)
    assert batch.inputs[0, 2:].abs().max() == 0
    assert batch.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.targets.tolist() == [1, 0]


@pytest.mark.unwatched
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 40))
def test_every_epoch_trains_every_series_once(n, batch_size, seed):
    stream = BatchStream(SeriesSource(ragged(n), np.arange(n), seed=seed), batch_size=batch_size)
    seen = []
    while len(seen) < 3 * n:
        batch = next(stream)
        seen += batch.targets.tolist()
        assert batch.inputs[:, 0, 0].tolist() == batch.targets.tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_stream_goes_on_from_every_position():
    def make():
        source = SeriesSource(ragged(7), np.arange(7), seed=1, jitter=0.5)
        return BatchStream(source, batch_size=3)

    stream = make()
    states, batches = [], []
    for _ in range(8):
        states.append(stream.state_dict())
        batches.append(next(stream))
    assert states[3] == {"epoch": 1, "position": 2}
    for start, state in enumerate(states):
        again = make()
        again.load_state_dict(state)
        for expected in batches[start:]:
            batch = next(again)
            assert torch.equal(batch.inputs, expected.inputs)
            assert torch.equal(batch.targets, expected.targets)


def test_jitter_is_measured_in_standard_deviations_and_spares_the_padding():
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 100.0])
    series = [(rng.normal(size=(50, 2)) * scale).astype(np.float32) for _ in range(40)]
    series[0] = series[0][:10]
    plain = BatchStream(SeriesSource(series, np.arange(40), seed=0), batch_size=40)
    noisy = BatchStream(SeriesSource(series, np.arange(40), seed=0, jitter=0.3), batch_size=40)
    a, b = next(plain), next(noisy)
    noise = (b.inputs - a.inputs)[a.mask]
    assert noise.std(0).numpy() == pytest.approx(0.3 * scale, rel=0.1)
    assert (b.inputs[~a.mask] == 0).all()
    assert not torch.equal(next(noisy).inputs - next(plain).inputs, b.inputs - a.inputs)


def test_batches_for_evaluation_come_in_order():
    series = ragged(5)
    batches = list(series_batches(series, np.arange(5), batch_size=2))
    assert [batch.targets.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]


def test_statistics_are_those_of_all_positions():
    series = ragged(9)
    mean, std = channel_statistics(series)
    values = np.concatenate(series).astype(np.float64)
    assert mean == pytest.approx(values.mean(0), rel=1e-6)
    assert std == pytest.approx(values.std(0), rel=1e-6)
    constant = [np.full((3, 1), 1e6, np.float32)]
    assert channel_statistics(constant)[1].tolist() == [1.0]
    denormal = [np.array([[0.0], [1e-44]], np.float32)]
    assert channel_statistics(denormal)[1].tolist() == [1.0]


def test_classes_come_from_the_header_or_sorted():
    assert class_names(table()) == ("a", "b")
    declared = table(class_names=("b", "a"))
    assert class_names(declared) == ("b", "a")
    assert class_indices(declared, class_names(declared)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "has no class labels"),
        ({"class_names": ("a", "b", "c")}, "has no sequence of 'c'"),
        ({"labels": ("a",) * 4}, "holds only the class 'a'"),
    ],
)
def test_a_training_set_that_cannot_teach_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        class_names(table(**changes))


def test_an_unknown_class_is_refused_by_name():
    with pytest.raises(DataError, match=r"sequence 0 has the unknown class 'b'; .* 'a', 'c'"):
        class_indices(table(), ("a", "c"))
    with pytest.raises(DataError, match="no class labels"):
        class_indices(table(labels=None), ("a", "b"))
    with pytest.raises(DataError, match="no numeric targets"):
        regression_targets(table())
    with pytest.raises(DataError, match="has 2 channels; the training data has 3"):
        expect_channels(table(), 3)


def test_numbers_that_are_read_as_labels_are_told_how_to_become_targets(tmp_path):
    rows = [f"{case},{case}.5,{case}" for case in range(4)]
    csv, ts, npz = (tmp_path / name for name in ("x.csv", "X.TS", "x.npz"))
    csv.write_text("\n".join(["case,label,v", *rows]))
    ts.write_text("@classLabel true 1 2\n@data\n5,6:1\n7,8:2\n")
    np.savez(npz, x=np.ones((2, 1, 5)), y=np.array([1, 2]))
    for path, way_out in {
        csv: "call their column 'target'",
        ts: "declare them by @targetLabel true instead of @classLabel",
        npz: "save y as floating-point numbers",
    }.items():
        wanted = f"a regressor needs one per sequence; if the labels are numbers, {way_out}"
        with pytest.raises(DataError, match=f"class labels and no numeric targets; {wanted}$"):
            regression_targets(read_series(path))
    # What is told helps.
    csv.write_text(csv.read_text().replace("label", "target"))
    ts.write_text(ts.read_text().replace("@classLabel true 1 2", "@targetLabel true"))
    np.savez(npz, x=np.ones((2, 1, 5)), y=np.array([1.0, 2.0]))
    assert regression_targets(read_series(csv)).tolist() == [0.5, 1.5, 2.5, 3.5]
    assert regression_targets(read_series(ts)).tolist() == [1, 2]
    assert regression_targets(read_series(npz)).tolist() == [1, 2]


@pytest.mark.unwatched
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=6),
    st.floats(0.05, 0.9),
    st.integers(0, 99),
)
def test_a_split_keeps_every_class_on_both_sides(sizes, fraction, seed):
    targets = np.repeat(np.arange(len(sizes)), sizes)
    expected = [min(m - 1, int(np.floor(fraction * m + 0.5))) for m in sizes]
    if sum(expected) == 0:
        with pytest.raises(DataError, match="holds out none"):
            stratified_split(targets, fraction=fraction, seed=seed)
        return
    kept, held_out = stratified_split(targets, fraction=fraction, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([kept, held_out])), np.arange(len(targets)))
    assert np.bincount(targets[held_out], minlength=len(sizes)).tolist() == expected
    again = stratified_split(targets, fraction=fraction, seed=seed)
    assert np.array_equal(again[1], held_out)


def test_the_split_depends_on_the_seed():
    targets = np.zeros(50, dtype=np.int64)
    splits = {tuple(stratified_split(targets, fraction=0.2, seed=s)[1]) for s in range(5)}
    assert len(splits) == 5


def test_the_fingerprint_sees_every_change():
    prints = {fingerprint(table()), fingerprint(table(labels=("a", "a", "b", "a")))}
    changed = ragged(4)
    changed[2][0, 1] += 1e-3
    prints.add(fingerprint(table(series=tuple(changed))))
    prints.add(fingerprint(table(labels=None, targets=np.arange(4.0))))
    prints.add(fingerprint(table(labels=None, targets=np.arange(4.0) + 1)))
    assert len(prints) == 5
    assert fingerprint(table()) in prints


@pytest.mark.unwatched
def test_samples_ship_with_the_package(tmp_path):
    train = read_series(locate("sample:JapaneseVowels_TRAIN.ts"))
    test = read_series(locate("sample:JapaneseVowels_TEST.ts"))
    assert (len(train), len(test), train.n_channels) == (270, 370, 12)
    assert (locate("sample:JapaneseVowels_TRAIN.ts").parent / "ATTRIBUTION.md").exists()
    assert locate(str(tmp_path)) == tmp_path
    with pytest.raises(DataError, match=r"no sample 'Iris.ts'.*JapaneseVowels_TEST.ts"):
        locate("sample:Iris.ts")

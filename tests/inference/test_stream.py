"""A stream answers what the whole-sequence predictor answers for everything pushed so far."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spherescan.data import Task
from spherescan.errors import CheckpointError, ConfigError, DataError, StorageError
from spherescan.inference import Predictor, answer_lines
from spherescan.nn import POOLING_NAMES, ModelDescription, StreamedModel
from spherescan.runs import Folder, read_checkpoint, write_checkpoint

pytestmark = pytest.mark.unwatched

LENGTH = 30
TASKS = {
    "classification": Task("classification", class_names=("a", "b", "c", "d")),
    "regression": Task("regression", lower=1000.0, upper=1001.0),
    "next_token": Task("next_token"),
}


def predictor_for(kind: str, *, config: dict | None = None, seed: int = 0, **changes) -> Predictor:
    """Return a predictor whose weights all matter."""
    tokens = kind == "next_token"
    description = ModelDescription(
        vocab_size=7 if tokens else None, n_channels=None if tokens else 2, d_model=8, n_layers=2,
        mixer="mamba", d_state=3, d_conv=4, expand=2, dt_rank=None, gate=True,
        bidirectional=False, pooling=() if tokens else ("attention", "mean"), n_pool_heads=2,
        n_prototypes={"classification": 4, "regression": 2, "next_token": 7}[kind],
        prototype_dim=2 if kind == "regression" else 4, prototype_init="random",
        learnable_prototypes=False,
    )  # fmt: skip
    description = dataclasses.replace(description, **changes)
    generator = torch.Generator().manual_seed(seed)
    model = description.build(generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4, generator=generator)
    return Predictor(description, model, TASKS[kind], step=0, config=config or {}, fingerprint="")


def sequence_for(predictor: Predictor, *, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if predictor.description.vocab_size is not None:
        return rng.integers(predictor.description.vocab_size, size=length)
    return rng.normal(size=(length, predictor.description.n_channels)).astype(np.float32)


PREDICTORS = {kind: predictor_for(kind) for kind in TASKS}


def expect_whole(prediction, predictor: Predictor, sequence: np.ndarray) -> None:
    cosines = predictor.cosines([sequence])[0]
    assert prediction.n_steps == len(sequence)
    assert (prediction.cosines - cosines).abs().max() <= 1e-5
    (value,) = predictor.predict([sequence])
    if isinstance(prediction.value, float):
        assert abs(prediction.value - value) <= 1e-5
    else:
        assert prediction.value == value


@pytest.mark.parametrize("kind", TASKS)
@settings(max_examples=10)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_any_chunks_equal_the_whole(kind, sizes):
    predictor = PREDICTORS[kind]
    sequence, stream, end = sequence_for(predictor), predictor.stream(), 0
    for size in sizes:
        chunk = sequence[end : min(end + size, LENGTH)]
        end += len(chunk)
        if end == 0:
            with pytest.raises(DataError, match="nothing has been pushed"):
                stream.push(chunk)
        else:
            expect_whole(stream.push(chunk), predictor, sequence[:end])


@pytest.mark.parametrize("form", ["native", "torch", "reference"])
@pytest.mark.parametrize("kind", TASKS)
def test_every_form_of_the_ops_answers_the_same(kind, form, monkeypatch):
    from spherescan.ops import native

    if form == "native" and native.unavailable():
        pytest.skip("installed without a C++ compiler, which is supported: no kernels to compare")
    monkeypatch.setenv("SPHERESCAN_OPS", form)
    predictor = PREDICTORS[kind]
    sequence, stream = sequence_for(predictor), predictor.stream()
    for step in sequence[:-7]:
        stream.push(step)
    expect_whole(stream.push(sequence[-7:]), predictor, sequence)


@pytest.mark.parametrize("pooling", [*((name,) for name in POOLING_NAMES), POOLING_NAMES])
def test_every_pooling_equals_the_whole_after_every_sample(pooling):
    predictor = predictor_for("classification", pooling=pooling)
    sequence, stream = sequence_for(predictor, length=12), predictor.stream()
    for i, sample in enumerate(sequence):
        expect_whole(stream.push(sample), predictor, sequence[: i + 1])


def test_a_long_sequence_and_a_chunk_larger_than_a_piece_equal_the_whole():
    predictor = PREDICTORS["classification"]
    sequence, stream = sequence_for(predictor, length=1500), predictor.stream()
    for sample in sequence[:300]:
        stream.push(sample)
    expect_whole(stream.push(sequence[300:]), predictor, sequence)


def test_a_reset_begins_a_new_sequence():
    predictor = PREDICTORS["classification"]
    first, second = sequence_for(predictor, seed=1), sequence_for(predictor, seed=2)
    stream, fresh = predictor.stream(), predictor.stream()
    stream.push(first)
    stream.reset()
    assert stream.n_steps == 0
    assert torch.equal(stream.push(second).cosines, fresh.push(second).cosines)


@pytest.mark.parametrize(
    ("kind", "chunks", "alike"),
    [
        ("classification", [[0.5, 1.0]], [[0.5, 1.0]]),
        ("classification", [np.array([[1, 2], [3, 4]])], [[1.0, 2.0], [3.0, 4.0]]),
        ("classification", [[], [0.5, 1.0], np.zeros((0, 2))], [[0.5, 1.0]]),
        ("next_token", [3, [], [1, 2]], [3, 1, 2]),
        ("next_token", [np.uint8(3), torch.tensor([1, 2])], [3, 1, 2]),
    ],
)
def test_what_can_be_pushed(kind, chunks, alike):
    predictor = PREDICTORS[kind]
    stream = predictor.stream()
    for chunk in chunks:
        if kind == "classification" and len(chunk) == 0 and not stream.n_steps:
            continue
        prediction = stream.push(chunk)
    expect_whole(prediction, predictor, np.array(alike))


def test_a_series_of_one_channel_may_be_flat_or_single_numbers():
    predictor = predictor_for("classification", n_channels=1)
    sequence = sequence_for(predictor, length=5)
    for chunks in ([*sequence[:, 0]], [sequence[:, 0]], [sequence], [*sequence]):
        stream = predictor.stream()
        for chunk in chunks:
            prediction = stream.push(chunk)
        expect_whole(prediction, predictor, sequence)


@pytest.mark.parametrize(
    ("kind", "chunk", "message"),
    [
        ("classification", [1.0, 2.0, 3.0], r"shape \(3,\); the training data has 2 channels"),
        ("classification", np.zeros((4, 3)), "2 channels"),
        ("classification", np.zeros((0, 3)), "2 channels"),
        ("classification", 1.0, "2 channels"),
        ("classification", np.zeros((2, 3, 2)), "2 channels"),
        ("classification", [[1.0, 2.0], [3.0, np.nan]], "nan at position 1 of channel 1"),
        ("classification", [np.inf, 2.0], "inf at position 0 of channel 0"),
        ("classification", [1e300, 2.0], r"1e\+300 at position 0"),
        ("classification", [[1.0, 2.0], [3.0]], "not an array"),
        ("classification", torch.ones(2, requires_grad=True), "not an array"),
        ("classification", ["1", "2"], "wanted numbers"),
        ("classification", [None, 1.0], "wanted numbers"),
        ("classification", [1j, 1.0], "wanted numbers"),
        ("next_token", 7, r"tokens 7..7; the vocabulary is 0..6"),
        ("next_token", [1, -1], "tokens -1..1"),
        ("next_token", [1.0], "wanted token ids"),
        ("next_token", [[1, 2]], "wanted token ids"),
        ("next_token", [10**30], "wanted token ids"),
        ("next_token", [True], "wanted token ids"),
    ],
)  # fmt: skip
def test_a_wrong_chunk_is_refused_and_changes_nothing(kind, chunk, message):
    predictor = PREDICTORS[kind]
    sequence, stream = sequence_for(predictor), predictor.stream()
    stream.push(sequence[:9])
    before = stream.state_dict()
    with pytest.raises(DataError, match=message):
        stream.push(chunk)
    after = stream.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    expect_whole(stream.push(sequence[9:]), predictor, sequence)


def test_an_answer_that_is_not_finite_is_refused():
    predictor = predictor_for("classification")
    predictor.model.head.weight.fill_(float("inf"))
    with pytest.raises(DataError, match="the answer is not finite"):
        predictor.stream().push([1.0, 2.0])
    with pytest.raises(DataError, match="the answer is not finite"):
        predictor.predict([np.ones((3, 2))])


def test_padding_is_never_too_large():
    predictor = predictor_for("classification")
    predictor.model.embedding.mean.fill_(1e17)
    series = np.full((3, 2), 1e17, dtype=np.float32)
    assert len(predictor.predict([series, series[:1]])) == 2


def test_a_value_too_large_for_the_model_is_refused_and_changes_nothing():
    predictor = predictor_for("classification")
    predictor.model.embedding.std.fill_(1e-30)
    stream = predictor.stream()
    sequence = 1e-30 * sequence_for(predictor)
    stream.push(sequence[:9])
    with pytest.raises(DataError, match=r"1e\+20 at position 0 of channel 1, too large"):
        stream.push([1e-30, 1e20])
    expect_whole(stream.push(sequence[9:]), predictor, sequence)


@pytest.mark.parametrize("kind", TASKS)
def test_a_state_restored_at_every_position_goes_on_bit_for_bit(kind, tmp_path):
    predictor = PREDICTORS[kind]
    sequence = sequence_for(predictor, length=9)
    stream, path = predictor.stream(), tmp_path / "state.safetensors"
    wanted = [stream.push(step).cosines for step in sequence]
    stream.reset()
    for position in range(len(sequence)):
        in_memory, on_disk = predictor.stream(), predictor.stream()
        in_memory.load_state_dict(stream.state_dict())
        stream.save(path)
        on_disk.push(sequence[3])
        on_disk.restore(path)
        for at in range(position, len(sequence)):
            for restored in (in_memory, on_disk):
                assert restored.n_steps == at
                assert torch.equal(restored.push(sequence[at]).cosines, wanted[at])
        stream.push(sequence[position])
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_after_a_chunk_goes_on_bit_for_bit(tmp_path):
    predictor = PREDICTORS["classification"]
    sequence, stream, other = sequence_for(predictor), predictor.stream(), predictor.stream()
    answer = stream.push(sequence[:20])
    other.load_state_dict(stream.state_dict())
    assert torch.equal(other.push(np.zeros((0, 2))).cosines, answer.cosines)
    assert torch.equal(other.push(sequence[20:]).cosines, stream.push(sequence[20:]).cosines)


def test_the_state_taken_is_not_changed_by_what_follows_and_not_shared():
    predictor = PREDICTORS["classification"]
    sequence, stream = sequence_for(predictor), predictor.stream()
    stream.push(sequence[:9])
    taken = stream.state_dict()
    values = {name: tensor.clone() for name, tensor in taken.items()}
    expected = stream.push(sequence[9:]).cosines
    assert all(torch.equal(taken[name], values[name]) for name in taken)
    stream.load_state_dict(values)
    for tensor in values.values():
        tensor.zero_()
    assert torch.equal(stream.push(sequence[9:]).cosines, expected)


def test_nothing_grows_with_the_sequence():
    predictor = predictor_for("classification", pooling=POOLING_NAMES)
    stream = predictor.stream()

    def n_bytes() -> int:
        return sum(t.untyped_storage().nbytes() for t in stream.state_dict().values())

    stream.push([0.0, 1.0])
    first = n_bytes()
    stream.push(sequence_for(predictor, length=5000))
    # Of a chunk, a convolution holds as many positions as it is wide.
    assert n_bytes() <= 2 * first
    for sample in sequence_for(predictor, length=50):
        stream.push(sample)
    assert n_bytes() == first


def test_a_long_chunk_goes_through_the_model_in_pieces(monkeypatch):
    lengths, extend = [], StreamedModel.extend

    def watched(model, state, inputs):
        lengths.append(inputs.shape[1])
        return extend(model, state, inputs)

    monkeypatch.setattr(StreamedModel, "extend", watched)
    predictor = PREDICTORS["classification"]
    predictor.stream().push(sequence_for(predictor, length=1100))
    assert lengths == [512, 512, 76]


def resident() -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow():
    """A state is 130 kB: kept for each of 300 samples they would take 40 MB."""
    predictor = predictor_for("classification", d_model=128, d_state=64)
    stream = predictor.stream()
    samples = sequence_for(predictor, length=100)
    for sample in samples:
        stream.push(sample)
    before = resident()
    for _ in range(3):
        for sample in samples:
            stream.push(sample)
    assert resident() - before < 10 << 20


def test_a_bidirectional_model_says_why_and_what_to_do():
    predictor = predictor_for("classification", bidirectional=True)
    with pytest.raises(ConfigError, match=r"model\.bidirectional = false") as caught:
        predictor.stream()
    assert "reads every sequence from its end" in str(caught.value)


def test_the_confidence_is_a_probability_where_training_had_one():
    scaled = {"prototypes": {"scale": 5.0}}
    for kind in ("classification", "next_token"):
        predictor = predictor_for(kind, config=scaled)
        answer = predictor.stream().push(sequence_for(predictor))
        expected = torch.softmax(5.0 * answer.cosines, dim=0).max().item()
        assert answer.confidence == pytest.approx(expected)
    squared = predictor_for("classification", config={"prototypes": {"loss": "squared_cosine"}})
    answer = squared.stream().push(sequence_for(squared))
    assert answer.confidence == answer.cosines.max()
    assert PREDICTORS["regression"].stream().push([1.0, 2.0]).confidence is None


def changed(state: dict[str, torch.Tensor], name: str, value) -> dict[str, torch.Tensor]:
    return {**state, name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: changed(s, "more", torch.zeros(1)), "differs in more"),
        (lambda s: {name: s[name] for name in list(s)[1:]}, "differs in n_steps"),
        (lambda s: changed(s, "mixers/0/ssm", s["mixers/0/ssm"][:, :1]), "mixers/0/ssm"),
        (lambda s: changed(s, "mixers/0/ssm", s["mixers/0/ssm"].double()), "float64"),
        (lambda s: changed(s, "mixers/0/ssm", s["mixers/0/ssm"] * torch.nan), "no numbers"),
        (lambda s: changed(s, "n_steps", torch.tensor(-1)), "n_steps is -1"),
        (lambda s: changed(s, "model", s["model"] + 1), "another model"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    predictor = PREDICTORS["classification"]
    sequence, stream = sequence_for(predictor), predictor.stream()
    stream.push(sequence[:9])
    with pytest.raises(CheckpointError, match=message):
        stream.load_state_dict(change(stream.state_dict()))
    expect_whole(stream.push(sequence[9:]), predictor, sequence)


def test_the_state_of_other_weights_is_refused():
    stream = PREDICTORS["classification"].stream()
    other = predictor_for("classification", seed=1).stream()
    with pytest.raises(CheckpointError, match="stream of another model"):
        other.load_state_dict(stream.state_dict())


def test_the_document_names_every_tensor_of_a_state():
    text = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
    predictor = predictor_for(
        "classification", pooling=POOLING_NAMES, local_heads=(1,), averaged=True
    )
    for name in predictor.stream().state_dict():
        match name.split("/"):
            case ["mixers", _, part]:
                assert f"`mixers/N/{part}`" in text
            case ["pools", head, kind, part]:
                assert head in {"last", "1"}
                row = text.partition("`pools/HEAD/KIND/NAME`")[2].partition("\n")[0]
                assert f"`{kind}`" in row
                assert f"`{part}`" in row
            case _:
                assert f"| `{name}` |" in text


def test_a_file_that_is_no_state_is_refused(tmp_path):
    stream, path = PREDICTORS["classification"].stream(), tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        stream.restore(path)
    write_checkpoint(path, stream.state_dict(), {"step": 3})
    with pytest.raises(CheckpointError, match="no state of a stream"):
        stream.restore(path)
    foreign = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"no state of a stream; not overwritten"):
        stream.save(path)
    assert path.read_bytes() == foreign
    path.unlink()
    for other in (tmp_path / "pipe", tmp_path / "link"):
        if other.name == "pipe":
            os.mkfifo(other)
        else:
            other.symlink_to(path)
        with pytest.raises(CheckpointError, match=r"not overwritten|symbolic link"):
            stream.save(other)
        other.unlink()
    (tmp_path / "folder").symlink_to(tmp_path)
    stream.save(tmp_path / "folder" / path.name)
    assert read_checkpoint(path).state == {"kind": "stream"}
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .* another model"):
        predictor_for("classification", seed=1).stream().restore(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        stream.restore(path)


def test_a_save_takes_the_place_of_an_older_one_or_leaves_it(tmp_path, monkeypatch):
    predictor = PREDICTORS["classification"]
    stream, path = predictor.stream(), tmp_path / "state.safetensors"
    stream.push([1.0, 2.0])
    stream.save(path)
    stream.push([3.0, 4.0])
    stream.save(path)
    older = path.read_bytes()
    stream.push([5.0, 6.0])

    rename = Folder.rename

    def refuse(folder, name, new):
        if new == path.name:
            raise OSError(30, "Read-only file system")
        rename(folder, name, new)

    monkeypatch.setattr(Folder, "rename", refuse)
    with pytest.raises(StorageError, match=r"state\.safetensors.*Read-only"):
        stream.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == older
    assert list(tmp_path.iterdir()) == [path]
    for wrong in (tmp_path, tmp_path / "none" / "x", "/"):
        with pytest.raises((CheckpointError, StorageError)):
            stream.save(wrong)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["classification", "next_token"])
@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(0, 7), max_size=4),
    every=st.integers(1, 5),
    most_waiting=st.sampled_from([1, 5, 1 << 16]),
)
def test_answers_come_after_every_so_many_lines_and_at_the_end(kind, lengths, every, most_waiting):
    predictor = PREDICTORS[kind]
    shape = (0, 2) if kind == "classification" else (0,)
    sequences = [sequence_for(predictor, length=n, seed=n) for n in lengths]
    lines, wanted = [], []
    for sequence in sequences:
        lines += [*np.split(sequence, len(sequence))] if len(sequence) else []
        lines.append(np.zeros(shape, dtype=sequence.dtype))
        ends = [n for n in range(1, len(sequence) + 1) if n % every == 0 or n == len(sequence)]
        wanted += [sequence[:n] for n in ends] + ([None] if ends else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spherescan.inference.lines._MOST_WAITING", most_waiting)
        found = list(answer_lines(predictor.stream(), lines, every=every))
        # The last sequence may also be ended by the end of the lines.
        without_end = list(answer_lines(predictor.stream(), lines[:-1], every=every))
    assert len(without_end) == len(found) - bool(lengths and lengths[-1])
    assert len(found) == len(wanted)
    for prediction, sequence in zip(found, wanted, strict=True):
        if sequence is None:
            assert prediction is None
        else:
            expect_whole(prediction, predictor, sequence)

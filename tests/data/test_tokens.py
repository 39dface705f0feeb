import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.data import (
    NO_TARGET,
    BatchStream,
    TokenData,
    TokenSource,
    Windows,
    import_text,
    open_tokens,
    write_shards,
)
from spherescan.data.rows import fixed_sample, row_batches, split_rows
from spherescan.data.shards import open_shards
from spherescan.data.tokens import collate_tokens
from spherescan.errors import ConfigError, DataError, StorageError


def text(lengths: list[int], *, shard_size: int = 5) -> TokenData:
    """Return documents of the given lengths whose tokens count up, cut into shards."""
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    cuts = list(range(shard_size, len(tokens), shard_size))
    documents = np.cumsum([0, *lengths[:-1]]).astype(np.uint64)
    return TokenData(tuple(np.split(tokens, cuts)), documents, len(tokens), "text", "")


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8).filter(lambda x: sum(x) > 1)


@pytest.mark.unwatched
@given(LENGTHS, st.integers(1, 7), st.integers(1, 5), st.integers(1, 6), st.integers(0, 9))
def test_every_transition_is_trained_once_per_epoch(lengths, seq_len, batch_size, shard_size, seed):
    data = text(lengths, shard_size=shard_size)
    windows = Windows(data, seq_len=seq_len)
    n = len(windows)
    stream = BatchStream(TokenSource(windows, range(n), seed=seed), batch_size=batch_size)
    seen, rows = [], 0
    while rows < 2 * n:
        batch = next(stream)
        for row in range(min(batch_size, 2 * n - rows)):
            scored = batch.targets[row] != NO_TARGET
            assert (~scored | batch.mask[row]).all()
            seen += zip(
                batch.inputs[row, scored].tolist(), batch.targets[row, scored].tolist(), strict=True
            )
            rows += 1
    starts = set(data.documents.tolist())
    within = [(t, t + 1) for t in range(data.n_tokens - 1) if t + 1 not in starts]
    assert sorted(seen) == sorted(2 * within)


@given(LENGTHS, st.integers(1, 7))
def test_resets_mark_every_document_start(lengths, seq_len):
    data = text(lengths)
    windows = Windows(data, seq_len=seq_len)
    for batch in row_batches(windows, range(len(windows)), batch_size=3):
        starts = set(data.documents.tolist())
        expected = [[int(t) in starts for t in row] for row in batch.inputs]
        assert (batch.reset == (torch.tensor(expected) & batch.mask)).all()


def test_a_stream_goes_on_from_every_position():
    data = text([30, 7])

    def make():
        return BatchStream(TokenSource(Windows(data, seq_len=4), range(2, 9), seed=2), batch_size=3)

    stream = make()
    states, batches = [], []
    for _ in range(6):
        states.append(stream.state_dict())
        batches.append(next(stream))
    for start, state in enumerate(states):
        again = make()
        again.load_state_dict(state)
        for expected in batches[start:]:
            assert torch.equal(next(again).inputs, expected.inputs)


def test_training_and_validation_share_no_transition():
    data = text([100])
    training, validation = split_rows(Windows(data, seq_len=7), fraction=0.2)
    assert len(validation) == 3
    assert [*training, *validation] == list(range(15))
    with pytest.raises(DataError, match="make 1 windows of 200"):
        split_rows(Windows(data, seq_len=200), fraction=0.1)
    with pytest.raises(DataError, match="0 windows"):
        split_rows(Windows(text([1]), seq_len=3), fraction=0.1)


def test_the_fixed_sample_is_fixed_and_spread():
    windows = range(100, 1100)
    sample = fixed_sample(windows, 50)
    assert sample == fixed_sample(windows, 50) == sorted(set(sample))
    assert len(sample) == 50
    assert 400 < np.mean(sample) < 800
    assert fixed_sample(range(3), 50) == [0, 1, 2]


def test_sequences_are_padded_and_checked():
    batch = collate_tokens([np.array([1, 2, 3]), np.array([4], dtype=np.uint8)], vocab_size=5)
    assert batch.inputs.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False]]
    for bad in (np.array([5]), np.array([-1]), np.array([1.0]), np.array([[1]]), np.array([], int)):
        with pytest.raises(DataError, match="sequence 0"):
            collate_tokens([bad], vocab_size=5)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6), st.integers(1, 9))
def test_shards_hold_what_was_written(tmp_path_factory, documents, tokens_per_shard):
    out = tmp_path_factory.mktemp("shards") / "out"
    arrays = [np.frombuffer(document, dtype=np.uint8) for document in documents]
    if not any(documents):
        with pytest.raises(DataError, match="empty"):
            write_shards(arrays, out, vocab_size=256)
        assert list(out.parent.iterdir()) == []
        return
    data = write_shards(arrays, out, vocab_size=256, tokens_per_shard=tokens_per_shard)
    kept = [document for document in documents if document]
    assert bytes(data.read(0, data.n_tokens).astype(np.uint8)) == b"".join(kept)
    assert [stop - start for start, stop in data.spans()] == [len(document) for document in kept]
    assert all(len(shard) <= tokens_per_shard for shard in data.shards)
    assert open_shards(out).fingerprint == data.fingerprint


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    tokens = np.array([70_000, 3])
    data = write_shards([tokens], tmp_path / "out", vocab_size=70_001)
    assert data.read(0, 2).tolist() == [70_000, 3]
    assert data.shards[0].dtype.itemsize == 4


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "source"
    (source / "b").mkdir(parents=True)
    (source / "b" / "one.py").write_bytes(b"two")
    (source / "a.py").write_bytes(b"one")
    (source / "c.py").write_bytes(b"")
    (source / "d.txt").write_bytes(b"skipped")
    return source


def test_a_folder_is_imported_in_the_order_of_its_paths(folder, tmp_path):
    data, n_empty, n_links = import_text(
        folder, tmp_path / "out", encoding="bytes", extensions=(".py",)
    )
    assert (n_empty, n_links) == (1, 0)
    assert bytes(data.read(0, 6).astype(np.uint8)) == b"onetwo"
    assert data.documents.tolist() == [0, 3]
    assert data.vocab_size == 256


def test_folders_can_be_left_out(folder, tmp_path):
    data = import_text(
        folder, tmp_path / "out", encoding="bytes", extensions=(".py",), excluded=("b",)
    ).data
    assert bytes(data.read(0, data.n_tokens).astype(np.uint8)) == b"one"


def test_integers_are_imported_within_their_vocabulary(tmp_path):
    (tmp_path / "x.txt").write_text("1 2 3\n4 5\n")
    data = import_text(tmp_path / "x.txt", tmp_path / "out", encoding="integers", vocab_size=6).data
    assert data.read(0, 5).tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="token 5 at position 4 is outside the vocabulary of 5"):
        import_text(tmp_path / "x.txt", tmp_path / "no", encoding="integers", vocab_size=5)
    with pytest.raises(ConfigError, match="--vocab-size"):
        import_text(tmp_path / "x.txt", tmp_path / "no", encoding="integers")
    with pytest.raises(ConfigError, match="leave the vocabulary size out"):
        import_text(tmp_path / "x.txt", tmp_path / "no", encoding="bytes", vocab_size=6)
    for size in (0, -5, 2**32 + 1):
        with pytest.raises(ConfigError, match=f"is {size}; it must lie in"):
            write_shards([np.array([0])], tmp_path / "no", vocab_size=size)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_imported_leaves_nothing_behind(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"no file ending in \.rs"):
        import_text(folder, tmp_path / "out", encoding="bytes", extensions=(".rs",))
    with pytest.raises(DataError, match="no such file"):
        import_text(tmp_path / "none", tmp_path / "out", encoding="bytes")
    with pytest.raises(DataError, match="exists already"):
        import_text(folder / "a.py", folder, encoding="bytes")
    with pytest.raises(DataError, match="lies inside"):
        import_text(folder, folder / "out", encoding="bytes")
    with pytest.raises(DataError, match="token 300 is outside the vocabulary of 256"):
        write_shards([np.array([300])], tmp_path / "out", vocab_size=256)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_below_a_folder_are_left_out_and_counted(folder, tmp_path):
    (folder / "link.py").symlink_to(folder / "a.py")
    data, _, n_links = import_text(folder, tmp_path / "out", encoding="bytes", extensions=(".py",))
    assert (data.n_tokens, n_links) == (6, 1)
    with pytest.raises(DataError, match="link"):
        import_text(folder / "link.py", tmp_path / "no", encoding="bytes")


def test_a_pipe_is_no_document(folder, tmp_path):
    os.mkfifo(folder / "pipe.py")
    with pytest.raises(DataError, match=r"pipe\.py"):
        import_text(folder, tmp_path / "out", encoding="bytes")


def test_a_disk_that_refuses_is_a_storage_error(folder, tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        import_text(folder / "a.py", folder / "a.py" / "out", encoding="bytes")


def test_an_empty_range_holds_nothing():
    assert text([3]).read(2, 2).tolist() == []


def edit_index(path, change) -> None:
    index = json.loads((path / "index.json").read_text())
    change(index)
    (path / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "index.json").unlink(), "make shards with `spherescan import`"),
        (lambda p: (p / "index.json").write_text("{"), "is damaged"),
        (lambda p: (p / "index.json").write_bytes(b"\xff"), "is damaged"),
        (lambda p: (p / "index.json").write_text("[]"), "is not an index"),
        (lambda p: edit_index(p, lambda i: i.update(version=2)), "has version 2"),
        (lambda p: edit_index(p, lambda i: i.update(dtype="float8")), "has dtype 'float8'"),
        (lambda p: edit_index(p, lambda i: i.update(shards=[{}])), "damaged list of shards"),
        (lambda p: edit_index(p, lambda i: i["shards"][0].update(file="../x")), "damaged list"),
        (lambda p: edit_index(p, lambda i: i.update(vocab_size=-1)), "damaged count"),
        (lambda p: edit_index(p, lambda i: i.update(n_documents=True)), "damaged count"),
        (lambda p: edit_index(p, lambda i: i.update(n_tokens=99)), "do not add up"),
        (lambda p: (p / "shard-00000.bin").unlink(), "no such file"),
        (lambda p: (p / "shard-00000.bin").write_bytes(b"x"), "has 1 bytes, the index says 12"),
        (lambda p: (p / "shard-00000.bin").write_bytes(b"x" * 12), "another digest"),
        (lambda p: (p / "documents.bin").write_bytes(b"x" * 16), "another digest"),
    ],
)
def test_damaged_shards_are_refused(folder, tmp_path, damage, message):
    out = tmp_path / "out"
    import_text(folder, out, encoding="bytes", extensions=(".py",))
    damage(out)
    with pytest.raises(DataError, match=message):
        open_shards(out)


def test_document_starts_must_increase(tmp_path):
    import hashlib

    write_shards([np.array([1, 2]), np.array([3])], tmp_path / "out", vocab_size=4)
    data = np.array([0, 0], dtype="<u8").tobytes()
    (tmp_path / "out" / "documents.bin").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_index(tmp_path / "out", lambda i: i.update(documents_sha256=digest))
    with pytest.raises(DataError, match="do not increase"):
        open_shards(tmp_path / "out")


def test_an_index_as_large_as_a_disk_is_not_read(tmp_path):
    (tmp_path / "index.json").touch()
    for size, message in ((1 << 30, "larger than"), (1 << 40, "wanted at most")):
        os.truncate(tmp_path / "index.json", size)
        with pytest.raises(DataError, match=message):
            open_shards(tmp_path)


def test_a_file_of_integers_is_one_document(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("3 1 2")
    data = open_tokens(path, vocab_size=4)
    assert data.spans() == [(0, 3)]
    with pytest.raises(DataError, match=r"data\.vocab_size"):
        open_tokens(path, vocab_size=None)
    with pytest.raises(DataError, match="token 3 at position 0 is outside"):
        open_tokens(path, vocab_size=3)


def test_shards_know_their_vocabulary(folder, tmp_path):
    import_text(folder, tmp_path / "out", encoding="bytes", extensions=(".py",))
    assert open_tokens(tmp_path / "out", vocab_size=None).vocab_size == 256
    assert open_tokens(tmp_path / "out", vocab_size=256).vocab_size == 256
    with pytest.raises(DataError, match="vocabulary of 256; wanted 99, that of the model"):
        open_tokens(tmp_path / "out", vocab_size=99)


@pytest.mark.parametrize("ending", [".npy", ".txt", ".txt.gz"])
def test_a_folder_of_tokens_without_an_index_is_told_what_to_do(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(b"1 2")
    with pytest.raises(DataError, match="--encoding integers --vocab-size N") as caught:
        open_tokens(tmp_path, vocab_size=3)
    assert f"--data.extension {ending} --data.vocab-size N" in str(caught.value)


def test_a_shard_that_lies_about_its_vocabulary_is_caught_when_read(tmp_path):
    data = write_shards([np.array([1, 9])], tmp_path / "out", vocab_size=10)
    edit_index(tmp_path / "out", lambda i: i.update(vocab_size=5))
    lying = open_shards(tmp_path / "out")
    assert data.read(0, 2).tolist() == [1, 9]
    with pytest.raises(DataError, match="token 9 at position 1 is outside the vocabulary of 5"):
        lying.read(0, 2)

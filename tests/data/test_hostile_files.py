"""Shards, caches and packed text from people who mean no good, or from disks that do not."""

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from spherescan.data import (
    BatchStream,
    TokenSource,
    Windows,
    import_text,
    open_shards,
    open_tokens,
    read_tokens,
    write_shards,
)
from spherescan.data import cache as cache_module
from spherescan.errors import ConfigError, DataError, StorageError


@pytest.fixture
def shards(tmp_path) -> Path:
    write_shards([np.arange(40) % 7], tmp_path / "text", vocab_size=7, tokens_per_shard=15)
    return tmp_path / "text"


def stream_of(folder: Path) -> BatchStream:
    rows = Windows(open_shards(folder), seq_len=4)
    return BatchStream(TokenSource(rows, range(len(rows)), seed=0), batch_size=20)


def test_a_shard_that_changes_during_a_run_is_an_error(shards):
    stream = stream_of(shards)
    next(stream)
    with (shards / "shard-00001.bin").open("r+b") as file:
        file.write(b"\5")
    with pytest.raises(DataError, match=r"shard-00001\.bin: has another digest"):
        next(stream)


def test_a_shard_that_shrinks_during_a_run_is_an_error(shards):
    stream = stream_of(shards)
    os.truncate(shards / "shard-00000.bin", 8)
    with pytest.raises(DataError, match=r"shard-00000\.bin: has 8 bytes, the index says 30"):
        next(stream)


def test_a_shard_that_was_only_touched_moved_or_replaced_is_read_on(shards, tmp_path):
    expected = [next(stream).inputs.tolist() for stream in [stream_of(shards)] for _ in range(3)]
    stream = stream_of(shards)
    os.utime(shards / "shard-00000.bin", (0, 0))
    assert next(stream).inputs.tolist() == expected[0]
    (shards / "shard-00001.bin").replace(tmp_path / "elsewhere")
    (shards / "shard-00001.bin").write_bytes(b"x" * 30)
    assert next(stream).inputs.tolist() == expected[1]
    shutil.rmtree(shards)
    assert next(stream).inputs.tolist() == expected[2]


def test_a_worker_does_not_take_a_shard_that_was_replaced(shards):
    rows = Windows(open_shards(shards), seq_len=4)
    stream = BatchStream(TokenSource(rows, range(len(rows)), seed=0), batch_size=20, workers=1)
    path = shards / "shard-00001.bin"
    path.rename(shards / "old")
    path.write_bytes(b"\1\0" * 15)
    with pytest.raises(DataError):
        next(stream)
    stream.close()


@pytest.mark.parametrize("name", ["index.json", "documents.bin", "shard-00001.bin"])
@pytest.mark.parametrize("kind", ["link", "fifo", "device", "folder", "absent"])
def test_only_regular_files_are_shards(shards, name, kind, tmp_path):
    path = shards / name
    path.rename(tmp_path / "real")
    if kind == "link":
        path.symlink_to(tmp_path / "real")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("only root makes devices")
        try:
            os.mknod(path, 0o20666, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("no devices here")
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        open_shards(shards)
    assert name in str(caught.value)
    assert time.monotonic() - start < 2


INDEXES = {
    "deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "twice": b'{"format": "spherescan-tokens", "format": "spherescan-tokens"}',
    "huge number": b'{"format": "spherescan-tokens", "version": ' + b"9" * 4000 + b"}",
    "not a number": b'{"format": "spherescan-tokens", "version": NaN}',
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_no_importer_writes_is_refused_soon(shards, kind):
    (shards / "index.json").write_bytes(INDEXES[kind])
    start = time.process_time()
    with pytest.raises(DataError, match="is damaged"):
        open_shards(shards)
    assert time.process_time() - start < 2


def test_an_index_may_not_point_elsewhere_or_say_more(shards):
    index = json.loads((shards / "index.json").read_text())
    for change in (
        {"shards": [dict(index["shards"][0], file="../text/shard-00000.bin")]},
        {"shards": [index["shards"][0]] * 3, "n_tokens": 45},
        {"shards": [dict(index["shards"][0], more=1)]},
        {"more": 1},
        {"n_documents": 41},
        {"n_tokens": 2**53},
    ):
        (shards / "index.json").write_text(json.dumps(index | change))
        with pytest.raises(DataError, match="import it again"):
            open_shards(shards)


def test_an_import_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_sync(descriptor)

    def rename(self, target):
        done.append(f"rename to {target.name}")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    write_shards([np.arange(7)], tmp_path / "out", vocab_size=7, tokens_per_shard=4)
    partial = f".out.partial-{os.getpid()}"
    assert done == [
        "shard-00000.bin", "shard-00001.bin", "documents.bin", "index.json", partial,
        "rename to out", tmp_path.name,
    ]  # fmt: skip


# Bombs: each is refused in two seconds of processor time and little memory.


def _gzip_of(piece: bytes, times: int) -> bytes:
    """Return a gzip of so many pieces, but for its end, without packing them all."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + packed * times


BOMBS = {
    "10 GB of zeros": (".txt.gz", lambda: _gzip_of(b"\0" * (1 << 20), 10_000)),
    "10 GB of tokens": (".txt.gz", lambda: _gzip_of(b"1 " * (1 << 19), 10_000)),
    "10 GB of blanks": (".txt.gz", lambda: _gzip_of(b" " * (1 << 20), 10_000)),
    "400 000 empty members": (".txt.gz", lambda: gzip.compress(b"") * 400_000),
    # The first piece of it is refused, however many follow.
    "a token of 10^8 digits": (".txt", lambda: b"1" * 10**8),
}

BOMB_PROGRAM = """
import resource, sys, time
from pathlib import Path
from spherescan.data import import_text
from spherescan.errors import DataError
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    import_text(Path(sys.argv[1]), Path(sys.argv[2]), encoding="integers", vocab_size=9)
except DataError as error:
    print(error)
seconds = time.process_time() - start
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(kind, tmp_path):
    suffix, content = BOMBS[kind]
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(content())
    result = subprocess.run(
        [sys.executable, "-c", BOMB_PROGRAM, str(path), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    path.unlink()
    message, figures = result.stdout.splitlines()
    assert message.startswith(f"{path}: ")
    seconds, megabytes = map(float, figures.split())
    assert seconds < 2
    assert megabytes < 128
    assert sorted(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"1 2 3", mtime=0)[:-4], "ends inside a gzip member"),
        (gzip.compress(b"1 2 3", mtime=0) + b"more", "is not gzip, or damaged"),
        (gzip.compress(b"1 2 3", mtime=0)[:-5] + b"\0\0\0\0\0", "is not gzip, or damaged"),
        (b"1 2 3", "is not gzip, or damaged"),
        (gzip.compress(b"1 x 3", mtime=0), "line 1, column 3: 'x'"),
        (gzip.compress(b"   ", mtime=0), "holds no tokens"),
    ],
)
def test_damaged_gzip_is_refused(content, message, tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_tokens(tmp_path / "a.txt.gz")


def test_gzip_is_read_as_the_text_in_it(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50_000, 300_000)
    text = " ".join(map(str, tokens)).encode()
    (tmp_path / "a.txt.gz").write_bytes(
        gzip.compress(text[:999_999]) + gzip.compress(text[999_999:])
    )
    np.testing.assert_array_equal(read_tokens(tmp_path / "a.txt.gz"), tokens)


# The cache.


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPHERESCAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "tokens").iterdir())


def test_text_is_imported_once_and_found_by_its_content(cache, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("3 1 2")
    first = open_tokens(tmp_path / "a.txt", vocab_size=4)
    assert first.read(0, 3).tolist() == [3, 1, 2]
    assert first.source == str(tmp_path / "a.txt")
    (entry,) = entries(cache)
    assert {oct(path.stat().st_mode & 0o777) for path in (cache, cache / "tokens")} == {"0o700"}
    monkeypatch.setattr(cache_module, "write_documents", None)
    (tmp_path / "b.txt").write_text("3 1 2")
    assert open_tokens(tmp_path / "b.txt", vocab_size=4).fingerprint == first.fingerprint
    monkeypatch.undo()
    # Anywhere else, with another vocabulary or as a folder, it is the same text or another.
    monkeypatch.setenv("SPHERESCAN_CACHE", str(tmp_path / "other"))
    assert open_tokens(tmp_path / "a.txt", vocab_size=4).fingerprint == first.fingerprint
    assert open_tokens(tmp_path / "a.txt", vocab_size=5).fingerprint != first.fingerprint
    (tmp_path / "a.txt").write_text("3 1 1")
    assert open_tokens(tmp_path / "a.txt", vocab_size=4).read(0, 3).tolist() == [3, 1, 1]
    assert entries(cache) == [entry]


def test_a_folder_of_text_is_its_files_in_the_order_of_their_bytes(cache, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("b.txt", "4 5"), ("a.txt", "1 2 3"), ("B.txt", "0"), ("c.npy", "")):
        (folder / name).write_text(text)
    data = open_tokens(folder, vocab_size="auto", extension="txt")
    assert data.read(0, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert data.spans() == [(0, 1), (1, 4), (4, 6)]
    assert data.vocab_size == 6
    (folder / "d.txt").symlink_to(folder / "a.txt")
    with pytest.raises(DataError, match=r"d\.txt: is a symbolic link"):
        open_tokens(folder, vocab_size="auto", extension="txt")


def test_damage_in_the_cache_is_never_served(cache, tmp_path):
    (tmp_path / "a.txt").write_text("3 1 2")
    open_tokens(tmp_path / "a.txt", vocab_size=4)
    (entry,) = entries(cache)
    for damage in (
        lambda: (entry / "shard-00000.bin").write_bytes(b"\1\0" * 3),
        lambda: (entry / "index.json").write_text("{}"),
        (entry / "documents.bin").unlink,
    ):
        damage()
        with pytest.warns(UserWarning, match="imported again"):
            data = open_tokens(tmp_path / "a.txt", vocab_size=4)
        assert data.read(0, 3).tolist() == [3, 1, 2]
        assert entries(cache) == [entry]


def test_a_cache_that_others_can_write_is_refused(cache, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("3 1 2")
    cache.mkdir(mode=0o700)
    cache.chmod(0o770)
    with pytest.raises(ConfigError, match=r"can be written by others \(mode 770\)"):
        open_tokens(tmp_path / "a.txt", vocab_size=4)
    cache.chmod(0o700)
    (cache / "tokens").mkdir()
    (cache / "tokens").chmod(0o707)
    with pytest.raises(ConfigError, match=r"tokens: can be written by others"):
        open_tokens(tmp_path / "a.txt", vocab_size=4)
    (cache / "tokens").chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="belongs to user"):
        open_tokens(tmp_path / "a.txt", vocab_size=4)


def test_a_cache_that_cannot_be_made_is_a_storage_error(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("3 1 2")
    monkeypatch.setenv("SPHERESCAN_CACHE", str(tmp_path / "a.txt" / "cache"))
    with pytest.raises(StorageError, match="set SPHERESCAN_CACHE"):
        open_tokens(tmp_path / "a.txt", vocab_size=4)


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("SPHERESCAN_CACHE", "/x")
    assert cache_module.cache_folder() == Path("/x")
    monkeypatch.delenv("SPHERESCAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/y")
    assert cache_module.cache_folder() == Path("/y/spherescan")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/z")
    assert cache_module.cache_folder() == Path("/z/.cache/spherescan")


def test_text_that_changes_while_it_is_imported_is_refused(cache, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("3 1 2")
    real = cache_module.write_documents

    def meddled(*arguments, **options):
        path.write_text("1 1 1")
        try:
            real(*arguments, **options)
        finally:  # not even until it is looked at again: a kill would leave it to the next run
            assert [entry.name for entry in (cache / "tokens").iterdir()] == []

    monkeypatch.setattr(cache_module, "write_documents", meddled)
    with pytest.raises(DataError, match="changed while it was imported"):
        open_tokens(path, vocab_size=4)
    assert entries(cache) == []


def test_bad_text_leaves_nothing_in_the_cache(cache, tmp_path):
    (tmp_path / "a.txt").write_text("3 1 2 x")
    with pytest.raises(DataError, match="column 7: 'x'"):
        open_tokens(tmp_path / "a.txt", vocab_size=4)
    assert entries(cache) == []


def test_an_import_that_was_killed_is_cleaned_up_a_week_later(cache, tmp_path):
    (tmp_path / "a.txt").write_text("3 1 2")
    old, new = cache / "tokens" / ".x.partial-1", cache / "tokens" / ".y.partial-2"
    for folder in (old, new):
        folder.mkdir(parents=True)
    (cache).chmod(0o700)
    (cache / "tokens").chmod(0o700)
    os.utime(old, (0, 0))
    open_tokens(tmp_path / "a.txt", vocab_size=4)
    assert not old.exists()
    assert new.exists()


RACE = """
import sys, time
from pathlib import Path
from spherescan.data import open_tokens
while time.time() < float(sys.argv[2]): pass
print(open_tokens(Path(sys.argv[1]), vocab_size=99).fingerprint)
"""


def test_two_processes_that_import_the_same_text_share_the_result(cache, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(str(i % 99) for i in range(200_000)))
    start = str(time.time() + 4)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(path), start], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    assert len(entries(cache)) == 1


def test_memory_does_not_grow_with_the_text(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for _ in range(400):
            file.write("12345 678 " * 10_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data, _, _ = import_text(path, tmp_path / "out", encoding="integers", vocab_size=20_000)
    assert data.n_tokens == 8_000_000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 32  # the text has 40 MB, its tokens 16 MB as they are written

"""The tools are tested first: a fault that does not happen would make every later test pass."""

import errno
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.torture.faults import Kind, read_trace

ROOT = Path(__file__).parents[2]
PRELUDE = """
import errno, json, os, signal, sys
from pathlib import Path
from tests.torture.faults import *
from tests.torture.forking import in_child
root = Path(sys.argv[1])
faults = Faults(root)
def save(name="a", data=b"0123456789"):
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    file = os.open(".tmp", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=directory)
    os.posix_fallocate(file, 0, len(data))
    view = memoryview(data)
    while view:
        view = view[os.write(file, view):]
    os.fsync(file)
    os.close(file)
    os.rename(".tmp", name, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
    os.close(directory)
"""
# open the folder, create, allocate, write, fsync, close, rename, fsync of the folder
N_OPS = 8


@pytest.fixture
def preloaded(preload, tmp_path):
    root = tmp_path / "root"
    root.mkdir()

    def run(code: str) -> object:
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(root)],
            env=preload,
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            timeout=60,
        )
        return json.loads(done.stdout)

    return run


def test_it_counts_what_changes_the_folder_and_nothing_else(preloaded):
    counts = preloaded("""
        faults.arm(Mode.COUNT)
        save()
        counts = {kind.name: faults.of_kind(kind) for kind in Kind}
        Path(str(root) + "-elsewhere").write_text("not below the folder")
        (root / "a").read_bytes()
        os.stat(root / "a")
        print(json.dumps([counts, faults.counted]))
    """)
    expected = dict.fromkeys((kind.name for kind in Kind), 0)
    expected |= {"OPEN": 2, "WRITE": 1, "FSYNC": 2, "RENAME": 1, "ALLOCATE": 1, "CLOSE": 1}
    # To read is an open too: it can fail.
    assert counts == [expected, N_OPS + 1]


def test_every_operation_can_be_the_last(preloaded):
    ends = preloaded("""
        def attempt(mode, at):
            def work():
                faults.arm(mode, at=at)
                save()
                return faults.counted
            ended = in_child(work, threads=False)
            left = {path.name: path.read_bytes().decode() for path in root.iterdir()}
            for path in root.iterdir():
                path.unlink()
            return [ended.signum, ended.value, left]
        print(json.dumps([[attempt(mode, at) for at in range(1, 10)]
                          for mode in (Mode.KILL_BEFORE, Mode.KILL_AFTER)]))
    """)
    before, after = ends
    assert [signum for signum, _, _ in before] == [signal.SIGKILL] * N_OPS + [0]
    assert before[-1][1] == N_OPS
    assert [left for _, _, left in before[1:]] == [left for _, _, left in after[:-1]]
    zeros, data = "\0" * 10, "0123456789"
    states = [{}, {}, {".tmp": ""}, {".tmp": zeros}, *[{".tmp": data}] * 3, {"a": data}]
    assert [left for _, _, left in before] == [*states, {"a": data}]


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_every_operation_can_fail_once(preloaded, error):
    seen = preloaded(f"""
        def attempt(at):
            def work():
                faults.arm(Mode.FAIL, at=at, error={error})
                try:
                    save(str(at))
                except OSError as failed:
                    return [failed.errno, faults.counted, faults.happened]
                return [0, faults.counted, faults.happened]
            ended = in_child(work, threads=False)
            (root / ".tmp").unlink(missing_ok=True)
            return ended.value
        print(json.dumps([attempt(at) for at in range(1, 10)]))
    """)
    assert seen == [[error, at, 1] for at in range(1, N_OPS + 1)] + [[0, N_OPS, 0]]


def test_a_fault_can_last_and_can_be_for_one_kind_only(preloaded):
    seen = preloaded("""
        def work(onwards):
            faults.arm(Mode.FAIL, at=1, error=errno.EDQUOT, onwards=onwards,
                       kinds=frozenset({Kind.WRITE}))
            results = []
            for name in ("x", "y", "z"):
                try:
                    (root / name).write_bytes(b"1")
                    results.append("ok")
                except OSError as failed:
                    results.append(errno.errorcode[failed.errno])
            return results
        print(json.dumps([work(False), work(True)]))
    """)
    assert seen == [["EDQUOT", "ok", "ok"], ["EDQUOT"] * 3]


def test_a_write_can_be_short(preloaded):
    seen = preloaded("""
        faults.arm(Mode.SHORTEN, at=4)
        save()
        once = faults.counted
        faults.arm(Mode.SHORTEN, at=1, onwards=True)
        save("b")
        print(json.dumps([once, faults.happened, (root / "a").read_text(),
                          (root / "b").read_text()]))
    """)
    assert seen == [N_OPS + 1, 4, "0123456789", "0123456789"]


def test_an_interrupted_call_is_made_again_by_python(preloaded):
    assert preloaded("""
        def work(at):
            kinds = frozenset({Kind.WRITE, Kind.FSYNC})
            faults.arm(Mode.FAIL, at=at, error=errno.EINTR, kinds=kinds)
            save(str(at))
            return faults.happened
        print(json.dumps([work(1), work(2)]))
    """) == [1, 1]


def test_the_trace_tells_everything_in_order(preloaded, tmp_path):
    trace = tmp_path / "trace"
    preloaded(f"""
        (root / "old").write_bytes(b"old")
        with faults.recording(Path({str(trace)!r})):
            os.mkdir(root / "sub")
            save()
            faults.note("saved a\\nwell")
            file = os.open(root / "a", os.O_WRONLY | os.O_APPEND)
            os.write(file, b"ab")
            os.pwrite(file, b"cd", 3)
            os.ftruncate(file, 5)
            os.link(root / "a", root / "sub" / "b")
            os.unlink(root / "a")
            os.fdatasync(file)
            (root / "old").write_bytes(b"")
        (root / "old").write_bytes(b"not recorded")
        print(0)
    """)
    ops = read_trace(trace, tmp_path / "root")
    seen = [(op.kind, op.path, op.path2, op.offset, op.data) for op in ops]
    assert seen == [
        ("mkdir", "sub", "", 0, b""),
        ("create", ".tmp", "", 0, b""),
        ("allocate", ".tmp", "", 10, b""),
        ("write", ".tmp", "", 0, b"0123456789"),
        ("fsync", ".tmp", "", 0, b""),
        ("rename", ".tmp", "a", 0, b""),
        ("fsync", "", "", 0, b""),
        ("note", "", "", 0, b"saved a\nwell"),
        ("write", "a", "", 10, b"ab"),
        ("write", "a", "", 12, b"cd"),  # O_APPEND is stronger than an offset
        ("truncate", "a", "", 5, b""),
        ("link", "a", "sub/b", 0, b""),
        ("unlink", "a", "", 0, b""),
        ("fsync", "a", "", 0, b""),  # by the name it was opened with
        ("truncate", "old", "", 0, b""),
    ]
    file_ops = [op for op in ops if op.kind in {"create", "write", "rename", "link"}]
    assert len({op.inode for op in file_ops}) == 1


def test_the_kinds_are_those_of_the_library():
    source = Path(__file__).with_name("faults.c").read_text()
    names = source.partition("enum kind {")[2].partition("N_KINDS")[0]
    assert [name.strip() for name in names.split(",") if name.strip()] == [k.name for k in Kind]

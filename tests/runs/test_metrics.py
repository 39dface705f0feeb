import errno
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spherescan.errors import RunDirectoryError, StorageError
from spherescan.runs import metrics
from spherescan.runs.metrics import LogPosition, MetricsLog, read_metrics


def opened(path, run_id="r1", **options):
    return closing(MetricsLog(path, run_id=run_id, **options))


def record(step: int) -> dict[str, object]:
    return {"step": step, "kind": "train", "loss": 1 / (step + 1)}


def write(path, steps) -> LogPosition:
    with opened(path) as log:
        for step in steps:
            log.append(record(step))
        return log.sync()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


class TestAppend:
    def test_what_is_appended_is_read(self, path):
        position = write(path, range(3))
        expected = [{"run_id": "r1", "seq": step, **record(step)} for step in range(3)]
        assert read_metrics(path) == expected
        assert [list(r) for r in read_metrics(path)] == [list(r) for r in expected]
        raw = path.read_bytes()
        assert position == LogPosition(len(raw), 3, metrics.zlib.crc32(raw), 3)
        assert path.stat().st_mode & 0o777 == 0o600

    def test_a_log_that_is_continued_is_the_log_of_one_writer(self, path, tmp_path):
        positions = [write(path, steps) for steps in ([0, 1], [], [2])]
        assert positions[1] == positions[0]
        assert positions[2] == write(tmp_path / "whole", range(3))
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()

    def test_one_record_is_one_write(self, path, monkeypatch):
        written, real = [], os.write
        monkeypatch.setattr(os, "write", lambda f, b: written.append(bytes(b)) or real(f, b))
        write(path, range(2))
        assert written == path.read_bytes().splitlines(keepends=True)

    def test_nonfinite_numbers_are_spelled_and_marked(self, path):
        nan, inf = float("nan"), float("inf")
        with opened(path) as log:
            log.append({"a": nan, "b": [1.0, inf], "c": {"d": -inf}})
            log.append({"a": 1.0, "b": [1.0], "c": {"d": None}})
        first, second = (json.loads(line) for line in path.read_text().splitlines())
        assert first["nonfinite"] is True
        assert (first["a"], first["b"], first["c"]) == (
            "NaN",
            [1.0, "Infinity"],
            {"d": "-Infinity"},
        )
        assert "nonfinite" not in second

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"seq": 1, "run_id": ""}, "run_id, seq"),
            ({"nonfinite": False}, "nonfinite"),
            ({"a": torch.ones(())}, "Tensor"),
            ({"a": (1,)}, "tuple"),
            ({"a": {1: 2}}, "keys must be str"),
            ({"a": "x" * (1 << 20)}, "longer than"),
        ],
    )
    def test_a_record_that_is_not_json_leaves_no_trace(self, path, bad, reason):
        with opened(path) as log:
            log.append(record(0))
            with pytest.raises(ValueError, match=reason):
                log.append(bad)
            log.append(record(1))
        assert [r["seq"] for r in read_metrics(path)] == [0, 1]

    @pytest.mark.unwatched
    @given(
        st.lists(
            st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=5)), max_size=5
        )
    )
    def test_every_record_is_one_readable_line(self, tmp_path_factory, records):
        path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
        records = [r for r in records if not r.keys() & {"run_id", "seq", "nonfinite"}]
        with opened(path) as log:
            for each in records:
                log.append(each)
        assert path.read_bytes().count(b"\n") == len(records)
        for got, given_record in zip(read_metrics(path), records, strict=True):
            assert [*given_record] == [k for k in got if k not in {"run_id", "seq", "nonfinite"}]

    def test_a_closed_log_takes_nothing(self, path):
        log = MetricsLog(path, run_id="r1")
        log.close()
        log.close()
        for use in (log.sync, lambda: log.append({})):
            with pytest.raises(RunDirectoryError, match="closed"):
                use()
        with pytest.raises(StorageError):
            log.cut_to(LogPosition(0, 0, 0, 0))


class TestStorage:
    @pytest.mark.parametrize("n_taken", [0, 9])
    @pytest.mark.parametrize("raises", [False, True])
    def test_a_full_disk_leaves_only_full_lines(self, path, monkeypatch, n_taken, raises):
        real = os.write

        def refuse(file, line):
            written = real(file, line[:n_taken])
            if raises:
                raise OSError(errno.ENOSPC, "No space left on device")
            return written

        with opened(path) as log:
            log.append(record(0))
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", refuse)
                with pytest.raises(StorageError, match=r"metrics\.jsonl was not written") as caught:
                    log.append(record(1))
            assert "\n" not in str(caught.value)
            assert len(read_metrics(path)) == 1
            log.append(record(1))
            again = log.sync()
        assert again == write(path.with_name("whole"), range(2))

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_lines_wait_in_memory_for_room_but_not_for_ever(self, path, monkeypatch, code):
        now = 0.0
        monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now))

        def refuse(*args):
            raise OSError(code, os.strerror(code))

        with opened(path, patience=180.0) as log:
            log.append(record(0))
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", refuse)
                for step in (1, 2, 3, 4):
                    log.append(record(step))
                    now += 50.0
                assert len(read_metrics(path)) == 1
            now = 179.0
            log.append(record(5))
            assert len(read_metrics(path)) == 6
            # The disk is full again: another 180 seconds begin.
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", refuse)
                log.append(record(6))
                now += 180.0
                with pytest.raises(StorageError, match=os.strerror(code)):
                    log.append(record(7))
        write(path.with_name("whole"), range(6))
        assert path.read_bytes() == path.with_name("whole").read_bytes()

    def test_no_more_than_a_mebibyte_waits(self, path, monkeypatch):
        def refuse(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", refuse)
        with opened(path, patience=180.0) as log:
            log.append({"text": "x" * 600_000})
            with pytest.raises(StorageError, match="No space left"):
                log.append({"text": "x" * 600_000})
        assert read_metrics(path) == []

    def test_a_line_that_cannot_be_dropped_blocks_the_log_until_it_can(self, path, monkeypatch):
        real = os.write

        def refuse(*args):
            raise OSError(errno.EIO, "Input/output error")

        with opened(path) as log:
            log.sync()
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", lambda file, line: real(file, line[:9]))
                patch.setattr(os, "ftruncate", refuse)
                for _ in range(2):
                    with pytest.raises(StorageError, match="check the disk") as caught:
                        log.append(record(0))
                    assert caught.value.__cause__.errno in {errno.EIO, errno.ENOSPC}
                with pytest.raises(StorageError, match="Input/output error"):
                    log.sync()
            log.append(record(0))
        assert len(read_metrics(path)) == 1

    def test_nothing_follows_a_line_that_could_not_be_dropped(self, path, monkeypatch):
        real = os.write

        def refuse(*args):
            raise OSError(errno.EIO, "Input/output error")

        with opened(path, patience=60.0) as log:
            position = log.sync()
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", lambda file, line: real(file, line[:9]))
                patch.setattr(os, "ftruncate", refuse)
                with pytest.raises(StorageError):
                    log.append(record(0))
                patch.setattr(os, "write", real)
                log.close()
        assert path.stat().st_size == 9
        with opened(path) as log:
            with pytest.raises(RunDirectoryError, match="incomplete"):
                log.append(record(0))
            log.cut_to(position)
            log.append(record(0))
        assert len(read_metrics(path)) == 1

    def test_a_real_limit_of_the_system_leaves_only_full_lines(self, path):
        program = (
            "import pathlib, resource, sys\n"
            "from spherescan.errors import StorageError\n"
            "from spherescan.runs.metrics import MetricsLog\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "log = MetricsLog(pathlib.Path(sys.argv[1]), run_id='r1')\n"
            "try:\n"
            "    for step in range(99):\n"
            "        log.append({'step': step, 'loss': 0.5})\n"
            "except StorageError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
        )
        assert "was not written" in done.stdout
        assert 900 < path.stat().st_size <= 1000
        assert len(read_metrics(path)) == path.read_bytes().count(b"\n") > 9

    @pytest.mark.parametrize("use", ["sync", "cut_to", "create", "continue"])
    def test_an_error_of_the_disk_is_said(self, path, monkeypatch, use):
        def refuse(*args):
            raise OSError(errno.EIO, "Input/output error")

        log = MetricsLog(path, run_id="r1")
        log.append(record(0))
        position = log.sync()
        monkeypatch.setattr(os, "pread" if use == "continue" else "fsync", refuse)
        uses = {
            "sync": log.sync,
            "cut_to": lambda: log.cut_to(position),
            "create": lambda: MetricsLog(path.with_name("new"), run_id="r1"),
            "continue": lambda: MetricsLog(path, run_id="r1"),
        }
        with closing(log), pytest.raises(StorageError, match="Input/output error"):
            uses[use]()


class TestCut:
    @pytest.mark.parametrize(
        "torn", [b"", b'{"run_id":"r1","se', b"\0" * 4096, b"\0\n", b"x" * 2_000_000]
    )
    @pytest.mark.parametrize("kept", [0, 1, 3])
    def test_a_resumed_log_is_the_uninterrupted_log(self, path, tmp_path, torn, kept):
        position = write(path, range(kept))
        write(path, [90, 91])
        with path.open("ab") as file:
            file.write(torn)
        with opened(path) as log:
            if torn:
                for use in (log.sync, lambda: log.append({})):
                    with pytest.raises(RunDirectoryError, match="resume from a checkpoint"):
                        use()
            log.cut_to(position)
            assert log.sync() == position
            for step in range(kept, 5):
                log.append(record(step))
            end = log.sync()
        assert end == write(tmp_path / "whole", range(5))
        assert path.read_bytes() == (tmp_path / "whole").read_bytes()

    def test_the_cut_is_on_the_disk_before_anything_follows(self, path, monkeypatch):
        position = write(path, range(2))
        write(path, [90])
        sizes = []
        with opened(path) as log:
            monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
            log.cut_to(position)
        assert sizes == [position.offset]

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda raw: raw[:-1], "were committed"),
            (lambda _: b"", "were committed"),
            (lambda raw: raw.replace(b"train", b"tra1n", 1), "have changed"),
            (lambda raw: raw[:-1] + b" more\n", "no line ends"),
            (lambda raw: raw[:20] + b"\n" + raw[21:], "have changed"),
        ],
    )
    def test_a_log_that_is_not_the_one_is_left_alone(self, path, damage, reason):
        position = write(path, range(3))
        path.write_bytes(damage(path.read_bytes()))
        before = path.read_bytes()
        with opened(path) as log, pytest.raises(RunDirectoryError, match=reason) as caught:
            log.cut_to(position)
        assert "--repair-metrics" in str(caught.value)
        assert path.read_bytes() == before

    def test_the_count_of_lines_is_checked(self, path):
        position = write(path, range(3))
        wrong = LogPosition(position.offset, 4, position.crc32, position.next_seq)
        with opened(path) as log, pytest.raises(RunDirectoryError, match="have changed"):
            log.cut_to(wrong)

    def test_a_log_longer_than_a_chunk_is_scanned_whole(self, path, monkeypatch):
        monkeypatch.setattr(metrics, "_CHUNK_BYTES", 7)
        position = write(path, range(3))
        write(path, [90])
        with opened(path) as log:
            log.cut_to(position)
            assert log.sync() == position


class TestOpening:
    def test_the_log_of_another_run_is_refused(self, path):
        write(path, range(2))
        with pytest.raises(RunDirectoryError, match="'r1', not of 'r2'"):
            MetricsLog(path, run_id="r2")

    def test_what_is_no_regular_file_is_refused_at_once(self, tmp_path):
        (tmp_path / "real").touch()
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "directory").mkdir()
        os.mkfifo(tmp_path / "fifo")
        for name, reason in [
            ("link", "symbolic link"), ("directory", "directory"), ("fifo", "not a regular"),
            ("none/log", "No such file"),
        ]:  # fmt: skip
            with pytest.raises(RunDirectoryError, match=reason):
                MetricsLog(tmp_path / name, run_id="r1")
        for name, reason in [
            ("link", "symbolic link"), ("directory", "not a regular"), ("fifo", "not a regular"),
            ("none", "No such file"),
        ]:  # fmt: skip
            with pytest.raises(RunDirectoryError, match=reason):
                read_metrics(tmp_path / name)

    def test_a_new_log_is_durable_as_a_name(self, path, monkeypatch):
        synced = []
        monkeypatch.setattr(
            os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink())
        )
        MetricsLog(path, run_id="r1").close()
        assert synced == [path.parent.resolve()]


class TestReading:
    def test_an_empty_log_has_no_records(self, path):
        write(path, [])
        assert read_metrics(path) == []

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"run_id":"r1","seq":5}', "incomplete"),
            ('{"run_id":"r1","seq":1}\n', "seq 1 does not follow 1"),
            ('{"run_id":"r1","seq":true}\n', "no integer seq"),
            ('{"run_id":"r1"}\n', "no integer seq"),
            ('{"seq":5}\n', "no run_id"),
            ('{"run_id":"r1","seq":5,"a":NaN}\n', "NaN"),
            ('{"run_id":"r1","seq":5,"a":1,"a":2}\n', "a key twice"),
            ("[]\n", "not a JSON object"),
            ("\n", "not strict JSON"),
            ("\0\0\n", "not strict JSON"),
            ("x" * 1_100_000 + "\n", "incomplete"),
        ],
    )
    def test_an_error_names_file_and_line(self, path, line, reason):
        write(path, range(2))
        with path.open("a") as file:
            file.write(line)
        with pytest.raises(RunDirectoryError, match=reason) as caught:
            read_metrics(path)
        assert f"{path}, line 3: " in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_of_a_log_that_grows_the_unfinished_line_is_left_out(self, path):
        write(path, range(2))
        with path.open("a") as file:
            file.write('{"run_id":"r1","seq":5')
        whole = read_metrics(path, growing=True)
        assert [line["seq"] for line in whole] == [0, 1]
        with path.open("a") as file:
            file.write(',"a":NaN}\n')
        with pytest.raises(RunDirectoryError, match="line 3: "):
            read_metrics(path, growing=True)

    def test_a_disk_that_fails_is_said(self, path, monkeypatch):
        write(path, range(2))

        def refuse(*args, **settings):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(metrics, "_read_records", refuse)
        with pytest.raises(RunDirectoryError, match="cannot be read"):
            read_metrics(path)

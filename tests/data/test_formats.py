"""Every reader: what it reads, and every refusal with the file and place it names."""

import io
import os
import time
import zipfile
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from spherescan.data.formats import (
    SERIES_READERS,
    TOKEN_READERS,
    npz,
    opening,
    read_series,
    read_tokens,
    token_text,
)
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError

SAMPLES = Path(str(files("spherescan.data") / "samples"))
READERS = [
    *(pytest.param(read_series, suffix, id=f"series{suffix}") for suffix in SERIES_READERS),
    *(pytest.param(read_tokens, suffix, id=f"tokens{suffix}") for suffix in TOKEN_READERS),
]
TEXT_READERS = [reader for reader in READERS if reader.values[1] in {".ts", ".csv", ".txt"}]
TS = "@univariate false\n@classLabel true a b\n@data\n"


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz_bytes(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zip_bytes(members: list[tuple[str, bytes]], method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def refusal(read, path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize(("read", "suffix"), READERS)
class TestEveryReader:
    def test_refuses_a_missing_file(self, read, suffix, tmp_path):
        assert "no such file" in refusal(read, tmp_path / f"absent{suffix}")

    def test_refuses_an_empty_file(self, read, suffix, tmp_path):
        assert "is empty" in refusal(read, written(tmp_path, f"a{suffix}", b""))

    def test_refuses_a_directory(self, read, suffix, tmp_path):
        path = tmp_path / f"a{suffix}"
        path.mkdir()
        assert "is a directory" in refusal(read, path)

    def test_refuses_a_fifo_without_waiting_for_its_writer(self, read, suffix, tmp_path):
        path = tmp_path / f"a{suffix}"
        os.mkfifo(path)
        assert "FIFO" in refusal(read, path)

    def test_refuses_a_symbolic_link(self, read, suffix, tmp_path):
        path = tmp_path / f"a{suffix}"
        path.symlink_to(written(tmp_path, f"real{suffix}", b"1 2"))
        assert "symbolic link" in refusal(read, path)

    def test_refuses_nul_bytes(self, read, suffix, tmp_path):
        refusal(read, written(tmp_path, f"a{suffix}", b"1\n\0\n"))

    def test_refuses_a_path_through_a_file(self, read, suffix, tmp_path):
        parent = written(tmp_path, "file", b"1")
        assert "cannot be read" in refusal(read, parent / f"a{suffix}")

    def test_refuses_a_file_above_the_cap(self, read, suffix, tmp_path, monkeypatch):
        monkeypatch.setattr(opening, "MAX_BYTES", 5)
        assert "wanted at most 5" in refusal(read, written(tmp_path, f"a{suffix}", b"123456"))

    def test_refuses_a_name_with_a_nul(self, read, suffix):
        with pytest.raises(DataError, match=r"a\\x00.*: not a file name"):
            read(Path(f"a\0{suffix}"))

    def test_takes_the_suffix_in_capitals(self, read, suffix, tmp_path):
        assert "no such file" in refusal(read, tmp_path / f"A{suffix.upper()}")


@pytest.mark.parametrize(("read", "suffix"), TEXT_READERS)
@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_refused(read, suffix, mark, tmp_path):
    path = written(tmp_path, f"a{suffix}", "1 2".encode(mark))
    assert "byte order mark (BOM) at offset 0" in refusal(read, path)


def test_text_errors_name_offset_and_line(tmp_path):
    message = refusal(read_series, written(tmp_path, "a.ts", b"#\n#\n#\0"))
    assert "NUL byte at offset 5, line 3" in message
    message = refusal(read_series, written(tmp_path, "a.csv", b"case,x\n\xff"))
    assert "byte 0xff at offset 7, line 2 is not UTF-8" in message


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, "a.csv", "case,x\n1,2\n")
    monkeypatch.setattr(opening, "_checked_size", lambda *_: 3)
    assert "is no longer of 3 bytes" in refusal(read_series, path)
    assert "is no longer of 3 bytes" in refusal(read_tokens, written(tmp_path, "a.txt", "1 22"))
    path = written(tmp_path, "a.npy", GOOD + b"more")
    monkeypatch.setattr(opening, "_checked_size", lambda *_: len(GOOD))
    assert "bytes after the array; wanted none" in refusal(read_series, path)


@pytest.mark.parametrize(
    ("read", "known"), [(read_series, ".csv, .npy, .npz, .ts"), (read_tokens, ".npy, .txt")]
)
def test_an_unknown_suffix_lists_the_known_ones(read, known, tmp_path):
    message = refusal(read, tmp_path / "a.parquet")
    assert "'.parquet'" in message
    assert known in message


def test_control_characters_of_a_file_name_are_escaped():
    with pytest.raises(DataError, match=r"a\\nb.ts: no such file"):
        read_series(Path("a\nb.ts"))


# The formats, read


def naive_ts(path: Path):
    body = path.read_text().split("@data\n")[1]
    for line in body.splitlines():
        *channels, label = line.split(":")
        yield np.array([[float(v) for v in c.split(",")] for c in channels], np.float32).T, label


@pytest.mark.unwatched
@pytest.mark.parametrize(("part", "count"), [("TRAIN", 270), ("TEST", 370)])
def test_japanese_vowels_equal_an_independent_parse(part, count):
    path = SAMPLES / f"JapaneseVowels_{part}.ts"
    start = time.process_time()
    table = read_series(path)
    # 0.05 s bare; the type checks of the tests and coverage multiply it.
    assert time.process_time() - start < 2
    assert len(table) == count
    assert table.n_channels == 12
    assert table.class_names == tuple("123456789")
    assert table.targets is None
    lengths = {len(values) for values in table.series}
    assert min(lengths) == 7
    assert max(lengths) == {"TRAIN": 26, "TEST": 29}[part]
    for values, label, (wanted, wanted_label) in zip(
        table.series, table.labels, naive_ts(path), strict=True
    ):
        np.testing.assert_array_equal(values, wanted)
        assert label == wanted_label


# name, part, sequences, channels, lengths, classes (None: regression)
ARCHIVE = [
    ("GunPoint", "TRAIN", 50, 1, 150, "1 2"),
    ("BasicMotions", "TEST", 40, 6, 100, "Standing Running Walking Badminton"),
    ("ItalyPowerDemand", "TEST", 1029, 1, 24, "1 2"),
    ("ArrowHead", "TRAIN", 36, 1, 251, "0 1 2"),
    ("ACSF1", "TEST", 100, 1, 1460, "0 1 2 3 4 5 6 7 8 9"),
    ("UnitTest", "TEST", 22, 1, 24, "1 2"),
    ("Covid3Month", "TRAIN", 140, 1, 84, None),
    ("CardanoSentiment", "TRAIN", 74, 2, 24, None),
]


@pytest.mark.unwatched
@pytest.mark.parametrize(("name", "part", "count", "channels", "length", "classes"), ARCHIVE)
def test_files_of_the_archive_parse(name, part, count, channels, length, classes):
    (folder,) = find_spec("aeon").submodule_search_locations
    table = read_series(Path(folder) / "datasets" / "data" / name / f"{name}_{part}.ts")
    assert len(table) == count
    assert table.n_channels == channels
    assert {len(values) for values in table.series} == {length}
    assert table.class_names == (tuple(classes.split()) if classes else None)
    assert (table.targets is None) == (classes is not None)
    assert set(table.labels or ()) == set(table.class_names or ())


def test_ts_keeps_what_is_written(tmp_path):
    text = (
        "# caf\u00e9\n% arff\n\n@PROBLEMNAME x\n@problemName y z\n@timeStamps FALSE\n"
        "@missing true\n@univariate false\r\n@dimension\t2\n@equalLength false\n"
        "@classLabel true B a\n@DATA\n"
        "\n1,-2.5,+3e-1 : 4,5,6 : a \r\n# between\n7:8:B"
    )
    table = read_series(written(tmp_path, "a.ts", text))
    np.testing.assert_array_equal(table.series[0], np.float32([[1, 4], [-2.5, 5], [0.3, 6]]))
    np.testing.assert_array_equal(table.series[1], np.float32([[7, 8]]))
    assert table.labels == ("a", "B")
    assert table.class_names == ("B", "a")
    assert table.source == str(tmp_path / "a.ts")


def test_ts_regression_and_unlabelled(tmp_path):
    table = read_series(written(tmp_path, "a.ts", "@targetLabel true\n@data\n1,2:1e-3\n1:-7\n"))
    np.testing.assert_array_equal(table.targets, [1e-3, -7.0])
    assert table.labels is None
    header = "@classLabel false\n@targetlabel false\n@univariate true\n@equalLength true\n"
    table = read_series(written(tmp_path, "a.ts", header + "@seriesLength 2\n@data\n1,2\n3,4\n"))
    assert (table.labels, table.targets, table.class_names) == (None, None, None)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_npz_reads_padded_sequences(dtype, tmp_path):
    x = np.asfortranarray(np.arange(24).reshape(2, 3, 4).astype(dtype))
    x[1, :, 2:] = np.nan
    content = npz_bytes(x=x, lengths=np.array([4, 2]), y=np.array(["one", "zw\u00f6lf"]))
    table = read_series(written(tmp_path, "a.npz", content))
    np.testing.assert_array_equal(table.series[0], np.arange(12).reshape(3, 4).T)
    np.testing.assert_array_equal(table.series[1], [[12, 16, 20], [13, 17, 21]])
    assert table.labels == ("one", "zw\u00f6lf")
    assert all(values.flags.writeable and values.flags.owndata for values in table.series)


def test_npz_outcomes_follow_the_type_of_y(tmp_path):
    x = np.ones((2, 5), np.float32)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=x, y=np.array([3, -1]))
    assert read_series(path).labels == ("3", "-1")
    np.savez_compressed(path, x=x, y=np.array([0.5, 2], np.float32))
    np.testing.assert_array_equal(read_series(path).targets, [0.5, 2.0])
    np.savez_compressed(path, x=x, y=np.array(["a", "b"], dtype=">U3"))
    assert read_series(path).labels == ("a", "b")
    np.savez_compressed(path, x=x)
    table = read_series(path)
    assert (table.labels, table.targets, table.n_channels) == (None, None, 1)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions(version, tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.arange(6.0).reshape(2, 3), version=version)
    table = read_series(written(tmp_path, "a.npy", buffer.getvalue()))
    np.testing.assert_array_equal(table.series[1], [[3], [4], [5]])


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u4", "<i8", "<u8"])
def test_npy_tokens(dtype, tmp_path):
    tokens = read_tokens(written(tmp_path, "a.npy", npy(np.array([0, 7, 127], dtype))))
    assert tokens.dtype == np.int64
    assert tokens.flags.writeable
    np.testing.assert_array_equal(tokens, [0, 7, 127])


def test_csv_groups_rows_by_case(tmp_path):
    text = 'case,x,label,y\r\nb,1,"say ""hi"", you",2\r\n\r\nb, 3 ,"say ""hi"", you",4\r\na,5,z,6'
    table = read_series(written(tmp_path, "a.csv", text))
    np.testing.assert_array_equal(table.series[0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(table.series[1], [[5, 6]])
    assert table.labels == ('say "hi", you', "z")
    table = read_series(written(tmp_path, "a.csv", "case,target,x\n1,2.5,3\n2,-1,3\n"))
    np.testing.assert_array_equal(table.targets, [2.5, -1.0])
    assert read_series(written(tmp_path, "a.csv", "case,x\n1,3\n")).labels is None


@pytest.mark.parametrize("chunk", [1, 2, 3, 11, 1 << 22])
def test_text_tokens_do_not_depend_on_the_chunks(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(token_text, "_CHUNK_BYTES", chunk)
    path = written(tmp_path, "a.txt", b"  1\t02\r\n\r\n9999999999 0000000010\n \t 42")
    np.testing.assert_array_equal(read_tokens(path), [1, 2, 9_999_999_999, 10, 42])
    path.write_bytes(b"12 \r\n 345\n 6 7_8 9\n")
    assert "line 3, column 4: '7" in refusal(read_tokens, path)
    path.write_bytes(b"1 22 333333333333 4")
    assert "line 1, column 6: '33" in refusal(read_tokens, path)


def test_ten_megabytes_of_text_tokens_take_less_than_two_seconds(tmp_path):
    path = written(tmp_path, "a.txt", b"12345 678\n" * 1_000_000)
    start = time.process_time()
    assert len(read_tokens(path)) == 2_000_000
    assert time.process_time() - start < 2


# The formats, refused

# file name, content, what the message says
REFUSED_TEXT = [
    ("a.ts", "@data\n", "holds no sequences"),
    ("a.ts", "@univariate true\n", "no @data line"),
    ("a.ts", "# x\n1,2\n", "line 2: '1,2' in the header"),
    ("a.ts", "@data now\n1\n", "line 1: 'now' after @data"),
    (
        "a.ts",
        "@colour red\n@data\n1\n",
        "line 1: unknown header key '@colour'; wanted one of @prob",
    ),
    ("a.ts", "@missing false\n@MISSING false\n@data\n1\n", "line 2: @missing is given a second"),
    ("a.ts", "@timeStamps true\n@data\n1\n", "line 1: @timeStamps true; time stamps are unsupp"),
    ("a.ts", "@univariate yes\n@data\n1\n", "line 1: @univariate is 'yes'; wanted true or"),
    ("a.ts", "@univariate\n@data\n1\n", "line 1: @univariate has 0 values"),
    ("a.ts", "@missing true false\n@data\n1\n", "line 1: @missing has 2 values"),
    ("a.ts", "@dimensions 0\n@data\n1\n", "@dimensions is '0'; wanted a positive number"),
    ("a.ts", "@dimensions\n@data\n1\n", "@dimensions is ''; wanted a positive number"),
    ("a.ts", "@seriesLength 1_0\n@data\n1\n", "@serieslength is '1_0'; wanted a positive"),
    ("a.ts", "@univariate true\n@dimensions 2\n@data\n1\n", "line 2: @dimensions 2 contradicts"),
    ("a.ts", "@univariate false\n@dimensions 1\n@data\n1\n", "contradicts @univariate false"),
    ("a.ts", "@classLabel true\n@data\n1:a\n", "line 1: @classLabel with value 'true'"),
    ("a.ts", "@classLabel\n@data\n1:a\n", "line 1: @classLabel with value ''"),
    ("a.ts", "@classLabel false a\n@data\n1:a\n", "line 1: @classLabel with value 'false a'"),
    ("a.ts", "@classLabel maybe a\n@data\n1:a\n", "line 1: @classlabel is 'maybe'"),
    ("a.ts", "@classLabel true a b a\n@data\n1:a\n", "repeats a class among 'a', 'b', 'a'"),
    ("a.ts", "@classLabel true a\n@targetLabel true\n@data\n1:a\n", "line 2: both @classLabel"),
    ("a.ts", "@classLabel true a\n@data\n1,2\n", "line 3: has no colon"),
    ("a.ts", TS + "1:2:c\n", "line 4: label 'c' is not declared; wanted one of 'a', 'b'"),
    ("a.ts", TS + "1:2:A\n", "line 4: label 'A' is not declared"),
    ("a.ts", TS + "1:a\n", "line 4: has 1 channel; wanted 2 or more"),
    ("a.ts", TS + "1:2:a\n\n1:2:3:a\n", "line 6: has 3 channels; wanted 2"),
    ("a.ts", "@dimensions 3\n" + TS + "1:2:a\n", "line 5: has 2 channels; wanted 3"),
    ("a.ts", TS + "1,2:3:a\n", "line 4: channel 1 has 1 values where channel 0 has 2"),
    ("a.ts", "@seriesLength 3\n@data\n1,2\n", "line 3: has 2 values per channel; wanted 3"),
    ("a.ts", "@equalLength true\n@data\n1,2\n1\n", "line 4: has 1 values per channel; wanted 2"),
    ("a.ts", TS + "1,2:3,?:a\n", "line 4, channel 1, position 1: missing value '?'"),
    ("a.ts", TS + "1,NaN:3,4:a\n", "line 4, channel 0, position 1: missing value 'NaN'"),
    ("a.ts", TS + "1,2:3,:a\n", "line 4, channel 1, position 1: missing value ''"),
    ("a.ts", TS + "1_0:3:a\n", "line 4, channel 0, position 0: '1_0' is not a number"),
    ("a.ts", TS + "1:\u0663:a\n", r"channel 1, position 0: '\u0663' is not a number"),
    ("a.ts", TS + "inf:3:a\n", "'inf' is not a number"),
    ("a.ts", TS + ".5:3:a\n", "'.5' is not a number"),
    ("a.ts", TS + "0x1:3:a\n", "'0x1' is not a number"),
    ("a.ts", TS + "1:" + "9" * 100 + ":a\n", "'" + "9" * 40 + "'... is too large for float32"),
    ("a.ts", TS + "1e39:3:a\n", "position 0: '1e39' is too large for float32"),
    ("a.ts", TS + "1:-1e999:a\n", "channel 1, position 0: '-1e999' is too large for float64"),
    ("a.ts", "@data\n(2007-01-01,1)\n", "position 0: '(2007-01-01' has a time stamp"),
    ("a.ts", "@targetLabel true\n@data\n1:x\n", "line 3, target: 'x' is not a number"),
    ("a.ts", "@targetLabel true\n@data\n1:?\n", "line 3, target: missing value '?'"),
    ("a.csv", "\n\n", "line 1: the first column is ''; wanted 'case'"),
    ("a.csv", "id,x\n1,2\n", "line 1: the first column is 'id'; wanted 'case'"),
    ("a.csv", "case,x,x\n1,2,3\n", "line 1: a column name is empty or repeated"),
    ("a.csv", "case,x,\n1,2,3\n", "line 1: a column name is empty or repeated"),
    ("a.csv", "case,x,Label\n1,2,3\n", "line 1: column 'Label'; wanted 'label'"),
    ("a.csv", "case,Class,x\n1,2,3\n", "line 1: column 'Class'; wanted 'label'"),
    ("a.csv", "case,x,targets\n1,2,3\n", "line 1: column 'targets'; wanted 'target'"),
    ("a.csv", "case,label,target,x\n1,2,3,4\n", "line 1: columns 'label' and 'target'"),
    ("a.csv", "case,label\n1,2\n", "line 1: no channel columns"),
    ("a.csv", "case,x\n", "holds no sequences"),
    ("a.csv", "case,x\n1,2\n1\n", "line 3: has 1 cells; wanted 2"),
    ("a.csv", "case,x\n,2\n", "line 2: empty case"),
    ("a.csv", "case,x\n1,2\n2,2\n1,3\n", "line 4: case '1' comes back after line 2"),
    ("a.csv", "case,x,y\n1,2,3\n1,4,\n", "line 3, column 'y': missing value ''"),
    ("a.csv", 'case,x\n1,"1,5"\n', "line 2, column 'x': '1,5' is not a number"),
    ("a.csv", "case,x,label\n1,2,a\n1,2,b\n", "line 3, column 'label': 'b' where the case begins"),
    ("a.csv", "case,x,label\n1,2,\n1,2,a\n", "line 3, column 'label': 'a' where the case begins"),
    ("a.csv", "case,x,label\n1,2,a\n2,3,\n", "line 3, column 'label': is empty; wanted one"),
    ("a.csv", "case,x,target\n1,2,1\n2,3,\n", "line 3, column 'target': is empty; wanted one"),
    ("a.csv", "case,x,target\n1,2,1\n2,3,z\n", "line 3, column 'target': 'z' is not a number"),
    (
        "a.csv",
        "case;label;x\na;b;1,5\n",
        "has ';' between columns; wanted commas there, and points",
    ),
    ("a.csv", "case\tlabel\tx\na\tb\t1.5\n", "has '\\t' between columns; wanted commas there"),
    ("a.csv", "case,x,target\n1,2,a\n", "line 2, column 'target': 'a' is not a number"),
    ("a.csv", 'case,x\n1,"2\n', "line 2: unexpected end of data"),
    ("a.csv", 'case,x\n1,"2"3\n', "line 2: ',' expected after '\"'"),
    ("a.txt", " \n\t\n", "holds no tokens"),
    ("a.txt", "1 2\n3 -4\n", "line 2, column 3: '-4'"),
    ("a.txt", "1 2\x0b3", r"line 1, column 3: '2\x0b3'"),
    ("a.txt", "1 \u0663", r"line 1, column 3: '\xd9\xa3'; wanted an integer of 1 to 10"),
    ("a.txt", "x" * 99, "column 1: '" + "x" * 40 + "'..."),
    ("a.txt", "12345678901", "line 1, column 1: '12345678901'"),
]


@pytest.mark.parametrize(("name", "content", "says"), REFUSED_TEXT)
def test_bad_text_is_refused_with_its_place(name, content, says, tmp_path):
    read = read_tokens if name == "a.txt" else read_series
    assert says in refusal(read, written(tmp_path, name, content))


X = np.ones((2, 3), np.float32)
GOOD = npy(X)


def damaged(old: bytes, new: bytes) -> bytes:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


REFUSED_NPY = [
    (b"not an array", "begins with 'not an'; wanted an array written by numpy.save"),
    (GOOD[:7], "ends after 7 of 8 bytes"),
    (GOOD[:40], "ends after 30 of 118 bytes"),
    (GOOD[:6] + b"\x04" + GOOD[7:], ".npy version 4.0"),
    (GOOD[:8] + b"\xff\xff" + GOOD[10:], "header of 65535 bytes; wanted at most 10000"),
    (GOOD[:-1], "24 bytes, but 23 follow the header"),
    (GOOD + b"x", "24 bytes, but 25 follow the header"),
    (damaged(b"(2, 3), }", b"(2,,3), }"), "is damaged or describes a structured array"),
    (damaged(b"'shape'", b"'shade'"), "is damaged or describes a structured array"),
    (damaged(b"(2, 3), }       ", b"(9999999999, 9)}"), "wanted at most 8589934592; split it"),
    (damaged(b"(2, 3), }            ", b"(0, 99999999999, 99)}"), "wanted no axis of length 0"),
    (damaged(b"<f4", b"<g4"), "has type '<g4'; wanted float16-64"),
    (npy(np.zeros(2, [("a", "f4")])), "is damaged or describes a structured array"),
    (npy(np.array([{}], object), allow_pickle=True), "object array, which needs pickle"),
    (npy(np.ones((1, 1, 1, 1, 1))), "has 5 axes; wanted at most 4"),
    (npy(np.ones(3)), "has shape (3,); wanted (sequences, channels, length)"),
    (npy(np.ones((2, 0))), "has shape (2, 0); wanted"),
    (npy(np.ones((2, 3), int)), "is int64; wanted floats"),
    (npy(np.float64([[1, 2], [3, 1e39]])), "sequence 1 has inf at position 1 of channel 0"),
    (npy(np.float32([[np.nan]])), "sequence 0 has nan at position 0 of channel 0"),
]


@pytest.mark.parametrize(("content", "says"), REFUSED_NPY)
def test_bad_npy_is_refused(content, says, tmp_path):
    assert says in refusal(read_series, written(tmp_path, "a.npy", content))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones(3), "is float64 of shape (3,); wanted a 1-D array of integers"),
        (np.ones((3, 1), int), "is int64 of shape (3, 1)"),
        (np.ones(0, int), "has shape (0,); wanted no axis of length 0"),
        (np.array([1, -5]), "token -5 at position 1"),
        (np.array([2**63], np.uint64), "token 9223372036854775808 at position 0"),
    ],
)
def test_bad_npy_tokens_are_refused(array, says, tmp_path):
    assert says in refusal(read_tokens, written(tmp_path, "a.npy", npy(array)))


def flipped(data: bytes, byte: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ 0xFF]) + data[byte + 1 :]


STORED = zip_bytes([("x.npy", GOOD)])
SURROGATE = npy(np.array(["ab", "cd"])).replace(b"c\0\0\0d", b"\0\xd8\0\0d")
BEYOND = npy(np.array(["ab", "cd"])).replace(b"c\0\0\0d", b"\0\0\x11\0d")
REFUSED_NPZ = [
    (b"not a zip", "not a readable .npz archive"),
    (STORED[:-30], "not a readable .npz archive"),
    (flipped(STORED, STORED.index(GOOD) + 130), 'not a readable .npz archive ("Bad CRC-32'),
    (zip_bytes([]), "has no array 'x'; wanted 'x', 'lengths', 'y'"),
    (npz_bytes(y=np.ones(2)), "has no array 'x'"),
    (npz_bytes(x=X, z=X), "holds 'z.npy'; wanted only arrays 'x', 'lengths', 'y'"),
    (zip_bytes([("x", GOOD)]), "holds 'x'; wanted only"),
    (zip_bytes([("x.npy", GOOD)], zipfile.ZIP_LZMA), "compressed by method 14 or encrypted"),
    (
        zip_bytes([("x.npy", GOOD + b"more")]),
        "'x': declares shape (2, 3) of float32, 24 bytes, but",
    ),
    (npz_bytes(x=np.array([[1], None], object)), "'x': is an object array, which needs pickle"),
    (npz_bytes(x=X.astype(int)), "'x': is int64; wanted floats"),
    (npz_bytes(x=X, lengths=np.ones(2)), "'lengths' is float64 of shape (2,); wanted 2 integers"),
    (npz_bytes(x=X, lengths=np.ones(3, int)), "'lengths' is int64 of shape (3,)"),
    (npz_bytes(x=X, lengths=np.array([3, 0])), "the length of sequence 1 is 0; wanted 1 to 3"),
    (npz_bytes(x=X, lengths=np.array([3, 4])), "the length of sequence 1 is 4; wanted 1 to 3"),
    (npz_bytes(x=X, y=np.ones(3)), "'y': has shape (3,); wanted (2,)"),
    (npz_bytes(x=X, y=np.ones(2, bool)), "'y': is bool; wanted texts, integers or floats"),
    (npz_bytes(x=X, y=np.array([b"a", b"b"])), "'y': is |S1; wanted texts"),
    (npz_bytes(x=X, y=np.array([1, np.inf])), "the target of sequence 1 is inf"),
    (npz_bytes(x=X, y=np.array(["a", ""])), "the label of sequence 1 is empty"),
    (zip_bytes([("x.npy", GOOD), ("y.npy", SURROGATE)]), "'y': a label is not valid Unicode"),
    (zip_bytes([("x.npy", GOOD), ("y.npy", BEYOND)]), "'y': a label is not valid Unicode"),
]


@pytest.mark.parametrize(("content", "says"), REFUSED_NPZ)
def test_bad_npz_is_refused(content, says, tmp_path):
    assert says in refusal(read_series, written(tmp_path, "a.npz", content))


def test_npz_members_must_be_unique(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        content = zip_bytes([("x.npy", GOOD), ("x.npy", GOOD)])
    assert "holds 'x' twice" in refusal(read_series, written(tmp_path, "a.npz", content))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_RATIO_FREE_BYTES", 1 << 16)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((100, 1000)))
    assert "wanted a ratio of at most 200" in refusal(read_series, path)
    np.savez(path, x=np.zeros((100, 1000)))
    assert len(read_series(path)) == 100


def test_an_array_above_the_cap_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((100, 100)))
    monkeypatch.setattr(opening, "MAX_BYTES", 10_000)
    assert "80000 bytes; wanted at most 10000" in refusal(read_series, path)


# What is to be predicted


@pytest.mark.parametrize("name", ["label", "target"])
def test_a_column_that_is_empty_in_all_rows_says_nothing(name, tmp_path):
    table = read_series(written(tmp_path, "a.csv", f"case,{name},x\n1,,2\n1,,3\n2,,4\n"))
    assert table.labels is None
    assert table.targets is None
    assert table.channel_names == ("x",)
    assert [values.tolist() for values in table.series] == [[[2], [3]], [[4]]]


def test_a_folder_is_no_file_of_sequences(tmp_path):
    (tmp_path / "a").mkdir()
    assert "is a folder; wanted a file of sequences" in refusal(read_series, tmp_path / "a")
    assert "is a folder; wanted a file of tokens" in refusal(read_tokens, tmp_path / "a")


# The table

ROW = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"series": ()}, "holds no sequences"),
        ({"series": (ROW, np.ones(3, np.float32))}, "sequence 1 is float32 of shape (3,)"),
        ({"series": (np.asfortranarray(ROW),)}, "sequence 0 is float32 of shape (3, 2); wanted C-"),
        ({"series": (ROW, ROW[:0])}, "sequence 1 has shape (length, channels) = (0, 2)"),
        ({"series": (ROW, ROW[:, :1].copy())}, "sequence 1 has 1 channels where sequence 0 has 2"),
        ({"series": (ROW, ROW * np.float32("inf"))}, "sequence 1 has inf at position 0 of channel"),
        ({"labels": ("a",)}, "1 labels for 2 sequences"),
        ({"labels": ("a", "")}, "the label of sequence 1 is empty"),
        ({"labels": ("a", "b"), "targets": np.ones(2)}, "both class labels and regression targets"),
        ({"labels": ("a", "c"), "class_names": ("a", "b")}, "the label of sequence 1 is 'c'"),
        ({"labels": ("a", "a"), "class_names": ("a", "a")}, "a class name is declared twice"),
        ({"class_names": ("a", "b")}, "declares class names but has no labels"),
        ({"targets": np.ones(3)}, "targets of shape (3,) for 2 sequences"),
        ({"targets": np.array([1, np.nan])}, "the target of sequence 1 is nan"),
    ],
)
def test_a_table_that_breaks_a_rule_cannot_be_made(changes, says):
    good = {"series": (ROW, ROW), "labels": None, "targets": None, "class_names": None}
    SeriesTable(**good, source="s")
    with pytest.raises(DataError) as caught:
        SeriesTable(**(good | changes), source="s")
    assert str(caught.value).startswith("s: ")
    assert says in str(caught.value)

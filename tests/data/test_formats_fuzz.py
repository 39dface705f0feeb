"""Whatever the bytes are, a reader returns something valid or raises DataError, and soon."""

import csv
import gzip
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spherescan.data.formats import SERIES_READERS, TOKEN_READERS, read_tokens, token_text
from spherescan.data.formats.numbers import float64_values
from spherescan.data.table import SeriesTable
from spherescan.errors import DataError

pytestmark = pytest.mark.unwatched

# Seconds of processor time for one input; the usual is a thousandth of it.
TIME_LIMIT = 1.0

READERS = [
    *(pytest.param(read, suffix, id=f"series{suffix}") for suffix, read in SERIES_READERS.items()),
    *(pytest.param(read_tokens, suffix, id=f"tokens{suffix}") for suffix in TOKEN_READERS),
]


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(method=zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


X = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
MEMBERS = {"x": npy(X), "lengths": npy(np.array([3, 2])), "y": npy(np.array(["ab", "c"]))}
VALID = {
    ".ts": [
        b"# c\n@univariate false\n@dimensions 2\n@classLabel true a b\n@data\n1,2:3,4:a\n5:6:b\n",
        b"@univariate true\n@equalLength true\n@seriesLength 2\n@targetLabel true\n@data\n1,2:3\n",
    ],
    ".csv": [
        b'case,label,x,y\n1,a,1,2\n1,a,3,4\n2,"b ""c""",5,6\n',
        b"case,x,target\r\na,1,0.5\r\nb,2,-1e-3\r\n",
    ],
    ".npy": [npy(X), npy(X[:, 0]), npy(np.array([1, 2, 300])), npy(np.array([7, 8], ">u2"))],
    ".npz": [zipped(**MEMBERS), zipped(zipfile.ZIP_STORED, **MEMBERS)],
    ".txt": [b"1 2 3\n4\t5\r\n6 0000000007\n"],
    ".txt.gz": [gzip.compress(b"1 2 3\n") + gzip.compress(b"4 5"), gzip.compress(b"7 " * 999)],
}
# Pieces that mean something to one of the parsers.
WORDS_OF_FORMATS = rb""": , . - e ( ) ? # " nan 1e999 1_0 12345678901 true @classLabel case label
    'O' <U9 <f8 True 9999999999 PK""".split()
CONTROLS = [b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xd9\xa3", b"\n@data\n", b"PK\x01\x02"]
PIECES = st.sampled_from(WORDS_OF_FORMATS + CONTROLS)


@st.composite
def mutated(draw, originals: list[bytes]) -> bytes:
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 6))
        piece = draw(PIECES | st.binary(max_size=3) | st.just(data[start:end] * 2))
        data = data[:start] + piece + data[end:]
    return data


@st.composite
def zips_of_mutated_arrays(draw) -> bytes:
    names = draw(st.lists(st.sampled_from([*MEMBERS, "z"]), min_size=1, unique=True))
    members = {name: draw(mutated(list(MEMBERS.values()))) for name in names}
    if draw(st.booleans()):
        members["x"] = MEMBERS["x"]
    return zipped(**members)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check(read, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    start = time.process_time()
    try:
        content = read(path)
    except DataError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
        assert len(message) < len(str(path)) + 1000
    else:
        if isinstance(content, SeriesTable):
            assert len(content) >= 1
            assert all(values.flags.writeable for values in content.series)
        else:
            assert content.dtype == np.int64
            assert content.size >= 1
            assert content.min() >= 0
    assert time.process_time() - start < TIME_LIMIT


@pytest.mark.parametrize(("read", "suffix"), READERS)
class TestEveryReader:
    @settings(max_examples=40)
    @given(data=st.binary(max_size=200))
    def test_any_bytes(self, read, suffix, folder, data):
        check(read, folder / f"a{suffix}", data)

    @settings(max_examples=100)
    @given(draw=st.data())
    def test_mutations_of_valid_files(self, read, suffix, folder, draw):
        check(read, folder / f"a{suffix}", draw.draw(mutated(VALID[suffix])))

    @settings(max_examples=80)
    @given(pieces=st.lists(PIECES | st.sampled_from([b"1", b"a", b" ", b"2.5"]), max_size=30))
    def test_sequences_of_pieces(self, read, suffix, folder, pieces):
        start = {".ts": b"@classLabel true a\n@data\n", ".csv": b"case,label,x\n"}.get(suffix, b"")
        check(read, folder / f"a{suffix}", start + b"".join(pieces))


@settings(max_examples=100)
@given(data=zips_of_mutated_arrays())
def test_zips_of_mutated_arrays(folder, data):
    check(SERIES_READERS[".npz"], folder / "a.npz", data)


HOSTILE = [
    (".txt", b"1" * 1_000_000),
    (".txt", b" " * 1_000_000 + b"x"),
    (".ts", b"@data\n" + b":" * 1_000_000),
    (".ts", b"@data\n" + b"," * 1_000_000),
    (".ts", b"@data\n" + b"1" * 1_000_000 + b"x"),
    (".ts", b"@data\n0." + b"1" * 1_000_000 + b"e+" + b"9" * 100_000),
    (".ts", b"@data\n" + b" " * 1_000_000 + b"1" + b" " * 1_000_000 + b"x"),
    (".ts", b"@classLabel true " + b"a " * 500_000 + b"\n@data\n1:a\n"),
    (".ts", b"@univariate " + b"x" * 1_000_000),
    (".ts", b"#\n" * 500_000),
    (".csv", b'case,x\n1,"' + b"1\n" * 500_000),
    (".csv", b"case," * 200_000),
    (".csv", b"\n" * 1_000_000),
    (".npy", b"\x93NUMPY\x02\x00\x10\x27\x00\x00" + b"{" + b" " * 9_999),
    (".npy", b"\x93NUMPY\x02\x00\x10\x27\x00\x00" + (b"{'descr': '<f4', 'fortran_order': False, "
     b"'shape': (").ljust(9_999, b"1") + b")"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "data"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_files_are_refused_soon(suffix, data, folder):
    read = SERIES_READERS.get(suffix, read_tokens) if suffix != ".npy" else read_tokens
    check(read, folder / f"a{suffix}", data)
    with pytest.raises(DataError):
        read(folder / f"a{suffix}")


# Against slow references


def reference_tokens(data: bytes) -> list[int] | None:
    tokens, digits = [], ""
    for byte in [*data, ord(" ")]:
        if byte in b" \t\r\n":
            if digits:
                tokens.append(sum(int(d) * 10**i for i, d in enumerate(reversed(digits))))
            digits = ""
        elif byte in b"0123456789" and len(digits) < 10:
            digits += chr(byte)
        else:
            return None
    return tokens or None


GOOD_BYTES = st.text("0123456789 \t\r\n", max_size=60).map(str.encode)
TOKEN_LISTS = st.lists(st.integers(0, 10**10 - 1), max_size=20).map(
    lambda tokens: " ".join(map(str, tokens)).encode()
)
BAD_BYTES = st.text("0123456789 \t\r\n\x0b\x00_-+.\u0663", max_size=30).map(str.encode)


@settings(max_examples=300)
@given(data=GOOD_BYTES | TOKEN_LISTS | BAD_BYTES, chunk=st.sampled_from([1, 2, 7, 12, 1 << 20]))
def test_text_tokens_equal_a_slow_parser(folder, data, chunk):
    path = folder / "a.txt"
    path.write_bytes(data)
    wanted = reference_tokens(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_text, "_CHUNK_BYTES", chunk)
        try:
            got = read_tokens(path).tolist()
        except DataError:
            got = None
    assert got == wanted


def is_number(text: str) -> bool:
    def digits(piece: str) -> bool:
        return piece != "" and all(char in "0123456789" for char in piece)

    bare = text.strip(" \t").replace("E", "e")
    mantissa, e, exponent = bare.removeprefix(bare[:1] if bare[:1] in {"+", "-"} else "").partition(
        "e"
    )
    whole, point, fraction = mantissa.partition(".")
    exponent = exponent[1:] if exponent[:1] in {"+", "-"} else exponent
    return digits(whole) and (not point or digits(fraction)) and (not e or digits(exponent))


@settings(max_examples=300)
@given(text=st.text("0123456789+-.eE_ \t\u0663", max_size=8) | st.floats().map(repr))
def test_numbers_equal_a_slow_grammar(text):
    try:
        (got,) = float64_values([text], str)
    except DataError:
        assert not is_number(text) or not np.isfinite(float(text))
    else:
        assert is_number(text)
        assert got == float(text)


# What is written comes back


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
WORDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=" \t\r\n\0:"),
    min_size=1,
    max_size=5,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


# Arguments, not tables: making a table is type-checked, which takes random numbers.
@st.composite
def tables(draw, label) -> tuple:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    channels = draw(st.integers(1, 3))
    values = draw(st.lists(FINITE, min_size=channels, max_size=20))
    n = len(lengths)
    kind = draw(st.sampled_from(["labels", "targets", "neither"]))
    labels = draw(st.lists(label, min_size=n, max_size=n)) if kind == "labels" else None
    target = st.floats(allow_nan=False, allow_infinity=False)
    targets = draw(st.lists(target, min_size=n, max_size=n)) if kind == "targets" else None
    return (
        tuple(np.resize(np.float32(values), (length, channels)) for length in lengths),
        tuple(labels) if labels else None,
        np.array(targets, np.float64) if targets else None,
        tuple(dict.fromkeys(labels)) if labels else None,
        "drawn",
    )


def outcomes(table: SeriesTable) -> list[str]:
    if table.targets is not None:
        return [repr(value) for value in table.targets.tolist()]
    return list(table.labels or [])


def write_ts(path: Path, table: SeriesTable) -> None:
    lines = [f"@univariate {'true' if table.n_channels == 1 else 'false'}"]
    lines += [f"@dimensions {table.n_channels}", f"@targetLabel {table.targets is not None}"]
    lines += ["@classLabel " + " ".join(["true", *table.class_names])] if table.labels else []
    lines += ["@data"]
    ends = outcomes(table) or [None] * len(table)
    for values, end in zip(table.series, ends, strict=True):
        channels = [",".join(map(repr, channel.tolist())) for channel in values.T]
        lines.append(":".join(channels if end is None else [*channels, end]))
    path.write_text("\n".join(lines), encoding="utf-8", newline="")


def write_csv(path: Path, table: SeriesTable) -> None:
    outcome = ["target"] if table.targets is not None else ["label"] if table.labels else []
    ends = outcomes(table) or [None] * len(table)
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["case", *outcome, *range(table.n_channels)])
        for index, (values, end) in enumerate(zip(table.series, ends, strict=True)):
            for row in values.tolist():
                rows.writerow([index, *([] if end is None else [end]), *map(repr, row)])


def write_npz(path: Path, table: SeriesTable) -> None:
    longest = max(map(len, table.series))
    x = np.full((len(table), table.n_channels, longest), np.nan, np.float32)
    for index, values in enumerate(table.series):
        x[index, :, : len(values)] = values.T
    y = table.targets if table.targets is not None else table.labels
    extra = {} if y is None else {"y": np.array(y)}
    np.savez(path, x=x, lengths=np.array([len(values) for values in table.series]), **extra)


@pytest.mark.parametrize(
    ("write", "suffix", "label", "declares"),
    [
        (write_ts, ".ts", WORDS, True),
        (write_csv, ".csv", TEXTS, False),
        (write_npz, ".npz", TEXTS, False),
    ],
    ids=[".ts", ".csv", ".npz"],
)
@settings(max_examples=100)
@given(draw=st.data())
def test_a_written_table_comes_back(write, suffix, label, declares, folder, draw):
    table = SeriesTable(*draw.draw(tables(label)))
    path = folder / f"table{suffix}"
    write(path, table)
    got = SERIES_READERS[suffix](path)
    assert got.labels == table.labels
    assert got.class_names == (table.class_names if declares else None)
    np.testing.assert_equal(got.targets, table.targets)
    assert len(got) == len(table)
    for values, wanted in zip(got.series, table.series, strict=True):
        assert values.tobytes() == wanted.tobytes()

"""Lines of samples and tokens: read exactly, or refused with the number of the line."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spherescan.data.formats import sample_lines as module
from spherescan.data.formats.sample_lines import sample_lines, token_lines
from spherescan.errors import DataError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
GAPS = st.sampled_from([" ", "\t", "   ", ",", ", ", " ,\t"])


@pytest.mark.unwatched
@given(
    rows=st.lists(st.one_of(st.none(), st.tuples(FLOATS, FLOATS, FLOATS)), min_size=1, max_size=8),
    gap=GAPS,
    end=st.sampled_from(["\n", "\r\n"]),
    margin=st.sampled_from(["", " ", "\t "]),
    whole=st.booleans(),
)
def test_samples_are_read_exactly(rows, gap, end, margin, whole):
    lines = [margin if row is None else margin + gap.join(map(repr, row)) for row in rows]
    text = end.join(lines) + (end if whole else "")
    if all(row is None for row in rows):
        with pytest.raises(DataError, match="ended without a sample"):
            list(sample_lines(io.BytesIO(text.encode()).readline, 3))
        return
    found = list(sample_lines(io.BytesIO(text.encode()).readline, 3))
    # An empty last line that nothing ends is no line.
    wanted = rows if whole or margin or rows[-1] is not None else rows[:-1]
    assert len(found) == len(wanted)
    for array, row in zip(found, wanted, strict=True):
        assert array.dtype == np.float32
        expected = np.array([] if row is None else row, dtype=np.float32).reshape(-1, 3)
        np.testing.assert_array_equal(array, expected)


@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=6), gap=GAPS)
def test_tokens_are_read_exactly(rows, gap):
    rows = [[7], *rows]
    text = "".join(gap.join(map(str, row)) + "\n" for row in rows)
    found = list(token_lines(io.BytesIO(text.encode()).readline, 100))
    assert [tokens.tolist() for tokens in found] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "ended without a sample"),
        (b"\n \n\n", "ended without a sample"),
        (b"1 2\n\n1 2 3\n", "line 3: holds 3; wanted .* channels, 2"),
        (b"1 2\n1\n", "line 2: holds 1; wanted"),
        (b"1,,2\n", "line 1: holds 3; wanted"),
        (b"1,\n", "line 1, number 2: missing value ''"),
        (b"1 2,\n", "line 1, number 1: '1 2' is not a number"),
        (b"1 nan\n", "line 1, number 2: missing value 'nan'"),
        (b"1 inf\n", "line 1, number 2: 'inf' is not a number"),
        (b"1 1e39\n", "line 1, number 2: '1e39' is too large"),
        (b"1 1_0\n", "line 1, number 2: '1_0' is not a number"),
        (b"1;2 3\n", "line 1, number 1: '1;2' is not a number"),
        (b"1 2\r3 4\n", r"'2\\r3' is not a number|holds 3"),
        (b"1 2\x00\n", r"number 2: '2\\x00' is not a number"),
        ("1 ٣\n".encode(), r"number 2: '\\xd9\\xa3' is not a number"),
        (b"\xef\xbb\xbf1 2\n", "byte order mark"),
        (b"1" * 50, "line 1 is longer than 40 bytes"),
        (b"1 2\n" + b"1" * 50 + b"\n", "line 2 is longer than 40 bytes"),
    ],
)
def test_a_wrong_sample_is_refused_with_its_line(text, message, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 40)
    with pytest.raises(DataError, match=f"standard input: .*({message})|standard input: {message}"):
        list(sample_lines(io.BytesIO(text).readline, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1 2\n3 9\n", "line 2, token 2: 9 is outside the vocabulary of 9"),
        (b"-1\n", "line 1, token 1: '-1'; wanted an integer"),
        (b"1.0\n", "'1.0'; wanted an integer"),
        (b"1,,2\n", "token 2: ''; wanted an integer"),
        (b"12345678901\n", "'12345678901'; wanted an integer of 1 to 10"),
        (b"1 a\n", "token 2: 'a'"),
    ],
)
def test_a_wrong_token_is_refused_with_its_line(text, message):
    with pytest.raises(DataError, match=message):
        list(token_lines(io.BytesIO(text).readline, 9))


def test_a_line_is_given_before_the_next_is_read():
    class Pipe(io.RawIOBase):
        asked = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            Pipe.asked += 1
            buffer[:4] = b"1 2\n"
            return 4

    lines = sample_lines(io.BufferedReader(Pipe()).readline, 2)
    for n in range(1, 4):
        assert next(lines).tolist() == [[1.0, 2.0]]
        assert Pipe.asked == n


def test_what_cannot_be_read_is_told():
    class Broken(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise OSError(5, "Input/output error")

    with pytest.raises(DataError, match="line 1: cannot be read"):
        next(sample_lines(io.BufferedReader(Broken()).readline, 2))


def test_an_endless_line_takes_no_more_memory_than_the_longest():
    asked = []

    def zeros(size: int) -> bytes:
        asked.append(size)
        return b"0" * size

    with pytest.raises(DataError, match="line 1 is longer"):
        next(sample_lines(zeros, 2))
    assert asked == [module.MAX_LINE_BYTES + 1]

"""Read tokens from text: ASCII `[0-9]{1,10}` separated by ASCII blanks, nothing else.

Python's int also takes 1_000 and digits of other scripts, and NumPy's parser clamps what
overflows; so the bytes are matched against the grammar first, and only what matched is given to
NumPy.
"""

import re
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.opening import OpenedFile, chunks, opened, refuse_byte_order_mark
from spherescan.data.formats.quoting import quoted
from spherescan.errors import DataError

# Tokens that a blank has ended; possessive, so that nothing is tried twice.
_ENDED = re.compile(rb"[ \t\r\n]*+(?:[0-9]{1,10}+[ \t\r\n]++)*+")
# What may be left: a token that the next chunk, or the end of the file, will end.
_OPEN = re.compile(rb"[0-9]{0,10}+")
_PIECE = re.compile(rb"[^ \t\r\n]*+")
# Memory above that of the tokens themselves; larger chunks are no faster.
_CHUNK_BYTES = 1 << 22


def read_token_text(path: Path) -> NDArray[np.int64]:
    """Read tokens from a text file.

    Raises:
        DataError: There is something else in the file, or no token; the message names line and
            column, both counted from 1, and the piece.
    """
    with opened(path) as file:
        parts = _parts(file)
    tokens = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    if tokens.size == 0:
        raise DataError(
            f"{file.source}: holds no tokens, only blanks; wanted integers; check the file"
        )
    return tokens


def _parts(file: OpenedFile) -> list[NDArray[np.int64]]:
    parts: list[NDArray[np.int64]] = []
    line, column, rest = 1, 1, b""
    for read in chain(chunks(file, _CHUNK_BYTES), [b""]):  # the last one ends the last token
        chunk = rest + read
        if line == column == 1:
            refuse_byte_order_mark(chunk, file.source)
        match = _ENDED.match(chunk)
        assert match is not None  # it also matches nothing
        ended, rest = match[0], chunk[match.end() :]
        if b"\n" in ended:
            line, column = line + ended.count(b"\n"), len(ended) - ended.rfind(b"\n")
        else:
            column += len(ended)
        if not _OPEN.fullmatch(rest):
            piece = _PIECE.match(rest)
            assert piece is not None
            raise DataError(
                f"{file.source}: line {line}, column {column}: {quoted(piece[0])}; wanted an "
                "integer of 1 to 10 ASCII digits between blanks; tokenize the text first or "
                "correct it"
            )
        if not read:
            ended, rest = rest, b""
        if ended.strip():
            parts.append(np.fromstring(ended, dtype=np.int64, sep=" "))
    return parts

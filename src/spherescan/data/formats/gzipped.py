"""Unpack gzip as it is read, up to limits that a bomb meets at once."""

import zlib
from collections.abc import Iterator

from spherescan.data.formats import opening
from spherescan.data.formats.opening import OpenedFile, chunks
from spherescan.errors import DataError

# Text of integers packs about 3:1, a single repeated token 1000:1: only a bomb, or data that teach
# nothing, come near this.
MAX_RATIO = 200
# What a file of any ratio may unpack to.
_SLACK_BYTES = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS


def unpacked(file: OpenedFile, longest: int) -> Iterator[bytes]:
    """Yield what a gzip file of one or several members holds, in pieces of at most `longest`.

    Raises:
        DataError: Not gzip, damaged, cut, or unpacking to more than `MAX_RATIO` times its size or
            more than the largest file.
    """
    consumed = produced = 0
    member: zlib._Decompress | None = None
    for data in chunks(file, 1 << 16):
        consumed += len(data)
        rest = data
        while rest:
            member = zlib.decompressobj(_GZIP) if member is None else member
            try:
                piece = member.decompress(rest, longest)
            except zlib.error as error:
                raise DataError(
                    f"{file.source}: is not gzip, or damaged ({error}); wanted a whole .gz file; "
                    "pack it again"
                ) from error
            rest = member.unused_data if member.eof else member.unconsumed_tail
            if member.eof:
                member = None
            produced += len(piece)
            _refuse_bomb(file, consumed - len(rest), produced)
            if piece:
                yield piece
    if member is not None:
        raise DataError(f"{file.source}: ends inside a gzip member; it is cut; copy it again")


def _refuse_bomb(file: OpenedFile, consumed: int, produced: int) -> None:
    limit = min(opening.MAX_BYTES, MAX_RATIO * consumed + _SLACK_BYTES)
    if produced > limit:
        raise DataError(
            f"{file.source}: {consumed} packed bytes hold more than {limit}; wanted at most "
            f"{MAX_RATIO} times as many, and at most {opening.MAX_BYTES}; unpack it if it is yours"
        )

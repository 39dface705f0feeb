"""One file of fixed-width tokens, read by position and never trusted twice without a look."""

import errno
import hashlib
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherescan.data.formats.opening import open_regular
from spherescan.data.formats.quoting import source_name
from spherescan.errors import DataError

DTYPES: dict[str, np.dtype[np.unsignedinteger]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}
# Device, inode, size, and the times of the last change of the content and of the file.
Signature = tuple[int, int, int, int, int]
_CHUNK_BYTES = 1 << 20


class ShardFile:
    """Tokens of a file: `shard[start:stop]` reads them.

    Size and digest are compared with the index when the file is opened. The file stays open, so it
    may be moved or replaced during a run; when the opened file itself changes, its digest is
    compared again. Nothing is mapped: a file that shrinks is an error, not a bus error.

    Args:
        path: The file.
        kind: Key of `DTYPES`.
        n_tokens: Tokens in it.
        sha256: Its digest in hex.
        seen: What the file looked like when its digest was right; a file that still looks so is
            not read to compare it.

    Raises:
        DataError: Not a regular file, or of another size or digest.
    """

    def __init__(
        self, path: Path, kind: str, n_tokens: int, sha256: str, *, seen: Signature | None = None
    ) -> None:
        self.path, self.dtype = path.absolute(), DTYPES[kind]
        self._kind, self._n_tokens, self._sha256 = kind, n_tokens, sha256
        self._source = source_name(path)
        try:
            self._descriptor = open_regular(path)
        except OSError as error:
            hint = "import it again"
            if error.errno == errno.EMFILE:
                hint = "raise the limit of open files (ulimit -n), or import into larger shards"
            raise DataError(f"{self._source}: cannot be read: {error.strerror}; {hint}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._signature = seen
        self._expect_unchanged()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopened, (self.path, self._kind, self._n_tokens, self._sha256, self._signature)

    def __len__(self) -> int:
        return self._n_tokens

    def __getitem__(self, where: slice) -> NDArray[np.unsignedinteger]:
        start, stop, _ = where.indices(self._n_tokens)
        size = self.dtype.itemsize
        data = self._read(start * size, (stop - start) * size)
        # Afterwards, so that what was just read is what the digest was of.
        self._expect_unchanged()
        if len(data) != (stop - start) * size:
            raise DataError(f"{self._source}: ends too early; import it again")
        return np.frombuffer(data, dtype=self.dtype)

    def _expect_unchanged(self) -> None:
        """Compare with the index, unless the file looks as it did when that was last done.

        Raises:
            DataError: Another size or digest.
        """
        signature = self._look()
        if signature == self._signature:
            return
        expected = self._n_tokens * self.dtype.itemsize
        if signature[2] != expected:
            raise DataError(
                f"{self._source}: has {signature[2]} bytes, the index says {expected}; import it "
                "again"
            )
        digest, at = hashlib.sha256(), 0
        while data := self._read(at, _CHUNK_BYTES):
            digest.update(data)
            at += len(data)
        if digest.hexdigest() != self._sha256:
            raise DataError(
                f"{self._source}: has another digest than the index says; import it again"
            )
        # The look before the digest: a change during it is seen at the next reading.
        self._signature = signature

    def _look(self) -> Signature:
        status = os.fstat(self._descriptor)
        return (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def _read(self, offset: int, count: int) -> bytes:
        """Return as many bytes as asked for, or all that are left."""
        parts = []
        try:
            # One call reads no more than 2 GiB.
            while count and (data := os.pread(self._descriptor, min(count, 1 << 30), offset)):
                parts.append(data)
                offset, count = offset + len(data), count - len(data)
        except OSError as error:
            raise DataError(f"{self._source}: cannot be read: {error.strerror}") from error
        return b"".join(parts)


def _reopened(path: Path, kind: str, n_tokens: int, sha256: str, seen: Signature) -> ShardFile:
    """Open in a worker process the file that the main process has verified."""
    return ShardFile(path, kind, n_tokens, sha256, seen=seen)

"""One checkpoint is one file: safetensors, with a digest of every byte before it as last tensor.

Writing is a commit: the file is there, whole and on the disk, or it is not there. Reading verifies
everything before it returns anything, runs no code from the file, and allocates no more than the
file is long. The last tensor, `~commit.sha256`, is the commit record; any safetensors reader can
read the file and will see it as 32 more bytes. It is the SHA-256 of all before the data of the
tensors, and of the SHA-256 of each piece of that data, so that several threads can make it.
"""

import errno
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spherescan import __version__
from spherescan.allocator import memory_bytes
from spherescan.errors import CheckpointError, DamagedError, StorageError
from spherescan.runs.folder import Folder, write_all
from spherescan.runs.header import MAX_HEADER_BYTES, TensorInfo, encode_header, parse_header
from spherescan.runs.migrations import migrated
from spherescan.strict_json import json_text, parse_json

__all__ = [
    "COMMIT",
    "SCHEMA",
    "Checkpoint",
    "CheckpointInfo",
    "TensorInfo",
    "inspect_checkpoint",
    "read_checkpoint",
    "write_checkpoint",
]

SCHEMA = 3
COMMIT = "~commit.sha256"
MAX_STATE_DEPTH = 64
# What is hashed on its own, a part of the format: large enough for full disk speed, small enough
# never to matter beside the tensors, and enough of them to keep several cores busy.
PIECE_BYTES = 8 << 20
# In these schemas the digest was the SHA-256 of every byte before it. All others, also those to
# come, have it of pieces: the digest is compared before a schema is believed. Another way to hash
# needs another name than COMMIT.
_HASHED_AT_ONCE = {"1", "2"}
_N_HASHERS = 2
# What a save leaves free, so that metrics and events can still be written.
RESERVE_BYTES = 16 << 20
# A thread takes about 50 microseconds to be given work, in which SHA-256 does 64 KiB.
_WORTH_A_THREAD = 1 << 16
_DIGEST_BYTES = 32
# The length field, the smallest header that could name anything, and the digest.
_MIN_BYTES = 48


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint; `tensors` are in the order of the file, `schema` is the file's.

    `state` is that of the newest schema, whatever the file's.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    schema: int
    created_by: str
    digest: str

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin so, under the rest of their names."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A verified checkpoint without the values of its tensors."""

    tensors: tuple[TensorInfo, ...]
    state: dict[str, Any]
    schema: int
    created_by: str
    digest: str


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, object],
    *,
    folder: Folder | None = None,
) -> str:
    """Commit a checkpoint: after the return it survives a crash and a loss of power.

    Args:
        path: the file to create; its directory must exist. One process at a time may write there.
        tensors: dense CPU tensors, contiguous or not; whether they are finite is the caller's
            check. Large values belong here.
        state: everything else, as strict JSON (`strict_json.json_text` says what that is).
        folder: the folder of the file, when it is open already.

    Returns:
        The digest of the file in hex. A file that is there already with the same digest is a
        success and is left as it is.

    Raises:
        CheckpointError: Something cannot be saved exactly (nothing was opened), or another file
            has the name.
        StorageError: The system refused; no temporary file is left and nothing else changed.
    """
    ordered, head = _prepare(path, tensors, state)
    try:
        opened = folder or Folder(path.parent)
        try:
            return _commit_or_retry(path, opened, head, ordered)
        finally:
            if folder is None:
                opened.close()
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} was not written ({error.strerror or error}); make room or check the rights "
            f"in {path.parent} and save again"
        ) from error


def read_checkpoint(path: Path, *, folder: Folder | None = None) -> Checkpoint:
    """Read a checkpoint whose every byte has been verified.

    Args:
        path: the file.
        folder: the folder of the file, when it is open already.

    Raises:
        DamagedError: Some of its bytes are not what was written.
        CheckpointError: The file is missing, no checkpoint, from a newer version, or larger than
            half of the machine's memory.
    """
    with _verifying(path, folder) as reader:
        if reader.n_bytes > memory_bytes() // 2:
            raise CheckpointError(
                f"{path} takes {reader.n_bytes} bytes, more than half of this machine's memory"
            )
        tensors = {info.name: reader.tensor(info) for info in reader.tensors}
        state, schema, created_by, digest = reader.finish()
    return Checkpoint(tensors, state, schema, created_by, digest)


def inspect_checkpoint(path: Path, *, folder: Folder | None = None) -> CheckpointInfo:
    """Verify a checkpoint as `read_checkpoint` does, in the memory of its header alone.

    Args:
        path: the file.
        folder: the folder of the file, when it is open already.

    Raises:
        DamagedError: As for `read_checkpoint`.
        CheckpointError: As for `read_checkpoint`, of whatever size.
    """
    with _verifying(path, folder) as reader:
        for info in reader.tensors:
            reader.skip(info)
        state, schema, created_by, digest = reader.finish()
    return CheckpointInfo(reader.tensors, state, schema, created_by, digest)


def _prepare(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, object]
) -> tuple[list[Tensor], bytes]:
    """Refuse what cannot be saved; return the tensors in file order, and the header."""
    try:
        if not path.name or "\0" in path.name:
            raise ValueError("the path names no file")  # noqa: TRY301 - one place adds the path
        infos = [_describe(name, tensor) for name, tensor in tensors.items()]
        # Wide elements first, so that each tensor starts at a multiple of its element size.
        infos.sort(key=lambda info: (-info.dtype.itemsize, info.name))
        commit = TensorInfo(COMMIT, torch.uint8, (_DIGEST_BYTES,))
        metadata = {
            "format": "pt",
            "spherescan.schema": str(SCHEMA),
            "spherescan.created_by": f"spherescan {__version__}, torch {torch.__version__}",
            "spherescan.state": json_text(dict(state), where="state", max_depth=MAX_STATE_DEPTH),
        }
        head = encode_header([*infos, commit], metadata)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from None
    return [tensors[info.name] for info in infos], head


def _describe(name: str, tensor: Tensor) -> TensorInfo:
    if name == COMMIT:
        raise ValueError(f"{name} is the name of the commit record; rename the tensor")
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise ValueError(
            f"{name}: got a {tensor.layout} tensor on {tensor.device}; make it a dense CPU tensor"
        )
    if tensor.dtype is torch.bool and not _is_bool(tensor):
        raise ValueError(f"{name}: a bool tensor holds bytes other than 0 and 1")
    return TensorInfo(name, tensor.dtype, tuple(tensor.shape))


def _commit_or_retry(path: Path, folder: Folder, head: bytes, tensors: list[Tensor]) -> str:
    """Commit; after an input/output error once more, from memory.

    A failed fsync may have dropped the pages it did not write and will succeed when asked again,
    so only a new file tells anything.
    """
    try:
        return _commit(path, folder, head, tensors)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    return _commit(path, folder, head, tensors)


def _commit(path: Path, folder: Folder, head: bytes, tensors: list[Tensor]) -> str:
    n_bytes = len(head) + sum(t.numel() * t.element_size() for t in tensors) + _DIGEST_BYTES
    _expect_room(folder, n_bytes)
    temporary = f".tmp-{path.name}-{os.getpid()}-{secrets.token_hex(8)}"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600, dir_fd=folder.file)
    try:
        try:
            _reserve(file, n_bytes)
            digest = _write_hashed(file, head, tensors)
            os.fsync(file)
        finally:
            os.close(file)
        if folder.holds(path.name):
            _require_same(path, folder, digest)
        else:
            folder.rename(temporary, path.name)
    finally:
        # After the rename there is nothing to remove; before it, the first error matters more.
        with suppress(OSError):
            folder.remove(temporary)
    try:
        folder.sync()
    except OSError as error:
        raise StorageError(
            f"{path} is written but may not survive a loss of power ({error.strerror or error}); "
            f"keep the checkpoints before it and save again"
        ) from error
    return digest


def _expect_room(folder: Folder, n_bytes: int) -> None:
    status = os.fstatvfs(folder.file)
    free = status.f_bavail * status.f_frsize
    if free < n_bytes + RESERVE_BYTES:
        raise OSError(
            errno.ENOSPC, f"it takes {n_bytes} bytes, and {free} are free; {RESERVE_BYTES} stay so"
        )


def _reserve(file: int, n_bytes: int) -> None:
    """Take the room for the file now, where the system can."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(file, 0, n_bytes)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
            raise


def _write_hashed(file: int, head: bytes, tensors: list[Tensor]) -> str:
    """Write everything while other threads hash it, and the digest at the end."""
    write_all(file, memoryview(head))
    at, digests = len(head), list[Future[bytes]]()
    with ThreadPoolExecutor(_N_HASHERS, thread_name_prefix="checkpoint") as hashers:
        try:
            for tensor in tensors:
                whole, first = tensor.detach().resolve_neg().contiguous(), len(digests)
                for piece in _pieces(_bytes_of(whole)):
                    digests.append(_hashed(piece, hashers))
                    write_all(file, piece)
                    at += len(piece)
                    if len(piece) == PIECE_BYTES:
                        _begin_to_sync(file, at - len(piece), len(piece))
                if whole.data_ptr() != tensor.data_ptr():
                    wait(digests[first:])  # one copy at a time takes memory
        except BaseException:
            hashers.shutdown(wait=False, cancel_futures=True)
            raise
    sha = hashlib.sha256(head)
    for digest in digests:
        sha.update(digest.result())
    write_all(file, memoryview(sha.digest()))
    return sha.hexdigest()


def _hashed(piece: memoryview, hashers: ThreadPoolExecutor) -> Future[bytes]:
    """Have a piece hashed by another thread where that pays and there can be one."""
    if len(piece) >= _WORTH_A_THREAD:
        with suppress(RuntimeError):  # no more threads
            return hashers.submit(_digest, piece)
    digest = Future[bytes]()
    digest.set_result(_digest(piece))
    return digest


def _pieces(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]


def _digest(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


def _begin_to_sync(file: int, start: int, n_bytes: int) -> None:
    """Let the disk begin with what was just written, so that the fsync has less to wait for."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    with suppress(OSError):  # advice that is refused costs time, and nothing else
        os.posix_fadvise(file, start, n_bytes, os.POSIX_FADV_DONTNEED)


def _bytes_of(tensor: Tensor) -> memoryview:
    # Not reshape: a contiguous axis of length one may have any stride, and then view refuses it.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def _is_bool(tensor: Tensor) -> bool:
    return bool((tensor.detach().view(torch.uint8) <= 1).all())


def _require_same(path: Path, folder: Folder, digest: str) -> None:
    try:
        same = inspect_checkpoint(path, folder=folder).digest == digest
    except CheckpointError as error:
        raise CheckpointError(f"{error}; it was not overwritten: move it aside") from None
    if not same:
        raise CheckpointError(
            f"{path} holds another checkpoint; it was not overwritten: move it or delete it"
        )


class _Reader:
    """A forward-only reader that hashes what it hands out; `finish` tells whether to believe it."""

    def __init__(self, file: io.FileIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._sha = hashlib.sha256()
        status = os.fstat(file.fileno())
        self.n_bytes = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file")
        if status.st_size < _MIN_BYTES:
            raise ValueError(f"{status.st_size} bytes, fewer than any checkpoint has")
        length = int.from_bytes(self._bytes(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise DamagedError(f"{path} is not a safetensors file, or its first bytes are lost")
        n_data_bytes = status.st_size - 8 - length
        if n_data_bytes < 0:
            raise ValueError(f"the header takes {length} bytes, and the file ends before")
        text = self._bytes(length)
        if not text.startswith(b"{"):
            raise DamagedError(f"{path} is not a safetensors file, or its header is lost")
        header = parse_header(text, n_data_bytes=n_data_bytes)
        commit = TensorInfo(COMMIT, torch.uint8, (_DIGEST_BYTES,))
        if header.tensors[-1:] != (commit,):
            raise DamagedError(
                f"{path} is a safetensors file but not a spherescan checkpoint: "
                f"its last tensor is not {COMMIT}"
            )
        self.tensors = header.tensors[:-1]
        self._metadata = header.metadata
        self._in_pieces = self._metadata.get("spherescan.schema") not in _HASHED_AT_ONCE

    def tensor(self, info: TensorInfo) -> Tensor:
        """Read the next tensor."""
        tensor = self._memory(info, info.shape, info.dtype)
        for piece in _pieces(_bytes_of(tensor)):
            self._piece(piece)
        if info.dtype is torch.bool and not _is_bool(tensor):
            raise ValueError(f"{info.name} is BOOL and holds bytes other than 0 and 1")
        return tensor

    def skip(self, info: TensorInfo) -> None:
        """Hash the next tensor only, with the checks that `tensor` makes of its values."""
        scratch = self._memory(info, (min(info.n_bytes, PIECE_BYTES),), torch.uint8)
        for start in range(0, info.n_bytes, PIECE_BYTES):
            piece = scratch[: info.n_bytes - start]
            self._piece(_bytes_of(piece))
            if info.dtype is torch.bool and not _is_bool(piece):
                raise ValueError(f"{info.name} is BOOL and holds bytes other than 0 and 1")

    def finish(self) -> tuple[dict[str, Any], int, str, str]:
        """Compare the digest; return the state, the schema, who wrote it, and the digest."""
        digest = self._sha.digest()
        if self._bytes(_DIGEST_BYTES) != digest:
            raise ValueError("its SHA-256 does not match its contents")
        schema = self._known_schema(self._metadatum("spherescan.schema"))
        text = self._metadatum("spherescan.state").encode()
        state = parse_json(text, where="state", max_depth=MAX_STATE_DEPTH)
        if not isinstance(state, dict):
            raise ValueError("state is not a JSON object")  # noqa: TRY004 - the file is at fault
        created_by = self._metadatum("spherescan.created_by")
        return migrated(state, schema), schema, created_by, digest.hex()

    def _known_schema(self, text: str) -> int:
        if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
            raise ValueError(f"schema {text[:80]!r} is not a number")
        if int(text) > SCHEMA:
            raise CheckpointError(
                f"{self._path} has schema {text}, and spherescan {__version__} reads up to schema "
                f"{SCHEMA}; upgrade spherescan to a version that reads schema {text}"
            )
        return int(text)

    def _metadatum(self, key: str) -> str:
        if key not in self._metadata:
            raise DamagedError(f"{self._path} is not a spherescan checkpoint: it has no {key}")
        return self._metadata[key]

    def _bytes(self, n: int) -> bytes:
        buffer = bytearray(n)
        self._fill(memoryview(buffer))
        self._sha.update(buffer)
        return bytes(buffer)

    def _memory(self, info: TensorInfo, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        try:
            return torch.empty(shape, dtype=dtype)
        except (RuntimeError, MemoryError):
            raise CheckpointError(
                f"{self._path} needs {info.n_bytes} bytes for {info.name}, more memory than is free"
            ) from None

    def _piece(self, piece: memoryview) -> None:
        self._fill(piece)
        self._sha.update(_digest(piece) if self._in_pieces else piece)

    def _fill(self, rest: memoryview) -> None:
        while rest:
            n_read = self._file.readinto(rest)
            if not n_read:
                raise ValueError("it became shorter while it was read")
            rest = rest[n_read:]


@contextmanager
def _verifying(path: Path, folder: Folder | None) -> Iterator[_Reader]:
    """Open a file, and turn whatever is wrong with it into a `CheckpointError`."""

    def open_plainly(_path: str, flags: int) -> int:
        # NONBLOCK, because opening a FIFO waits for a writer; it changes nothing for other files.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        if folder is None:
            return os.open(path, flags)
        return os.open(path.name, flags, dir_fd=folder.file)

    try:
        with io.FileIO(str(path), "rb", opener=open_plainly) as file:
            yield _Reader(file, path)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; check the name") from None
    except OSError as error:
        reason = "a symbolic link" if path.is_symlink() else error.strerror or str(error)
        kind = DamagedError if error.errno == errno.EIO else CheckpointError
        raise kind(f"{path} cannot be read ({reason})") from error
    except ValueError as error:
        raise DamagedError(
            f"{path} is truncated or damaged ({error}); use another copy or an earlier checkpoint"
        ) from None

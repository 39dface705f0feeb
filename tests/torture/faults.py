"""Faults from outside the program: build `faults.c`, preload it, arm it, and read what it recorded.

    with preloaded(folder) as environment:      # in the parent
        subprocess.run([...], env=environment)

    faults = Faults(root)                       # in the process that was started so
    faults.arm(Mode.KILL_BEFORE, at=7)

Nothing of this is known to the program under test.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
_VARIABLE = "SPHERESCAN_TORTURE_FAULTS"


class Mode(IntEnum):
    """What happens at the chosen operation; the order is that of `enum mode` in faults.c."""

    OFF = 0
    COUNT = 1
    KILL_BEFORE = 2
    KILL_AFTER = 3
    FAIL = 4
    SHORTEN = 5


class Kind(IntEnum):
    """The operations; the order is that of `enum kind` in faults.c."""

    OPEN = 0
    WRITE = 1
    FSYNC = 2
    RENAME = 3
    LINK = 4
    UNLINK = 5
    TRUNCATE = 6
    ALLOCATE = 7
    MKDIR = 8
    CLOSE = 9


ALL_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Op:
    """One recorded operation.

    Attributes:
        kind: create, write, truncate, allocate, fsync, rename, link, unlink, mkdir or note.
        inode: What it touched, which a rename does not change.
        offset: Where data was written; the new size for truncate and allocate.
        path: Relative to the watched folder; empty for that folder itself.
        path2: The second name of rename and link.
        data: What was written; the text of a note.
    """

    kind: str
    inode: int
    offset: int
    path: str
    path2: str
    data: bytes


def build(folder: Path) -> Path:
    """Compile the library into a folder."""
    library = folder / "libfaults.so"
    command = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return library


def preloaded_environment(folder: Path) -> dict[str, str]:
    """Build the library; return the environment of a process that shall run under it."""
    library = str(build(folder))
    # Threads that wait without spinning: more of them than cores is what one row is about.
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, "LD_PRELOAD": library, _VARIABLE: library, **threads}


def is_preloaded() -> bool:
    """Return whether this process was started under the library."""
    return _VARIABLE in os.environ


class Faults:
    """The library in this process, watching one folder; a forked child goes on with a copy."""

    def __init__(self, root: Path) -> None:
        self._library = ctypes.CDLL(os.environ[_VARIABLE])
        for name in ("faults_counted", "faults_of_kind", "faults_happened"):
            getattr(self._library, name).restype = ctypes.c_long
        self.root = root.resolve()
        self._library.faults_watch(os.fsencode(self.root))

    def arm(
        self,
        mode: Mode,
        *,
        at: int = 0,
        error: int = 0,
        onwards: bool = False,
        kinds: frozenset[Kind] = ALL_KINDS,
    ) -> None:
        """Begin to count operations from 1, and let something happen at one of them.

        Args:
            mode: What happens.
            at: At which operation; 0 for never.
            error: The errno of `Mode.FAIL`.
            onwards: Whether it happens at all later operations too.
            kinds: Only these are counted.
        """
        mask = sum(1 << kind for kind in kinds)
        self._library.faults_arm(
            int(mode), ctypes.c_long(at), error, int(onwards), ctypes.c_uint(mask)
        )

    def off(self) -> None:
        """Let everything pass again."""
        self.arm(Mode.OFF)

    @property
    def counted(self) -> int:
        """Operations since `arm`."""
        return int(self._library.faults_counted())

    @property
    def happened(self) -> int:
        """Faults since `arm`: 0 when the operation never came."""
        return int(self._library.faults_happened())

    @property
    def chosen_kind(self) -> Kind | None:
        """Of what kind the operation was; None when it never came."""
        number = int(self._library.faults_chosen_kind())
        return None if number < 0 else Kind(number)

    def of_kind(self, kind: Kind) -> int:
        """Operations of a kind since `arm`."""
        return int(self._library.faults_of_kind(int(kind)))

    @contextmanager
    def recording(self, trace: Path) -> Iterator[None]:
        """Write all operations below the folder into a file, which must not be below it."""
        file = os.open(trace, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        self._library.faults_record(file)
        try:
            yield
        finally:
            self._library.faults_record(-1)
            os.close(file)

    def note(self, text: str) -> None:
        """Write a remark into the trace, between the operations."""
        self._library.faults_note(text.encode())


def read_trace(trace: Path, root: Path) -> list[Op]:
    """Read what `recording` has written."""
    data, begin, ops = trace.read_bytes(), 0, []
    prefix = str(root.resolve())

    def relative(path: str) -> str:
        return path.removesuffix(" (deleted)").removeprefix(prefix).removeprefix("/")

    while begin < len(data):
        end = data.index(b"\n", begin)
        kind, inode, offset, length, path, path2 = os.fsdecode(data[begin:end]).split("\t")
        begin = end + 1 + int(length)
        content = data[end + 1 : begin]
        ops.append(Op(kind, int(inode), int(offset), relative(path), relative(path2), content))
    return ops

"""What a disk may hold after the power went, and what the run makes of it.

From a recorded trace (see `faults`) this enumerates the states that a weak file system may show
after a loss of power at any point:

- what a file was given since its last fsync may be there or not, sector by sector; sectors beyond
  its old end may be zeros, and the last one torn; its size may be any that it had since then;
- a name that was made, moved or removed since the last fsync of its directory may be or not be, in
  any subset; the two halves of a rename are two such changes;
- an fsync of a file says nothing of its name, and that of a directory nothing of what is in it.

Real file systems do less damage than that. Each state is written into a folder, and the product's
own recovery runs on it.
"""

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.torture.faults import Op

SECTOR = 512
# All subsets of so many changes are tried; of more, prefixes and a sample.
_ALL_SUBSETS = 5


@dataclass(slots=True)
class File:
    """A file: what is surely on the disk, and every content that it had since."""

    durable: bytes = b""
    now: bytes = b""
    since: list[bytes] = field(default_factory=list)

    def change(self, content: bytes) -> None:
        self.now = content
        self.since.append(content)

    def sync(self) -> None:
        self.durable, self.since = self.now, []


@dataclass(slots=True)
class Directory:
    """A directory: the names that are surely on the disk, and the changes since."""

    durable: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    # A name, and what it stands for after the change; None when it was removed.
    since: list[tuple[str, int | None]] = field(default_factory=list)

    def change(self, name: str, inode: int | None) -> None:
        _set(self.now, name, inode)
        self.since.append((name, inode))

    def sync(self) -> None:
        self.durable, self.since = dict(self.now), []


def _set(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


class Disk:
    """All files and directories below the watched folder, which starts empty."""

    ROOT = 0

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.directories: dict[int, Directory] = {self.ROOT: Directory()}
        self._ids = {}  # a file system gives the inode of a removed file to a new one
        self._next = 1

    def apply(self, op: Op) -> None:
        """Do what an operation did; `fsync` makes durable."""
        match op.kind:
            case "create" | "mkdir":
                number = self._ids[op.inode] = self._next
                self._next += 1
                made = (
                    (self.files, File()) if op.kind == "create" else (self.directories, Directory())
                )
                made[0][number] = made[1]
                self._rename(op.path, number)
            case "write":
                file = self.files[self._ids[op.inode]]
                before = file.now[: op.offset].ljust(op.offset, b"\0")
                file.change(before + op.data + file.now[op.offset + len(op.data) :])
            case "truncate" | "allocate":
                file = self.files[self._ids[op.inode]]
                size = max(op.offset, len(file.now)) if op.kind == "allocate" else op.offset
                file.change(file.now[:size].ljust(size, b"\0"))
            case "fsync":
                number = self._ids.get(op.inode, self.ROOT)
                (self.files.get(number) or self.directories[number]).sync()
            case "link":
                self._rename(op.path2, self._ids[op.inode])
            case "rename":
                self._rename(op.path2, self._ids[op.inode])
                self._rename(op.path, None)
            case "unlink":
                self._rename(op.path, None)
            case _:
                assert op.kind == "note", op

    def _rename(self, path: str, number: int | None) -> None:
        directory = self.directories[self.ROOT]
        *parents, name = PurePosixPath(path).parts
        for parent in parents:
            directory = self.directories[directory.now[parent]]
        directory.change(name, number)

    def tree(
        self,
        names: dict[int, dict[str, int]] | None = None,
        contents: dict[int, bytes] | None = None,
    ) -> dict[str, bytes | None]:
        """Return the content by path, None for a directory; what is running now by default."""
        names = names or {number: d.now for number, d in self.directories.items()}
        contents = contents or {number: f.now for number, f in self.files.items()}
        found: dict[str, bytes | None] = {}

        def walk(number: int, path: str) -> None:
            for name, child in sorted(names[number].items()):
                if child in self.files:
                    found[path + name] = contents[child]
                else:
                    found[path + name] = None
                    walk(child, f"{path}{name}/")

        walk(self.ROOT, "")
        return found

    def after_power_loss(self, rng: random.Random, limit: int) -> Iterator[dict[str, bytes | None]]:
        """Yield states that the disk may be in, at most so many of them; all when they are few."""
        directories = {n: _names_after(d, rng) for n, d in self.directories.items()}
        files = {n: _contents_after(f, rng) for n, f in self.files.items()}
        axes: list[Sequence[object]] = [*directories.values(), *files.values()]
        keys = [("d", n) for n in directories] + [("f", n) for n in files]
        for choice in _choices(axes, rng, limit):
            pairs = list(zip(keys, choice, strict=True))
            yield self.tree(
                {n: value for (kind, n), value in pairs if kind == "d"},
                {n: value for (kind, n), value in pairs if kind == "f"},
            )


def _choices(
    axes: list[Sequence[object]], rng: random.Random, limit: int
) -> Iterator[tuple[object, ...]]:
    """Yield one of each: all combinations when they are few, otherwise the corners and a sample."""
    n_all = 1
    for axis in axes:
        n_all *= len(axis)
    if n_all <= limit:
        yield from itertools.product(*axes)
        return
    yield tuple(axis[0] for axis in axes)
    yield tuple(axis[-1] for axis in axes)
    for _ in range(limit - 2):
        # Often one thing is lost and the rest is there, or the other way round.
        usual, odds = rng.choice([(0, 0.15), (-1, 0.15), (0, 1.0)])
        yield tuple(rng.choice(axis) if rng.random() < odds else axis[usual] for axis in axes)


def _names_after(directory: Directory, rng: random.Random) -> list[dict[str, int]]:
    """Return what a directory may list; the oldest first, the newest last."""
    changes = directory.since
    subsets: list[Iterable[int]] = [range(n) for n in range(len(changes) + 1)]
    if len(changes) <= _ALL_SUBSETS:
        subsets += [
            subset
            for n in range(len(changes))
            for subset in itertools.combinations(range(len(changes)), n)
        ]
    else:
        subsets += [[i for i in range(len(changes)) if rng.random() < 0.5] for _ in range(32)]
    found: dict[tuple[tuple[str, int], ...], dict[str, int]] = {}
    for subset in subsets:
        names = dict(directory.durable)
        for index in subset:
            _set(names, *changes[index])
        found.setdefault(tuple(sorted(names.items())), names)
    newest = found.pop(tuple(sorted(directory.now.items())))
    return [*found.values(), newest]


def _contents_after(file: File, rng: random.Random) -> list[bytes]:
    """Return what a file may hold; the oldest first, the newest last."""
    if not file.since:
        return [file.now]
    found = dict.fromkeys([file.durable, *file.since[:-1][:8], *file.since[:-1][-8:]])
    sizes = sorted({len(file.durable), *(len(content) for content in file.since)})
    found[file.now[: len(file.durable)].ljust(len(file.now), b"\0")] = None  # size before data
    found[b"\0" * len(file.now) if not file.durable else file.durable] = None
    for size in sizes:
        for _ in range(16):
            found[_mixed(file, size, rng)] = None
    found.pop(file.now, None)
    return [*found, file.now]


def _mixed(file: File, size: int, rng: random.Random) -> bytes:
    """Choose each sector from what it was, is, or never got."""
    sectors = []
    versions = [file.durable, rng.choice(file.since), file.now]
    for begin in range(0, size, SECTOR):
        end = min(begin + SECTOR, size)
        content = rng.choice(versions)[begin:end]
        if begin >= len(file.durable):
            # Fresh sectors may be empty, or torn where the write was cut off.
            fate = rng.random()
            content = (
                b"" if fate < 0.3 else content[: rng.randrange(SECTOR)] if fate < 0.5 else content
            )
        sectors.append(content.ljust(end - begin, b"\0"))
    return b"".join(sectors)


def materialise(tree: dict[str, bytes | None], folder: Path) -> None:
    """Write a state into an empty folder."""
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def key_of(tree: dict[str, bytes | None]) -> bytes:
    """Return a key that two states share when they are equal."""
    sha = hashlib.blake2b(digest_size=16)
    for path, content in tree.items():
        sha.update(f"{path}\0{-1 if content is None else len(content)}\0".encode())
        sha.update(content or b"")
    return sha.digest()


@dataclass(frozen=True, slots=True)
class Crash:
    """A state of the disk after a loss of power.

    Attributes:
        after: How many operations had been made.
        notes: What had been noted in the trace by then.
        tree: Content by path.
    """

    after: int
    notes: tuple[str, ...]
    tree: dict[str, bytes | None]


def crashes(trace: Sequence[Op], *, seed: int, per_point: int) -> Iterator[Crash]:
    """Yield different states after a loss of power at each point of a trace."""
    rng = random.Random(seed)
    disk, notes, seen = Disk(), (), set()
    for done, op in enumerate([None, *trace]):
        if op is not None:
            disk.apply(op)
            if op.kind == "note":
                notes = (*notes, op.data.decode())
        for tree in disk.after_power_loss(rng, per_point):
            key = (notes, key_of(tree))
            if key not in seen:
                seen.add(key)
                yield Crash(done, notes, tree)


def without_sync(trace: Sequence[Op], of: Callable[[Op], bool]) -> list[Op]:
    """Return the trace as if some fsyncs had never been made: the negative control."""
    return [op for op in trace if not (op.kind == "fsync" and of(op))]

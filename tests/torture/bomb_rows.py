"""T21: files that are made to exhaust the machine are refused at once and in little memory."""

import hashlib
import json
import os
import resource
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from spherescan.config import load_config
from spherescan.errors import SpherescanError
from spherescan.runs import RunStore, inspect_checkpoint, read_checkpoint, read_metrics
from tests.torture import small
from tests.torture.faults import Faults
from tests.torture.forking import in_child
from tests.torture.report import Report

SECONDS, MEMORY_MIB = 2.0, 128
# What may be asked for beyond what the process has: a bomb then fails instead of the machine.
ADDRESS_SPACE = 2 << 30
ACCEPTED, REFUSED = "accepted", "refused"


def bombs(root: Path, _: Faults, report: Report, *, count: int, seed: int) -> None:
    """Open each bomb with what would open it for a user, so many times."""
    small.go(root / "run", 2)
    worst_seconds = worst_mib = 0.0
    for name, make, opening, wanted in BOMBS:
        path = root / name.replace(" ", "-")
        make(path)
        for _attempt in range(count):
            report.count += 1
            ended = in_child(partial(_open, opening, path), limit=60)
            if not ended.finished:
                report.failures.append(f"{name}: killed by signal {ended.signum}")
                continue
            what, seconds, mib = ended.value
            worst_seconds, worst_mib = max(worst_seconds, seconds), max(worst_mib, mib)
            report.expect(what.startswith(wanted), f"{name}: {what}")
            report.expect(seconds <= SECONDS, f"{name}: took {seconds:.1f} s")
            report.expect(mib <= MEMORY_MIB, f"{name}: took {mib:.0f} MiB")
    report.facts |= {
        "bombs": len(BOMBS),
        "longest": f"{worst_seconds:.2f} s",
        "most": f"{worst_mib:.0f} MiB",
    }


def _open(opening: Callable[[Path], object], path: Path) -> tuple[str, float, float]:
    """Open a bomb; return what came of it, the processor seconds and the MiB that it took."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, used + ADDRESS_SPACE))
    # The peak of a forked child begins with what its parent has.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _peak_kib(), time.process_time()
    try:
        opening(path)
        what = ACCEPTED
    except SpherescanError as error:
        what = f"{REFUSED}: {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        what = f"{type(error).__name__}: {str(error)[:200]}"
    return what, time.process_time() - began, (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _forged(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = struct.pack("<Q", len(text)) + text + data
    return body + hashlib.sha256(body).digest()


def _entry(begin: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    n = 4
    for size in shape:
        n *= size
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + n]}


COMMIT = "~commit.sha256"


def _many_tensors(path: Path) -> None:
    entries = {f"t{n}": _entry(0, [0]) for n in range(100_000)}
    commit = {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}
    path.write_bytes(_forged({"__metadata__": {}, **entries, COMMIT: commit}))


def _claims_4_gib(path: Path) -> None:
    size = 1 << 30
    commit = {"dtype": "U8", "shape": [32], "data_offsets": [4 * size, 4 * size + 32]}
    path.write_bytes(_forged({"t": _entry(0, [size]), COMMIT: commit}))


def _is_4_gib_of_nothing(path: Path) -> None:
    """A sparse file takes no room on the disk and is as long as it says."""
    size = 1 << 30
    commit = {"dtype": "U8", "shape": [32], "data_offsets": [4 * size, 4 * size + 32]}
    text = json.dumps({"t": _entry(0, [size]), COMMIT: commit}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + 4 * size + 32)


def _zero_size(path: Path) -> None:
    commit = {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}
    path.write_bytes(_forged({"t": _entry(0, [2**62, 0, 2**62]), COMMIT: commit}))


def _deep(text: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text)


def _state(state: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        commit = {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}
        metadata = {
            "format": "pt",
            "spherescan.schema": "1",
            "spherescan.created_by": "x",
            "spherescan.state": state.decode(),
        }
        path.write_bytes(_forged({"__metadata__": metadata, COMMIT: commit}))

    return make


def _record(path: Path) -> object:
    run = path.parent / "run"
    kept = (run / "run.json").read_bytes()
    (run / "run.json").unlink()
    os.link(path, run / "run.json")
    try:
        return RunStore.open(run)
    finally:
        (run / "run.json").unlink()
        (run / "run.json").write_bytes(kept)


def _bombs() -> Iterator[tuple[str, Callable[[Path], object], Callable[[Path], object], str]]:
    checkpoints: dict[str, Callable[[Path], object]] = {
        "100 000 tensors": _many_tensors,
        "a claim of 4 GiB": _claims_4_gib,
        "sizes that overflow": _zero_size,
        "deep header": _deep(_forged(b'{"a":' * 200_000)),
        "deep header in brackets": _deep(_forged(b"[" * 1_000_000 + b"]" * 1_000_000)),
        "header of spaces": _deep(_forged(b"{" + b" " * (15 << 20) + b"}")),
        "header of 16 MiB of one name": _deep(_forged(b'{"' + b"a" * (15 << 20) + b'":1}')),
        "header as long as it can say": _deep(b"\xff" * 8 + b"{}" * 40),
        "header of quotes": _deep(_forged(b'"' * (8 << 20))),
        "header of backslashes": _deep(_forged(b'{"' + b"\\\\" * (4 << 20) + b'":1}')),
        "numbers of 10^6 digits": _deep(_forged(b'{"a":' + b"9" * 1_000_000 + b"}")),
        "deep state": _state(b"[" * 100_000 + b"]" * 100_000),
        "state with a number of 10^6 digits": _state(b'{"a":' + b"9" * 1_000_000 + b"}"),
        "fifo": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": lambda path: path.mkdir(),
        "endless link": lambda path: path.symlink_to(path.name),
    }
    for name, make in checkpoints.items():
        yield f"checkpoint, {name}", make, read_checkpoint, REFUSED
        yield f"inspected checkpoint, {name}", make, inspect_checkpoint, REFUSED
    yield "checkpoint, 4 GiB of nothing", _is_4_gib_of_nothing, read_checkpoint, REFUSED
    logs: dict[str, Callable[[Path], object]] = {
        "a line without an end": _deep(b'{"a": "' + b"a" * (64 << 20)),
        "deep line": _deep(b"[" * 500_000 + b"\n"),
        "fifo": os.mkfifo,
        "a number of 10^6 digits": _deep(b'{"seq": ' + b"9" * 900_000 + b', "run_id": "r"}\n'),
    }
    for name, make in logs.items():
        yield f"metrics, {name}", make, read_metrics, REFUSED
    for name, make in logs.items():
        if name != "fifo":
            yield f"run.json, {name}", make, _record, REFUSED
    configs = {
        "deep.toml": b"a = " + b"[" * 100_000,
        "deep.json": b'{"a":' * 100_000,
        "deep keys.toml": b".".join([b"a"] * 100_000) + b" = 1",
        "digits.toml": b"[run]\nsteps = " + b"9" * 1_000_000,
        "digits.json": b'{"run": {"steps": ' + b"9" * 1_000_000 + b"}}",
        "layers.toml": b'[grow]\nlayers = 4294967295\n[local]\nloss = "prototype"\n',
        "more layers.toml": b'[model]\nn_layers = 4294967295\n[local]\nloss = "prototype"\n',
        "places.toml": b'[grow]\nlayers = 900000000\nplacement = "prepend"\n',
        "frozen.toml": b'[freeze]\nblocks = "first:9007199254740992"\n',
    }
    for name, text in configs.items():
        yield f"config {name}", _deep(text), load_config, REFUSED


BOMBS = tuple(_bombs())

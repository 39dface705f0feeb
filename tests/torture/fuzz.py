"""A small fuzzer: mutate, try, and keep what behaves in a way not seen before.

There is no coverage to go by. What a parser says is nearly as good: a message with its numbers and
quotations taken out is a behaviour, and an input with a new one joins those that are mutated.
"""

import json
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

CORPUS = Path(__file__).with_name("corpus")
SECONDS_PER_INPUT = 2.0
_NUMBERS = [
    *(str(2**n + d) for n in (0, 7, 8, 15, 16, 31, 32, 53, 63, 64) for d in (-1, 0, 1)),
    *("-1", "1e999", "1e-999", "NaN", "Infinity", "-0", "0.1", "1_0", "0x10", "9" * 400, "True"),
]
_TOKENS = [
    *(b"{}", b"[]", b'""', b"null", b"true", b"[[[[", b"]]]]", b'{"a":', b"\\u0000", b"\\ud800"),
    *(b"\n", b"\0", b"\r\n", b"\xff\xfe", b"\xc3", b"\xe2\x80\xa8", b",", b":", b'"', b"'", b"\\"),
    *(b"=", b"[a]", b"[[a]]", b'"""', b"#", b"--", b"..", b"/", b"%00", b"../../x", b" ", b"\t"),
]


class InvalidInputError(Exception):
    """Raised by a target: this is what an input may lead to, with the message as behaviour."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads what strangers wrote.

    Attributes:
        name: Its folder in the corpus.
        seeds: Inputs to begin with.
        attempt: Read an input; raise `InvalidInputError` for a typed refusal, anything else is a
            fault.
        finish: Applied to every mutated input, such as a digest that must be right to get further.
        tokens: What inputs are made of, besides what all are.
        share: Part of the attempts of a row that this target gets.
    """

    name: str
    seeds: tuple[bytes, ...]
    attempt: Callable[[bytes], object]
    finish: Callable[[bytes, random.Random], bytes] = lambda data, _: data
    tokens: tuple[bytes, ...] = ()
    share: float = 1.0


@dataclass(slots=True)
class Found:
    """What a target did.

    Attributes:
        tried: Inputs.
        read: Of these, how many were accepted.
        faults: By kind of fault, the first input and what happened.
        behaviours: Inputs by what they led to.
    """

    tried: int = 0
    read: int = 0
    faults: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    behaviours: dict[str, bytes] = field(default_factory=dict)


def fuzz(target: Target, *, count: int, seed: int) -> Found:
    """Try the corpus, then so many mutations of it."""
    rng = random.Random(f"{target.name} {seed}")
    found = Found()
    pool: list[bytes] = []
    with _timer() as limit:
        for data in (*target.seeds, *corpus(target.name)):
            _try(target, data, found, limit)
            pool.append(data)
        for _ in range(count):
            data = rng.choice(pool)
            for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
                data = _mutated(data, pool, target.tokens, rng)
            data = target.finish(data[: 1 << 16], rng)
            if _try(target, data, found, limit):
                pool.append(data)
    return found


def corpus(name: str) -> list[bytes]:
    """Return the committed inputs of a target."""
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def _try(target: Target, data: bytes, found: Found, limit: Callable[[], None]) -> bool:
    """Attempt one input; return whether it behaves in a new way."""
    found.tried += 1
    limit()
    try:
        target.attempt(data)
    except InvalidInputError as refusal:
        behaviour = _shape(str(refusal))
    except Exception as fault:  # noqa: BLE001 - whatever it is, it is the finding
        behaviour = f"{type(fault).__name__}: {_shape(str(fault))}"
        found.faults.setdefault(f"{behaviour} {_place(fault)}", (data, str(fault)))
    else:
        found.read += 1
        behaviour = f"accepted, {len(data).bit_length()} bits long"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if behaviour in found.behaviours or len(found.behaviours) > 4000:
        return False
    found.behaviours[behaviour] = data
    return True


def _shape(message: str) -> str:
    """Take what is particular out of a message."""
    message = re.sub(r"/\S+", "PATH", message)
    message = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+", "_", message)
    return re.sub(r"[^ -~]+", "?", message)[:100]


def _place(fault: Exception) -> str:
    trace = fault.__traceback__
    last = None
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "spherescan" in name and "torture" not in name:
            last = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return last or ""


def _mutated(
    data: bytes, pool: list[bytes], tokens: tuple[bytes, ...], rng: random.Random
) -> bytes:
    way = rng.choice([_flipped, _cut, _repeated, _inserted, _spliced, _other_value, _other_number])
    if way is _inserted:
        return _inserted(
            data, [*tokens, *_TOKENS] if rng.random() < 0.5 else tokens or _TOKENS, rng
        )
    return way(data, rng) if way is not _spliced else _spliced(data, rng.choice(pool), rng)


def _part(data: bytes, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.choice([1, 1, 2, 4, 8, 32, 256]))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    begin, end = _part(data, rng)
    return data[:begin] if rng.random() < 0.2 else data[:begin] + data[end:]


def _repeated(data: bytes, rng: random.Random) -> bytes:
    begin, end = _part(data, rng)
    return data[:begin] + data[begin:end] * rng.choice([2, 3, 50]) + data[end:]


def _inserted(data: bytes, tokens: Sequence[bytes], rng: random.Random) -> bytes:
    begin, end = _part(data, rng)
    return data[:begin] + rng.choice(tokens) + data[rng.choice([begin, end]) :]


def _spliced(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: _part(data, rng)[0]] + other[_part(other, rng)[0] :]


def _other_number(data: bytes, rng: random.Random) -> bytes:
    numbers = [*re.finditer(rb"-?[0-9]+(\.[0-9]+)?", data)]
    if not numbers:
        return data
    place = rng.choice(numbers)
    return data[: place.start()] + rng.choice(_NUMBERS).encode() + data[place.end() :]


def _other_value(data: bytes, rng: random.Random) -> bytes:
    """Replace one value of a line of JSON by one of another type."""
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
        changed = json.dumps(_changed(value, rng)).encode()
    except (ValueError, RecursionError):
        return data
    return b"\n".join([*lines[:number], changed, *lines[number + 1 :]])


def _changed(value: object, rng: random.Random) -> object:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + rng.randrange(2) :]]
    strange: list[object] = [None, True, -1, 0, 2**63, 1e300, -0.0, "", "x", "\0", [], {}, [[]]]
    return rng.choice([*strange, {"a": 1}, 2**53 + 1, "NaN", "../x", 10**30])


@contextmanager
def _timer() -> Iterator[Callable[[], None]]:
    """Let an input that takes too long fail; yields what starts the clock for one."""

    def too_long(_signum: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {SECONDS_PER_INPUT} s")

    before = signal.signal(signal.SIGALRM, too_long)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_INPUT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

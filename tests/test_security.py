"""What the library must never do, read from its source."""

import ast
import io
import os
import re
import tempfile
import threading
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spherescan
from spherescan import allocator
from spherescan.errors import CheckpointError, ConfigError
from spherescan.runs import read_checkpoint, write_checkpoint
from spherescan.runs.events import EventLog
from spherescan.runs.folder import Folder

pytestmark = pytest.mark.unwatched

SOURCE = Path(spherescan.__file__).parent
CONTROL = {chr(code) for code in (*range(32), *range(127, 160))}
# Running code from a file, other programs, or the network: modules with all that is in them, and
# functions of others.
BANNED = {
    "pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "runpy",
    "code", "imp", "subprocess", "pty", "socket", "ssl", "urllib", "http", "requests", "ftplib",
    "telnetlib", "smtplib", "asyncio", "xmlrpc", "torch.load", "torch.save", "torch.jit.load",
    "torch.hub", "torch.serialization", "torch.distributed.checkpoint", "numpy.load", "yaml.load",
    "yaml.unsafe_load", "pandas.read_pickle", "eval", "exec", "compile", "__import__", "os.system",
    "os.popen", "os.startfile", "importlib.import_module", "builtins.eval", "builtins.exec",
}  # fmt: skip
# Of any module or object.
BANNED_ENDINGS = {
    "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list",
    "send_object_list", "recv_object_list", "allow_pickle",
}  # fmt: skip
BANNED_STARTS = ("os.exec", "os.spawn", "os.posix_spawn", "os.fork")
# Two that import packages of ours, by a name that stands there.
ALLOWED = {"ops/native.py": {"__import__"}, "__init__.py": {"importlib.import_module"}}
# Measuring other programs is what a benchmark is for, and diagrams are drawn from the outside.
EXEMPT = {"bench"}


def sources() -> list[Path]:
    return [
        path
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] not in EXEMPT
    ]


def offences(tree: ast.AST) -> list[str]:
    """Return what is banned, whatever name it was imported under."""
    full = {}
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [each.name for each in names]
                full |= {each.asname: each.name for each in names if each.asname}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found += [f"{module}.{each.name}" for each in names]
                full |= {each.asname or each.name: f"{module}.{each.name}" for each in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, dot, rest = ast.unparse(node).partition(".")
            found.append(full.get(first, first) + dot + rest)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append(node.arg)
    found = [{"np": "numpy"}.get(name, name) for name in found]
    return sorted({name for name in found if is_banned(name)})


def is_banned(name: str) -> bool:
    parts = name.split(".")
    heads = {".".join(parts[: n + 1]) for n in range(len(parts))}
    return bool(heads & BANNED) or parts[-1] in BANNED_ENDINGS or name.startswith(BANNED_STARTS)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_runs_code_from_data_or_reaches_outside(path):
    allowed = ALLOWED.get(path.relative_to(SOURCE).as_posix(), set())
    assert set(offences(ast.parse(path.read_text(encoding="utf-8")))) == allowed


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from subprocess import run", "torch.load(x)", "eval('1')",
        "f(x, allow_pickle=True)", "import urllib.request", "dist.gather_object(x)",
        "from torch import load", "from torch import load as read\nread(x)", "import asyncio",
        "import torch as t\nt.load(x)", "from os import system", "from yaml import load",
        "os.execv(a, b)", "os.posix_spawn(a, b, c)", "import numpy as n\nn.load(x, None, True)",
        "from numpy import load", "importlib.import_module('pickle')", "load = torch.load",
        "from importlib import import_module", "import torch.distributed.checkpoint as dcp",
        "from torch.distributed import checkpoint", "__import__('pickle')", "os.fork()",
    ],
)  # fmt: skip
def test_the_gate_sees_each_of_them(text):
    assert offences(ast.parse(text)) != []


def decoders_in_handlers(tree: ast.AST) -> list[str]:
    """Return calls that decode, within handlers of errors: a second, laxer way to read."""
    found = []
    for handler in ast.walk(tree):
        if isinstance(handler, ast.ExceptHandler):
            for call in ast.walk(handler):
                if isinstance(call, ast.Call):
                    last = ast.unparse(call.func).split(".")[-1]
                    lax = last == "decode" and (call.args or call.keywords)
                    found += [last] if lax or last in {"loads", "load", "parse"} else []
    return sorted(found)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_is_read_a_second_way_after_it_was_refused(path):
    # Who holds a lock is only shown.
    allowed = ["decode"] if path.name == "lock.py" else []
    assert decoders_in_handlers(ast.parse(path.read_text(encoding="utf-8"))) == allowed


def test_the_second_way_would_be_seen():
    text = "try:\n f(x)\nexcept ValueError:\n y = json.loads(x.decode(errors='ignore'))"
    assert decoders_in_handlers(ast.parse(text)) == ["decode", "loads"]


@pytest.mark.parametrize("name", ["Makefile", ".ci/run"])
def test_no_check_may_fail_unnoticed(name):
    text = (SOURCE.parents[1] / name).read_text(encoding="utf-8")
    assert not re.search(r"\|\| *(true|:)|--no-verify|set \+e", text)
    assert not re.search(r"(?m)^\t-", text)  # make goes on after such a line


def test_all_that_is_installed_has_an_exact_version():
    lines = (SOURCE.parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 50
    assert [
        line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)
    ] == []


def test_nothing_is_unpickled_while_a_run_is_trained_and_resumed(tmp_path, monkeypatch):
    import pickle

    from spherescan.cli import main

    def refuse(*_arguments, **_options):
        raise AssertionError("something was unpickled")

    class Refusing:
        __init__ = refuse

    for owner in (pickle, pickle._pickle if hasattr(pickle, "_pickle") else pickle):
        for name in ("load", "loads"):
            monkeypatch.setattr(owner, name, refuse, raising=False)
        monkeypatch.setattr(owner, "Unpickler", Refusing, raising=False)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(np, "load", refuse)
    # The trap is set: this is the refusing class from above, which reads nothing.
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.Unpickler(None)  # noqa: S301
    run = str(tmp_path / "run")
    flags = ["--data.train", "sample:JapaneseVowels_TRAIN.ts", "--model.d-model", "4"]
    steps = ["--run.steps", "2", "--model.n-layers", "1", "--quiet"]
    assert main(["train", *flags, *steps, "--run.dir", run]) == 0
    assert main(["resume", run, "--run.steps", "3", "--quiet"]) == 0
    assert main(["verify", run]) == 0
    assert main(["inspect", run]) == 0
    assert main(["evaluate", run, "sample:JapaneseVowels_TEST.ts"]) == 0


def test_a_file_that_is_swapped_for_a_link_meanwhile_is_never_followed(tmp_path):
    """Ten thousand times another process puts a link where a checkpoint was, and back."""
    secret, path, kept = tmp_path / "secret", tmp_path / "a.safetensors", tmp_path / "kept"
    write_checkpoint(secret, {"x": torch.ones(3)}, {"whose": "another's"})
    write_checkpoint(path, {"x": torch.zeros(3)}, {"whose": "ours"})
    path.rename(kept)
    path.symlink_to(secret)
    ready, n_swaps = threading.Event(), 10_000

    def swap() -> None:
        other = tmp_path / "other"
        for _ in range(n_swaps // 2):
            os.link(kept, other)
            other.replace(path)
            other.symlink_to(secret)
            other.replace(path)
        ready.set()

    thread = threading.Thread(target=swap)
    thread.start()
    seen = Counter()
    while not ready.is_set():
        try:
            seen[read_checkpoint(path).state["whose"]] += 1
        except CheckpointError:
            seen["refused"] += 1
    thread.join()
    assert seen["another's"] == 0
    assert seen["ours"] > 0
    assert seen["refused"] > 0


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_control_character_reaches_a_log_or_a_terminal(key, text):
    from spherescan.cli import _complain

    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name))
        log = EventLog(Path(name) / "events.jsonl", run_id="a", folder=folder)
        log.write("stop", step=0, reason=text)
        log.close()
        folder.close()
        line = (Path(name) / "events.jsonl").read_text(encoding="utf-8").removesuffix("\n")
    assert not set(line) & CONTROL
    err = io.StringIO()
    with redirect_stderr(err):
        _complain(ConfigError(f"{key}: {text}"), debug=False)
    assert err.getvalue().removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    ("text", "limit"), [("1048576\n", 1 << 20), ("max\n", None), ("", None), (str(1 << 63), None)]
)
def test_the_memory_of_a_container_counts(tmp_path, monkeypatch, text, limit):
    monkeypatch.setattr(allocator, "CONTAINER_LIMITS", ())
    whole = allocator.memory_bytes()
    assert whole > 1 << 28
    (tmp_path / "memory.max").write_text(text)
    limits = (tmp_path / "memory.max", tmp_path / "missing")
    monkeypatch.setattr(allocator, "CONTAINER_LIMITS", limits)
    assert allocator.memory_bytes() == (limit or whole)

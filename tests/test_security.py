"""What the library must never do, read from its source."""

import ast
import builtins
from pathlib import Path

import pytest

import spherescan

SOURCE = Path(spherescan.__file__).parent
# Running code from a file, other programs, or the network.
MODULES = {
    "pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "subprocess", "socket", "urllib",
    "http", "requests", "ftplib", "telnetlib",
}  # fmt: skip
CALLS = {
    "eval", "exec", "os.system", "os.popen", "torch.load", "torch.save", "yaml.load",
    "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list",
}  # fmt: skip
# Measuring other programs is what a benchmark is for, and diagrams are drawn from the outside.
EXEMPT = {"bench"}


def sources() -> list[Path]:
    return [
        path
        for path in sorted(SOURCE.rglob("*.py"))
        if path.relative_to(SOURCE).parts[0] not in EXEMPT
    ]


def offences(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)):
                found += [module] if module.split(".")[0] in MODULES else []
            case ast.Call(func=function, keywords=keywords):
                name = ast.unparse(function)
                last = name.split(".")[-1]
                found += [name] if name in CALLS or last in CALLS - {"eval", "exec"} else []
                found += [
                    "allow_pickle"
                    for keyword in keywords
                    if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                ]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_runs_code_from_data_or_reaches_outside(path):
    assert offences(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from subprocess import run", "torch.load(x)", "eval('1')",
        "np.load(x, allow_pickle=True)", "import urllib.request", "dist.gather_object(x)",
    ],
)  # fmt: skip
def test_the_gate_sees_each_of_them(text):
    assert offences(ast.parse(text)) != []


def test_nothing_is_unpickled_while_a_run_is_trained_and_resumed(tmp_path, monkeypatch):
    from spherescan.cli import main

    def refuse(*_arguments, **_options):
        raise AssertionError("something was unpickled")

    real = builtins.__import__

    def watch(name, *arguments, **options):
        module = real(name, *arguments, **options)
        if name == "pickle":
            monkeypatch.setattr(module, "load", refuse)
            monkeypatch.setattr(module, "loads", refuse)
        return module

    import pickle

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(builtins, "__import__", watch)
    run = str(tmp_path / "run")
    flags = ["--data.train", "sample:JapaneseVowels_TRAIN.ts", "--model.d-model", "4"]
    steps = ["--run.steps", "2", "--model.n-layers", "1", "--quiet"]
    assert main(["train", *flags, *steps, "--run.dir", run]) == 0
    assert main(["resume", run, "--run.steps", "3", "--quiet"]) == 0
    assert main(["verify", run]) == 0
    assert main(["inspect", run]) == 0

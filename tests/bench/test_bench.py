import json

import pytest
import torch

from spherescan.bench import SUITES, Result, draw, to_json, to_table
from spherescan.bench.contenders import (
    CONTENDERS,
    D_MODEL,
    conditions,
    copy_weights,
    forward,
    installed,
)
from spherescan.bench.measure import interleave, peak_memory
from spherescan.bench.suites import Options
from spherescan.cli import main
from spherescan.errors import ConfigError
from spherescan.ops import native
from spherescan.ops.form import selected_form

needs_kernels = pytest.mark.skipif(
    native.unavailable() is not None, reason="installed without native kernels"
)


def test_contenders_take_turns_and_are_warmed_up_first():
    calls = []
    found = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "ab" * 4
    assert found["a"].repeats == 3
    assert 0 < found["a"].minimum <= found["a"].median


def test_one_that_takes_too_long_is_not_repeated(monkeypatch):
    monkeypatch.setattr("spherescan.bench.measure._LONGEST_REPEATED", -1.0)
    calls = []
    found = interleave({"slow": lambda: calls.append(1)}, repeats=5)
    assert len(calls) == 1
    assert found["slow"].repeats == 1


def test_peak_memory_is_that_of_the_new_process():
    small = peak_memory("pass")
    large = peak_memory("x = bytearray(300 << 20); x[::4096] = b'1' * len(x[::4096])")
    assert small < 0.1
    assert 0.25 < large - small < 0.4
    assert peak_memory("raise SystemExit(1)") is None


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_kernels) for n in CONTENDERS if installed(n)]
)
def test_every_contender_computes_the_same(name, generator):
    contender = CONTENDERS[name]
    ours, model = CONTENDERS["torch form"].make(2), contender.make(2)
    copy_weights(ours, model)
    x = torch.randn(1, 5, D_MODEL, generator=generator)
    expected = forward(CONTENDERS["torch form"], ours, x)
    found = forward(contender, model, x)
    bound = 1e-5 if contender.precision == "highest" and not contender.autocast else 1e-2
    assert (found - expected).abs().max() <= bound * expected.abs().max()


def test_conditions_are_put_back(monkeypatch):
    monkeypatch.setenv("SPHERESCAN_OPS", "reference")
    with conditions(CONTENDERS["torch form"]):
        assert selected_form() == "torch"
    assert selected_form() == "reference"
    monkeypatch.delenv("SPHERESCAN_OPS")
    with conditions(CONTENDERS["spherescan medium"]):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


@needs_kernels
@pytest.mark.parametrize("suite", ["scan", "shapes", "threads", "decay"])
def test_a_suite_fills_its_table(suite):
    for result in SUITES[suite](Options(repeats=1, seconds=1.0, quick=True)):
        assert result.rows
        for row in result.rows:
            assert row.keys() == set(result.columns)
            assert all(value > 0 for value in row.values() if isinstance(value, float))


@needs_kernels
def test_the_command_prints_and_writes_the_same_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("spherescan.bench.suites._step_memory", lambda *_: 0.5)
    path = tmp_path / "out.json"
    before = torch.get_num_threads()
    try:
        arguments = ["bench", "step", "length", "--quick", "--threads", "1", "--repeats", "1"]
        assert main([*arguments, "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    written = json.loads(path.read_text())
    assert written["environment"]["threads"] == "1"
    titles = [result["title"] for result in written["results"]]
    assert all(f"### {title}" in printed for title in titles)
    step = written["results"][0]
    assert {row["contender"] for row in step["rows"]} >= {"spherescan", "torch form"}
    assert any(note.startswith("overhead ratio fp32") for note in step["notes"])


def test_a_table_shows_what_is_missing():
    result = Result("title", ("a", "b"), [{"a": 1.23456, "b": None}, {"a": 1e-7, "b": 2}], ["why"])
    assert to_table(result).splitlines() == [
        "### title", "",
        "| a | b |", "| --- | --- |", "| 1.23 | - |", "| 1.0e-07 | 2 |",
        "", "- why",
    ]  # fmt: skip
    assert json.loads(to_json({"x": "y"}, [result]))["results"][0]["notes"] == ["why"]


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"contender": "spherescan", "times ours": 1.0},
        {"contender": "mambapy", "times ours": 9},
    ]
    path = tmp_path / "plot.svg"
    draw([Result("step", ("contender", "times ours"), rows)], path)
    assert path.read_text().count("mambapy") >= 1
    with pytest.raises(ConfigError, match="nothing to draw"):
        draw([], path)


def test_a_wrong_call_is_refused(capsys):
    assert main(["bench", "walk"]) == 2
    assert "unknown suite 'walk'; choose of step, scan" in capsys.readouterr().err
    assert main(["bench", "--threads", "0"]) == 2

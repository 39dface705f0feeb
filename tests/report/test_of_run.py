import json
import re
import shlex

import pytest
import torch

from spherescan.cli import main
from spherescan.config import load_config
from spherescan.errors import ConfigError, DataError, RunDirectoryError
from spherescan.report import page_of_run
from spherescan.runs import read_metrics
from tests.train.test_training import trainer_for, write_series


def finished(tmp_path, **changes):
    series = write_series(tmp_path / "train.ts")
    trainer = trainer_for(tmp_path, data__train=series, **changes)
    trainer.fit()
    trainer.close()
    return tmp_path / "run"


def sections(page):
    return {section.key: section for section in page.sections}


@pytest.fixture(scope="module")
def surgery_run(tmp_path_factory):
    return finished(
        tmp_path_factory.mktemp("surgery"),
        local__loss="prototype",
        local__mode="surgery",
        model__n_layers=3,
        run__steps=40,
        optim__lr=0.02,
    )


@pytest.mark.unwatched
def test_every_picture_of_a_run_with_surgery_is_there(surgery_run):
    page = page_of_run(surgery_run, data=str(surgery_run.parent / "train.ts"))
    found = sections(page)
    wanted = {
        "confusion", "sphere", "reliability", "open-set", "learning", "validation", "conflict",
        "parts",
    }  # fmt: skip
    assert found.keys() == wanted
    # 24 series are too few to fit a temperature, but the loss has probabilities.
    assert all(section.data for section in page.sections)
    names = [trace["name"] for trace in found["learning"].data]
    assert names == ["training", "block 0, its own", "block 1, its own", "validation"]
    assert page.headline["series"] == "24"


@pytest.mark.unwatched
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_weights_whose_answers_are_not_finite_have_a_page_of_the_rest(tmp_path, task):
    series = write_series(tmp_path / "train.ts", classes="123")
    if task == "regression":
        series.write_text(series.read_text().replace("@classLabel true 1 2 3", "@targetLabel true"))
    trainer = trainer_for(tmp_path, data__train=series, run__steps=4, data__task=task)
    trainer.fit()
    with torch.no_grad():  # finite, but no cosine of them is
        for weight in trainer.model.parameters():
            weight.fill_(3e38)
    trainer.counters.step, trainer.counters.best_step = 5, None
    trainer.save()
    trainer.close()
    page = page_of_run(tmp_path / "run")
    assert page.headline["answers"] == "not finite"
    assert {"answers", "learning"} <= sections(page).keys()


@pytest.mark.unwatched
def test_the_score_is_that_of_evaluate(surgery_run, capsys):
    assert main(["evaluate", str(surgery_run)]) == 0
    printed = re.search(r"accuracy ([\d.]+)", capsys.readouterr().out)[1]
    assert page_of_run(surgery_run).headline["accuracy"] == printed


@pytest.mark.unwatched
def test_the_command_makes_the_same_run_again(surgery_run, tmp_path):
    page = page_of_run(surgery_run)
    command = shlex.split(next(iter(page.commands.values())))
    assert command[:2] == ["spherescan", "train"]
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in command[2:])
    again = load_config(None, {key.replace("-", "_"): value for key, value in flags.items()})
    assert again == load_config(surgery_run / "config.toml")
    elsewhere = tmp_path / "again"
    assert main([*command[1:], f"--run.dir={elsewhere}", "--quiet"]) == 0
    losses = [
        [r["loss"] for r in read_metrics(run / "metrics.jsonl")] for run in (surgery_run, elsewhere)
    ]
    assert losses[0] == losses[1]


def test_the_verb_prints_the_path_and_replaces_its_page_only(surgery_run, tmp_path, capsys):
    for _ in range(2):
        assert main(["report", str(surgery_run)]) == 0
        assert capsys.readouterr().out.strip() == str(surgery_run / "report.html")
    assert (surgery_run / "report.html").stat().st_size > 1_000_000
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    assert main(["report", str(surgery_run), "-o", str(other)]) == 2
    assert other.read_text() == "mine"
    assert main(["report", str(surgery_run), "--checkpoint", "last"]) == 2
    assert main(["report", str(tmp_path)]) == 4
    assert main(["report", str(surgery_run), "nowhere.ts"]) == 3


def test_a_run_that_was_changed_or_forked_does_not_promise_the_same(tmp_path):
    run = finished(tmp_path, run__steps=4)
    assert main(["resume", str(run), "--run.steps=6", "--quiet"]) == 0
    page = page_of_run(run, which=4)
    assert "changed on its way: run.steps" in next(iter(page.commands))
    assert page.commands["This page again"].endswith("--checkpoint 4")
    fork = tmp_path / "fork"
    assert main(["fork", str(run), str(fork), "--step=6"]) == 0
    assert "this one is a fork" in next(iter(page_of_run(fork).commands))


@pytest.mark.unwatched
@pytest.mark.parametrize("name", ["my{x}.ts", "{items.__class__}.ts", "{.ts"])
def test_a_name_with_braces_is_a_name(surgery_run, tmp_path, name):
    path = tmp_path / name
    path.write_bytes((surgery_run.parent / "train.ts").read_bytes())
    page = page_of_run(surgery_run, data=str(path))
    assert f"Of 24 series of {path}, " in sections(page)["confusion"].text


@pytest.mark.parametrize(
    "event", ['{"kind":"stop"}', '{"kind":"start","time":"2026-01-01","environment":[1]}']
)
def test_events_that_make_no_sense_are_as_none(tmp_path, event):
    run = finished(tmp_path, run__steps=2)
    (run / "events.jsonl").write_text('{"run_id":"x","seq":0,' + event[1:] + "\n")
    assert "is not recorded" in str(page_of_run(run).facts)


def test_unknown_series_are_those_given(surgery_run):
    data = str(surgery_run.parent / "train.ts")
    page = page_of_run(surgery_run, unknown=data)
    assert f"Unknown are 24 series of {data}" in sections(page)["open-set"].text
    wide = write_series(surgery_run.parent / "wide.ts", n_channels=3)
    with pytest.raises(DataError, match="3 channels"):
        page_of_run(surgery_run, unknown=str(wide))


def test_a_run_that_is_being_written_has_a_page(surgery_run, tmp_path):
    run = finished(tmp_path, run__steps=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"run_id": "torn')
    (run / "events.jsonl").write_text("damaged")
    assert sections(page_of_run(run))["learning"].data


def test_a_record_that_no_run_writes_is_named(tmp_path):
    run = finished(tmp_path, run__steps=4)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    del last["loss"]
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    with pytest.raises(RunDirectoryError, match=r"metrics.jsonl holds a record .* no 'loss'"):
        page_of_run(run)


def test_a_run_of_tokens_has_what_tokens_have(tmp_path):
    text = tmp_path / "tokens.txt"
    text.write_text(" ".join(str(i * i % 7) for i in range(400)) + "\n")
    trainer = trainer_for(
        tmp_path, data__source="tokens", data__train=text, data__vocab_size=7, data__seq_len=8,
        run__steps=4,
    )  # fmt: skip
    trainer.fit()
    trainer.close()
    page = page_of_run(tmp_path / "run")
    assert {"confusion", "sphere", "reliability", "learning", "parts"} <= sections(page).keys()
    assert "open-set" not in sections(page)
    assert "tokens" in page.headline
    with pytest.raises(ConfigError, match="this run is a next token model"):
        page_of_run(tmp_path / "run", unknown=str(text))


def test_a_run_of_numbers_draws_them(tmp_path):
    table = tmp_path / "train.csv"
    rows = [f"{c},{c / 10},{(c * t) % 5}" for c in range(20) for t in range(6)]
    table.write_text("case,target,x\n" + "\n".join(rows) + "\n")
    trainer = trainer_for(tmp_path, data__train=table, data__task="regression", run__steps=4)
    trainer.fit()
    trainer.close()
    page = page_of_run(tmp_path / "run", data=str(table))
    assert {"numbers", "sphere"} <= sections(page).keys()
    assert len(sections(page)["numbers"].data[1]["x"]) == 20
    assert float(page.headline["rmse"]) > 0

"""The command line as a user meets it: exit codes, one line per mistake, nothing written."""

import importlib
import json
import os
import pty
import py_compile
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from spherescan import cli
from spherescan.cli import main
from spherescan.data import read_series
from spherescan.estimators import SequenceClassifier
from spherescan.inference import Predictor
from spherescan.ops import native
from spherescan.runs import read_checkpoint, read_metrics, write_checkpoint
from spherescan.strict_json import parse_json
from spherescan.train import resume
from tests.train.test_training import TINY, write_series

FLAGS = [text for key, value in TINY.items() for text in (f"--{key.replace('_', '-')}", value)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPHERESCAN_OPS", raising=False)
    return tmp_path


@pytest.fixture
def series(here):
    return write_series(here / "train.ts")


@pytest.fixture
def run(series, capsys):
    assert main(["train", "--data.train", "train.ts", "--run.dir", "run", *FLAGS]) == 0
    capsys.readouterr()
    return Path("run")


def refused(capsys, arguments: list[str], code: int, *parts: str) -> None:
    """Expect one line on stderr with all parts, the exit code, and no file made or changed."""
    before = {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.name != "run.lock"}
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert err.startswith("spherescan: ")
    for part in parts:
        assert part in err
    assert out == ""
    after = {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.name != "run.lock"}
    assert after == before


SMALL_TS = "@classLabel true a b\n@data\n1,2:3,4:a\n5,6:7,8:b\n1,3:3,4:a\n5,9:7,8:b\n"


@pytest.mark.parametrize(
    ("text", "flags", "code", "parts"),
    [
        (None, ["--run.stpes", "5"], 2, ["'--run.stpes'", "'--run.steps'"]),
        (None, ["--run.steps"], 2, ["--run.steps", "expected one argument"]),
        (None, ["--run.step", "5"], 2, ["unknown argument '--run.step'"]),
        (None, ["--run.log_every", "5"], 2, ["'--run.log_every'; it is written --run.log-every"]),
        (None, ["--run.steps", "many"], 2, ['run.steps is "many"', "integer"]),
        (None, ["--model.d-model", "-4"], 2, ["model.d_model is -4", "greater than or equal to 1"]),
        (None, [], 2, ["no training data", "--data.train FILE"]),
        (None, ["missing.toml"], 2, ["missing.toml", "No such file"]),
        (SMALL_TS, ["x.ts"], 2, ["x.ts", "unknown ending", "--data.train gives data"]),
        (None, ["."], 2, ["Is a directory", "spherescan resume"]),
        (None, ["--data.source", "tokens", "--data.train", "shards"], 3, ["shards: no such file"]),
        (SMALL_TS[:47], ["--data.train", "x.ts"], 3, ["only one of its class"]),
        (SMALL_TS, ["--data.train", "x.ts", "--local.group", "2"], 2, ["with a local.loss"]),
        (SMALL_TS, ["--data.train", "x.ts", "--data.task", "regression"], 3, ["class labels and"]),
        (None, ["--data.train", "missing.ts"], 3, ["missing.ts", "no such file"]),
        ("", ["--data.train", "x.ts"], 3, ["x.ts", "is empty"]),
        (SMALL_TS.replace("1,2", "1\0,2"), ["--data.train", "x.ts"], 3, ["NUL byte", "line 3"]),
        (SMALL_TS.replace("1,2", "nan,2"), ["--data.train", "x.ts"], 3, ["x.ts", "line 3", "nan"]),
        (SMALL_TS.replace("1,2:3,4", "1,2"), ["--data.train", "x.ts"], 3, ["x.ts", "channel"]),
        (SMALL_TS.replace("b\n@", "b c\n@"), ["--data.train", "x.ts"], 3, ["no sequence of 'c'"]),
        ("1 2 900", ["--data.source", "tokens", "--data.train", "x.ts"], 3, ["x.ts"]),
    ],
)  # fmt: skip
def test_a_wrong_train_is_one_line_and_writes_nothing(here, capsys, text, flags, code, parts):
    if text is not None:
        Path("x.ts").write_text(text)
    refused(capsys, ["train", *flags], code, *parts)


def test_the_root_is_no_folder_of_a_run(series, capsys):
    refused(capsys, ["train", "--data.train", "train.ts", "--run.dir", "/"], 4, "/: ")


def test_a_token_outside_the_vocabulary(here, capsys):
    Path("x.txt").write_text("1 2 900 4")
    flags = ["--data.source", "tokens", "--data.train", "x.txt", "--data.vocab-size", "5"]
    refused(capsys, ["train", *flags], 3, "x.txt", "token 900 at position 2", "vocabulary of 5")


def test_wrong_keys_in_a_file(here, capsys):
    Path("a.toml").write_text("[model]\nd_modle = 3\n")
    refused(capsys, ["train", "a.toml"], 2, "a.toml", "'model.d_modle'", "'model.d_model'")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["VERB"]),
        (["tarin"], ["tarin", "train"]),
        (["evaluate", "run", "--checkpoint", "latest"], ["'latest'", "best, newest or a step"]),
        (["import", "x"], ["out"]),
        (["resume", "run", "--optim.lr", "1"], ["--optim.lr", "a run keeps it"]),
        (["evaluate", "run", "--validation.patience", "1"], ["spherescan resume may change it"]),
        (["bench", "decay", "--json", "missing/x.json"], ["--json", "folder does not exist"]),
        (["evaluate", "run", "--json", "x.ts", "y.ts"], ["unknown argument 'y.ts'"]),
        (["evaluate", "run", "x.ts", "--json", "y.ts"], ["unknown argument 'y.ts'"]),
        (["evaluate", "run", "--json", "x.ts", "--jsno"], ["'--jsno'", "'--json'"]),
        (["evaluate", "run", "--jsno", "x.ts"], ["'--jsno'", "'--json'"]),
        (["evaluate", "run", "--json", "-x"], ["unknown argument '-x'"]),
        (["evaluate", "run", "--json", "--"], ["unknown argument '--'"]),
        (["stream", "run", "-", "--json", "-"], ["unknown argument '-'"]),
        (["stream", "run", "--json", "x.ts"], ["got 'x.ts'", "standard input"]),
        (["doctor", "--json", "x.ts"], ["unknown argument 'x.ts'"]),
    ],
)
def test_a_wrong_command_line(here, capsys, arguments, parts):
    refused(capsys, arguments, 2, *parts)


@pytest.mark.unwatched
@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("evaluate", ["--json", "--checkpoint", "newest"]),
        ("predict", ["--json", "--checkpoint", "newest"]),
        ("report", ["-o", "y.html", "--unknown", "z.ts"]),
        ("stream", ["--json", "--every", "9"]),
    ],
)
@pytest.mark.parametrize("data", ["x.ts", "-"])
def test_data_comes_before_between_and_after_flags(monkeypatch, verb, flags, data):
    parsed = []
    monkeypatch.setattr(cli, f"_{verb}", lambda options: parsed.append(vars(options)) or 0)
    first, second = (flags[:1], flags[1:]) if flags[0] == "--json" else (flags[:2], flags[2:])
    for words in (
        ["run", data, *flags],
        [*flags, "run", data],
        [*first, "run", data, *second],
        ["run", *flags, data],
        ["run", *first, data, *second],
        [*first, "run", *second, data],
        ["run", *flags, "--", data],
    ):
        assert main([verb, *words]) == 0, words
    assert parsed[0]["data"] == data
    assert all(each == parsed[0] | {"verb": each["verb"]} for each in parsed)


def test_data_behind_two_dashes_may_begin_with_one(monkeypatch):
    parsed = []
    monkeypatch.setattr(cli, "_evaluate", lambda options: parsed.append(options.data) or 0)
    assert main(["evaluate", "run", "--json", "--", "-x.ts"]) == 0
    assert main(["evaluate", "run", "--json"]) == 0
    assert parsed == ["-x.ts", None]


def test_a_run_directory_that_holds_a_run(run, capsys):
    flags = ["train", "--data.train", "train.ts", "--run.dir", "run", *FLAGS]
    refused(capsys, flags, 4, "holds a run already", "spherescan resume run")


@pytest.mark.parametrize("verb", [["resume"], ["evaluate"], ["predict"]])
def test_a_run_that_is_not_there(here, capsys, verb):
    data = ["x.ts"] if verb == ["predict"] else []
    refused(capsys, [*verb, "none", *data], 4, "none", "holds no run")


def test_what_runs_out_is_told(series, monkeypatch, capsys):
    command = ["train", "--data.train", "train.ts", *FLAGS]

    def starved(*_, **__):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
        )

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["spherescan.train.trainer"], "hybrid_step", starved)
        assert main([*command, "--run.dir", "run"]) == 2
    assert "there was not enough memory; choose a smaller" in capsys.readouterr().err
    with Path("/dev/full").open("w") as nothing_fits:
        full = subprocess.run(
            [sys.executable, "-m", "spherescan", *command, "--print-config"],
            stdout=nothing_fits,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert full.returncode == 7
    assert full.stderr == "spherescan: the output could not be written: No space left on device\n"


def test_byte_code_without_its_end_is_told(here, monkeypatch, capsys):
    module = here / "written_on_a_full_disk.py"
    module.write_text("names = ['a', 'b', 'c']\n")
    whole = Path(py_compile.compile(str(module)))
    whole.write_bytes(whole.read_bytes()[:-20])
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(cli, "_doctor", lambda _: importlib.import_module(module.stem))
    refused(capsys, ["doctor"], 7, f"{whole} is cut off", "delete it")


def test_series_of_one_position_and_many_channels_are_told(here, capsys):
    y = np.arange(20) % 2
    turned = np.random.default_rng(0).normal(size=(20, 12, 1)) + y[:, None, None]
    for name, x in (("turned", turned), ("right", turned.transpose(0, 2, 1))):
        np.savez(f"{name}.npz", x=x, y=y)
        command = ["train", "--data.train", f"{name}.npz", "--run.dir", name, *FLAGS]
        assert main([*command, "--run.steps", "1"]) == 0
        told = "each is a single position" in capsys.readouterr().out
        assert told is (name == "turned")


def test_a_class_that_validation_never_sees_is_told(here, capsys):
    rows = [f"{case},{'rare' if case == 9 else 'usual'},{case}.5" for case in range(20)]
    Path("x.csv").write_text("\n".join(["case,label,x", *rows, ""]))
    command = ["train", "--data.train", "x.csv", "--run.dir", "run", *FLAGS]
    assert main(command) == 0
    assert "; no series of 'rare' for validation" in capsys.readouterr().out
    Path("x.csv").write_text("\n".join(["case,label,x", *rows, "20,usual ,1", ""]))
    refused(capsys, ["train", "--data.train", "x.csv", *FLAGS], 3, "differ by blanks alone")


@pytest.mark.parametrize("verb", ["predict", "evaluate", "stream", "report"])
def test_a_file_of_an_estimator_is_no_run(here, capsys, verb):
    write_checkpoint(Path("e.safetensors"), {}, {"estimator": "SequenceClassifier"})
    arguments = [] if verb == "stream" else ["x.ts"]
    refused(capsys, [verb, "e.safetensors", *arguments], 2, "saved is read in Python, by its load")


@pytest.mark.unwatched
def test_data_that_has_moved_is_given_again(run, series, capsys):
    series.rename("moved.ts")
    refused(capsys, ["resume", "run"], 3, "train.ts", "--data.train says where data has moved to")
    assert main(["resume", "run", "--quiet", "--data.train", "moved.ts"]) == 0


@pytest.mark.unwatched
def test_a_batch_larger_than_the_data_is_told(series, capsys):
    command = ["train", "--data.train", "train.ts", "--run.dir", "run", *FLAGS]
    assert main([*command, "--data.batch-size", "50"]) == 0
    assert "a batch of 50 holds series more than once" in capsys.readouterr().out


def test_a_batch_that_no_memory_could_hold_is_refused(series, capsys):
    size = 10**12
    command = ["train", "--data.train", "train.ts", "--run.dir", "run", *FLAGS]
    command += ["--data.batch-size", str(size)]
    refused(capsys, command, 2, f"data.batch_size is {size}", "of at most ")
    assert not Path("run").exists()


def test_one_sequence_that_no_memory_could_hold_is_refused(series, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["spherescan.train.build"], "memory_bytes", lambda: 100)
    refused(
        capsys,
        ["train", "--data.train", "train.ts", "--run.dir", "run", *FLAGS],
        2,
        "one sequence alone is too long; cut it, or choose a smaller model.d_model",
    )


@pytest.mark.unwatched
@pytest.mark.parametrize("verb", ["resume", "evaluate", "predict", "inspect"])
def test_a_truncated_checkpoint(run, capsys, verb):
    newest = max((run / "ckpt").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    arguments = {"inspect": [str(newest)], "predict": ["run", "train.ts"]}.get(verb, ["run"])
    if verb == "resume":
        assert main(["resume", "run", "--quiet"]) == 0
        assert newest.with_name(f"bad-{newest.name}-1").exists()
    else:
        refused(capsys, [verb, *arguments], 4, newest.name, "truncated")


@pytest.mark.unwatched
@pytest.mark.parametrize("verb", [["resume", "run"], ["evaluate", "run", "train.ts"]])
def test_a_checkpoint_of_another_model(run, capsys, verb):
    other = ["--run.dir", "other", *FLAGS, "--model.d-model", "12", "--run.steps", "20"]
    assert main(["train", "--quiet", "--data.train", "train.ts", *other]) == 0
    for source in Path("other/ckpt").iterdir():
        (run / "ckpt" / source.name).write_bytes(source.read_bytes())
    refused(capsys, verb, 4, "step-000000000020", "belongs to run")


def test_a_run_that_is_being_written(run, capsys):
    trainer = resume(run)
    refused(capsys, ["resume", "run"], 5, f"process {os.getpid()}, since", "is writing this run")
    trainer.close()
    assert main(["resume", "run", "--run.steps", "13", "--quiet"]) == 0


def test_cases_and_channels_of_a_csv_keep_their_names(here, capsys):
    rng = np.random.default_rng(0)

    def write(name: str, header: str, *, label: bool) -> None:
        rows = [f"case,{'label,' if label else ''}{header}"]
        for case in range(12):
            for _ in range(4):
                values = ",".join(f"{v + case % 2:.3f}" for v in rng.normal(size=2))
                rows.append(
                    f"t{case:02d},{'lo,' if case % 2 else 'hi,'}{values}"
                    if label
                    else f"t{case:02d},{values}"
                )
        Path(name).write_text("\n".join(rows) + "\n")

    write("train.csv", "x,y", label=True)
    write("new.csv", "x,y", label=False)
    write("swapped.csv", "y,x", label=False)
    assert main(["train", "--data.train", "train.csv", "--run.dir", "run", "--quiet", *FLAGS]) == 0
    assert main(["predict", "run", "new.csv"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [case for case, _ in lines] == [f"t{i:02d}" for i in range(12)]
    assert {label for _, label in lines} <= {"lo", "hi"}
    assert main(["predict", "run", "new.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[3])["case"] == "t03"
    refused(capsys, ["predict", "run", "swapped.csv"], 3, "swapped.csv", "channels y, x", "x, y")


def test_evaluate_refuses_validation_data_that_changed(run, series, capsys):
    series.write_text(series.read_text().replace("0.5", "0.6"))
    refused(capsys, ["evaluate", "run"], 3, "data has changed")


def test_steps_below_those_done(run, capsys):
    refused(capsys, ["resume", "run", "--run.steps", "3"], 2, "run.steps is 3", "at step 12")


def test_a_start_that_the_disk_refuses_leaves_nothing(series, capsys):
    arguments = ["train", "--data.train", "train.ts", "--run.dir", "run", *FLAGS]
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"from spherescan.cli import main; sys.exit(main({arguments!r}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 7, result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.unwatched
def test_wrong_data_at_evaluation(run, capsys):
    write_series(Path("wide.ts"), n_channels=3)
    refused(capsys, ["evaluate", "run", "wide.ts"], 3, "wide.ts", "3 channels", "has 2")
    refused(capsys, ["predict", "run", "wide.ts"], 3, "3 channels", "has 2")
    write_series(Path("other.ts"), classes="abd")
    refused(capsys, ["evaluate", "run", "other.ts"], 3, "unknown class 'd'", "'a', 'b', 'c'")
    refused(capsys, ["evaluate", "run", "sample:x.ts"], 3, "no sample 'x.ts'")


def test_evaluate_ends_with_the_accuracy(run, capsys):
    assert main(["evaluate", "run", "train.ts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    name, value, rest = lines[-1].rsplit(" ", 4)[0], lines[-1].split()[2], lines[-1].split("(")[1]
    assert name == "test accuracy"
    assert 0 <= float(value) <= 1
    assert len(value) == 5
    assert rest == "n = 24)"
    assert main(["evaluate", "run", "train.ts", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert f"{result['accuracy']:.3f}" == value
    assert main(["evaluate", "run", "--checkpoint", "12"]) == 0
    out = capsys.readouterr().out
    assert "weights of step 12" in out
    assert "validation accuracy" in out


def test_values_too_large_for_the_model_are_refused_by_every_verb(run, capsys):
    for value in ("1e20", "3e38"):
        rows = SMALL_TS.replace("b\n@", "b c\n@").replace("5,6:7,8", f"{value},6:7,8")
        Path("large.ts").write_text(rows + "2,2:1,1:c\n")
        refused(capsys, ["predict", "run", "large.ts"], 3, "sequence 1", "rescale")
        refused(capsys, ["evaluate", "run", "large.ts"], 3, "sequence 1", "rescale")
        refused(capsys, ["report", "run", "large.ts"], 3, "rescale")


def test_a_name_does_not_break_the_table_of_predictions(here, capsys):
    rows = [f'{case},"{label}",{value}' for case, label, value in (
        ("a", "x\ty", 1), ("b", "z\x1b", 5), ("c", "x\ty", 2), ("d", "z\x1b", 6))]  # fmt: skip
    Path("x.csv").write_text("\n".join(["case,label,v", *rows, ""]))
    command = ["train", "--data.train", "x.csv", "--run.dir", "a run", *FLAGS]
    assert main([*command, "--data.validation-fraction", "0.5"]) == 0
    assert "evaluate 'a run' DATA" in capsys.readouterr().out
    assert main(["predict", "a run", "x.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("\t") for line in lines] == [1] * 4
    assert {line.split("\t")[1] for line in lines} <= {"x\\ty", "z\\x1b"}


def test_a_small_error_has_digits(here, capsys):
    rng = np.random.default_rng(0)
    y = 1e-6 * rng.normal(size=30)
    np.savez("x.npz", x=rng.normal(size=(30, 1, 5)).astype(np.float32), y=y)
    refused(capsys, ["train", "--data.train", "x.npz"], 3, "numeric targets and", "regression")
    flags = ["--data.train", "x.npz", "--data.task", "regression", "--run.dir", "r", *FLAGS]
    assert main(["train", *flags]) == 0
    assert main(["evaluate", "r", "x.npz"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"rmse \d\.\d+e-0[67]", out)) > 2


def test_a_run_that_lost_patience_goes_on_when_told(series, capsys):
    flags = ["--validation.every", "1", "--validation.patience", "1", "--optim.lr", "1e-9"]
    command = ["train", "--data.train", "train.ts", "--run.dir", "run", *FLAGS]
    assert main([*command, "--run.steps", "50", *flags]) == 0
    assert "no improvement" in capsys.readouterr().out
    assert main(["resume", "run"]) == 0
    assert "--validation.patience goes on" in capsys.readouterr().out
    assert main(["resume", "run", "--validation.patience", "0"]) == 0
    assert "finished: step 50 of 50" in capsys.readouterr().out


def test_letters_that_the_terminal_lacks_are_escaped(here):
    lines = ["case,label,v", "a,\u0142,1", "b,z\u00a0z,5", "c,\u0142,2", "d,z\u00a0z,6", ""]
    Path("x.csv").write_text("\n".join(lines), encoding="utf-8")
    command = ["train", "--data.train", "x.csv", "--run.dir", "run", "--quiet", *FLAGS]
    assert main([*command, "--data.validation-fraction", "0.5"]) == 0
    command = [sys.executable, "-m", "spherescan", "inspect", "x.csv"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"\\u0142" in done.stdout
    assert b"z\xa0z" in done.stdout


def test_predict_prints_a_class_per_sequence(run, capsys):
    assert main(["predict", "run", "train.ts"]) == 0
    plain = capsys.readouterr().out.splitlines()
    assert len(plain) == 24
    assert set(plain) <= set("abc")
    assert main(["predict", "run", "train.ts", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prediction"] for row in rows] == plain
    assert [row["sequence"] for row in rows] == list(range(24))
    predictor = Predictor.load(run)
    cosines = predictor.cosines(read_series(Path("train.ts")).series)
    probabilities = (predictor.config["prototypes"]["scale"] * cosines).softmax(1).amax(1)
    assert [row["confidence"] for row in rows] == pytest.approx(probabilities.tolist(), rel=1e-6)


def test_an_offset_that_hides_the_signal_is_refused_before_training(here, capsys):
    rows = [
        f"{case},{'ab'[case % 2]},{5812345 + 0.01 * (i % 7)}" for case in range(8) for i in range(9)
    ]
    Path("utm.csv").write_text("\n".join(["case,label,northing", *rows]))
    refused(capsys, ["train", "--data.train", "utm.csv"], 3, "'northing'", "subtract an offset")


@pytest.mark.parametrize(
    ("column", "task"), [("label", "classification"), ("target", "regression")]
)
def test_predict_needs_no_labels_where_there_is_a_column_for_them(here, capsys, column, task):
    rows = [f"{case},{case % 2},{(case % 2) * i}" for case in range(12) for i in range(9)]
    Path("x.csv").write_text("\n".join([f"case,{column},x", *rows]))
    empty = [",".join([row.split(",")[0], "", row.split(",")[2]]) for row in rows]
    Path("new.csv").write_text("\n".join([f"case,{column},x", *empty]))
    flags = ["--data.task", task, "--run.dir", "run", "--quiet", *FLAGS]
    assert main(["train", "--data.train", "x.csv", *flags]) == 0
    assert main(["predict", "run", "x.csv"]) == 0
    known = capsys.readouterr().out
    assert main(["predict", "run", "new.csv"]) == 0
    assert capsys.readouterr().out == known
    told = ["new.csv", f"(no column '{column}', or an empty one)"]
    refused(capsys, ["evaluate", "run", "new.csv"], 3, *told)
    refused(capsys, ["train", "--data.train", "new.csv", "--data.task", task], 3, *told)


def test_json_is_strict_where_a_number_has_no_end(here, capsys):
    rows = [f"{case},{case},{case * i}" for case in range(8) for i in range(9)]
    Path("x.csv").write_text("\n".join(["case,target,x", *rows]))
    Path("far.csv").write_text("case,target,x\n0,1e300,0\n1,-1e300,1\n")
    flags = ["--data.task", "regression", "--run.dir", "run", "--quiet", *FLAGS]
    assert main(["train", "--data.train", "x.csv", *flags]) == 0
    assert main(["evaluate", "run", "far.csv", "--json"]) == 0
    result = parse_json(capsys.readouterr().out.encode(), where="it", max_depth=3)
    assert (result["loss"], result["n"], result["nonfinite"]) == ("Infinity", 2, True)
    assert main(["evaluate", "run", "x.csv", "--json"]) == 0
    assert "nonfinite" not in json.loads(capsys.readouterr().out)


def test_everything_printed_as_json_goes_one_way():
    source = Path(cli.__file__).read_text()
    # The others are the default in a help text and the one way itself.
    assert len(re.findall(r"json\.dumps\(", source)) == 2


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_predict_does_not_read_the_standard_input(here, capsys, name):
    refused(capsys, ["predict", "run", name], 2, "predict reads files", "stream run < SAMPLES")


def test_validation_on_the_training_data_is_told(series, capsys):
    flags = ["--data.train", "train.ts", *FLAGS, "--run.steps", "1"]
    Path("other.ts").write_text(Path("train.ts").read_text())
    assert main(["train", *flags, "--data.validation", "other.ts", "--run.dir", "one"]) == 0
    assert "; validation data is the training data\n" in capsys.readouterr().out
    assert main(["train", *flags, "--run.dir", "two"]) == 0
    assert "is the training data" not in capsys.readouterr().out


def test_evaluate_tells_the_recall_of_each_class_the_worst_first(run, capsys):
    assert main(["predict", "run", "train.ts"]) == 0
    predicted = capsys.readouterr().out.splitlines()
    table = read_series(Path("train.ts"))
    hits = [p == y for p, y in zip(predicted, table.labels, strict=True)]
    wanted = {
        name: np.mean([hit for hit, y in zip(hits, table.labels, strict=True) if y == name])
        for name in table.class_names
    }
    assert main(["evaluate", "run", "train.ts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recall"] == pytest.approx(wanted)
    assert main(["evaluate", "run", "train.ts"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " recall " in line]
    assert len(lines) == 3
    recalls = [float(line.split()[1]) for line in lines]
    assert recalls == sorted(recalls)
    assert {line.split()[-1]: r for line, r in zip(lines, recalls, strict=True)} == pytest.approx(
        wanted, abs=5e-4
    )


@pytest.mark.unwatched
def test_evaluate_tells_the_worst_of_many_classes(here, capsys):
    lines = ["case,label,x"]
    for case in range(48):
        lines += [f"{case},class {case % 12},{case % 12 + t / 10}" for t in range(4)]
    Path("x.csv").write_text("\n".join(lines) + "\n")
    flags = [*FLAGS, "--data.validation-fraction", "0.25"]
    assert main(["train", "--data.train", "x.csv", "--run.dir", "run", "--quiet", *flags]) == 0
    assert main(["evaluate", "run", "x.csv"]) == 0
    out = capsys.readouterr().out
    assert out.count("  recall ") == 10
    assert "no lower of 2 other classes" in out
    assert main(["evaluate", "run", "x.csv", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["recall"]) == 12


def test_train_prints_lines_and_what_to_do_next(series, capsys):
    flags = ["--data.train", "train.ts", "--run.dir", "run", *FLAGS, "--run.log-every", "6"]
    assert main(["train", *flags]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "step 6/12" in out
    assert "step 12/12" in out
    assert "validation loss" in out
    assert "spherescan evaluate run DATA" in out
    assert main(["resume", "run"]) == 0
    assert "nothing to do: the run is at step 12 of 12" in capsys.readouterr().out
    assert main(["resume", "run", "--run.steps", "14", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 14


def test_quiet_prints_nothing(series, capsys):
    assert main(["train", "--data.train", "train.ts", "--quiet", *FLAGS]) == 0
    assert capsys.readouterr() == ("", "")
    (made,) = Path("runs").iterdir()
    assert (made / "run.json").exists()


def test_the_configuration_can_be_printed(here, capsys):
    assert main(["train", "--print-config", "--run.steps", "77"]) == 0
    assert "steps = 77" in capsys.readouterr().out
    assert list(here.iterdir()) == []


def test_tokens_from_import_to_prediction(here, capsys):
    Path("text").mkdir()
    for i in range(3):
        (Path("text") / f"{i}.py").write_bytes(bytes(range(20, 30)) * 30)
    assert main(["import", "text", "shards", "--extension", ".py"]) == 0
    assert "900 tokens of 256 from 3 documents" in capsys.readouterr().out
    assert main(["inspect", "shards", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 3
    flags = [*FLAGS, "--data.seq-len", "16", "--run.steps", "40", "--optim.lr", "0.02"]
    source = ["--data.source", "tokens", "--data.train", "shards", "--run.dir", "run"]
    assert main(["train", *source, *flags]) == 0
    assert "900 tokens of 256 in 3 documents" in capsys.readouterr().out
    assert main(["evaluate", "run", "shards"]) == 0
    out = capsys.readouterr().out
    assert "nats per token" in out
    assert "test accuracy" in out
    assert "(n = 897)" in out
    assert main(["predict", "run", "shards"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    Path("one.txt").write_text("5")
    refused(capsys, ["evaluate", "run", "one.txt"], 3, "one.txt")


def test_a_folder_of_texts_is_read_by_every_verb_as_it_was_trained_on(here, monkeypatch, capsys):
    monkeypatch.setenv("SPHERESCAN_CACHE", str(here / "cache"))
    Path("text").mkdir()
    for i in range(3):
        (Path("text") / f"{i}.txt").write_text(" ".join(str((i + n) % 7) for n in range(200)))
    tokens = ["--data.source", "tokens", "--data.train", "text"]
    how = ["--data.extension", ".txt", "--data.vocab-size", "7", "--data.seq-len", "16"]
    assert main(["train", *tokens, *how, "--run.dir", "run", "--quiet", *FLAGS]) == 0
    assert main(["evaluate", "run", "text"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", "text"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    refused(capsys, ["train", *tokens], 3, "--data.extension .txt --data.vocab-size N")
    assert main(["import", "text", "shards"]) == 0
    capsys.readouterr()
    refused(
        capsys, ["predict", "run", "shards"], 3, "vocabulary of 256; wanted 7, that of the model"
    )


@pytest.mark.unwatched
def test_regression_from_training_to_prediction(here, capsys):
    rng = np.random.default_rng(0)
    np.savez("x.npz", x=rng.normal(size=(30, 1, 5)).astype(np.float32), y=rng.normal(size=30))
    flags = ["--data.train", "x.npz", "--data.task", "regression", "--run.dir", "run", *FLAGS]
    assert main(["train", *flags]) == 0
    assert "one number each" in capsys.readouterr().out
    assert main(["evaluate", "run", "x.npz"]) == 0
    assert "test rmse" in capsys.readouterr().out
    assert main(["predict", "run", "x.npz"]) == 0
    assert len([float(line) for line in capsys.readouterr().out.splitlines()]) == 30


def test_inspect_knows_every_kind(run, capsys):
    assert main(["inspect", "train.ts"]) == 0
    out = capsys.readouterr().out
    assert "a (8), b (8), c (8)" in out
    assert main(["inspect", str(max((run / "ckpt").iterdir()))]) == 0
    out = capsys.readouterr().out
    assert "step" in out
    assert "classification" in out
    np.savez("x.npz", x=np.ones((2, 1, 3), np.float32), y=np.array([1.5, 2]))
    assert main(["inspect", "x.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"] == [1.5, 2.0]
    assert main(["inspect", "x.npz"]) == 0
    assert "targets    1.5 to 2\n" in capsys.readouterr().out
    np.savez("x.npz", x=np.ones((1, 1, 1_234_567), np.float32))
    assert main(["inspect", "x.npz"]) == 0
    assert "length     1234567 to 1234567\n" in capsys.readouterr().out
    Path("x.txt").write_text("1")
    refused(capsys, ["inspect", "x.txt"], 3, "import them first")
    refused(capsys, ["inspect", "x.docx"], 3, "no such file")
    Path("x.docx").touch()
    refused(capsys, ["inspect", "x.docx"], 3, "unknown kind of file")
    X = np.random.default_rng(0).standard_normal((8, 2, 12))
    SequenceClassifier(n_features=84).fit(X, ["no", "yes"] * 4).save("x.safetensors")
    assert main(["inspect", "x.safetensors", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["labels"]) == ("saved SequenceClassifier", ["no", "yes"])
    assert facts["missing"] == "refuse"
    assert main(["inspect", "x.safetensors"]) == 0
    assert main(["inspect", "run"]) == 0
    assert "classification" in capsys.readouterr().out


@pytest.mark.unwatched
def test_verify_tells_what_it_looked_at(run, capsys):
    assert main(["verify", "run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    newest = facts["checkpoints"][-1]
    assert newest == 12
    assert facts["damaged"] == []
    assert facts["metrics_lines"] == len(Path("run/metrics.jsonl").read_text().splitlines())
    ranges = [f"{first} to {last}" for first, last in facts["trained_again"]]
    assert ranges
    assert main(["verify", "run"]) == 0
    out = capsys.readouterr().out
    assert f"trained again  {'; '.join(ranges)}\n" in out
    assert "damaged        none\n" in out
    path = Path(f"run/ckpt/step-{newest:012d}.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["verify", "run", "--json"]) == 4
    (problem,) = json.loads(capsys.readouterr().out)["damaged"]
    assert path.name in problem


def test_doctor_checks_itself(capsys, monkeypatch):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["self_check"] == "passed"
    assert 0 < facts["scan_error"] < 1e-5
    expected = "torch form" if native.unavailable() else "native kernels"
    assert facts["ops"].startswith(expected)
    assert re.fullmatch(r"\d+\.\d times the time of float32", facts["bfloat16_products"])
    monkeypatch.setenv("SPHERESCAN_OPS", "torch")
    assert main(["doctor"]) == 0
    assert "torch form (SPHERESCAN_OPS=torch)" in capsys.readouterr().out
    monkeypatch.setattr("spherescan.inspection._TOLERANCE", 0.0)
    assert main(["doctor"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(("cost", "said"), [(34.2, True), (1.4, False)])
def test_a_run_in_bfloat16_says_where_that_is_slow(series, capsys, monkeypatch, cost, said):
    measured = []
    monkeypatch.setattr(
        sys.modules["spherescan.ops.linear"], "bfloat16_cost", lambda: measured.append(1) or cost
    )
    for precision in ("bf16", "fp32"):
        flags = [*FLAGS, "--run.steps", "2", "--run.precision", precision]
        assert main(["train", "--data.train", "train.ts", "--run.dir", precision, *flags]) == 0
        out = capsys.readouterr().out
        assert ("run.precision is bf16" in out) is (said and precision == "bf16")
        assert (f"products take {cost} times as long" in out) is (said and precision == "bf16")
    assert main(["resume", "bf16"]) == 0  # at its end
    assert main(["resume", "bf16", "--run.steps", "3", "--quiet"]) == 0
    assert len(measured) == 1


def test_a_run_of_values_that_float32_cannot_hold_does_not_begin_but_goes_on(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rows = [
        f"{case},{'ab'[case % 2]},{5e6 + 0.01 * ((case * t) % 7)}"
        for case in range(20)
        for t in range(5)
    ]
    Path("far.csv").write_text("\n".join(["case,label,x", *rows]) + "\n")
    command = ["train", "--data.train", "far.csv", "--run.dir", "run", *FLAGS, "--run.steps", "2"]
    assert main(command) == 3
    assert "channel 'x' has values of about 5000000" in capsys.readouterr().err
    assert not Path("run").exists()
    with monkeypatch.context() as before_it_was_asked:
        before_it_was_asked.setattr("spherescan.data.series._MOST_LOST", float("inf"))
        assert main(command) == 0
    assert main(["resume", "run", "--run.steps", "3"]) == 0
    assert main(["evaluate", "run"]) == 0


def test_an_internal_error_is_one_line_too(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("spherescan.cli.load_config", broken)
    assert main(["train"]) == 1
    err = capsys.readouterr().err
    assert err == "spherescan: internal error: RuntimeError: two lines; --debug shows where\n"
    assert main(["train", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_non_finite_step_exits_with_6(series, capsys, monkeypatch):
    flags = ["--data.train", "train.ts", "--run.dir", "run", *FLAGS, "--quiet"]
    monkeypatch.setattr("spherescan.train.step.norm_of", lambda *_: float("nan"))
    assert main(["train", *flags]) == 6
    err = capsys.readouterr().err
    assert "step 1" in err
    assert "--run.on-non-finite skip" in err
    assert json.loads(Path("run/nonfinite-step-1.json").read_text())["step"] == 1


def spherescan(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "spherescan", *arguments]
    return subprocess.Popen(command, text=True, **options)


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(600):
        path = run / "metrics.jsonl"
        if path.exists() and b'"step":%d,' % (step + 1) in path.read_bytes():
            return
        time.sleep(0.1)
    raise AssertionError("the run did not get going")


@pytest.mark.unwatched
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_prints_how_to_go_on(series, capsys, signum, code):
    flags = ["--data.train", "train.ts", *FLAGS, "--run.steps", "5000", "--run.threads", "1"]
    with spherescan("train", "--run.dir", "run", *flags, stdout=subprocess.PIPE) as process:
        wait_for_step(Path("run"), 20)
        process.send_signal(signum)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert out.splitlines()[-1] == "go on with: spherescan resume run"
    newest = max(Path("run/ckpt").iterdir())
    checkpoint = read_checkpoint(newest)
    step = checkpoint.state["step"]
    assert f"at step {step} of 5000; saved" in out
    records = [r for r in read_metrics(Path("run/metrics.jsonl")) if r["kind"] == "train"]
    assert records[-1]["step"] == step
    n = 21  # of 24 series one of each class is held out
    assert checkpoint.state["data"] == {"epoch": 4 * step // n, "position": 4 * step % n}
    assert main(["resume", "run", "--run.steps", str(step + 3)]) == 0
    resumed = [r for r in read_metrics(Path("run/metrics.jsonl")) if r["kind"] == "train"]
    assert [r["step"] for r in resumed] == list(range(1, step + 4))
    assert resumed[step]["epoch"] == 4 * (step + 1) // n


def test_a_terminal_gets_a_bar(series):
    leader, follower = pty.openpty()
    flags = ["--data.train", "train.ts", *FLAGS, "--run.threads", "1"]
    process = spherescan("train", "--run.dir", "run", *flags, stdout=follower)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait(60) == 0
    assert "━".encode() in seen
    assert b"validation loss" in seen


@pytest.mark.parametrize("kind", ["dumb", "xterm"])
def test_a_terminal_that_cannot_draw_gets_lines(series, capsys, monkeypatch, kind):
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["train", "--data.train", "train.ts", "--run.dir", "run", *FLAGS]) == 0
    assert ("step 12/12  loss" in capsys.readouterr().out) is (kind == "dumb")


@pytest.mark.parametrize(
    "change",
    [
        {"counters": 3},
        {"task": "x"},
        {"task": {}},
        {"config": {}},
        {"environment": {}},
        {"environment": {"threads": 10**6}},
        {"environment": {"threads": "2"}},
    ],
    ids=str,
)
def test_a_state_that_no_run_wrote_is_told_in_one_line(run, capsys, change):
    path = run / "ckpt" / "step-000000000012.safetensors"
    checkpoint = read_checkpoint(path)
    path.unlink()
    write_checkpoint(path, checkpoint.tensors, {**checkpoint.state, **change})
    assert main(["inspect", str(path)]) == 0
    resumed = ["resume", "run", "--run.steps=13", "--run.threads=1", "--quiet"]
    for command in (["verify", "run"], ["evaluate", "run", "--checkpoint=newest"], resumed):
        capsys.readouterr()
        assert main(command) in {0, 2, 4}
        assert "internal error" not in capsys.readouterr().err
    if "environment" in change:
        assert main(["resume", "run"]) == 4


@pytest.mark.parametrize("flag", ["--lock-wait", "--grace-seconds"])
@pytest.mark.parametrize("value", ["nan", "-1"])
def test_a_time_that_is_none_is_refused(here, capsys, flag, value):
    refused(capsys, ["resume", "run", f"{flag}={value}"], 2, flag, value, "0 or more seconds")


def test_a_reader_that_leaves_is_no_error(run):
    with spherescan(
        "predict", "run", "train.ts", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == ""


def test_a_run_goes_on_when_nobody_reads_its_progress(series):
    flags = ["--data.train", "train.ts", *FLAGS, "--run.log-every", "1", "--run.threads", "1"]
    with spherescan(
        "train", "--run.dir", "run", *flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    assert Path("run/ckpt/step-000000000012.safetensors").exists()


def test_a_run_goes_on_when_its_progress_finds_no_room(series):
    flags = ["--data.train", "train.ts", *FLAGS, "--run.log-every", "1", "--run.threads", "1"]
    with Path("/dev/full").open("w") as full:
        process = spherescan("train", "--run.dir", "run", *flags, stdout=full)
    assert process.wait(60) == 0
    assert Path("run/ckpt/step-000000000012.safetensors").exists()


@pytest.mark.unwatched
def test_a_run_is_saved_when_its_terminal_is_closed(series):
    leader, follower = pty.openpty()
    flags = ["--data.train", "train.ts", *FLAGS, "--run.steps", "5000", "--run.threads", "1"]
    with spherescan(
        "train", "--run.dir", "run", *flags, stdout=follower, stderr=subprocess.PIPE
    ) as process:
        os.close(follower)
        assert os.read(leader, 1) != b""
        os.close(leader)  # from here on a write is an input/output error
        wait_for_step(Path("run"), 20)
        process.send_signal(signal.SIGHUP)
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 129
    newest = read_checkpoint(max(Path("run/ckpt").iterdir()))
    assert newest.state["step"] == read_metrics(Path("run/metrics.jsonl"))[-1]["step"] > 20


def test_help_answers_at_once():
    """In a few times what Python with pydantic takes; with torch it is thirty times."""
    pydantic = [sys.executable, "-c", "import pydantic"]
    seconds = []
    for begin in (partial(spherescan, "--help"), partial(subprocess.Popen, pydantic)):
        every = []
        for _ in range(3):
            before = os.times()
            assert begin(stdout=subprocess.DEVNULL).wait() == 0
            after = os.times()  # of the processor, which other tests have too
            spent = (after.children_user, after.children_system)
            every.append(sum(spent) - before.children_user - before.children_system)
        seconds.append(min(every))
    assert seconds[0] < 10 * seconds[1]


def test_help_and_mistakes_do_not_load_torch():
    code = (
        "import sys; from spherescan.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "main(['train', '--run.steps', 'x'])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_flags_are_pinned(capsys):
    """A flag is a promise to scripts: this list grows; nothing leaves it without a release note."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    flags = {word.rstrip(",]") for word in out.replace("[", " ").split() if word.startswith("--")}
    assert flags == {
        "--help", "--debug", "--print-config", "--quiet", "--json", "--preset",
        "--grace-seconds", "--no-lock", "--checkpoint.verify", "--model.dropout",
        "--data.source", "--data.train", "--data.validation", "--data.validation-fraction",
        "--data.task", "--data.batch-size", "--data.seq-len", "--data.vocab-size",
        "--data.extension", "--data.packing", "--data.tail", "--data.shuffle",
        "--data.shuffle-shards", "--data.prefetch-workers", "--data.prefetch-batches",
        "--data.jitter",
        "--model.mixer", "--model.d-model", "--model.n-layers", "--model.d-state",
        "--model.d-conv", "--model.expand", "--model.dt-rank", "--model.gate",
        "--model.bidirectional", "--model.pooling", "--model.n-pool-heads", "--model.form",
            "--model.selective", "--model.n-convolutions",
        "--prototypes.dim", "--prototypes.init", "--prototypes.learnable", "--prototypes.loss",
        "--prototypes.scale", "--prototypes.margin",
        "--optim.lr", "--optim.weight-decay", "--optim.beta1", "--optim.beta2",
        "--optim.warmup-steps", "--optim.min-lr-scale", "--optim.grad-clip",
        "--optim.decayed", "--optim.step-count",
        "--local.loss", "--local.mode", "--local.group", "--local.stop-gradient-every",
        "--local.weight", "--local.lr", "--local.update", "--local.negatives",
        "--local.threshold", "--local.alpha", "--local.predict",
        "--surgery.backprop-every", "--surgery.aggregator", "--surgery.weighting",
        "--surgery.cagrad-c", "--surgery.gradnorm-alpha", "--surgery.rust-epsilon",
        "--surgery.rust-alpha", "--surgery.rust-lambda",
        "--grow.layers", "--grow.placement", "--grow.at-step", "--grow.base", "--grow.init",
        "--freeze.blocks", "--freeze.embedding", "--freeze.prototypes", "--freeze.until-step",
        "--validation.every", "--validation.batches", "--validation.patience",
        "--checkpoint.every", "--checkpoint.keep",
        "--run.dir", "--run.steps", "--run.seed", "--run.threads", "--run.log-every",
        "--run.on-non-finite", "--run.precision", "--run.recompute",
    }  # fmt: skip


def test_the_flags_of_the_preset_are_those_of_that_program(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--preset", "rust-trainer", "--help"])
    out = capsys.readouterr().out
    flags = {word.rstrip(",]") for word in out.replace("[", " ").split() if word.startswith("--")}
    assert flags >= {
        "--out-dir", "--steps", "--save-every", "--log-every", "--batch-size", "--seq-len",
        "--seed", "--base-layers", "--target-layers", "--d-model", "--d-state", "--d-conv",
        "--placement", "--freeze", "--lr", "--ff-lr", "--bp-cadence-steps",
        "--gradient-surgery-method", "--gradient-surgery-epsilon", "--gradnorm-alpha",
        "--cagrad-lambda", "--freeze-embedding", "--token-file", "--token-dir",
        "--val-token-file", "--val-token-dir", "--shard-ext", "--shuffle-shards",
        "--packed-sequences", "--prefetch-workers", "--prefetch-buffer", "--resume",
        "--vocab-size", "--val-ratio", "--val-every", "--eval-batches",
        "--early-stopping-patience", "--grad-clip-norm", "--fail-on-non-finite",
        "--lr-warmup-steps", "--lr-min-scale",
    }  # fmt: skip


def test_a_run_of_the_preset_trains_resumes_and_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tokens.txt").write_text(" ".join(str(i % 7) for i in range(400)))
    flags = [
        "train", "--preset", "rust-trainer", "--token-file", "tokens.txt", "--out-dir", "run",
        "--d-model", "8", "--seq-len", "8", "--bp-cadence-steps", "2", "--quiet",
        "--shuffle-shards", "--run.threads", "1",
    ]  # fmt: skip
    assert main([*flags, "--steps", "4"]) == 0
    assert main([*flags, "--steps", "4"]) == 4
    assert "holds a run already" in capsys.readouterr().err
    assert main([*flags, "--steps", "6", "--resume", "--lr", "0.1"]) == 2
    assert "optim.lr defines the run and cannot change" in capsys.readouterr().err
    assert main([*flags, "--steps", "6", "--resume", "--print-config"]) == 0
    assert not Path("run/ckpt/step-000000000006.safetensors").exists()
    assert main([*flags, "--steps", "6", "--resume"]) == 0
    assert Path("run/ckpt/step-000000000006.safetensors").exists()
    assert main(["predict", "run", "tokens.txt"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].isdecimal()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "rust"], "invalid choice: 'rust'"),
        (["--preset", "rust-trainer", "--steps", "x"], "--steps is 'x'; it is a whole number"),
        (["--preset", "rust-trainer", "--stepz", "3"], "did you mean '--steps'?"),
        (["--preset", "rust-trainer"], "no training data"),
        (["--preset", "rust-trainer", "--resume"], "--resume needs --out-dir"),
        (["--steps", "3"], "unknown argument '--steps'"),
    ],
)
def test_a_mistake_with_the_preset_is_one_line(arguments, message, capsys):
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "resume", "verify", "inspect", "evaluate"])
def test_a_name_cannot_talk_to_the_terminal(verb, capsys):
    assert main([verb, "a\0\x1b[31mb\u202e.toml"]) in {2, 3, 4}
    error = capsys.readouterr().err
    assert error.rstrip("\n").isprintable()
    assert r"a\x00\x1b[31mb\u202e" in error


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", f"{LONG}.toml"],
        ["train", "--run.dir", LONG, "--data.train", "sample:JapaneseVowels_TRAIN.ts"],
        ["train", "--data.train", f"{LONG}.csv"],
        ["train", "--data.source", "tokens", "--data.train", LONG],
        ["train", "--data.source", "tokens", "--data.train", "a/" * 3000],
        ["train", "--grow.base", LONG, "--grow.layers", "3"],
        ["train", "--data.train", "~no_such_user/a.csv"],
        ["import", LONG, "out"],
        ["import", ".", LONG],
        ["inspect", LONG],
        ["inspect", "a\0b"],
        *([verb, LONG] for verb in ("resume", "verify", "evaluate")),
        ["fork", LONG, "new"],
        ["predict", LONG, LONG],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_a_path_that_nothing_can_have_is_an_error_of_one_line(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in {2, 3, 4}
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "internal" not in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "given", "expected"),
    [
        ("doctor", {}, "5000"),
        ("doctor", {"GOMP_SPINCOUNT": "70"}, "70"),
        ("doctor", {"OMP_WAIT_POLICY": "passive"}, "0"),
        ("bench", {}, "300000"),  # what GNU's OpenMP has by itself
    ],
)
def test_threads_sleep_when_they_have_waited_for_a_while(verb, given, expected):
    if sys.platform != "linux":
        pytest.skip("another OpenMP")
    program = "import sys; from spherescan.cli import main; main(sys.argv[1:])"
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: text for name, text in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", program, verb, *(["no-such-suite"] if verb == "bench" else [])],
        env=environment | given | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr

"""`spherescan stream` as a user meets it."""

import io
import json
import os
import select
import signal
import subprocess
import sys

import numpy as np
import pytest

from spherescan.cli import main
from spherescan.data import locate, read_series
from tests.train.test_training import TINY, write_series

FLAGS = [text for key, value in TINY.items() for text in (f"--{key.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each task, in a folder."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    write_series(folder / "train.ts")
    x, y = rng.normal(size=(30, 1, 5)).astype(np.float32), rng.normal(size=30)
    np.savez(folder / "x.npz", x=x, y=y)
    (folder / "tokens.txt").write_text(" ".join(str(i % 7) for i in range(200)))
    speech = ["--data.train", "sample:JapaneseVowels_TRAIN.ts", "--model.pooling", "attention"]
    for name, flags in {
        "waves": ["--data.train", str(folder / "train.ts")],
        "number": ["--data.train", str(folder / "x.npz"), "--data.task", "regression"],
        "tokens": ["--data.source", "tokens", "--data.train", str(folder / "tokens.txt"),
                   "--data.vocab-size", "7", "--data.seq-len", "16"],
        "speech": speech,
        "both": ["--data.train", str(folder / "train.ts"), "--model.bidirectional", "true"],
    }.items():  # fmt: skip
        assert main(["train", "--run.dir", str(folder / name), "--quiet", *FLAGS, *flags]) == 0
    return folder


@pytest.fixture
def stream(runs, monkeypatch, capsys):
    """Run the verb with a text as standard input; return exit code, output and errors."""
    monkeypatch.chdir(runs)

    def run(text: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        code = main(["stream", *arguments])
        return code, *capsys.readouterr()

    return run


def predictions(capsys, *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main(["predict", *arguments]) == 0
    return [line.split("\t")[-1] for line in capsys.readouterr().out.splitlines()]


def as_lines(series) -> str:
    """Return the text of sequences, a sample per line."""
    return "\n\n".join(
        "\n".join(",".join(repr(float(v)) for v in sample) for sample in values)
        for values in series
    )


@pytest.mark.unwatched
def test_the_last_answer_to_each_real_sequence_is_that_of_predict(stream, runs, capsys):
    name = "sample:JapaneseVowels_TEST.ts"
    wanted = predictions(capsys, "speech", name)
    # Every third utterance has all speakers and takes a third of the time.
    text, wanted = as_lines(read_series(locate(name)).series[::3]), wanted[::3]
    code, out, err = stream(text, "speech", "-", "--every", "1000")
    assert (code, err) == (0, "")
    assert [line.split("\t")[1] for line in out.splitlines() if line] == wanted
    assert len(set(wanted)) > 1


@pytest.mark.unwatched
def test_a_line_is_answered_with_step_class_and_confidence(stream, runs, capsys):
    series = read_series(runs / "train.ts").series
    wanted = predictions(capsys, "waves", "train.ts")
    code, out, _ = stream(as_lines(series), "waves")
    assert code == 0
    blocks = out.split("\n\n")
    assert len(blocks) == len(series)
    for block, values, label in zip(blocks, series, wanted, strict=True):
        rows = [line.split("\t") for line in block.splitlines()]
        assert [int(step) for step, *_ in rows] == list(range(1, len(values) + 1))
        assert rows[-1][1] == label
        assert all(1 / 3 <= float(confidence) <= 1 for *_, confidence in rows)


def test_every_so_many_lines_and_at_the_end(stream):
    text = "1 2\n" * 5 + "\n\n" + "1 2\n" * 2
    steps = {1: [1, 2, 3, 4, 5, 1, 2], 2: [2, 4, 5, 2], 4: [4, 5, 2], 9: [5, 2]}
    for every, wanted in steps.items():
        _, out, _ = stream(text, "waves", "--every", str(every), "--json")
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["n_steps"] for row in rows] == wanted
        assert [row["sequence"] for row in rows] == sorted(row["sequence"] for row in rows)
        assert {row["sequence"] for row in rows} == {0, 1}


def test_json_has_every_cosine_under_its_class(stream):
    _, out, _ = stream("1 2\n0 1\n", "waves", "--json")
    first, second = map(json.loads, out.splitlines())
    assert list(first) == ["sequence", "n_steps", "prediction", "confidence", "cosines"]
    assert max(second["cosines"], key=second["cosines"].get) == second["prediction"]
    scaled = {name: np.exp(12 * value) for name, value in second["cosines"].items()}
    expected = max(scaled.values()) / sum(scaled.values())
    assert second["confidence"] == pytest.approx(expected, rel=1e-5)


def test_numbers_and_tokens(stream, runs, capsys):
    with np.load(runs / "x.npz") as data:
        series = [values.T for values in data["x"]]
    wanted = predictions(capsys, "number", "x.npz")
    code, out, _ = stream(as_lines(series), "number", "--every", "5")
    assert code == 0
    found = [line.split("\t") for line in out.splitlines() if line]
    assert all(len(row) == 2 for row in found)
    np.testing.assert_allclose([float(v) for _, v in found], [float(v) for v in wanted], atol=1e-5)
    (runs / "doc.txt").write_text("1 2 3 4 5 6 0 1")
    code, out, _ = stream("1 2 3\n4\n5,6, 0\n1\n", "tokens")
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[0] for row in rows] == ["3", "4", "7", "8"]
    assert [rows[-1][1]] == predictions(capsys, "tokens", "doc.txt")
    _, out, _ = stream("1 2 3\n", "tokens", "--json")
    assert set(json.loads(out)) == {"sequence", "n_steps", "prediction", "confidence"}


@pytest.mark.parametrize(
    ("text", "arguments", "code", "parts"),
    [
        ("1 2\n1 x\n", ["waves"], 3, ["standard input: line 2, number 2: 'x' is not a number"]),
        ("1 2\n1\n", ["waves"], 3, ["line 2: holds 1", "channels, 2"]),
        ("", ["waves"], 3, ["ended without a sample"]),
        ("1 7\n", ["tokens"], 3, ["line 1, token 2: 7 is outside the vocabulary of 7"]),
        ("1 2\n", ["waves", "--every", "0"], 2, ["--every is 0"]),
        ("1 2\n", ["waves", "x.csv"], 2, ["got 'x.csv'", "spherescan stream waves < SAMPLES"]),
        ("1 2\n", ["waves", "--checkpoint", "x"], 2, ["best, newest or a step"]),
        ("1 2\n", ["waves", "--checkpoint", "77"], 4, ["has no checkpoint of step 77"]),
        ("1 2\n", ["none"], 4, ["holds no run"]),
        ("1 2\n", ["both"], 2, ["model.bidirectional", "train one with", "= false"]),
        ("1 2\n", ["waves", "--restore", "no"], 4, ["no does not exist"]),
        ("1 2\n", ["waves", "--save", "no/way"], 2, ["--save is no/way", "make it first"]),
    ],
)
def test_what_is_wrong_is_one_line(stream, text, arguments, code, parts):
    found, out, err = stream(text, *arguments)
    assert found == code
    assert err.count("\n") == 1
    assert all(part in err for part in parts)
    # What was answered before the line stays.
    assert out.count("\n") == (text.count("\n") - 1 if "line 2" in parts[0] else 0)


def test_closed_input_is_told(stream, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["stream", "waves"]) == 3
    assert "standard input is closed" in capsys.readouterr().err


def test_a_saved_stream_goes_on_where_it_was(stream, runs):
    text = [f"{i}.5 {-i}\n" for i in range(6)]
    _, whole, _ = stream("".join(text), "waves")
    for cut in range(1, 6):
        code, first, _ = stream("".join(text[:cut]), "waves", "--save", "state")
        assert code == 0
        _, rest, _ = stream("".join(text[cut:]), "waves", "--restore", "state")
        assert first + rest == whole
    assert stream("", "waves", "--restore", "state", "--save", "state") == (0, "", "")
    assert stream("1 2\n", "waves", "--restore", "state")[1].startswith("6\t")
    code, _, err = stream("1\n", "number", "--restore", "state")
    assert code == 4
    assert "state: the state belongs to a stream of another model" in err


@pytest.mark.parametrize("name", ["train.ts", "waves/config.toml", "waves/run.json"])
def test_a_stream_replaces_no_other_file(stream, runs, name):
    before = (runs / name).read_bytes()
    code, out, err = stream("1,2\n", "waves", "-", "--save", name)
    assert (code, out) == (4, "")
    assert "not overwritten" in err
    assert (runs / name).read_bytes() == before


@pytest.mark.parametrize("every", ["1", "10"])
@pytest.mark.parametrize("wrong", ["1,x", "1,1e30"])
def test_what_was_read_is_saved_when_a_line_is_wrong(stream, runs, every, wrong):
    (runs / "bad.safetensors").unlink(missing_ok=True)
    text = f"1,2\n3,4\n{wrong}\n"
    code, _, err = stream(text, "waves", "-", "--save", "bad.safetensors", "--every", every)
    assert code == 3
    assert "line 3" in err or "too large" in err
    _, out, _ = stream("5,6\n", "waves", "-", "--restore", "bad.safetensors")
    assert out.startswith("3\t")
    code, _, _ = stream("x\n", "waves", "-", "--save", "none.safetensors")
    assert code == 3
    assert not (runs / "none.safetensors").exists()
    # A sequence that has ended is not gone on with.
    code, _, _ = stream("1,2\n\nx\n", "waves", "-", "--save", "bad.safetensors")
    _, out, _ = stream("5,6\n", "waves", "-", "--restore", "bad.safetensors")
    assert out.startswith("1\t")


def test_help_lists_the_flags(capsys):
    """A flag is a promise to scripts: this list grows."""
    with pytest.raises(SystemExit):
        main(["stream", "--help"])
    words = capsys.readouterr().out.replace("[", " ").split()
    assert {word.rstrip(",]") for word in words if word.startswith("--")} == {
        "--help", "--debug", "--checkpoint", "--every", "--restore", "--save", "--json",
    }  # fmt: skip


@pytest.fixture
def process(runs):
    saved = str(runs / "signal.safetensors")
    command = [sys.executable, "-m", "spherescan", "stream", str(runs / "waves"), "--save", saved]
    pipe = subprocess.PIPE
    # Python must not flush by itself what the verb has to.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    ) as process:
        yield process
        process.kill()


def answer(process) -> bytes:
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "nothing is printed before more is written"
    return process.stdout.readline()


def test_an_answer_comes_before_the_next_line_is_written(process):
    for step in (1, 2, 3):
        process.stdin.write(b"1 2\n")
        process.stdin.flush()
        assert answer(process).startswith(b"%d\t" % step)
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert answer(process) == b"\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_what_was_read_is_saved_at_a_signal(runs, process, signum, code):
    (runs / "signal.safetensors").unlink(missing_ok=True)
    process.stdin.write(b"1,2\n")
    process.stdin.flush()
    assert answer(process).startswith(b"1\t")
    process.send_signal(signum)
    assert process.wait(60) == code
    assert process.stderr.read() == b""
    assert (runs / "signal.safetensors").stat().st_size > 0


def test_a_reader_that_leaves_is_no_error(process):
    process.stdout.close()
    process.stdin.write(b"1 2\n")
    process.stdin.flush()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""

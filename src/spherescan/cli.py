"""The command line: parse, build, call.

torch is imported by the verbs that need it, so that help and mistakes answer at once.
"""

import argparse
import datetime as dt
import errno
import io
import json
import os
import shlex
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, get_args

from pydantic.fields import FieldInfo

from spherescan import __version__
from spherescan.allocator import keep_freed_memory, tells_lack_of_memory
from spherescan.config import (
    CHANGEABLE,
    RunConfig,
    load_config,
    nearest,
    parse_config,
    rust_trainer,
    settings,
    to_toml,
)
from spherescan.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    SpherescanError,
    StorageError,
)
from spherescan.paths import user_path

# Classes that `evaluate` shows, those it finds worst.
_FEW = 10
# A tenth of a millisecond or two, what falling asleep and waking up cost a few times over.
_SPINS = "5000"
# From so many times the time of float32 on, bfloat16 is said to be slow: less may be chance.
_SLOW = 1.5

if TYPE_CHECKING:
    from spherescan.data import Task
    from spherescan.inference import Prediction, Predictor, Stream, Which
    from spherescan.train import Reporter, Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    Errors become one line on stderr: 2 usage or configuration, 3 data, 4 checkpoint or run
    directory, 5 locked, 6 not finite, 7 storage, 130 and 143 signals.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            # A terminal may lack letters that a name has; Python does so for errors.
            sys.stdout.reconfigure(errors="backslashreplace")
        options = _parser(arguments).parse_args(arguments)
        verb: Callable[[argparse.Namespace], int] = options.verb
        if verb is not _bench:  # which measures torch as everyone has it
            _let_threads_sleep()
        return _flushed(verb(options))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except _Ended as ended:
        return ended.exit_code
    except BrokenPipeError:
        _forget_stdout()
        return 128 + signal.SIGPIPE
    except SpherescanError as error:
        _complain(error, debug=debug)
        return error.exit_code
    except Exception as error:  # noqa: BLE001  the last line of defence: a person, not a program, reads it
        told = _told(error)
        _complain(told, debug=debug)
        return told.exit_code if isinstance(told, SpherescanError) else 1


def _let_threads_sleep() -> None:
    """Have threads of torch go to sleep when they have waited for each other for a while.

    By default they hold their core for milliseconds, which on a machine with other programs is
    what keeps the one they wait for from running. GNU's OpenMP reads it when torch is loaded, so
    it is set for this process and its children.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _flushed(exit_code: int) -> int:
    """Return an exit code when all output has left: later nobody could tell that it did not."""
    if sys.stdout is not None:
        sys.stdout.flush()
    return exit_code


def _told(error: Exception) -> Exception:
    """Return what it means to a person, where that is known."""
    if tells_lack_of_memory(error):
        return ConfigError(
            "there was not enough memory; choose a smaller data.batch_size or a smaller model, "
            "give shorter sequences, or set run.recompute = true"
        )
    if isinstance(error, OSError) and error.filename is None and error.errno == errno.ENOSPC:
        _forget_stdout()
        return StorageError(f"the output could not be written: {error.strerror}")
    if (halved := _halved_byte_code(error)) is not None:
        return StorageError(
            f"{halved} is cut off: Python wrote it when there was no room; delete it"
        )
    return error


def _halved_byte_code(error: Exception) -> str | None:
    """Return the file of byte code that lacks its end: CPython does not see a short write."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_compile_bytecode" and isinstance(error, EOFError):
            return frame.f_locals.get("bytecode_path")
    return None


def _forget_stdout() -> None:
    """Send what is still to be printed nowhere: its reader has gone, and Python would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    """Print a line of progress; a run goes on when it cannot.

    The reader has left, the terminal has been closed, or the disk below is full.
    """
    try:
        print(text, flush=True)
    except OSError:
        _forget_stdout()


class _Screen(io.TextIOBase):
    """A terminal to draw progress on; a run goes on when it has been closed, as by `_say`."""

    def __init__(self, terminal: Any) -> None:
        self._terminal: TextIO = terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the terminal."""
        return self._terminal.encoding

    def isatty(self) -> bool:
        """Return whether it is one."""
        return self._terminal.isatty()

    def write(self, text: str) -> int:
        """Write, or forget the terminal."""
        try:
            return self._terminal.write(text)
        except OSError:
            _forget_stdout()
            return len(text)

    def flush(self) -> None:
        """Flush, or forget the terminal."""
        try:
            self._terminal.flush()
        except OSError:
            _forget_stdout()


def _json(values: dict[str, Any]) -> str:
    """Return strict JSON of one line; floats that are not finite are written as in the metrics."""
    from spherescan.runs.metrics import spell_nonfinite

    spelt = {name: spell_nonfinite(value) for name, value in values.items()}
    return json.dumps(spelt if spelt == values else {**spelt, "nonfinite": True}, allow_nan=False)


def _hush(text: str) -> None:
    """Print nothing."""


def _complain(error: Exception, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    text = " ".join(str(error).split())
    if not isinstance(error, SpherescanError):
        text = f"internal error: {type(error).__name__}: {text}; --debug shows where"
    # A name in it may come from a stranger, and a terminal obeys control characters.
    plain = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    with suppress(OSError):  # a terminal that has been closed; the exit code still tells
        print(f"spherescan: {plain}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are errors of ours: one line, the nearest flag named."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse unknown arguments here, where the flags of the verb are known."""
        known, unknown = super().parse_known_args(args, namespace)
        unknown = _taken_as_data(known, unknown)
        if unknown:
            flag = unknown[0].partition("=")[0]
            flags = [name for name in self._option_string_actions if name != "-h"]
            if flag.replace("_", "-") in flags:
                self.error(f"unknown argument {flag!r}; it is written {flag.replace('_', '-')}")
            setting = flag.removeprefix("--").replace("-", "_")
            if flag.startswith("--") and setting in dict(settings()):
                kept = (
                    "spherescan resume may change it" if setting in CHANGEABLE else "a run keeps it"
                )
                self.error(f"{flag} is set by spherescan train, and {kept}")
            hint = f"; {nearest(flag, flags, after='--')}" if flag.startswith("-") else ""
            self.error(f"unknown argument {flag!r}{hint}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def _taken_as_data(known: argparse.Namespace, unknown: list[str]) -> list[str]:
    """Take the first word that is left over as DATA if that is missing; return the rest.

    Having read RUN, argparse takes an optional DATA to be missing where a flag comes next.
    """
    if getattr(known, "data", "") is not None:
        return unknown
    match unknown:
        case ["--", word, *rest]:
            pass
        case [word, *rest] if word == "-" or not word.startswith("-"):
            pass
        case _:
            return unknown
    known.data = word
    return rest


_Add = Callable[[str, Callable[[argparse.Namespace], int], str], _Parser]


def _parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser; it knows the flags of a preset when the arguments name one."""
    parser = _Parser(
        prog="spherescan",
        description="Train selective state-space models whose classes are points on a hypersphere.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"spherescan {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add(name: str, verb: Callable[[argparse.Namespace], int], text: str) -> _Parser:
        sub: _Parser = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(verb=verb)
        return sub

    train = add("train", _train, "Train a model.")
    train.add_argument(
        "config", nargs="?", type=Path, help="configuration file: .toml, .json or .yaml"
    )
    train.add_argument(
        "--print-config", action="store_true", help="print the configuration and stop"
    )
    train.add_argument(
        "--preset",
        choices=[rust_trainer.NAME],
        help="reproduce another program, with its flags and configuration files; "
        "--preset NAME --help lists them",
    )
    _add_output(train)
    _add_care(train)
    if any(argument.startswith("--preset") for argument in arguments):
        _add_preset(train)
    _add_settings(train, [name for name, _ in settings()])

    resume = add("resume", _resume, "Go on with a run from its newest whole checkpoint.")
    resume.add_argument("run", type=Path, help="folder of the run")
    resume.add_argument("--step", type=int, help="go on from the checkpoint of this step")
    for flag, text in (
        ("--rewind", "set checkpoints that are newer than --step aside"),
        ("--new-data", "take other data than before, from its beginning"),
        ("--repair-metrics", "set a metrics log that does not fit the checkpoint aside"),
        ("--require-bitwise", "refuse an environment in which the last bits may differ"),
    ):
        resume.add_argument(flag, action="store_true", help=text)
    resume.add_argument(
        "--lock-wait",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait so long for another process that is writing the run (default: 0)",
    )
    _add_output(resume)
    _add_care(resume)
    _add_settings(resume, list(CHANGEABLE))

    forker = add("fork", _fork, "Begin a new run with a checkpoint of another.")
    forker.add_argument("run", type=Path, help="folder of the run")
    forker.add_argument("new", type=Path, help="folder of the new run")
    forker.add_argument("--step", type=int, help="which checkpoint (default: the newest)")

    verify = add("verify", _verify, "Check everything in a run, and train a few steps of it again.")
    verify.add_argument("run", type=Path, help="folder of the run")
    verify.add_argument(
        "--steps",
        type=int,
        default=5,
        help="steps to train again from each of the last two checkpoints; 0 for none (default: 5)",
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")

    _add_uses(add)
    _add_files(add)
    _add_machine(add)
    return parser


def _add_uses(add: _Add) -> None:
    """Add the verbs that use a run."""
    evaluate = add("evaluate", _evaluate, "Score a run on data, or on its validation set.")
    evaluate.add_argument("run", type=Path, help="folder of the run")
    evaluate.add_argument(
        "data", nargs="?", help="data with labels; the validation set when missing"
    )
    _add_checkpoint(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    predict = add(
        "predict",
        _predict,
        "Print a prediction for each sequence: its class or number, or the token after a document.",
    )
    predict.add_argument("run", type=Path, help="folder of the run")
    predict.add_argument("data", help="data; labels are not looked at")
    _add_checkpoint(predict)
    predict.add_argument("--json", action="store_true", help="print one JSON object per sequence")

    report = add(
        "report",
        _report,
        "Write one HTML page about a run: curves, confusions, the sphere, how sure it is.",
    )
    report.add_argument("run", type=Path, help="folder of the run")
    report.add_argument("data", nargs="?", help="data with labels; the validation set when missing")
    _add_checkpoint(report)
    report.add_argument("--unknown", metavar="DATA", help="series of no class of the run")
    report.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="the page (default: report.html in the run)"
    )

    stream = add(
        "stream",
        _stream,
        "Print predictions of sequences as they come in: one sample, or tokens, per line of "
        "standard input; an empty line begins a new sequence.",
    )
    stream.add_argument("run", type=Path, help="folder of the run")
    stream.add_argument("data", nargs="?", metavar="-", help="standard input")
    _add_checkpoint(stream)
    stream.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="predict after every N lines, and after the last of a sequence (default: 1)",
    )
    stream.add_argument(
        "--restore", type=Path, metavar="FILE", help="go on where another stream was saved"
    )
    stream.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="save the stream here at the end, a signal or a wrong line",
    )
    stream.add_argument("--json", action="store_true", help="print one JSON object per prediction")


def _add_files(add: _Add) -> None:
    """Add the verbs that are about files."""
    importer = add("import", _import, "Turn a file or folder into token shards.")
    importer.add_argument("source", type=Path, help="file or folder")
    importer.add_argument("out", type=Path, help="folder to make")
    importer.add_argument(
        "--encoding",
        choices=["bytes", "integers"],
        default="bytes",
        help="every byte is a token, or integers are written as text (default: bytes)",
    )
    importer.add_argument("--vocab-size", type=int, help="number of token ids, for integers")
    importer.add_argument(
        "--extension",
        action="append",
        default=[],
        help="take only files of a folder that end so, such as .py; may be repeated",
    )
    importer.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out folders of this name; may be repeated",
    )

    inspect = add("inspect", _inspect, "Say what a checkpoint, shard folder or data file holds.")
    inspect.add_argument("file", type=str, help="a checkpoint, a folder of shards, or a data file")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")


def _add_machine(add: _Add) -> None:
    """Add the verbs that are about this machine."""
    doctor = add("doctor", _doctor, "Check that this installation works, and how it will compute.")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")

    bench = add("bench", _bench, "Measure speed and memory, against peers that are installed.")
    bench.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help="step, scan, shapes, length, threads, decay, matrix",
    )
    bench.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    bench.add_argument("--repeats", type=int, default=7, help="rounds of each comparison")
    bench.add_argument(
        "--malloc",
        choices=["default", "keep"],
        default="default",
        help="memory of freed tensors: as the C library does it, or kept as spherescan train does",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="write everything here too")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="draw the training steps here")
    bench.add_argument("--quick", action="store_true", help="tiny shapes: does everything run?")


def seconds(text: str) -> float:
    """Parse a time; argparse names this function when it is not even a number."""
    value = float(text)
    if not value >= 0:  # NaN is not
        raise argparse.ArgumentTypeError(f"is {text}; it must be 0 or more seconds")
    return value


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def _add_care(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grace-seconds",
        type=seconds,
        default=25.0,
        metavar="SECONDS",
        help="time between a signal to stop and the end: no save is begun that would take longer "
        "(default: 25)",
    )
    parser.add_argument(
        "--no-lock",
        action="store_true",
        help="train on a file system without locks; nobody else may write the run",
    )


def _add_preset(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(f"[{rust_trainer.NAME}]", "The flags of that program.")
    for name, flag in rust_trainer.FLAGS.items():
        truth = flag.default in {"true", "false"}
        shown = "" if flag.default is None else f" (default: {flag.default})"
        group.add_argument(
            f"--{name}",
            dest=f"{rust_trainer.NAME}/{name}",
            default=argparse.SUPPRESS,
            metavar="true|false" if truth else "VALUE",
            nargs="?" if truth else None,
            const="true" if truth else None,
            help=f"{flag.about}{shown}",
        )


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|newest|STEP",
        help="which weights (default: best, that of the best validation)",
    )


def _add_settings(parser: argparse.ArgumentParser, names: list[str]) -> None:
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in settings():
        if name not in names:
            continue
        section = name.partition(".")[0]
        if section not in groups:
            about = RunConfig.model_fields[section].description
            groups[section] = parser.add_argument_group(f"[{section}]", about)
        default = field.get_default()
        shown = ",".join(default) if isinstance(default, tuple) else json.dumps(default)
        shown = "" if default is None else f" (default: {shown.strip(chr(34))})"
        groups[section].add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            metavar=_metavar(field),
            help=f"{field.description}{shown}".replace("%", "%%"),
        )


def _metavar(field: FieldInfo) -> str:
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if kind is not None]
    literals = [kind for kind in kinds if isinstance(kind, str)]
    if literals:
        return "|".join(literals)
    if Ellipsis in kinds:
        return "NAME,..."
    for kind, name in ((bool, "true|false"), (float, "NUMBER"), (str, "TEXT"), (int, "INTEGER")):
        if kind in kinds or any(kind in get_args(k) for k in kinds if k is not NoneType):
            return name
    raise AssertionError(field)


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    return {name: value for name, value in vars(options).items() if "." in name}


def _preset_flags(options: argparse.Namespace) -> dict[str, str]:
    prefix = f"{rust_trainer.NAME}/"
    values = vars(options).items()
    return {name.removeprefix(prefix): v for name, v in values if name.startswith(prefix)}


def _train(options: argparse.Namespace) -> int:
    if options.preset is None:
        config = load_config(options.config, _overrides(options))
    else:
        flags = _preset_flags(options)
        config = rust_trainer.rust_trainer_config(options.config, flags, _overrides(options))
        if flags.get("resume") == "true" and not options.print_config:
            return _go_on(config, flags, options)
    if options.print_config:
        print(to_toml(config))
        return 0
    if config.run.dir is None:
        now = dt.datetime.now(tz=dt.UTC).strftime("%Y%m%d-%H%M%S")
        name = str(Path("runs") / f"{now}-{os.getpid()}")
        config = config.model_copy(update={"run": config.run.model_copy(update={"dir": name})})
    # "Save and go on": before there is something to save it must not end the process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from spherescan.train import start

    return _fit(start(config, require_lock=not options.no_lock), options)


def _go_on(config: RunConfig, flags: dict[str, str], options: argparse.Namespace) -> int:
    """Resume the run in --out-dir; the command may be the one that began it, with --resume."""
    if config.run.dir is None:
        raise ConfigError("--resume needs --out-dir, the folder of the run")
    usual = rust_trainer.rust_trainer_config(None, {})
    given = {rust_trainer.FLAGS[name].key for name in flags}
    changes = {}
    for key, _ in settings():
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        if key != "run.dir" and (key in given or value != getattr(getattr(usual, section), name)):
            changes[key] = value
    from spherescan.train import ResumeOptions, resume

    allowed = ResumeOptions(require_lock=not options.no_lock)
    return _fit(resume(Path(config.run.dir), changes, allowed), options)


def _resume(options: argparse.Namespace) -> int:
    checked = load_config(None, _overrides(options))
    changes = {
        name: getattr(getattr(checked, name.partition(".")[0]), name.partition(".")[2])
        for name in _overrides(options)
    }
    if options.rewind and options.step is None:
        raise ConfigError("--rewind needs --step, the checkpoint to go back to")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # see `_train`
    from spherescan.train import ResumeOptions, resume

    allowed = ResumeOptions(
        step=options.step,
        rewind=options.rewind,
        new_data=options.new_data,
        repair_metrics=options.repair_metrics,
        require_bitwise=options.require_bitwise,
        lock_wait=options.lock_wait,
        require_lock=not options.no_lock,
    )
    return _fit(resume(options.run, changes, allowed), options)


def _fork(options: argparse.Namespace) -> int:
    from spherescan.train import fork

    step = fork(options.run, options.new, step=options.step)
    print(f"{options.new}: a run of its own, at step {step} of {options.run}")
    print(f"go on with: spherescan resume {shlex.quote(str(options.new))}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.steps < 0:
        raise ConfigError(f"--steps is {options.steps}; it must be 0 or more")
    from spherescan.train import verify

    found = verify(options.run, steps=options.steps)
    facts: dict[str, Any] = {
        "run": str(options.run),
        "checkpoints": list(found.checkpoints),
        "metrics_lines": found.n_records,
        "trained_again": list(found.replayed),
        "damaged": list(found.problems),
    }
    _print_facts(facts, options)
    return CheckpointError.exit_code if found.problems else 0


def _fit(trainer: "Trainer", options: argparse.Namespace) -> int:
    from spherescan.train import score_text, stop_on_signals

    keep_freed_memory()
    silent = options.quiet or options.json
    say = _hush if silent else _say
    run, total = trainer.store.path, trainer.config.run.steps
    say(f"run {run}: {trainer.problem.summary}")
    began, first = time.perf_counter(), trainer.counters.step
    if trainer.config.run.precision == "bf16" and first < total and not silent:
        _say_if_bfloat16_is_slow()
    with stop_on_signals(options.grace_seconds) as signals:
        try:
            stopped = trainer.fit(reporter=_reporter(trainer, options), signals=signals)
        finally:
            trainer.close()
    counters = trainer.counters
    if options.json:
        result = {
            "run": str(run),
            "stopped": stopped,
            "step": counters.step,
            "best_step": counters.best_step,
            "best_score": counters.best_score,
            "best_loss": counters.best_loss,
        }
        print(_json(result))
    if stopped == "signal":
        name = signal.Signals(signals.signum or 0).name
        saved = "saved" if trainer.saved_step == counters.step else "not saved: no time was left"
        say(f"stopped by {name} at step {counters.step} of {total}; {saved}")
        say(f"go on with: spherescan resume {shlex.quote(str(run))}")
        return signals.exit_code
    if counters.step == first and stopped == "patience":
        say(
            f"the run ended at step {first}: validation had stopped improving; a larger "
            "--validation.patience goes on, 0 without end"
        )
        return 0
    if counters.step == first:
        say(f"nothing to do: the run is at step {first} of {total}; --run.steps may raise it")
        return 0
    seconds = time.perf_counter() - began
    reason = "no improvement" if stopped == "patience" else "finished"
    say(
        f"{reason}: step {counters.step} of {total}, "
        f"{counters.step - first} steps in {seconds:.1f} s"
    )
    if counters.best_step is not None and counters.best_score is not None:
        say(
            f"best validation at step {counters.best_step}: "
            f"{score_text(trainer.problem.objective.score_name, counters.best_score)}, "
            f"loss {counters.best_loss:.4f}"
        )
    folder = shlex.quote(str(run))
    say(f"next: spherescan evaluate {folder} DATA, spherescan predict {folder} DATA")
    return 0


def _say_if_bfloat16_is_slow() -> None:
    """Measure a product of each type, and tell if that is what a run in bf16 waits for."""
    from spherescan.ops.linear import bfloat16_cost

    if (cost := bfloat16_cost()) > _SLOW:
        _say(
            f"run.precision is bf16: matrix products take {cost:.1f} times as long as float32 on "
            "this processor; a new run with --run.precision fp32 should be faster"
        )


def _reporter(trainer: "Trainer", options: argparse.Namespace) -> "Reporter":
    from rich.console import Console

    from spherescan.train import Bar, Lines, Reporter

    # It has all that rich asks of a file. Without any stdout rich prints nothing.
    console = Console(file=sys.stdout and _Screen(sys.stdout))  # type: ignore[arg-type]
    total = trainer.config.run.steps
    if options.quiet or options.json:
        return Reporter()
    if console.is_terminal and not console.is_dumb_terminal:
        return Bar(console, total=total, done=trainer.counters.step)
    return Lines(_say, total=total, every=trainer.config.run.log_every)


def _which(options: argparse.Namespace) -> "Which":
    which: str = options.checkpoint
    match which:
        case "best" | "newest":
            return which
        case _ if which.isdecimal():
            return int(which)
    raise ConfigError(f"--checkpoint is {which!r}; give best, newest or a step")


def _load(options: argparse.Namespace) -> "Predictor":
    from spherescan.inference import Predictor

    return Predictor.load(options.run, which=_which(options))


def _evaluate(options: argparse.Namespace) -> int:
    predictor = _load(options)
    from spherescan.data import locate
    from spherescan.train import (
        build,
        evaluate,
        evaluation_batches,
        expect_same_data,
        objective_of,
        score_text,
    )

    config = parse_config(predictor.config)
    if options.data is None:
        problem, _ = build(config, place=False)
        expect_same_data(problem, config, predictor.fingerprint)
        batches = problem.validation()
    else:
        batches = evaluation_batches(
            locate(options.data),
            predictor.task,
            config,
            n_channels=predictor.description.n_channels,
            vocab_size=predictor.description.vocab_size,
        )
    moderate = predictor.moderate(batches)
    result = evaluate(predictor.model, moderate, objective_of(predictor.task, config))
    kind = "validation" if options.data is None else "test"
    names = predictor.task.class_names
    by_class = [row for row in zip(names, result.right, result.counts, strict=True) if row[2]]
    if options.json:
        values: dict[str, Any] = {
            "loss": result.loss,
            result.score_name: result.score,
            "n": result.n,
        }
        if by_class:
            values["recall"] = {name: right / n for name, right, n in by_class}
        print(_json({"data": options.data, "step": predictor.step, **values}))
        return 0
    print(f"weights of step {predictor.step} of {options.run}")
    for name, right, n in sorted(by_class, key=lambda row: row[1] / row[2])[:_FEW]:
        print(f"  recall {right / n:.3f} (n = {n}) of {_on_one_line(name)}")
    if len(by_class) > _FEW:
        print(f"  and no lower of {len(by_class) - _FEW} other classes; --json has all")
    unit = " nats per token" if predictor.task.kind == "next_token" else ""
    print(f"{kind} loss {result.loss:.4f}{unit}")
    print(f"{kind} {score_text(result.score_name, result.score, digits=3)} (n = {result.n})")
    return 0


def _predict(options: argparse.Namespace) -> int:
    if options.data in {"-", "/dev/stdin"}:
        raise ConfigError(
            f"got {options.data!r}; predict reads files, whose format their ending tells; samples "
            f"come by the standard input to spherescan stream {options.run} < SAMPLES"
        )
    predictor = _load(options)
    from spherescan.data import locate, open_tokens, read_series
    from spherescan.data.series import expect_channels
    from spherescan.inference import decide

    path = locate(options.data)
    names: tuple[str, ...] | None = None
    if predictor.task.kind == "next_token":
        settings_of_data = parse_config(predictor.config).data
        data = open_tokens(
            path,
            vocab_size=predictor.description.vocab_size,
            extension=settings_of_data.extension,
        )
        # What a window of training could see decides; a document may be far longer.
        seq_len = settings_of_data.seq_len
        sequences: Sequence[Any] = [
            data.read(max(start, stop - seq_len), stop) for start, stop in data.spans()
        ]
    else:
        table = read_series(path)
        n_channels = predictor.description.n_channels
        expect_channels(table, n_channels or 0, predictor.task.channel_names)
        sequences, names = table.series, table.case_names
    cosines = predictor.cosines(sequences)
    sure = predictor.confidences(cosines)
    for row, prediction in enumerate(decide(predictor.task, cosines)):
        value = prediction if isinstance(prediction, str) else prediction.item()
        case = {} if names is None else {"case": names[row]}
        if options.json:
            more = {} if sure is None else {"confidence": sure[row].item()}
            print(_json({"sequence": row, **case, "prediction": value, **more}))
        else:
            print(*map(_on_one_line, (*case.values(), value)), sep="\t")
    return 0


def _on_one_line(value: object) -> str:
    """Return a value as text of a table: no name in it breaks a line or talks to a terminal."""
    return "".join(ascii(char)[1:-1] if _controls(char) else char for char in str(value))


def _controls(char: str) -> bool:
    """Return whether a character ends a line, controls a terminal or turns the writing around."""
    kind, direction = unicodedata.category(char), unicodedata.bidirectional(char)
    return kind in {"Cc", "Zl", "Zp", "Cs"} or (kind == "Cf" and direction not in {"BN", "AL"})


def _report(options: argparse.Namespace) -> int:
    which = _which(options)
    from spherescan.report import page_of_run, page_path, write_page
    from spherescan.runs import RunStore

    RunStore.open(options.run).close()  # what is no run is told first
    path = page_path(options.run / "report.html" if options.out is None else options.out)
    page = page_of_run(options.run, data=options.data, unknown=options.unknown, which=which)
    write_page(page, path)
    print(path)
    return 0


def _stream(options: argparse.Namespace) -> int:
    if options.every < 1:
        raise ConfigError(f"--every is {options.every}; it must be at least 1")
    if options.data not in {None, "-"}:
        raise ConfigError(
            f"got {options.data!r}; samples come by the standard input, one per line, without "
            f"header or labels: spherescan stream {options.run} < SAMPLES"
        )
    _expect_folder("--save", options.save)
    predictor = _load(options)
    import torch

    from spherescan.runs import expect_replaceable

    if options.save is not None:
        expect_replaceable(user_path(options.save, error=CheckpointError))
    torch.set_num_threads(1)  # one sample is too little to share
    stream = predictor.stream()
    if options.restore is not None:
        stream.restore(options.restore)
    if sys.stdin is None:
        raise DataError("standard input is closed; pipe samples into it")
    touched = options.restore is not None
    with _interrupted_by(signal.SIGTERM, signal.SIGHUP):
        try:
            for text in _answers(stream, predictor, options):
                print(text, flush=True)
                touched = True
        except BaseException:
            # A signal, a line that is none, a reader that has gone: what was read is not lost.
            if touched or stream.n_steps > 0:
                try:
                    _save_stream(stream, options)
                except SpherescanError as error:
                    _complain(error, debug=options.debug)
            raise
        _save_stream(stream, options)
    return 0


def _answers(
    stream: "Stream", predictor: "Predictor", options: argparse.Namespace
) -> Iterator[str]:
    """Push the lines of the standard input, and yield what is to be printed."""
    from spherescan.data.formats.sample_lines import sample_lines, token_lines
    from spherescan.inference import answer_lines

    description, read_line = predictor.description, sys.stdin.buffer.readline
    goes_on = options.restore is not None  # then nothing may have come since
    lines: Iterable[Any] = (
        sample_lines(read_line, description.n_channels, may_be_none=goes_on)
        if description.n_channels is not None
        else token_lines(read_line, description.vocab_size or 0, may_be_none=goes_on)
    )
    sequence = 0
    for prediction in answer_lines(stream, lines, every=options.every):
        if prediction is not None:
            yield _line_of(prediction, sequence, predictor.task, options)
            continue
        sequence += 1
        if not options.json:
            yield ""


def _save_stream(stream: "Stream", options: argparse.Namespace) -> None:
    """Save where it is asked for; no signal comes between."""
    if options.save is None:
        return
    with _handled_by(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        stream.save(options.save)


class _Ended(BaseException):
    """A signal has come."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


@contextmanager
def _handled_by(handler: Any, *numbers: int) -> Iterator[None]:
    """Handle signals otherwise for a while; in another thread than the main one, not at all."""
    main_thread = threading.current_thread() is threading.main_thread()
    previous = {n: signal.signal(n, handler) for n in numbers} if main_thread else {}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _interrupted_by(*numbers: int) -> AbstractContextManager[None]:
    """Let signals end what is done within as Ctrl-C does: by an exception."""

    def leave(signum: int, _: object) -> NoReturn:
        raise _Ended(signum)

    return _handled_by(leave, *numbers)


def _expect_folder(flag: str, file: Path | None) -> None:
    """Check that a file can be made where one is asked for, before there is something to lose.

    Raises:
        ConfigError: It cannot.
    """
    if file is None:
        return
    folder = user_path(file).parent
    if not folder.is_dir():
        raise ConfigError(f"{flag} is {file}; its folder does not exist: make it first")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{flag} is {file}; its folder cannot be written: choose another")


def _line_of(
    prediction: "Prediction", sequence: int, task: "Task", options: argparse.Namespace
) -> str:
    if not options.json:
        confidence = prediction.confidence
        shown = [] if confidence is None else [f"{confidence:.4f}"]
        value = _on_one_line(prediction.value)
        return "\t".join([str(prediction.n_steps), value, *shown])
    facts: dict[str, Any] = {
        "sequence": sequence,
        "n_steps": prediction.n_steps,
        "prediction": prediction.value,
    }
    if prediction.confidence is not None:
        facts["confidence"] = prediction.confidence
    if task.class_names:
        cosines = prediction.cosines.tolist()
        facts["cosines"] = dict(zip(task.class_names, cosines, strict=True))
    return _json(facts)


def _import(options: argparse.Namespace) -> int:
    from spherescan.data import import_text

    imported = import_text(
        user_path(options.source, error=DataError),
        user_path(options.out, error=DataError),
        encoding=options.encoding,
        vocab_size=options.vocab_size,
        extensions=tuple(options.extension),
        excluded=tuple(options.exclude),
    )
    data = imported.data
    print(
        f"{options.out}: {data.n_tokens} tokens of {data.vocab_size} "
        f"from {len(data.documents)} documents"
    )
    if imported.n_empty or imported.n_links:
        print(f"left out: {imported.n_empty} empty files, {imported.n_links} symbolic links")
    out = shlex.quote(str(options.out))
    print(f"next: spherescan train --data.source tokens --data.train {out}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from spherescan.inspection import inspect

    _print_facts(inspect(options.file), options)
    return 0


def _bench(options: argparse.Namespace) -> int:
    if options.malloc == "keep":
        keep_freed_memory()
    import torch

    from spherescan.bench import SUITES, draw, to_json, to_table
    from spherescan.bench.measure import busy, environment
    from spherescan.bench.suites import Options, Result

    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        raise ConfigError(f"unknown suite {unknown[0]!r}; choose of {', '.join(SUITES)}")
    if options.threads < 1 or options.repeats < 1:
        raise ConfigError("--threads and --repeats must be at least 1")
    _expect_folder("--json", options.json)
    _expect_folder("--plot", options.plot)
    torch.set_num_threads(options.threads)
    facts = environment(malloc=options.malloc)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if load := busy():
        print(f"spherescan: {load}; the figures will be wrong", file=sys.stderr)
    how = Options(repeats=options.repeats, quick=options.quick)
    results: list[Result] = []
    for name in options.suites or SUITES:
        for result in SUITES[name](how):
            print(f"\n{to_table(result)}", flush=True)
            results.append(result)
    if options.json:
        user_path(options.json).write_text(to_json(facts, results), encoding="utf-8")
    if options.plot:
        draw(results, user_path(options.plot))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from spherescan.inspection import diagnose

    facts = diagnose()
    _print_facts(facts, options)
    return 0 if facts["self_check"] == "passed" else 1


def _print_facts(facts: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print(_json(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<{width}}  {_in_words(value)}")


def _in_words(value: Any) -> str:
    """Write a fact for people: a pair is the least and the greatest of something."""
    match value:
        case dict():
            return ", ".join(f"{name} ({count})" for name, count in value.items())
        case (low, high) if isinstance(value, tuple):
            return f"{_in_words(low)} to {_in_words(high)}"
        case list():
            words = [_in_words(item) if isinstance(item, tuple) else str(item) for item in value]
            return ("; " if any(" " in word for word in words) else ", ").join(words) or "none"
        case float():
            return f"{value:.6g}"
        case _:
            return str(value)

"""Local learning, backpropagation and their mixtures at equal time, and the memory of each.

    python experiments/local_learning.py [--seeds 5] [--sets ...] [--depths 4 8] [--modes ...]

Every mode gets the same processor seconds on one thread: a step of each is timed first, the modes
in turns, and the run gets as many steps as fit. So a run is a number of steps
with a schedule of that length, and its result does not depend on how busy the machine is. The
model of the last step is tested; nothing is selected by it. Learning rates were chosen on the
training split with --choose. Results are appended to --out as JSON lines; --table prints what is
there. --merging tells what part of a step merging two gradients takes.

The 1000 test samples of MNIST-1D tell models that err on eight of them apart by luck as much as by
merit. So a model is also tested on 20 000 samples that the same recipe draws with other seeds.

The memory is the peak of everything allocated during one step beyond what was there before, as
torch's profiler sees it, after a first step has made the optimiser's state.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mnist1d
import torch
from scipy.stats import t
from torch.profiler import ProfilerActivity, profile

from spherescan.config import RunConfig, load_config
from spherescan.inference import Predictor
from spherescan.runs import read_metrics
from spherescan.train import Trainer, hybrid_step, start
from spherescan.train.merge import Merger

SETTINGS = Path(__file__).parent.parent / "examples" / "japanese_vowels.toml"
AGGREGATORS = (
    "sum", "mean", "pcgrad", "cagrad", "mgda", "imtl_g", "upgrad", "aligned_mtl", "nash_mtl",
    "gradvac",
)  # fmt: skip
HEADS = {"local.loss": "prototype"}
KEEP, RECOMPUTE = {"run.recompute": "false"}, {"run.recompute": "true"}
CRATE = {
    "local.loss": "rust_trainer",
    "local.mode": "surgery",
    "local.lr": "1e-4",
    "surgery.aggregator": "rust_pcgrad",
}
MODES: dict[str, dict[str, str]] = {
    "backprop": {},
    "backprop, recompute": RECOMPUTE,
    "deep": HEADS | KEEP,
    "deep, recompute": HEADS | RECOMPUTE,
    "deep, groups of 2, recompute": HEADS | RECOMPUTE | {"local.group": "2"},
    "deep every 4th step, recompute": HEADS | RECOMPUTE | {"surgery.backprop_every": "4"},
    "detached": HEADS | {"local.mode": "detached"},
    "groups of 2": HEADS | {"local.mode": "grouped", "local.group": "2"},
    "groups of 4": HEADS | {"local.mode": "grouped", "local.group": "4"},
    "detached, cross-entropy": {"local.loss": "cross_entropy", "local.mode": "detached"},
    "goodness, wrong label": {"local.loss": "goodness", "local.mode": "detached"},
    "goodness, shuffled segments": {
        "local.loss": "goodness",
        "local.mode": "detached",
        "local.negatives": "shuffled_segments",
    },
    "goodness, time shift": {
        "local.loss": "goodness",
        "local.mode": "detached",
        "local.negatives": "time_shift",
    },
    "symmetric goodness, wrong label": {
        "local.loss": "symmetric_goodness",
        "local.mode": "detached",
    },
    **{
        f"surgery, {name}": HEADS | {"local.mode": "surgery", "surgery.aggregator": name}
        for name in AGGREGATORS
    },
    "surgery, gradnorm and sum": HEADS
    | {"local.mode": "surgery", "surgery.aggregator": "sum", "surgery.weighting": "gradnorm"},
    "crate, FF alone": {
        "local.loss": "rust_trainer",
        "local.mode": "detached",
        "local.lr": "1e-4",
        "local.update": "sgd",
    },
    "crate, FF and BP every 32nd, pcgrad": CRATE
    | {"surgery.backprop_every": "32", "local.update": "sgd"},
    "crate, FF and BP, pcgrad": CRATE,
    "crate, FF and BP, gradnorm": CRATE | {"surgery.aggregator": "rust_gradnorm"},
    "crate, FF and BP, cagradstep": CRATE | {"surgery.aggregator": "rust_cagradstep"},
}
# Seconds by depth, peak learning rate and settings of each set. In half of these seconds
# backpropagation is 0.3 (4 blocks) and 1.2 points (8) lower on MNIST-1D, see RESULTS.md.
SETS: dict[str, dict[str, object]] = {
    "JapaneseVowels": {"seconds": {4: 4.0, 8: 8.0}, "settings": {"optim.lr": "8e-3"}},
    "MNIST-1D": {
        "seconds": {4: 120.0, 8: 200.0},
        "settings": {"optim.lr": "8e-3", "data.batch_size": "32", "data.jitter": "0.1"},
    },
}

WIDE = range(1, 5)  # seeds of the draws of 5000 samples that no run is trained on


def files_of(name: str, folder: Path) -> tuple[str, str]:
    """Return training and test data of a set, made in a folder when it does not ship."""
    if name == "JapaneseVowels":
        return "sample:JapaneseVowels_TRAIN.ts", "sample:JapaneseVowels_TEST.ts"
    train, test = folder / "MNIST1D_TRAIN.ts", folder / "MNIST1D_TEST.ts"
    if not train.exists():
        data = mnist1d.load(varied_noise=False)
        mnist1d.write_ts(train, data.x_train, data.y_train)
        mnist1d.write_ts(test, data.x_test, data.y_test)
    return str(train), str(test)


def trainer_for(
    name: str, mode: str, *, depth: int, seed: int, steps: int, folder: Path, **more: str
) -> Trainer:
    """Begin a run that validates on the test split, at its end only."""
    train, test = files_of(name, folder)
    settings = SETS[name]["settings"]
    assert isinstance(settings, dict)
    config: RunConfig = load_config(
        SETTINGS,
        {
            "data.train": train,
            "data.validation": test,
            "model.n_layers": str(depth),
            "optim.warmup_steps": str(max(1, steps // 20)),
            "optim.min_lr_scale": "0.02",
            "run.steps": str(steps),
            "run.seed": str(seed),
            "run.dir": tempfile.mkdtemp(dir=folder) + "/run",
            "validation.every": str(steps),
            "checkpoint.every": str(steps),
            **settings,
            **MODES[mode],
            **{key.replace("__", "."): value for key, value in more.items()},
        },
    )
    return start(config)


def fits(mode: str, depth: int) -> bool:
    """Return whether some group of blocks would have a loss of its own."""
    return mode != "groups of 4" or depth > 4


def step_of(trainer: Trainer, number: int) -> None:
    """Take one step outside the run, at a small learning rate."""
    hybrid_step(
        trainer.model,
        next(trainer.problem.stream),
        trainer.problem.objective,
        trainer.optimizer,
        trainer.rule,
        trainer.mergers,
        step=number,
        lr=1e-5,
        local_lr=1e-5,
        grad_clip=1.0,
    )


def costs_of(
    name: str, modes: Iterable[str], *, depth: int, folder: Path
) -> dict[str, tuple[float, float]]:
    """Return processor seconds and peak megabytes of a step of each mode.

    Seconds are the mean over whole cycles of local and joint steps, the smallest of five rounds in
    which the modes take turns; the peak is that of a joint step where there is one.
    """
    trainers = {
        mode: trainer_for(name, mode, depth=depth, seed=0, steps=100, folder=folder)
        for mode in modes
    }
    seconds = dict.fromkeys(trainers, math.inf)
    for turn in range(6):
        for mode, trainer in trainers.items():
            trainer.model.train()
            cycle = trainer.rule.backprop_every
            steps = cycle * max(1, 12 // cycle)
            began = time.process_time()
            for number in range(steps):
                step_of(trainer, number)
            if turn > 0:
                seconds[mode] = min(seconds[mode], (time.process_time() - began) / steps)
    return {mode: (seconds[mode], peak_of(trainer)) for mode, trainer in trainers.items()}


def peak_of(trainer: Trainer) -> float:
    """Return the peak megabytes of a joint step, and end the run."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step_of(trainer, trainer.rule.backprop_every - 1)
    trainer.close()
    events = [
        event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 1e6


def run(
    name: str, mode: str, *, depth: int, seed: int, steps: int, folder: Path
) -> dict[str, object]:
    """Train once, and test every way of predicting that the model has."""
    trainer = trainer_for(name, mode, depth=depth, seed=seed, steps=steps, folder=folder)
    began = time.process_time()
    trainer.fit()
    seconds = time.process_time() - began
    result: dict[str, object] = {"seconds": seconds}
    result["last"] = trainer.evaluate(trainer.problem.validation()).score
    if trainer.model.local_heads and MODES[mode].get("local.loss") == "prototype":
        trainer.model.averaged = True
        result["mean"] = trainer.evaluate(trainer.problem.validation()).score
    trainer.close()
    if name == "MNIST-1D":
        result["wide"] = wide_score(trainer.store.path)
    if "surgery" in mode:
        result["meetings"] = meetings(trainer)
    return result


@functools.cache
def wide_test() -> tuple[list[Any], list[str]]:
    """Return series and digits of more MNIST-1D, of seeds that are not that of the runs."""
    draws = [mnist1d.load(seed, varied_noise=False) for seed in WIDE]
    series = [x[:, None] for draw in draws for x in (*draw.x_train, *draw.x_test)]
    return series, [str(y) for draw in draws for y in (*draw.y_train, *draw.y_test)]


def wide_score(run_dir: Path) -> float:
    """Return the accuracy of the model of the last step on many samples."""
    series, digits = wide_test()
    found = Predictor.load(run_dir, which="newest").predict(series)
    return sum(a == b for a, b in zip(found, digits, strict=True)) / len(digits)


def meetings(trainer: Trainer) -> list[list[float]]:
    """Return mean cosine and rate of conflict in the first 15 %, until 50 %, and after."""
    records = read_metrics(trainer.store.metrics_path)
    steps = [record["groups"] for record in records if record["kind"] == "train"]
    bounds = (0, 0.15, 0.5, 1)
    found = []
    for low, high in itertools.pairwise(round(bound * len(steps)) for bound in bounds):
        part = steps[low:high]
        cosines = [g["cosine"] for groups in part for g in groups if g["cosine"] is not None]
        rate = sum(cosine < 0 for cosine in cosines) / len(cosines)
        found.append([statistics.mean(cosines), rate])
    return found


def choose(name: str, *, folder: Path) -> None:
    """Print the accuracy of learning rates on a held-out fifth of the training split."""
    train = files_of(name, folder)[0]
    settings = SETS[name]["settings"]
    assert isinstance(settings, dict)
    for mode in ("backprop", "detached"):
        for rate in ("1e-3", "2e-3", "4e-3", "8e-3"):
            scores = []
            for seed in range(3):
                config = load_config(
                    SETTINGS,
                    {
                        "data.train": train,
                        "data.validation_fraction": "0.2",
                        "model.n_layers": "4",
                        "run.steps": "300",
                        "run.seed": str(seed),
                        "run.dir": tempfile.mkdtemp(dir=folder) + "/run",
                        "validation.every": "300",
                        "checkpoint.every": "300",
                        **settings,
                        **MODES[mode],
                        "optim.lr": rate,
                    },
                )
                trainer = start(config)
                trainer.fit()
                result = trainer.evaluate(trainer.problem.validation())
                scores.append((result.score, result.loss))
                trainer.close()
            accuracy, loss = (statistics.mean(column) for column in zip(*scores, strict=True))
            print(
                f"{name}, {mode}, lr {rate}: accuracy {accuracy:.4f}, loss {loss:.4f}", flush=True
            )


def merging(name: str, *, folder: Path) -> None:
    """Print the time of merging two gradients as a part of two steps: surgery's, and a plain one.

    The steps of both take turns, so that what else the machine does meets both.
    """
    spent = 0.0
    merge = Merger.__call__

    def timed(*arguments: Any, **more: Any) -> Any:
        nonlocal spent
        began = time.process_time()
        result = merge(*arguments, **more)
        spent += time.process_time() - began
        return result

    def ten_steps(trainer: Trainer) -> float:
        began = time.process_time()
        for number in range(10):
            step_of(trainer, number)
        return time.process_time() - began

    def training(mode: str) -> Trainer:
        trainer = trainer_for(name, mode, depth=4, seed=0, steps=200, folder=folder)
        trainer.model.train()
        return trainer

    for aggregator in AGGREGATORS:
        plain, surgery = training("backprop"), training(f"surgery, {aggregator}")
        turns = []
        with patch.object(Merger, "__call__", timed):
            for _ in range(8):
                spent = 0.0
                turns.append((ten_steps(plain) / 10, ten_steps(surgery) / 10, spent / 10))
        plain.close()
        surgery.close()
        of_plain = statistics.median(merged / step for step, _, merged in turns[1:])
        of_surgery = statistics.median(merged / step for _, step, merged in turns[1:])
        columns = zip(*turns[1:], strict=True)
        step, longer, merged = (1e3 * statistics.median(column) for column in columns)
        print(
            f"{name}, {aggregator}: {merged:.2f} ms, {of_surgery:.1%} of {longer:.0f} ms, "
            f"{of_plain:.1%} of {step:.0f} ms of plain backpropagation",
            flush=True,
        )


def table(records: Iterable[dict[str, Any]], *, against: str = "backprop") -> None:
    """Print mean and standard deviation over seeds, and the difference from one mode."""
    by_case: dict[tuple[str, int, str], dict[int, dict[str, Any]]] = {}
    for record in records:
        scale = record.get("scale", 1.0)
        mode = record["mode"] if scale == 1 else f"{record['mode']}, {scale:g} of the time"
        case = (record["set"], record["depth"], mode)
        by_case.setdefault(case, {})[record["seed"]] = record
    for name, depth in sorted({case[:2] for case in by_case}):
        base = by_case.get((name, depth, against), {})
        print(f"\n{name}, {depth} blocks\n")
        print(
            "| mode | n | ms a step | steps | s used | peak MB | of backprop | last head "
            f"| mean of heads | last - {against}, paired | one-sided 95 % |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        modes = [case[2] for case in by_case if case[:2] == (name, depth)]
        order = {mode: max(i for i, m in enumerate(MODES) if mode.startswith(m)) for mode in modes}
        modes.sort(key=order.__getitem__)
        for mode in modes:
            runs = by_case[name, depth, mode]
            some = next(iter(runs.values()))
            share = some["megabytes"] / next(iter(base.values()))["megabytes"] if base else 1.0
            last = spread([100 * run["last"] for run in runs.values()])
            mean = spread([100 * run["mean"] for run in runs.values() if "mean" in run])
            both = [100 * (runs[s]["last"] - base[s]["last"]) for s in runs.keys() & base.keys()]
            print(
                f"| {mode} | {len(runs)} | {1e3 * some['step_seconds']:.0f} | {some['steps']:.0f} "
                f"| {statistics.mean(run['seconds'] for run in runs.values()):.0f} "
                f"| {some['megabytes']:.1f} | {share:.0%} | {last} | {mean} "
                f"| {spread(both) if mode != against else ''} "
                f"| {bound(both) if mode != against else ''} |"
            )
        wide_table({mode: by_case[name, depth, mode] for mode in modes})
        for mode in MODES:
            found = [
                run["meetings"]
                for run in by_case.get((name, depth, mode), {}).values()
                if "meetings" in run
            ]
            if mode == "surgery, sum" and found:
                parts = [
                    [statistics.mean(run[i][j] for run in found) for j in range(2)]
                    for i in range(3)
                ]
                text = ", ".join(f"{cosine:.2f} / {rate:.0%}" for cosine, rate in parts)
                print(f"\ncosine / conflicts over 0-15 %, 15-50 %, 50-100 % of the run: {text}")


def wide_table(runs_of: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Print the accuracies on many samples, each against backpropagation of the same time."""
    wide = {
        mode: {seed: 100 * run["wide"] for seed, run in runs.items() if "wide" in run}
        for mode, runs in runs_of.items()
    }
    if not any(wide.values()):
        return
    some = {mode: next(iter(runs.values())) for mode, runs in runs_of.items()}
    scales = {mode: record.get("scale", 1.0) for mode, record in some.items()}
    backprop = {scales[mode]: wide[mode] for mode in wide if some[mode]["mode"] == "backprop"}
    print(f"\n| mode | n | on {5000 * len(WIDE)} samples | - backprop, paired | one-sided 95 % |")
    print("|---|---|---|---|---|")
    for mode, scores in wide.items():
        if not scores:
            continue
        same = backprop.get(scales[mode], {})
        both = [scores[seed] - same[seed] for seed in scores.keys() & same.keys()]
        mine = some[mode]["mode"] == "backprop"
        print(
            f"| {mode} | {len(scores)} | {spread(list(scores.values()))} "
            f"| {'' if mine else spread(both)} | {'' if mine else bound(both)} |"
        )


def spread(values: list[float]) -> str:
    """Write mean and standard deviation."""
    if not values:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} +- {deviation:.2f}"


def bound(values: list[float]) -> str:
    """Write what the mean is above with 95 % confidence, by Student's distribution."""
    if len(values) < 2:
        return ""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"> {statistics.mean(values) - error * t.ppf(0.95, len(values) - 1):.2f}"


def main() -> None:
    """Run what is missing in --out, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--depths", nargs="*", type=int, default=[4, 8])
    parser.add_argument("--modes", nargs="*", default=list(MODES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the seconds of each run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "local_learning.jsonl")
    parser.add_argument("--table", action="store_true", help="print what is there and stop")
    parser.add_argument("--merging", action="store_true", help="time merging and stop")
    parser.add_argument("--against", default="backprop", help="the mode that others differ from")
    parser.add_argument("--choose", action="store_true", help="compare learning rates and stop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    records = [json.loads(line) for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        if options.choose:
            for name in options.sets:
                choose(name, folder=Path(folder))
            return
        if options.merging:
            for name in options.sets:
                merging(name, folder=Path(folder))
            return
        if not options.table:
            complete(records, options, folder=Path(folder))
    print(f"torch {torch.__version__}, 1 thread")
    table(records, against=options.against)


def complete(records: list[dict[str, Any]], options: argparse.Namespace, *, folder: Path) -> None:
    """Run what is missing, and write each run down when it has ended."""
    done = {(r["set"], r["depth"], r["mode"], r["seed"], r.get("scale", 1.0)) for r in records}
    # Of this scale alone: steps that were timed together stay together.
    costs: dict[tuple[str, int, str], tuple[float, float]] = {
        (r["set"], r["depth"], r["mode"]): (r["step_seconds"], r["megabytes"])
        for r in records
        if r.get("scale", 1.0) == options.scale
    }
    cases = itertools.product(range(options.seeds), options.sets, options.depths, options.modes)
    for seed, name, depth, mode in cases:
        if (name, depth, mode, seed, options.scale) in done or not fits(mode, depth):
            continue
        if (name, depth, mode) not in costs:
            modes = [each for each in {"backprop", *options.modes} if fits(each, depth)]
            found = costs_of(name, modes, depth=depth, folder=folder)
            pace = costs.get((name, depth, "backprop"), found["backprop"])[0] / found["backprop"][0]
            for mode_, (seconds, peak) in found.items():
                costs.setdefault((name, depth, mode_), (seconds * pace, peak))
        step_seconds, megabytes = costs[name, depth, mode]
        budget = SETS[name]["seconds"]
        assert isinstance(budget, dict)
        steps = max(1, round(options.scale * budget[depth] / step_seconds))
        result = run(name, mode, depth=depth, seed=seed, steps=steps, folder=folder)
        record = {
            "set": name, "depth": depth, "mode": mode, "seed": seed, "steps": steps,
            "step_seconds": step_seconds, "megabytes": megabytes, "scale": options.scale, **result,
        }  # fmt: skip
        records.append(record)
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(
            f"{name} {depth} {mode} seed {seed}: {steps} steps, last {result['last']:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What another program on the same cores costs: alone and beside one that never rests.

    python benchmarks/busy.py [--repeats 3]

The other program has a session of its own, as those of other users have: the scheduler of Linux
shares cores between sessions. Medians in turns, seconds of the clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_FIT = """
import sys, time, torch
from spherescan.data import locate, read_series
from spherescan.estimators import SequenceClassifier
table = read_series(locate("sample:JapaneseVowels_TRAIN.ts"))
X = [series.T for series in table.series]
made = SequenceClassifier(random_state=0).fit(X, table.labels)
began = time.perf_counter()
if sys.argv[1] == "fit":
    SequenceClassifier(random_state=0).fit(X, table.labels)
else:
    made.predict_open(X[:1])
print(time.perf_counter() - began)
"""
_TRAIN = """
import sys, tempfile, time
from spherescan.cli import main
data = ["--data.train", "sample:JapaneseVowels_TRAIN.ts"]
with tempfile.TemporaryDirectory() as folder:
    run = ["--quiet", "--run.steps", "50", "--run.dir", f"{folder}/run"]
    began = time.perf_counter()
    main(["train", *data, *run, *sys.argv[1:]])
    print(time.perf_counter() - began)
"""
_SPINS_OF_TORCH = {"GOMP_SPINCOUNT": "300000"}  # what GNU's OpenMP has by itself
ROWS: dict[str, tuple[str, list[str], dict[str, str]]] = {
    "`SequenceClassifier().fit`, 270 series": (_FIT, ["fit"], {}),
    "one answer": (_FIT, ["predict"], {}),
    "`spherescan train`, 50 steps, torch's waiting": (_TRAIN, [], _SPINS_OF_TORCH),
    "`spherescan train`, 50 steps": (_TRAIN, [], {}),
    "`spherescan train`, 50 steps, `--run.threads 1`": (_TRAIN, ["--run.threads", "1"], {}),
}


@contextmanager
def another_program() -> Iterator[None]:
    """Keep a core busy for a while."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    time.sleep(0.5)
    try:
        yield
    finally:
        other.kill()
        other.wait()


def seconds(program: str, arguments: list[str], environment: dict[str, str]) -> float:
    """Return what a program prints last."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ROWS}
    for _ in range(options.repeats):
        for name, row in ROWS.items():
            alone, beside = found[name]
            alone.append(seconds(*row))
            with another_program():
                beside.append(seconds(*row))
    print(f"| {os.cpu_count()} cores | alone s | beside a busy program s | times |")
    print("|---|---|---|---|")
    for name, times in found.items():
        alone, beside = (statistics.median(each) for each in times)
        print(f"| {name} | {alone:.3g} | {beside:.3g} | {beside / alone:.1f} |")


if __name__ == "__main__":
    main()

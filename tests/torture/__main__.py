"""Run the torture: `python -m tests.torture [ROW ...] [--tier ci|full|release] [--seed N]`.

Prints one line per row: name, result, count, seed, seconds, and what was measured. Everything
random follows from the seed. The exit code is 1 when anything failed.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.torture.faults import is_preloaded, preloaded_environment

TIERS = ("ci", "full", "release")
MEMORY = Path("/dev/shm")  # where an fsync costs nothing


def main() -> int:
    """Start this program under the library, or run the rows when it is."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", allow_abbrev=False)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="such as T1; all when missing")
    parser.add_argument("--tier", choices=TIERS, default="full", help="how many attempts")
    parser.add_argument("--count", type=int, help="attempts of each row, instead of the tier's")
    parser.add_argument("--seed", type=int, help="of everything random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--show", type=int, default=10, help="failures to print")
    parser.add_argument("--list", action="store_true", help="print the rows")
    options = parser.parse_args()
    if options.list:
        from tests.torture.rows import ROWS

        for name, row in ROWS.items():
            print(f"{name:<4} {row.about} {row.counts}")
        return 0
    if is_preloaded():
        return _run(options)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        environment = preloaded_environment(Path(folder))
        command = [sys.executable, "-m", "tests.torture", *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


def _run(options: argparse.Namespace) -> int:
    from tests.torture.faults import Faults
    from tests.torture.report import Report
    from tests.torture.rows import ROWS

    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        print(f"unknown row {unknown[0]}; choose of {', '.join(ROWS)}", file=sys.stderr)
        return 2
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    results = []
    for name in options.rows or ROWS:
        row = ROWS[name]
        count = options.count or row.counts[TIERS.index(options.tier)]
        report, began = Report(), time.monotonic()
        place = MEMORY if row.in_memory and MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix=f"torture-{name}-", dir=place) as folder:
            root = Path(folder).resolve()
            (root / "box").mkdir()
            try:
                row.run(root, Faults(root / "box"), report, count=count, seed=seed)
            except Exception:  # noqa: BLE001 - the other rows still run
                report.failures.append(traceback.format_exc())
        seconds = round(time.monotonic() - began, 1)
        result = "FAILED" if report.failures else "ok"
        print(
            f"{name:<4} {result:<6} {row.about}: {report.count}, seed {seed}, {seconds} s",
            flush=True,
        )
        for fact, value in report.facts.items():
            print(f"       {fact}: {value}", flush=True)
        for failure in report.failures[: options.show]:
            print(f"       FAILED: {failure}", flush=True)
        if len(report.failures) > options.show:
            print(f"       and {len(report.failures) - options.show} more", flush=True)
        results.append(
            {
                "row": name,
                "about": row.about,
                "count": report.count,
                "seed": seed,
                "seconds": seconds,
                "failures": report.failures,
                "facts": report.facts,
            }
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(result["failures"] for result in results))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

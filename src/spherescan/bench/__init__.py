"""Speed and memory against others, measured in one interleaved run."""

from spherescan.bench.report import draw, to_json, to_table
from spherescan.bench.suites import SUITES, Result

__all__ = ["SUITES", "Result", "draw", "to_json", "to_table"]

"""What a run must survive: kills, faults, loss of power, damaged files, strangers' input.

`python -m tests.torture` runs all of it and prints one line per test; see `__main__`.
"""

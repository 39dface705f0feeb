"""Write the corpus of the fuzzer: `python -m tests.torture.make_corpus [COUNT [SEED]]`.

Keeps the smallest input of each behaviour, so that the same ones are tried first in every run.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from tests.torture.fuzz import CORPUS
from tests.torture.fuzz_rows import save_corpus


def main(count: int = 20_000, seed: int = 0) -> None:
    """Replace the corpus."""
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / "corpus"
        save_corpus(Path(folder), new, count=count, seed=seed)
        shutil.rmtree(CORPUS, ignore_errors=True)
        shutil.copytree(new, CORPUS)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

from pathlib import Path

import pytest

from tests.train.test_training import trainer_for, write_series


@pytest.fixture
def series(tmp_path) -> Path:
    return write_series(tmp_path / "train.ts")


@pytest.fixture
def run(tmp_path, series) -> Path:
    """A finished run with checkpoints of steps 8 and 12, among others, and of its best."""
    trainer = trainer_for(tmp_path, data__train=series, checkpoint__keep=4)
    trainer.fit()
    trainer.close()
    return tmp_path / "run"

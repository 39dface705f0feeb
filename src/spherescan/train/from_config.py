"""A whole run in one call."""

from pathlib import Path

from spherescan.config import load_config, load_tree, rust_trainer
from spherescan.train.build import start


def train_from_config(
    config_path: Path, output_dir: Path, *, steps: int, seed: int, base: str | Path | None
) -> Path:
    """Train; see `spherescan.train_from_config`."""
    overrides = {"run.dir": str(output_dir), "run.steps": str(steps), "run.seed": str(seed)}
    if base is not None:
        overrides["grow.base"] = str(base)
    if rust_trainer.is_theirs(load_tree(config_path)):
        config = rust_trainer.rust_trainer_config(config_path, {}, overrides)
    else:
        config = load_config(config_path, overrides)
    trainer = start(config)
    try:
        trainer.fit()
        return trainer.store.checkpoint_path(trainer.counters.step)
    finally:
        trainer.close()

"""Train selective state-space models whose classes are points on a hypersphere, on CPUs."""

import importlib
from pathlib import Path

__version__ = "0.1.0"


def train_from_config(
    config_path: str | Path,
    output_dir: str | Path,
    steps: int,
    seed: int,
    base_ckpt: str | Path | None = None,
) -> Path:
    """Train as a configuration file says, and return the newest checkpoint.

    The same call as in rust_trainer 0.1.4, whose configuration files it reads beside ours.

    Args:
        config_path: Configuration file: .toml, .json or .yaml.
        output_dir: A new folder for the run.
        steps: Training steps.
        seed: Seed of everything random.
        base_ckpt: Run or checkpoint whose weights the model starts with, before it grows.

    Raises:
        ConfigError: A setting that is unknown, of the wrong type or out of range.
        DataError: Data that cannot be used.
        CheckpointError: A base that is damaged or of another model.
        RunDirectoryError: `output_dir` holds something already.
        NonFiniteError: A loss or gradient was not finite and the configuration says to stop.
        StorageError: The disk refused.
    """
    # By name, because importing the package must not load torch, and this file is below all rooms.
    room = importlib.import_module("spherescan.train.from_config")
    checkpoint: Path = room.train_from_config(
        Path(config_path), Path(output_dir), steps=steps, seed=seed, base=base_ckpt
    )
    return checkpoint

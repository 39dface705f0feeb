"""The configuration of a run: strict, and without torch, so that help and mistakes answer at once.

Precedence: defaults < file < flags.
"""

from spherescan.config import rust_trainer
from spherescan.config.reading import (
    load_config,
    load_tree,
    nearest,
    parse_config,
    settings,
    to_flags,
    to_toml,
)
from spherescan.config.sections import CHANGEABLE, DataConfig, RunConfig

__all__ = [
    "CHANGEABLE",
    "DataConfig",
    "RunConfig",
    "load_config",
    "load_tree",
    "nearest",
    "parse_config",
    "rust_trainer",
    "settings",
    "to_flags",
    "to_toml",
]

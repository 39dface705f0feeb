"""The errors a caller can act on, and the exit code each one becomes on the command line.

A message is one line: what, got, wanted, and the way out.
"""


class SpherescanError(Exception):
    """The root of the errors below; never raised itself."""

    exit_code: int = 1


class ConfigError(SpherescanError, ValueError):
    """A configuration or command line that cannot be understood."""

    exit_code = 2


class DataError(SpherescanError, ValueError):
    """Data that is missing, damaged, or not what the model or configuration expects."""

    exit_code = 3


class CheckpointError(SpherescanError, ValueError):
    """A checkpoint that is damaged, from a newer schema, or of another model."""

    exit_code = 4


class DamagedError(CheckpointError):
    """A checkpoint whose bytes are not those that were written; an earlier one may do."""


class RunDirectoryError(SpherescanError, OSError):
    """A run directory that cannot be used: it holds a run already, or none at all."""

    exit_code = 4


class LockedError(SpherescanError, OSError):
    """A run that another process is writing."""

    exit_code = 5


class NonFiniteError(SpherescanError, ArithmeticError):
    """A loss or gradient that is not a finite number; nothing was updated or saved."""

    exit_code = 6


class StorageError(SpherescanError, OSError):
    """The disk refused a write; the checkpoints committed before it are intact."""

    exit_code = 7

"""From a configuration to a trainer."""

from collections.abc import Mapping
from pathlib import Path

import torch

from spherescan.config import CHANGEABLE, RunConfig, parse_config, to_toml
from spherescan.data.order import derived_seed
from spherescan.errors import CheckpointError, ConfigError, SpherescanError, StorageError
from spherescan.nn import ModelDescription, SequenceModel, SeriesEmbedding
from spherescan.ops.form import selected_form
from spherescan.runs import RunLock, RunStore
from spherescan.train.depth import grow, load_base, read_base
from spherescan.train.problem import Problem, expect_same_data, open_problem, with_layers
from spherescan.train.trainer import Trainer


def start(config: RunConfig) -> Trainer:
    """Open the data, build the model, then make the folder of the run with its first checkpoint.

    Args:
        config: The whole configuration; `run.dir` must be set. `run.threads`, when set, becomes
            the thread count of torch for the whole process, and `run.precision` sets how torch
            multiplies float32 matrices.

    Raises:
        ConfigError: A setting that does not fit the data.
        DataError: Data that cannot be used.
        RunDirectoryError: `run.dir` holds something already.
        StorageError: The disk refused. In all of these cases nothing is left behind.
    """
    if config.run.dir is None:
        raise ConfigError("run.dir is missing; name a new folder for the run")
    _prepare_torch(config)
    problem, model = build(config)
    store = RunStore.create(Path(config.run.dir).expanduser())
    lock = RunLock(store.lock_path)
    try:
        (store.path / "config.toml").write_text(to_toml(config), encoding="utf-8")
        trainer = Trainer(config, problem, model, store, lock)
        trainer.save()
    except OSError as error:
        lock.close()
        store.discard()
        if isinstance(error, SpherescanError):
            raise
        raise StorageError(f"{store.path}: cannot be written: {error.strerror}") from error
    return trainer


def resume(run_dir: Path, changes: Mapping[str, object] | None = None) -> Trainer:
    """Go on with a run from its newest checkpoint.

    The configuration comes from the checkpoint.

    Args:
        run_dir: Folder of the run.
        changes: New values by dotted key, for the settings in `config.CHANGEABLE`.

    Raises:
        ConfigError: A change of a setting that defines the run.
        CheckpointError: A checkpoint that is damaged, or of another run or model.
        DataError: The data is not what it was.
        LockedError: Another process is writing the run.
        RunDirectoryError: There is no run.
    """
    store = RunStore.open(run_dir)
    # Before anything is read: another process may be about to write a newer checkpoint.
    lock = RunLock(store.lock_path)
    try:
        return _restored(store, lock, changes or {})
    except BaseException:
        lock.close()
        raise


def _restored(store: RunStore, lock: RunLock, changes: Mapping[str, object]) -> Trainer:
    checkpoint = store.load()
    config = _changed(checkpoint.state["config"], changes)
    _prepare_torch(config)
    done = checkpoint.state["counters"]["step"]
    problem, model = build(config, step=done, place=False)
    expect_same_data(problem, config, checkpoint.state["fingerprint"])
    if config.run.steps < done:
        raise ConfigError(f"run.steps is {config.run.steps}; the run is at step {done} already")
    description = with_layers(problem.description, config, config.n_layers_at(done))
    try:
        saved = ModelDescription.from_json(checkpoint.state["model"])
    except ValueError as error:
        raise CheckpointError(f"the checkpoint is of another version: {error}") from error
    if description != saved:
        raise CheckpointError(
            f"{store.checkpoint_path(checkpoint.state['step'])}: is of another "
            "model than its configuration"
        )
    trainer = Trainer(config, problem, model, store, lock, step=done)
    try:
        trainer.restore(checkpoint)
    except BaseException:
        trainer.close()
        raise
    return trainer


def build(config: RunConfig, *, step: int = 0, place: bool = True) -> tuple[Problem, SequenceModel]:
    """Open the data and build the model with fresh weights.

    Args:
        config: The whole configuration.
        step: Steps done: the model has the blocks that it has grown by then.
        place: Whether weights matter: otherwise saved ones are about to be loaded, and neither
            prototypes are separated nor those of `grow.base` read.

    Raises:
        ConfigError: A setting that does not fit the data.
        DataError: Data that cannot be used.
        CheckpointError: Weights of `grow.base` that are damaged or of another model.
        RunDirectoryError: There is no `grow.base`.
    """
    selected_form()  # a wrong SPHERESCAN_OPS is found before anything is made
    base = read_base(Path(config.grow.base).expanduser()) if config.grow.base and place else None
    problem, mean_std = open_problem(config)
    seed = derived_seed(config.run.seed, "weights")
    description = problem.description
    if not place:
        description = with_layers(description, config, config.n_layers_at(step))
    try:
        generator = torch.Generator().manual_seed(seed)
        model = description.build(generator=generator, place=place and base is None)
    except (ValueError, RuntimeError, MemoryError) as error:
        # torch reports a model that does not fit into memory as a RuntimeError.
        raise ConfigError(f"the model cannot be built: {error}") from error
    if mean_std is not None:
        assert isinstance(model.embedding, SeriesEmbedding)
        model.embedding.set_statistics(*mean_std)
    if base is not None:
        load_base(model, base, Path(str(config.grow.base)), local_loss=config.local.loss)
    if place and config.grow.layers is not None and config.grow.at_step == 0:
        grow(model, config)
    model.recompute = config.run.recompute
    return problem, model


def _changed(saved: dict[str, object], changes: Mapping[str, object]) -> RunConfig:
    tree = {section: dict(values) for section, values in saved.items() if isinstance(values, dict)}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if key not in CHANGEABLE and tree[section][name] != value:
            raise ConfigError(
                f"{key} defines the run and cannot change; start a new run, or change only "
                f"{', '.join(CHANGEABLE)}"
            )
        tree[section][name] = value
    return parse_config(tree)


def _prepare_torch(config: RunConfig) -> None:
    """Set what torch keeps for the whole process: threads, and how it multiplies matrices."""
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    torch.set_float32_matmul_precision("medium" if config.run.precision == "medium" else "highest")

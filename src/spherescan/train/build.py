"""From a configuration to a trainer."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spherescan.allocator import memory_bytes
from spherescan.config import CHANGEABLE, RunConfig, parse_config, to_toml
from spherescan.data import locate
from spherescan.data.order import derived_seed
from spherescan.errors import CheckpointError, ConfigError, DataError
from spherescan.nn import ModelDescription, SequenceModel, SeriesEmbedding
from spherescan.ops.form import selected_form
from spherescan.paths import user_path
from spherescan.runs import Checkpoint, LogPosition, MetricsLog, RunStore
from spherescan.train.depth import grow, load_base, read_base
from spherescan.train.environment import (
    differences,
    environment,
    expect_one_process,
    seed_generators,
)
from spherescan.train.problem import Problem, expect_same_data, open_problem, with_layers
from spherescan.train.trainer import NO_VALIDATION, Trainer


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """What a resumed run may do that it does not do by itself.

    Attributes:
        step: The checkpoint to go on from; the newest whole one when missing.
        rewind: Whether newer checkpoints than that may be set aside.
        new_data: Whether other data than before is welcome; it is read from its beginning.
        repair_metrics: Whether a log that does not fit the checkpoint may be set aside.
        require_bitwise: Whether to refuse an environment in which the last bits may differ.
        lock_wait: Seconds to wait for another process that is writing the run.
        require_lock: Whether to refuse a file system without locks.
    """

    step: int | None = None
    rewind: bool = False
    new_data: bool = False
    repair_metrics: bool = False
    require_bitwise: bool = False
    lock_wait: float = 0.0
    require_lock: bool = True


def start(config: RunConfig, *, require_lock: bool = True) -> Trainer:
    """Open the data, build the model, then make the folder of the run with its first checkpoint.

    Args:
        config: The whole configuration; `run.dir` must be set. For the whole process, `run.threads`
            when set becomes the thread count of torch, `run.precision` sets how torch multiplies
            float32 matrices, torch computes deterministically, and the global generators are
            seeded.
        require_lock: Whether to refuse a file system without locks.

    Raises:
        ConfigError: A setting that does not fit the data.
        DataError: Data that cannot be used.
        RunDirectoryError: `run.dir` holds something already.
        LockedError: Another process is beginning a run there.
        StorageError: The disk refused. In all of these cases nothing is left behind.
    """
    expect_one_process()
    if config.run.dir is None:
        raise ConfigError("run.dir is missing; name a new folder for the run")
    _prepare_torch(config, threads=config.run.threads)
    problem, model = build(config)
    path = user_path(config.run.dir)
    store = RunStore.create(path, required_lock=require_lock)
    try:
        trainer = Trainer(config, problem, model, store)
        seed_generators(config.run.seed)
        trainer.save()
        parent = None if config.grow.base is None else {"base": config.grow.base}
        store.announce(to_toml(config), parent=parent)
        store.event("start", environment=environment(), data=problem.summary)
    except BaseException:
        store.discard()
        raise
    return trainer


def resume(
    run_dir: Path,
    changes: Mapping[str, object] | None = None,
    options: ResumeOptions | None = None,
) -> Trainer:
    """Go on with a run from its newest whole checkpoint; damaged ones are set aside.

    The configuration comes from the checkpoint.

    Args:
        run_dir: Folder of the run.
        changes: New values by dotted key, for the settings in `config.CHANGEABLE`.
        options: What else is allowed.

    Raises:
        ConfigError: A change of a setting that defines the run.
        CheckpointError: No checkpoint can be used, or one is of another run or model.
        DataError: The data is not what it was.
        LockedError: Another process is writing the run.
        RunDirectoryError: There is no run, or its metrics are not those of the checkpoint.
        StorageError: The disk refused.
    """
    expect_one_process()
    options = options or ResumeOptions()
    store = RunStore.open(run_dir)
    try:
        # Before anything is read: another process may be about to write a newer checkpoint.
        store.lock(wait=options.lock_wait, required=options.require_lock)
        return _restored(store, changes or {}, options)
    except BaseException:
        store.close()
        raise


def _built_again(config: RunConfig, *, step: int) -> tuple[Problem, SequenceModel]:
    try:
        return build(config, step=step, place=False)
    except DataError as error:
        if config.data.train is None or locate(config.data.train).exists():
            raise
        raise DataError(f"{error}; --data.train says where data has moved to") from error


def _restored(store: RunStore, changes: Mapping[str, object], options: ResumeOptions) -> Trainer:
    checkpoint = store.recover(_step_to_take(store, options))
    config, changed = _changed(checkpoint.state["config"], changes)
    done = checkpoint.state["counters"]["step"]
    if config.run.steps < done:
        raise ConfigError(f"run.steps is {config.run.steps}; the run is at step {done} already")
    saved_environment = checkpoint.state["environment"]
    # As many threads as before, so that the same bits come out, unless others are asked for.
    before = None if saved_environment is None else saved_environment["threads"]
    _prepare_torch(config, threads=config.run.threads or before)
    other = differences(saved_environment)
    if other and options.require_bitwise:
        raise ConfigError(
            f"{store.path}: the last bits may differ here: {_list(other)}; go back to that "
            "environment, or leave --require-bitwise out"
        )
    problem, model = _built_again(config, step=done)
    if not options.new_data:
        expect_same_data(problem, config, checkpoint.state["fingerprint"])
    elif problem.fingerprint != checkpoint.state["fingerprint"]:
        _expect_same_classes(problem, config, checkpoint)
        checkpoint.state["data"] = problem.stream.state_dict()
        # Those are places in the data before.
        checkpoint.state["guard"]["left_out"] = []
        if not _same_validation(problem.fingerprint, checkpoint.state["fingerprint"]):
            checkpoint.state["counters"] |= NO_VALIDATION
    description = with_layers(problem.description, config, config.n_layers_at(done))
    _expect_same_model(description, checkpoint, store.checkpoint_path(done))
    if options.repair_metrics:
        store.repair_metrics(checkpoint)
    trainer = Trainer(config, problem, model, store, step=done)
    try:
        trainer.restore(checkpoint)
    except BaseException:
        trainer.close()
        raise
    store.show_best(trainer.counters.best_step)
    for key, (old, new) in changed.items():
        store.event("change", step=done, key=key, before=old, after=new)
    if problem.fingerprint != checkpoint.state["fingerprint"]:
        data = [checkpoint.state["fingerprint"], problem.fingerprint]
        store.event("change", step=done, key="data", before=data[0], after=data[1])
    store.event("resume", step=done, digest=checkpoint.digest, bitwise=not other, differences=other)
    return trainer


def _same_validation(here: str, there: str) -> bool:
    """Return whether scores compare: validation data has a file of its own, which is the same."""
    (_, *own), (_, *before) = here.split("/"), there.split("/")
    return bool(own) and own == before


def _step_to_take(store: RunStore, options: ResumeOptions) -> int | None:
    """Return the step that was asked for, if it may be taken."""
    if options.step is None:
        return None
    steps = store.steps()
    if options.step not in steps:
        raise CheckpointError(f"{store.path}: has no checkpoint of step {options.step}: {steps}")
    if options.step < steps[-1] and not options.rewind:
        raise ConfigError(
            f"{store.path}: has newer checkpoints than that of step {options.step}, up to "
            f"{steps[-1]}; set them aside with --rewind, or leave them alone with `spherescan fork`"
        )
    return options.step


def _expect_same_model(description: ModelDescription, checkpoint: Checkpoint, path: Path) -> None:
    """Compare what the configuration describes with what was saved, field by field."""
    try:
        saved = ModelDescription.from_json(checkpoint.state["model"])
    except ValueError as error:
        raise CheckpointError(f"{path}: is of another version: {error}") from error
    here, there = description.to_json(), saved.to_json()
    other = {name: [there[name], here[name]] for name in here if here[name] != there[name]}
    if other:
        raise CheckpointError(
            f"{path}: is of another model than its configuration: {_list(other)}; restore the file"
        )


def _expect_same_classes(problem: Problem, config: RunConfig, checkpoint: Checkpoint) -> None:
    """Check that what the model learned to tell apart is called the same in other data."""
    if other := _other_task(problem, checkpoint):
        raise DataError(
            f"{config.data.train}: is of another task than the run: {_list(other)}; start a new run"
        )


def _expect_base_of_same_task(problem: Problem, base: Checkpoint, path: Path) -> None:
    """Check that prototypes and channels of a base mean what they do in the data.

    Raises:
        CheckpointError: They have other names, or another order.
    """
    other = _other_task(problem, base)
    if not all(other.get("channel_names", ())):
        del other["channel_names"]  # one of the two has no names to compare
    if other:
        raise CheckpointError(
            f"{path}: learned another task than that of the data: {_list(other)}; give classes and "
            "channels the names and the order they have there, or leave grow.base out"
        )


def _other_task(problem: Problem, checkpoint: Checkpoint) -> dict[str, list[object]]:
    """Return where the task of a checkpoint is not that of the data, each as there and here."""
    saved, here = checkpoint.state["task"], problem.objective.task.to_json()
    return {
        name: [saved.get(name), here[name]]
        for name in ("kind", "class_names", "channel_names")
        if saved.get(name) != here[name]
    }


def _list(other: Mapping[str, Sequence[object]]) -> str:
    return ", ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in other.items())


def fork(run_dir: Path, new_dir: Path, *, step: int | None = None) -> int:
    """Begin a new run with a checkpoint of another; the other one stays as it is.

    The best checkpoint comes along. The metrics of the new run begin with the step after.

    Args:
        run_dir: Folder of the run.
        new_dir: Folder of the new run.
        step: Which checkpoint; the newest when missing.

    Returns:
        The step.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
        RunDirectoryError: There is no run, or the new folder holds something.
        StorageError: The disk refused; nothing is left behind.
    """
    source = RunStore.open(run_dir)
    checkpoint = source.load(step)
    taken, best = checkpoint.state["step"], checkpoint.state["counters"]["best_step"]
    parent = {"run_id": source.run_id, "step": taken, "digest": checkpoint.digest}
    wanted = [checkpoint]
    if best in source.steps() and best != taken:
        wanted.insert(0, source.load(best))
    elif best != taken:  # it was pruned when a later one was better
        nothing = {"best_step": None, "best_score": None, "best_loss": None}
        checkpoint.state["counters"] |= nothing
    store = RunStore.create(new_dir)
    try:
        MetricsLog(store.metrics_path, run_id=store.run_id, folder=store.folder).close()
        nowhere = dataclasses.asdict(LogPosition(0, 0, 0, 0))
        config = parse_config(checkpoint.state["config"])
        moved = config.model_copy(
            update={"run": config.run.model_copy(update={"dir": str(new_dir)})}
        )
        for each in wanted:
            state = each.state | {"metrics": nowhere, "config": moved.model_dump(mode="json")}
            store.save(each.state["step"], each.tensors, state | {"parent": each.digest})
        store.announce(to_toml(moved), parent=parent)
        store.event("start", parent=parent)
    except BaseException:
        store.discard()
        raise
    store.close()
    return int(taken)


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
        CheckpointError: Weights of `grow.base` that are damaged, or of another model or task.
        RunDirectoryError: There is no `grow.base`.
    """
    selected_form()  # a wrong SPHERESCAN_OPS is found before anything is made
    base = read_base(user_path(config.grow.base)) if config.grow.base and place else None
    problem, mean_std = open_problem(config, begins=place)
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
    _expect_batch_fits(config, problem)
    if mean_std is not None:
        assert isinstance(model.embedding, SeriesEmbedding)
        model.embedding.set_statistics(*mean_std)
    if base is not None:
        _expect_base_of_same_task(problem, base, Path(str(config.grow.base)))
        load_base(model, base, Path(str(config.grow.base)), local_loss=config.local.loss)
    if place and config.grow.layers is not None and config.grow.at_step == 0:
        grow(model, config)
    model.recompute = config.recomputes
    return problem, model


def _expect_batch_fits(config: RunConfig, problem: Problem) -> None:
    """Refuse a batch that no memory could hold, rather than gather it for an hour.

    Raises:
        ConfigError: What one block reads of it is more than the whole memory.
    """
    batch_size, there_is = config.data.batch_size, memory_bytes()
    n_bytes = 4 * batch_size * problem.n_positions * problem.description.d_model
    if n_bytes > there_is:
        way_out = "one sequence alone is too long; cut it, or choose a smaller model.d_model"
        if at_most := there_is * batch_size // n_bytes:
            way_out = f"choose a size of at most {at_most}, better a hundredth of that"
        raise ConfigError(
            f"data.batch_size is {batch_size}; what one block reads of such a batch takes "
            f"{n_bytes / 1e9:.3g} GB or more, and this machine has {there_is / 1e9:.3g}: {way_out}"
        )


def _changed(
    saved: dict[str, object], changes: Mapping[str, object]
) -> tuple[RunConfig, dict[str, tuple[object, object]]]:
    """Return the configuration with the changes, and what they change."""
    before = parse_config(saved)  # what it lacks, an earlier version had at its default
    tree = before.model_dump(mode="json")
    changed = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        former = getattr(getattr(before, section, None), name, None)
        if former == value:
            continue
        if key not in CHANGEABLE:
            raise ConfigError(
                f"{key} defines the run and cannot change; start a new run, or change only "
                f"{', '.join(CHANGEABLE)}"
            )
        changed[key] = (former, value)
        tree[section][name] = value
    return parse_config(tree), changed


def _prepare_torch(config: RunConfig, *, threads: int | None) -> None:
    """Set what torch keeps for the whole process: threads, and how it computes."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("medium" if config.run.precision == "medium" else "highest")
    # As use_deterministic_algorithms(True), which also imports torch's compiler to tell it.
    torch.set_deterministic_debug_mode("error")
    # Nothing here reads memory that nobody wrote. torch does not declare this attribute.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

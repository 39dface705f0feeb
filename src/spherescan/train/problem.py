"""What is learned on what: data is opened and names of losses are looked up here."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from spherescan.config import DataConfig, RunConfig
from spherescan.data import (
    Batch,
    BatchStream,
    PackedDocuments,
    SeriesSource,
    SeriesTable,
    Source,
    Task,
    TokenData,
    TokenSource,
    Windows,
    locate,
    open_tokens,
    read_series,
)
from spherescan.data.formats.quoting import listed
from spherescan.data.rows import Rows, fixed_sample, row_batches, split_rows
from spherescan.data.series import (
    Targets,
    channel_statistics,
    class_indices,
    class_names,
    expect_channels,
    expect_resolved,
    fingerprint,
    regression_targets,
    series_batches,
    stratified_split,
)
from spherescan.errors import ConfigError, DataError
from spherescan.losses import PROTOTYPE_LOSSES
from spherescan.nn import ModelDescription
from spherescan.train.objective import ClassLoss, Objective

Statistics = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is learned on what, as `build` made it from a configuration.

    Attributes:
        description: How to build the model that the run begins with.
        objective: Loss and score.
        stream: Training batches; `close` it.
        validation: Makes the fixed validation batches; the same ones every time.
        fingerprint: Digest of the data.
        n_positions: How long a sequence is at least, as batches have it.
        counts: What there is to train on, and what of it an epoch leaves out.
        summary: One line for a person.
    """

    description: ModelDescription
    objective: Objective
    stream: BatchStream
    validation: Callable[[], Iterable[Batch]]
    fingerprint: str
    n_positions: int
    counts: dict[str, int]
    summary: str


def open_problem(config: RunConfig, *, begins: bool = True) -> tuple[Problem, Statistics | None]:
    """Open the data of a configuration.

    Args:
        config: The whole configuration.
        begins: Whether a run begins with it, or has begun.

    Returns:
        The problem, and mean and standard deviation of each channel of a series.

    Raises:
        ConfigError: No training data.
        DataError: Data that cannot be used.
    """
    return _series(config, begins=begins) if config.data.source == "series" else _tokens(config)


def expect_same_data(problem: Problem, config: RunConfig, fingerprint: str) -> None:
    """Check data that was opened again against that of the run.

    Raises:
        DataError: It is not what it was.
    """
    if problem.fingerprint != fingerprint:
        raise DataError(
            f"{config.data.train}: training or validation data has changed since the run began; "
            "put it back, or go on with it by spherescan resume --new-data"
        )


def objective_of(task: Task, config: RunConfig) -> Objective:
    """Return the loss of a task as the configuration asks for it."""
    return Objective(task, _class_loss(config), autocast=config.run.precision == "bf16")


def evaluation_batches(
    path: Path, task: Task, config: RunConfig, *, n_channels: int | None, vocab_size: int | None
) -> Iterable[Batch]:
    """Open data of the kind a model was trained on and yield all of it once.

    Args:
        path: File or folder.
        task: What the model predicts.
        config: Configuration of its run.
        n_channels: Channels of a series model.
        vocab_size: Vocabulary of a token model.

    Raises:
        DataError: Other channels, an unknown class, or a token outside the vocabulary.
    """
    if task.kind == "next_token":
        data = open_tokens(path, vocab_size=vocab_size, extension=config.data.extension)
        rows = _rows(data, config.data, tail="pad")
        if not len(rows):
            raise DataError(f"{path}: holds {data.n_tokens} tokens; two in a row make a transition")
        return row_batches(rows, range(len(rows)), batch_size=config.data.batch_size)
    table = read_series(path)
    assert n_channels is not None
    expect_channels(table, n_channels, task.channel_names)
    return series_batches(table.series, _targets(table, task), batch_size=64)


def _class_loss(config: RunConfig) -> ClassLoss:
    loss = PROTOTYPE_LOSSES[config.prototypes.loss]
    if config.prototypes.loss == "softmax":
        return functools.partial(
            loss, scale=config.prototypes.scale, margin=config.prototypes.margin
        )
    return loss


def _description(
    config: RunConfig,
    *,
    n_prototypes: int,
    dim: int,
    vocab_size: int | None = None,
    n_channels: int | None = None,
) -> ModelDescription:
    model = config.model
    return ModelDescription(
        vocab_size=vocab_size,
        n_channels=n_channels,
        d_model=model.d_model,
        n_layers=model.n_layers,
        mixer=model.mixer,
        d_state=model.d_state,
        d_conv=model.d_conv,
        expand=model.expand,
        dt_rank=model.dt_rank,
        gate=model.gate,
        bidirectional=model.bidirectional,
        pooling=() if vocab_size is not None else model.pooling,
        n_pool_heads=model.n_pool_heads,
        n_prototypes=n_prototypes,
        prototype_dim=config.prototypes.dim or dim,
        prototype_init=config.prototypes.init,
        learnable_prototypes=config.prototypes.learnable,
        local_heads=config.local_heads(model.n_layers),
        n_local_outputs=n_prototypes if config.local.loss == "cross_entropy" else None,
        averaged=config.local.predict == "mean",
        form=model.form,
        dropout=model.dropout,
        n_convolutions=model.n_convolutions,
        selective=model.selective,
    )


def with_layers(
    description: ModelDescription, config: RunConfig, n_layers: int
) -> ModelDescription:
    """Return the description of the same model with another number of blocks."""
    return dataclasses.replace(
        description, n_layers=n_layers, local_heads=config.local_heads(n_layers)
    )


def _series(config: RunConfig, *, begins: bool) -> tuple[Problem, Statistics]:
    data, seed = config.data, config.run.seed
    table = read_series(locate(_required(data)))
    if begins:
        expect_resolved(table)
    task = _series_task(table, data)
    targets = _targets(table, task)
    if data.validation is None:
        kept, held_out = stratified_split(targets, fraction=data.validation_fraction, seed=seed)
        held_series = [table.series[i] for i in held_out]
        held_targets: Targets = targets[held_out]
        digest = fingerprint(table)
    else:
        other = read_series(locate(data.validation))
        expect_channels(other, table.n_channels, task.channel_names)
        kept, held_series, held_targets = (
            np.arange(len(table)),
            list(other.series),
            _targets(other, task),
        )
        digest = f"{fingerprint(table)}/{fingerprint(other)}"
    series = [table.series[i] for i in kept]
    mean, std = (torch.from_numpy(values) for values in channel_statistics(series))
    # Two poles of a regression, or one prototype per class. On a circle at least: the sphere in
    # one dimension is two points, and no gradient leads from one to the other.
    n_prototypes = 2 if task.kind == "regression" else len(task.class_names)
    problem = Problem(
        description=_description(
            config, n_prototypes=n_prototypes, dim=n_prototypes, n_channels=table.n_channels
        ),
        objective=objective_of(task, config),
        stream=_stream(
            SeriesSource(
                series, targets[kept], seed=seed, jitter=data.jitter, shuffle=data.shuffle
            ),
            data,
        ),
        validation=lambda: series_batches(held_series, held_targets, batch_size=64),
        fingerprint=digest,
        n_positions=min(map(len, series)),
        counts={"training": len(kept), "validation": len(held_series)},
        summary=_series_summary(table, task, data, len(kept), held_targets) + _if_same(digest),
    )
    return problem, (mean, std)


def _series_task(table: SeriesTable, data: DataConfig) -> Task:
    channel_names = table.channel_names or ()
    if data.task == "classification":
        return Task("classification", class_names=class_names(table), channel_names=channel_names)
    values = regression_targets(table)
    lower, upper = float(values.min()), float(values.max())
    if lower == upper:
        raise DataError(f"{table.source}: every target is {lower}; there is nothing to predict")
    return Task("regression", lower=lower, upper=upper, channel_names=channel_names)


def _targets(table: SeriesTable, task: Task) -> Targets:
    if task.kind == "classification":
        return class_indices(table, task.class_names)
    return regression_targets(table)


def _series_summary(
    table: SeriesTable, task: Task, data: DataConfig, n_train: int, held_targets: Targets
) -> str:
    lengths = [len(values) for values in table.series]
    span = str(lengths[0]) if len(set(lengths)) == 1 else f"{min(lengths)} to {max(lengths)}"
    what = f"{len(task.class_names)} classes" if task.class_names else "one number each"
    seen = set(held_targets.tolist()) if task.class_names else set()
    unseen = [name for index, name in enumerate(task.class_names) if index not in seen]
    return (
        f"{n_train} series for training, {len(held_targets)} for validation; "
        f"{table.n_channels} channels, length {span}, {what}"
        + (
            f"; a batch of {data.batch_size} holds series more than once"
            if data.batch_size > n_train
            else ""
        )
        + (f"; no series of {listed(unseen)} for validation" if unseen else "")
        + (
            "; each is a single position: are channels and positions in each other's place?"
            if table.n_channels > 1 and max(lengths) == 1
            else ""
        )
    )


def _if_same(digest: str) -> str:
    """Tell when the two files of a digest are the same."""
    training, _, validation = digest.partition("/")
    return "; validation data is the training data" if training == validation else ""


def _tokens(config: RunConfig) -> tuple[Problem, None]:
    data = config.data
    text = _synthetic(data) if data.source == "synthetic" else _open(_required(data), data)
    rows = _rows(text, data, tail=data.tail)
    if data.validation is None:
        other_rows, digest = rows, text.fingerprint
        _expect_transitions(rows)
        chosen, held_out = split_rows(rows, fraction=data.validation_fraction)
    else:
        other = open_tokens(
            locate(data.validation), vocab_size=text.vocab_size, extension=data.extension
        )
        other_rows, digest = (
            _rows(other, data, tail=data.tail),
            f"{text.fingerprint}/{other.fingerprint}",
        )
        for each in (rows, other_rows):
            _expect_transitions(each)
        chosen, held_out = range(len(rows)), range(len(other_rows))
    fixed = fixed_sample(held_out, config.validation.batches * data.batch_size)
    counts = rows.counts() | {"training": len(chosen), "validation": len(fixed)}
    order: Literal["shuffled", "by_shard", "text"] = "shuffled"
    if data.shuffle_shards:
        order = "by_shard"
    elif not data.shuffle:
        order = "text"
    problem = Problem(
        description=_description(
            config,
            n_prototypes=text.vocab_size,
            dim=(
                config.model.d_model
                if config.model.form == "rust_trainer"
                else min(text.vocab_size, config.model.d_model)
            ),
            vocab_size=text.vocab_size,
        ),
        objective=objective_of(Task("next_token"), config),
        stream=_stream(TokenSource(rows, chosen, seed=config.run.seed, order=order), data),
        validation=lambda: row_batches(other_rows, fixed, batch_size=data.batch_size),
        fingerprint=digest,
        n_positions=data.seq_len,
        counts=counts,
        summary=_token_summary(rows, counts, n_held_out=len(held_out)) + _if_same(digest),
    )
    return problem, None


def _stream(source: Source, data: DataConfig) -> BatchStream:
    return BatchStream(
        source,
        batch_size=data.batch_size,
        workers=data.prefetch_workers,
        ahead=data.prefetch_batches,
    )


def _rows(text: TokenData, data: DataConfig, *, tail: Literal["pad", "drop"]) -> Rows:
    if data.packing == "documents":
        return PackedDocuments(text, seq_len=data.seq_len)
    return Windows(text, seq_len=data.seq_len, tail=tail)


def _expect_transitions(rows: Rows) -> None:
    """Check that there is something to learn from.

    Raises:
        DataError: Too few tokens, or no document with two of them.
    """
    text = rows.text
    if text.n_tokens == len(text.documents) > 1:
        raise DataError(f"{text.source}: every document is one token; nothing follows anything")
    if text.n_tokens < 2:
        raise DataError(f"{text.source}: holds fewer than two tokens")
    if not len(rows):
        raise DataError(
            f"{text.source}: {text.n_tokens} tokens are too few for {rows.noun} of {rows.seq_len}; "
            'give more text, a smaller data.seq_len or data.tail = "pad"'
        )


def _token_summary(rows: Rows, counts: dict[str, int], *, n_held_out: int) -> str:
    text = rows.text
    left_out = [
        f"{counts[key]} {what}"
        for key, what in (
            ("boundaries", "transitions from a document to the next"),
            ("one_token_documents", "documents of one token"),
            ("dropped_transitions", "transitions of a short tail"),
        )
        if counts[key]
    ]
    return (
        f"{text.n_tokens} tokens of {text.vocab_size} in {len(text.documents)} documents; "
        f"{counts['training']} {rows.noun} of {rows.seq_len} for training, "
        f"{counts['validation']} of {n_held_out} held out for validation"
    ) + (f"; left out: {', '.join(left_out)}" if left_out else "")


def _open(name: str, data: DataConfig) -> TokenData:
    return open_tokens(locate(name), vocab_size=data.vocab_size, extension=data.extension)


def _synthetic(data: DataConfig) -> TokenData:
    """Count up: 65 536 tokens, each its position modulo the vocabulary (8192 unless set)."""
    vocab_size = data.vocab_size if isinstance(data.vocab_size, int) else 8192
    tokens = (np.arange(1 << 16) % vocab_size).astype(np.uint32)
    return TokenData(
        shards=(tokens,),
        documents=np.zeros(1, dtype=np.uint64),
        vocab_size=vocab_size,
        source="synthetic",
        fingerprint=f"synthetic/{vocab_size}",
    )


def _required(data: DataConfig) -> str:
    if data.train is None:
        raise ConfigError(
            "no training data: set data.train to a file (or --data.train FILE), try "
            "--data.train sample:JapaneseVowels_TRAIN.ts, or ask for made-up tokens with "
            "--data.source synthetic"
        )
    return data.train

"""What the sections of a configuration demand of each other."""

import json
from collections.abc import Iterable
from typing import NamedTuple

from spherescan.config.sections import LocalConfig, RunConfig


def check(config: RunConfig) -> None:
    """Refuse settings that do not go together.

    Raises:
        ValueError: With a message of one line that names them.
    """
    _check_source(config)
    _check_effects(config)
    _check_local_loss(config)
    _check_local_groups(config)
    _check_local_growth(config)
    _check_depth(config)
    _check_form(config)


def check_new(config: RunConfig) -> None:
    """Refuse of a new run what an older one may have: it trains, but not as it was meant.

    Raises:
        ValueError: With a message of one line that names the settings.
    """
    data, model = config.data, config.model
    _refuse_without_effect(
        config,
        [_Only(data.validation is None, "without data.validation", ("data.validation_fraction",))],
    )
    width = model.expand * model.d_model
    if model.dt_rank is not None and model.dt_rank > width:
        raise ValueError(
            f"model.dt_rank is {model.dt_rank}; it must be at most model.expand * model.d_model, "
            f"which is {width}: a larger one costs and adds nothing"
        )


def _check_source(config: RunConfig) -> None:
    data, model = config.data, config.model
    if data.source == "synthetic":
        if data.vocab_size == "auto":
            raise ValueError('data.vocab_size = "auto" needs data; give synthetic tokens a number')
        if data.train is not None:
            raise ValueError('data.train and data.source = "synthetic" exclude each other')
    if data.source == "series":
        if not model.pooling:
            raise ValueError("model.pooling is empty; a series needs at least one")
        return
    if model.bidirectional:
        raise ValueError(
            'model.bidirectional sees the tokens to predict; it is for data.source = "series"'
        )
    if data.task == "regression":
        raise ValueError('data.task = "regression" is for data.source = "series"')


class _Only(NamedTuple):
    """Settings that have an effect only under a condition, and whether it holds."""

    holds: bool
    condition: str
    keys: tuple[str, ...]


def _check_effects(config: RunConfig) -> None:
    conditions = (
        *_effects_of_task(config),
        *_effects_of_local(config),
        *_effects_of_surgery(config),
        *_effects_of_depth(config),
    )
    _refuse_without_effect(config, conditions)


def _refuse_without_effect(config: RunConfig, conditions: Iterable[_Only]) -> None:
    """Refuse another value than the default for a setting that would have no effect."""
    for only in conditions:
        for key in () if only.holds else only.keys:
            section, _, name = key.partition(".")
            value = getattr(getattr(config, section), name)
            if value != getattr(RunConfig.model_fields[section].default, name):
                raise ValueError(
                    f"{key} is {json.dumps(value)}; it has an effect only {only.condition}"
                )


def _effects_of_task(config: RunConfig) -> list[_Only]:
    data, prototypes = config.data, config.prototypes
    series = data.source == "series"
    classes = data.task == "classification"
    return [
        _Only(
            series,
            'with data.source = "series"',
            ("data.jitter", "model.pooling", "model.n_convolutions"),
        ),
        _Only(
            not series,
            "with tokens",
            ("data.seq_len", "data.vocab_size", "data.packing", "validation.batches"),
        ),
        _Only(
            not series and data.packing == "stream",
            'with tokens and data.packing = "stream"',
            ("data.tail",),
        ),
        _Only(
            not series and data.shuffle, "with tokens and data.shuffle", ("data.shuffle_shards",)
        ),
        _Only(data.source == "tokens", 'with data.source = "tokens"', ("data.extension",)),
        _Only(
            series and "attention" in config.model.pooling,
            'with "attention" in model.pooling',
            ("model.n_pool_heads",),
        ),
        _Only(config.model.selective, "with model.selective", ("model.dt_rank",)),
        _Only(
            classes,
            'with data.task = "classification"',
            ("prototypes.loss", "prototypes.learnable"),
        ),
        _Only(
            classes and prototypes.loss == "softmax",
            'with prototypes.loss = "softmax"',
            ("prototypes.scale", "prototypes.margin"),
        ),
    ]


def _effects_of_local(config: RunConfig) -> list[_Only]:
    local, surgery = config.local, config.surgery
    some = local.loss != "none"
    joint = some and local.mode in {"deep", "surgery"}
    merged = some and local.mode == "surgery"
    alone = some and (not joint or surgery.backprop_every > 1)
    steps = "when some steps are local: another local.mode or a larger surgery.backprop_every"
    return [
        _Only(some, "with a local.loss", ("local.mode",)),
        _Only(
            some and local.mode != "detached",
            "with a local.loss in another mode than detached",
            ("local.group",),
        ),
        _Only(
            joint,
            'with a local.loss and local.mode = "deep" or "surgery"',
            ("local.stop_gradient_every", "local.weight", "surgery.backprop_every"),
        ),
        # Of a merged step it is the factor of the local gradient, for a method of rust_trainer.
        _Only(alone or (merged and _merges_as_rust(config)), steps, ("local.lr",)),
        _Only(alone, steps, ("local.update",)),
        _Only(local.loss == "rust_trainer", 'with local.loss = "rust_trainer"', ("local.update",)),
        _Only(_compares(local), "with a goodness loss", ("local.negatives",)),
        _Only(local.loss == "goodness", 'with local.loss = "goodness"', ("local.threshold",)),
        _Only(local.loss == "symmetric_goodness", "with symmetric_goodness", ("local.alpha",)),
        _Only(local.loss == "prototype", 'with local.loss = "prototype"', ("local.predict",)),
        _Only(
            merged,
            'with a local.loss and local.mode = "surgery"',
            ("surgery.aggregator", "surgery.weighting"),
        ),
    ]


def _effects_of_surgery(config: RunConfig) -> list[_Only]:
    surgery = config.surgery
    name = surgery.aggregator
    return [
        _Only(name == "cagrad", "with cagrad", ("surgery.cagrad_c",)),
        _Only(surgery.weighting == "gradnorm", "with gradnorm", ("surgery.gradnorm_alpha",)),
        _Only(
            _merges_as_rust(config),
            "with an aggregator of rust_trainer",
            ("surgery.rust_epsilon",),
        ),
        _Only(name == "rust_gradnorm", "with rust_gradnorm", ("surgery.rust_alpha",)),
        _Only(name == "rust_cagradstep", "with rust_cagradstep", ("surgery.rust_lambda",)),
    ]


def _effects_of_depth(config: RunConfig) -> list[_Only]:
    freeze = config.freeze
    return [
        _Only(
            config.grow.layers is not None,
            "with grow.layers",
            ("grow.placement", "grow.at_step", "grow.init"),
        ),
        _Only(config.prototypes.learnable, "with prototypes.learnable", ("freeze.prototypes",)),
        _Only(
            freeze.blocks != "none" or freeze.embedding or freeze.prototypes,
            "when something is frozen",
            ("freeze.until_step",),
        ),
    ]


def _check_local_loss(config: RunConfig) -> None:
    data, local = config.data, config.local
    classes = data.source == "series" and data.task == "classification"
    if _compares(local) and local.negatives == "wrong_label" and not classes:
        raise ValueError(
            'local.negatives = "wrong_label" needs one class per sequence; choose another, or '
            'data.task = "classification" of series'
        )
    if local.loss == "cross_entropy" and data.task == "regression":
        raise ValueError(
            'local.loss = "cross_entropy" needs classes; choose "prototype" for a regression'
        )
    if local.loss == "rust_trainer" and (config.model.expand != 1 or local.group != 1):
        raise ValueError(
            'local.loss = "rust_trainer" compares the input of a block with its vector D: '
            "it needs model.expand = 1 and local.group = 1"
        )
    if local.loss == "rust_trainer" and config.surgery.weighting == "gradnorm":
        raise ValueError(
            'surgery.weighting = "gradnorm" compares losses with their first values; that of '
            'local.loss = "rust_trainer" may be zero'
        )
    if local.predict == "mean" and (config.grow.layers or config.freeze.blocks != "none"):
        raise ValueError(
            'local.predict = "mean" averages the heads of all blocks; with grow.layers or '
            "freeze.blocks some of them have not learned"
        )


def _check_local_groups(config: RunConfig) -> None:
    local, depth = config.local, config.n_layers_grown
    if local.has_heads and not config.local_heads(depth):
        raise ValueError(
            f"local.group is {local.group} and the model has {depth} blocks: no block would have "
            f"a local loss; give more blocks{', or a smaller group' * (local.group > 1)}"
        )
    if local.stop_gradient_every % local.group:
        raise ValueError(
            f"local.stop_gradient_every is {local.stop_gradient_every}; it must be a multiple "
            f"of local.group, which is {local.group}"
        )
    if local.stop_gradient_every >= depth:
        raise ValueError(
            f"local.stop_gradient_every is {local.stop_gradient_every}; the model has {depth} "
            "blocks, so nothing would be cut"
        )
    if local.mode == "surgery" and local.has_heads and local.stop_gradient_every == local.group:
        raise ValueError(
            f"local.stop_gradient_every is {local.stop_gradient_every}, as is local.group: no "
            'group would have two gradients; choose a multiple of it, or local.mode = "deep"'
        )
    every, steps = config.surgery.backprop_every, config.run.steps
    if every > steps and local.loss != "rust_trainer":  # whose preset takes what that program takes
        raise ValueError(
            f"surgery.backprop_every is {every} and run.steps is {steps}: backpropagation would "
            'never join; choose a smaller one, or local.mode = "detached"'
        )


def _check_local_growth(config: RunConfig) -> None:
    """Refuse growth by blocks that a goodness would never teach."""
    local, depth = config.local, config.n_layers_grown
    alive = set(range(depth)) - set(config.new_positions())
    apart = local.mode in {"detached", "grouped"}
    # The shortest of two gradients, of which that of a new group is zero.
    shortest = local.mode == "surgery" and config.surgery.aggregator == "mgda"
    groups = (range(first, first + local.group) for first in range(0, depth, local.group))
    if (
        _compares(local)
        and (apart or shortest)
        and config.grow.init == "identity"
        and any(alive.isdisjoint(blocks) for blocks in groups)
    ):
        where = f'local.mode = "{local.mode}"' + ' with surgery.aggregator = "mgda"' * shortest
        raise ValueError(
            f'local.loss = "{local.loss}" raises the square of what a group of blocks adds; '
            f"new ones add zero, so in {where} they would never learn: choose "
            '"deep", "surgery" with another aggregator, or another local.loss'
        )


def _check_depth(config: RunConfig) -> None:
    grow, freeze = config.grow, config.freeze
    config.new_positions()
    if grow.at_step >= config.run.steps:
        raise ValueError(f"grow.at_step is {grow.at_step}; the run ends at step {config.run.steps}")
    if 0 < freeze.until_step <= grow.at_step:
        raise ValueError(
            f"freeze.until_step is {freeze.until_step}; what is frozen is so from "
            f"grow.at_step on, which is {grow.at_step}"
        )
    if freeze.until_step >= config.run.steps:
        raise ValueError(
            f"freeze.until_step is {freeze.until_step}; the run ends at step {config.run.steps}, "
            "before what is frozen would be trained: choose an earlier step, or 0 for never"
        )
    config.frozen_blocks()


def _check_form(config: RunConfig) -> None:
    model, prototypes = config.model, config.prototypes
    if (prototypes.init == "rust_trainer") != (prototypes.loss == "rust_trainer"):
        raise ValueError(
            'prototypes.init = "rust_trainer" and prototypes.loss = "rust_trainer" belong '
            "together: the one never normalises what the other would"
        )
    if model.n_convolutions and model.d_model % 4:
        raise ValueError(
            f"model.d_model is {model.d_model}; with model.n_convolutions it must be a multiple of "
            "4: three convolutions and a maximum share it"
        )
    if model.form == "standard":
        return
    wanted = {"expand": 1, "gate": False, "dt_rank": 1, "selective": True}
    for name, value in wanted.items():
        if getattr(model, name) != value:
            raise ValueError(
                f'model.form = "rust_trainer" needs model.{name} = {json.dumps(value)}, not '
                f"{json.dumps(getattr(model, name))}"
            )
    if config.data.source == "series":
        raise ValueError('model.form = "rust_trainer" is for tokens, not data.source = "series"')
    if prototypes.dim not in {None, model.d_model}:
        raise ValueError(
            f'prototypes.dim is {prototypes.dim}; with model.form = "rust_trainer" points '
            f"have model.d_model = {model.d_model} dimensions"
        )


def _compares(local: LocalConfig) -> bool:
    """Return whether real data is compared with negative data."""
    return local.loss in {"goodness", "symmetric_goodness"}


def _merges_as_rust(config: RunConfig) -> bool:
    return config.surgery.aggregator.startswith("rust_")

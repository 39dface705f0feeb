"""The settings of rust_trainer 0.1.4 in ours: its flags, its defaults, its configuration files.

A setting of that program becomes one or two of ours, so a run of this preset is a run like any
other: it is saved, resumed and used for predictions in the same way.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spherescan.config.reading import load_tree, nearest, overridden, parse_config
from spherescan.config.sections import RunConfig
from spherescan.errors import ConfigError

NAME = "rust-trainer"


class Flag(NamedTuple):
    """A flag of that program.

    Attributes:
        default: As text; None when it has none.
        key: Our setting; None when it needs more than a rename, or changes nothing here.
        about: For the help.
    """

    default: str | None
    key: str | None
    about: str


FLAGS: dict[str, Flag] = {
    "out-dir": Flag(None, "run.dir", "folder of the run"),
    "steps": Flag("5000", "run.steps", "training steps"),
    "save-every": Flag("200", "checkpoint.every", "steps between checkpoints"),
    "log-every": Flag("20", "run.log_every", "steps between lines of progress"),
    "batch-size": Flag("8", "data.batch_size", "sequences per step"),
    "seq-len": Flag("64", "data.seq_len", "tokens per sequence"),
    "seed": Flag("42", "run.seed", "seed of everything random"),
    "base-layers": Flag("2", "model.n_layers", "layers before the expansion"),
    "target-layers": Flag("6", None, "layers after the expansion"),
    "d-model": Flag("512", "model.d_model", "width"),
    "d-state": Flag("16", "model.d_state", "state size of each channel"),
    "d-conv": Flag("4", "model.d_conv", "kernel width of the convolution"),
    "placement": Flag(
        "specific:1,3,4,5", None, "where the new layers go: append, prepend, insert:N, specific:..."
    ),
    "freeze": Flag("first:2", "freeze.blocks", "layers not trained: none, first:N, indices:..."),
    "freeze-embedding": Flag("false", "freeze.embedding", "whether the embedding is not trained"),
    "lr": Flag("1e-4", "optim.lr", "learning rate of backpropagation"),
    "ff-lr": Flag("1e-4", "local.lr", "learning rate of the Forward-Forward step"),
    "bp-cadence-steps": Flag("32", "surgery.backprop_every", "steps from one backprop to the next"),
    "gradient-surgery-method": Flag("pcgrad", None, "pcgrad, gradnorm or cagradstep"),
    "gradient-surgery-epsilon": Flag("1e-8", "surgery.rust_epsilon", "epsilon of the method"),
    "gradnorm-alpha": Flag("0.2", None, "alpha of gradnorm"),
    "cagrad-lambda": Flag("1.0", None, "lambda of cagradstep"),
    "token-file": Flag(None, None, "a file of integers as text"),
    "token-dir": Flag(None, None, "folder of such files, or of our shards"),
    "val-token-file": Flag(None, None, "validation data; a part of the end when missing"),
    "val-token-dir": Flag(None, None, "folder of validation data"),
    "shard-ext": Flag("txt", None, "ending of the files in a folder"),
    "shuffle-shards": Flag("true", "data.shuffle", "whether each epoch has an order of its own"),
    "packed-sequences": Flag(
        "true", None, "windows over the joined files, or whole files, long ones cut"
    ),
    "prefetch-workers": Flag("0", "data.prefetch_workers", "processes that make batches ahead"),
    "prefetch-buffer": Flag("16", "data.prefetch_batches", "batches that they make ahead"),
    "resume": Flag("false", None, "go on with the run in --out-dir"),
    "vocab-size": Flag("auto", "data.vocab_size", "number of token ids, or auto"),
    "val-ratio": Flag("0.05", "data.validation_fraction", "part held out for validation"),
    "val-every": Flag("200", "validation.every", "steps between validations"),
    "eval-batches": Flag("8", "validation.batches", "batches of a validation"),
    "early-stopping-patience": Flag("0", "validation.patience", "validations; 0 for never"),
    "grad-clip-norm": Flag("0", "optim.grad_clip", "largest gradient norm; 0 for no clipping"),
    "fail-on-non-finite": Flag("false", None, "whether to stop instead of leaving a step out"),
    "lr-warmup-steps": Flag("0", "optim.warmup_steps", "steps of linear warm-up"),
    "lr-min-scale": Flag("0.1", "optim.min_lr_scale", "last learning rate, as a part of the peak"),
}

METHODS = {
    "pcgrad": "rust_pcgrad",
    "gradnorm": "rust_gradnorm",
    "cagradstep": "rust_cagradstep",
}

_NUMBER = r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|\.[0-9]+([eE][+-]?[0-9]+)?"

# The same for every run of that program.
_FIXED: dict[str, dict[str, Any]] = {
    "data": {"source": "tokens"},
    "model": {"form": "rust_trainer", "expand": 1, "dt_rank": 1, "gate": False},
    "prototypes": {"init": "rust_trainer", "learnable": True, "loss": "rust_trainer"},
    "optim": {
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "decayed": "all",
        "step_count": "run",
    },
    "local": {"loss": "rust_trainer", "mode": "surgery"},
}

# Keys of its configuration files and the flag that each one stands for.
_FILE: dict[str, str] = {
    "total_steps": "steps",
    "seed": "seed",
    "dataset.max_seq_len": "seq-len",
    "dataset.batch_size": "batch-size",
    "dataset.token_file": "token-file",
    "dataset.token_dir": "token-dir",
    "dataset.val_token_file": "val-token-file",
    "dataset.val_token_dir": "val-token-dir",
    "model.num_layers": "base-layers",
    "model.d_model": "d-model",
    "model.d_state": "d-state",
    "model.d_conv": "d-conv",
    "model.num_classes": "vocab-size",
    "ff.lr": "ff-lr",
    "bp.cadence_steps": "bp-cadence-steps",
    "bp.lr": "lr",
    "gradient_surgery.method": "gradient-surgery-method",
    "gradient_surgery.epsilon": "gradient-surgery-epsilon",
    "logging.log_dir": "out-dir",
    "logging.run_id": "",
    "logging.log_every": "log-every",
}
_ONLY_THEIRS = {"total_steps", "dataset", "ff", "bp", "gradient_surgery", "logging"}


def is_theirs(tree: Mapping[str, Any]) -> bool:
    """Return whether a configuration file is one of that program."""
    return bool(_ONLY_THEIRS & tree.keys())


def rust_trainer_config(
    path: Path | None,
    flags: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> RunConfig:
    """Return our configuration for one of that program.

    Args:
        path: Its configuration file, .json or .yaml; only its defaults and flags when missing. A
            file says how many layers there are: it does not expand or freeze unless a flag does.
        flags: Its flags, without the dashes, and their values as text.
        overrides: Settings of ours on top, as in `load_config`.

    Raises:
        ConfigError: An unknown key or flag, or a value that one of our settings refuses.
    """
    values = {name: flag.default for name, flag in FLAGS.items()}
    synthetic = False
    if path is not None:
        values |= {"target-layers": None, "freeze": "none"}
        from_file, synthetic = _from_file(path)
        values |= from_file
    values |= flags or {}
    for name, value in values.items():
        _check_kind(name, value)
    tree = _tree(values)
    if synthetic:
        tree["data"]["source"] = "synthetic"
    overridden(tree, overrides or {})
    if tree["surgery"]["backprop_every"] != 1:
        tree["local"].setdefault("update", "sgd")
    data = tree["data"]
    if data["source"] == "synthetic":
        data.pop("extension", None)
        if data.get("vocab_size") == "auto":
            del data["vocab_size"]
    return parse_config(tree, where="" if path is None else f"{path}: ")


def _tree(values: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Turn its flags into our sections."""
    tree = {section: dict(part) for section, part in _FIXED.items()}
    renamed = {flag.key: values[name] for name, flag in FLAGS.items() if flag.key is not None}
    overridden(tree, {key: value for key, value in renamed.items() if value is not None})

    base, target = values["base-layers"], values["target-layers"]
    if target is not None and target != base:
        overridden(tree, {"grow.layers": target, "grow.placement": str(values["placement"])})
        tree["grow"]["init"] = "rust_trainer"
    overridden(tree, _surgery(values))
    if values["packed-sequences"] == "false":
        # Each file is trained as if alone in its row, whatever else the row holds.
        overridden(tree, {"data.packing": "documents"})
    tree["run"]["on_non_finite"] = "fail" if values["fail-on-non-finite"] == "true" else "skip"
    overridden(tree, _data(values))
    return tree


def _surgery(values: Mapping[str, str | None]) -> dict[str, str]:
    method = values["gradient-surgery-method"]
    if method not in METHODS:
        raise ConfigError(f"unknown surgery method {method!r}; choose one of {', '.join(METHODS)}")
    settings = {"surgery.aggregator": METHODS[method]}
    if method == "gradnorm":
        settings["surgery.rust_alpha"] = str(values["gradnorm-alpha"])
    if method == "cagradstep":
        settings["surgery.rust_lambda"] = str(values["cagrad-lambda"])
    return settings


def _data(values: Mapping[str, str | None]) -> dict[str, str]:
    settings = {}
    for ours, file, folder in (
        ("data.train", "token-file", "token-dir"),
        ("data.validation", "val-token-file", "val-token-dir"),
    ):
        if values[file] is not None and values[folder] is not None:
            raise ConfigError(f"--{file} and --{folder} exclude each other; give one")
        if (name := values[file] or values[folder]) is not None:
            settings[ours] = name
    if values["token-dir"] is not None or values["val-token-dir"] is not None:
        settings["data.extension"] = str(values["shard-ext"])
    return settings


def _check_kind(name: str, value: str | None) -> None:
    """Refuse what is not of the kind of the default, also where nothing depends on it."""
    default = FLAGS[name].default
    if default is None or value is None:
        return
    if default in {"true", "false"}:
        good = value in {"true", "false"}
        wanted = "true or false"
    elif re.fullmatch(r"[0-9.e-]+", default):
        whole = default.isdecimal() and name != "grad-clip-norm"
        good = re.fullmatch(r"[0-9]+" if whole else _NUMBER, value) is not None
        wanted = "a whole number of digits alone" if whole else "a number that is not negative"
    else:
        return
    if not good:
        raise ConfigError(f"--{name} is {value!r}; it is {wanted}")


def _from_file(path: Path) -> tuple[dict[str, str], bool]:
    """Read a configuration file as flags, and whether it asks for synthetic tokens."""
    flat: dict[str, Any] = {}
    for key, value in load_tree(path).items():
        pairs = value.items() if isinstance(value, dict) else [(None, value)]
        flat |= {key if name is None else f"{key}.{name}": each for name, each in pairs}
    synthetic = flat.pop("dataset.source", None)
    if synthetic not in {None, "synthetic"}:
        raise ConfigError(f'{path}: dataset.source is {synthetic!r}; the one choice is "synthetic"')
    for key in flat:
        if key not in _FILE:
            raise ConfigError(f"{path}: unknown key {key!r}; {nearest(key, list(_FILE))}")
    run_id = flat.pop("logging.run_id", None)
    if run_id is not None:
        flat["logging.log_dir"] = str(Path(flat.get("logging.log_dir", "runs")) / str(run_id))
    given = {_FILE[key]: _text(value) for key, value in flat.items() if value is not None}
    return given, synthetic is not None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""The configuration of a run: one model per section, strict, without torch.

A setting is one field with its docstring; the key in a file, the flag and the help follow from it.
Precedence: defaults < file < flags.
"""

import difflib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from spherescan.errors import ConfigError

# JSON numbers are doubles for most readers: a larger integer would come back changed.
_MAX_INT = 2**53

# All that a resumed run may take from the command line. The rest defines the run. Data may have
# moved; a digest makes sure that it is the same.
CHANGEABLE = (
    "data.train",
    "data.validation",
    "run.steps",
    "run.threads",
    "run.log_every",
    "checkpoint.every",
    "checkpoint.keep",
)

Count = Annotated[int, Field(ge=1, le=_MAX_INT)]
CountOrZero = Annotated[int, Field(ge=0, le=_MAX_INT)]
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
PoolingName = Literal["last", "mean", "max", "attention"]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class DataConfig(Section):
    """What is learned."""

    source: Literal["series", "tokens", "synthetic"] = "series"
    """Kind of data: series with labels, token text, or tokens made up on the spot."""
    train: Name | None = None
    """Training data: a file, a folder of shards, or sample:NAME for a file in the package."""
    validation: Name | None = None
    """Validation data; a part of the training data is held out when missing."""
    validation_fraction: Fraction = 0.1
    """Part of the training data held out when there is no validation data."""
    task: Literal["classification", "regression"] = "classification"
    """What to predict for a series: its class, or a number."""
    batch_size: Count = 16
    """Sequences per step."""
    seq_len: Count = 256
    """Tokens per sequence; tokens only."""
    vocab_size: Count | None = None
    """Number of token ids; for a file of integers or synthetic tokens, shards carry their own."""
    jitter: PositiveOrZero = 0.0
    """Noise on training values, in standard deviations of the channel; series only."""


class ModelConfig(Section):
    """The network."""

    mixer: Literal["mamba"] = "mamba"
    """Kind of sequence mixer."""
    d_model: Count = 64
    """Width of the residual stream."""
    n_layers: Count = 2
    """Number of blocks."""
    d_state: Count = 16
    """State size of each channel."""
    d_conv: Count = 4
    """Kernel width of the convolution before the scan."""
    expand: Count = 2
    """Inner channels per model channel."""
    dt_rank: Count | None = None
    """Rank of the step-size projection; d_model / 16, rounded up, when missing."""
    gate: bool = True
    """Whether the mixer output is gated by a second branch."""
    bidirectional: bool = False
    """Whether each block also reads from the end; series only."""
    pooling: tuple[PoolingName, ...] = ("mean",)
    """How a series becomes one vector, several are concatenated; series only."""
    n_pool_heads: Count = 4
    """Heads of the attention pooling."""


class PrototypesConfig(Section):
    """The points on the sphere."""

    dim: Count | None = None
    """Dimension of their space; one per class when missing, at most d_model for tokens."""
    init: Literal["separated", "random"] = "separated"
    """Placement: as far apart as possible, or at random."""
    learnable: bool = False
    """Whether prototypes are trained."""
    loss: Literal["softmax", "squared_cosine"] = "softmax"
    """Loss between features and prototypes of a classifier."""
    scale: Positive = 12.0
    """Inverse temperature of the softmax over cosines."""
    margin: PositiveOrZero = 0.0
    """Additive margin of the softmax loss."""


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: Positive = 2e-3
    """Peak learning rate."""
    weight_decay: PositiveOrZero = 0.01
    """Decoupled decay; none on A_log, D, step-size biases, norms, biases and prototypes."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the mean of squared gradients."""
    warmup_steps: CountOrZero = 20
    """Steps of linear warm-up."""
    min_lr_scale: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the end of the cosine, as a part of the peak."""
    grad_clip: PositiveOrZero = 1.0
    """Largest norm of the gradient over all trained parameters; 0 for no clipping."""


class ValidationConfig(Section):
    """When and on how much to validate."""

    every: Count = 100
    """Steps between validations."""
    batches: Count = 16
    """Batches of the fixed validation set of a token run; a series run uses all."""
    patience: CountOrZero = 0
    """Validations without improvement before the run stops early; 0 for never."""


class CheckpointConfig(Section):
    """When to save and what to keep."""

    every: Count = 200
    """Steps between checkpoints."""
    keep: Annotated[int, Field(ge=2, le=_MAX_INT)] = 3
    """Newest checkpoints to keep; the best one is kept besides."""


class RunSection(Section):
    """The run itself."""

    dir: Name | None = None
    """Folder of the run; a new one below runs/ when missing."""
    steps: Count = 600
    """Training steps."""
    seed: CountOrZero = 0
    """Seed of everything random."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of torch; its own choice when missing."""
    precision: Literal["fp32", "medium", "bf16"] = "fp32"
    """Arithmetic of training: float32, float32 with bfloat16 products, or bfloat16 activations."""
    log_every: Count = 20
    """Steps between lines of progress."""
    on_non_finite: Literal["fail", "skip"] = "fail"
    """On a loss or gradient that is not finite: stop, or leave the step out."""


class RunConfig(Section):
    """Everything a run depends on."""

    data: DataConfig = DataConfig()
    """What is learned."""
    model: ModelConfig = ModelConfig()
    """The network."""
    prototypes: PrototypesConfig = PrototypesConfig()
    """The points on the sphere."""
    optim: OptimConfig = OptimConfig()
    """The optimiser."""
    validation: ValidationConfig = ValidationConfig()
    """Validation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    run: RunSection = RunSection()
    """The run itself."""

    @model_validator(mode="after")
    def _across_sections(self) -> "RunConfig":
        tokens = self.data.source != "series"
        if self.data.source == "synthetic" and self.data.train is not None:
            raise ValueError('data.train and data.source = "synthetic" exclude each other')
        if tokens and self.model.bidirectional:
            raise ValueError(
                'model.bidirectional sees the tokens to predict; it is for data.source = "series"'
            )
        if tokens and self.data.task == "regression":
            raise ValueError('data.task = "regression" is for data.source = "series"')
        if not tokens and not self.model.pooling:
            raise ValueError("model.pooling is empty; a series needs at least one")
        for key, effective, condition in self._conditional():
            section, _, name = key.partition(".")
            value = getattr(getattr(self, section), name)
            usual = getattr(type(self).model_fields[section].default, name)
            if not effective and value != usual:
                raise ValueError(f"{key} is {json.dumps(value)}; it has an effect only {condition}")
        return self

    def _conditional(self) -> list[tuple[str, bool, str]]:
        """Return the settings that only matter under a condition, and whether it holds."""
        series = self.data.source == "series"
        softmax = self.prototypes.loss == "softmax" and self.data.task == "classification"
        classes = self.data.task == "classification"
        attention = series and "attention" in self.model.pooling
        return [
            ("data.jitter", series, 'with data.source = "series"'),
            ("data.seq_len", not series, "with tokens"),
            ("data.vocab_size", not series, "with tokens"),
            ("validation.batches", not series, "with tokens"),
            ("model.pooling", series, 'with data.source = "series"'),
            ("model.n_pool_heads", attention, 'with "attention" in model.pooling'),
            ("prototypes.loss", classes, 'with data.task = "classification"'),
            ("prototypes.learnable", classes, 'with data.task = "classification"'),
            ("prototypes.scale", softmax, 'with prototypes.loss = "softmax"'),
            ("prototypes.margin", softmax, 'with prototypes.loss = "softmax"'),
        ]


def load_config(path: Path | None, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """Read a configuration file and put flags over it.

    Args:
        path: `.toml`, `.json`, or `.yaml` when the yaml extra is installed; None for defaults.
        overrides: Values as text by their dotted key, such as {"run.steps": "100"}.

    Raises:
        ConfigError: A file that cannot be read, or a setting that is unknown, of the wrong type,
            out of range or given twice.
    """
    tree = {} if path is None else _read(path)
    where = "" if path is None else f"{path}: "
    fields = dict(settings())
    for key, text in (overrides or {}).items():
        section, _, name = key.partition(".")
        part = tree.setdefault(section, {})
        if not isinstance(part, dict):
            raise ConfigError(f"{where}[{section}] must be a section of settings, not {part!r}")
        part[name] = _from_text(text, fields[key]) if key in fields else text
    return parse_config(tree, where=where)


def parse_config(tree: Mapping[str, Any], *, where: str = "") -> RunConfig:
    """Check a nested mapping and return the configuration it stands for.

    Args:
        tree: Sections of settings.
        where: Put in front of a message.

    Raises:
        ConfigError: See `load_config`.

    Example:
        >>> parse_config({"run": {"steps": 50}}).run.steps
        50
    """
    try:
        # As JSON an array may fill a tuple, while a text or a boolean is still no number.
        return RunConfig.model_validate_json(json.dumps(tree))
    except TypeError as error:  # a date of TOML, say
        raise ConfigError(
            f"{where}a value is neither text, number, truth nor list: {error}"
        ) from error
    except ValidationError as error:
        # An unknown key explains a missing or mistyped one: it goes first.
        problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(where + _explain(problems[0])) from None


def settings() -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key and the field of every setting, in the order of the sections."""
    for section, field in RunConfig.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, Section)
        for name, setting in field.annotation.model_fields.items():
            yield f"{section}.{name}", setting


def nearest(name: str, known: list[str], *, after: str = "") -> str:
    """Return a hint at the known name most like the given one, or all of a few when none is.

    Args:
        name: What was given.
        known: What there is.
        after: A common beginning that does not count as likeness.

    Example:
        >>> nearest("stpes", ["seed", "steps"])
        "did you mean 'steps'?"
        >>> nearest("colour", ["seed", "steps"])
        'known are seed, steps'
    """
    tails = [text.removeprefix(after) for text in known]
    close = difflib.get_close_matches(name.removeprefix(after), tails, n=1)
    if close:
        return f"did you mean {after + close[0]!r}?"
    # More than a dozen names are no hint.
    return f"known are {', '.join(known)}" if len(known) <= 12 else "nothing here is like it"


def to_toml(config: RunConfig) -> str:
    """Write a configuration as TOML that reads back as the same; unset settings are left out."""
    lines = []
    for section, values in config.model_dump(exclude_none=True).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    """Write as JSON, which TOML reads too but for surrogate pairs and a bare delete character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason})") from error
    parse: Callable[[str], Any]
    match path.suffix:
        case ".toml":
            parse = tomllib.loads
        case ".json":
            parse = _parse_json
        case ".yaml" | ".yml":
            parse = _parse_yaml
        case other:
            raise ConfigError(f"{path}: unknown ending {other!r}; use .toml, .json or .yaml")
    try:
        tree = parse(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds no sections of settings, such as [run] in TOML")
    return tree


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice!r} stands twice")
        return tree

    return json.loads(text, object_pairs_hook=unique)


def _parse_yaml(text: str) -> Any:
    try:
        from ruamel.yaml import YAML  # noqa: PLC0415  an extra that few need
        from ruamel.yaml.error import MarkedYAMLError  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "a .yaml configuration needs the yaml extra: pip install 'spherescan[yaml]'"
        ) from None
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error


def _from_text(text: str, field: FieldInfo) -> Any:
    """Turn the text of a flag into the value that a file would hold; what is none stays text."""
    kinds = {field.annotation, *get_args(field.annotation)}
    if type(None) in kinds and text == "none":
        return None
    if str in kinds or any(get_origin(k) is Annotated and get_args(k)[0] is str for k in kinds):
        return text
    if Ellipsis in kinds:  # a tuple of any length
        return text.split(",") if text else []
    try:
        # The grammar of JSON has no `1_000` or `nan`, which Python would take.
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def _explain(problem: ErrorDetails) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            section, _, name = key.rpartition(".")
            homes = [known for known, _ in settings() if known.endswith(f".{name}")]
            if homes:
                return f"unknown key {key!r}; it is {homes[0]!r}"
            if not section:
                return f"unknown section {key!r}; {nearest(key, list(RunConfig.model_fields))}"
            here = [known for known, _ in settings() if known.startswith(f"{section}.")]
            return f"unknown key {key!r}; {nearest(key, here, after=f'{section}.')}"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "string_too_short":
            return f"{key} is empty; give a name, or leave it out"
        case _:
            got = json.dumps(problem["input"], default=str)
            return f"{key} is {got}; it {problem['msg'].removeprefix('Input ')}"

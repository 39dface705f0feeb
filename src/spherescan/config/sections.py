"""The settings of a run: one model per section, strict, without torch.

A setting is one field with its docstring; the key in a file, the flag and the help follow from it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from spherescan.config.depth import frozen_blocks, new_positions

# JSON numbers are doubles for most readers: a larger integer would come back changed.
_MAX_INT = 2**53

# All that a resumed run may take from the command line. The rest defines the run. Data may have
# moved; a digest makes sure that it is the same.
CHANGEABLE = (
    "data.train",
    "data.validation",
    "data.prefetch_workers",
    "data.prefetch_batches",
    "run.steps",
    "run.threads",
    "run.log_every",
    "run.on_non_finite",
    "validation.patience",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.verify",
)

Count = Annotated[int, Field(ge=1, le=_MAX_INT)]
# Settings are checked against each block; far more than can be trained would take all memory.
Layers = Annotated[int, Field(ge=1, le=4096)]
CountOrZero = Annotated[int, Field(ge=0, le=_MAX_INT)]
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
PoolingName = Literal["last", "mean", "max", "attention"]
AggregatorName = Literal[
    "mean",
    "sum",
    "pcgrad",
    "cagrad",
    "mgda",
    "imtl_g",
    "upgrad",
    "aligned_mtl",
    "nash_mtl",
    "gradvac",
    "rust_pcgrad",
    "rust_gradnorm",
    "rust_cagradstep",
]


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
    vocab_size: Count | Literal["auto"] | None = None
    """Number of token ids, or "auto" for what the data needs; shards carry their own."""
    extension: Name | None = None
    """Ending of the text files of integers in a folder, such as txt; tokens only."""
    packing: Literal["stream", "documents"] = "stream"
    """Rows of tokens: windows over the joined text, or whole documents side by side."""
    tail: Literal["pad", "drop"] = "pad"
    """What becomes of a last window of the text that is shorter than the others."""
    shuffle: bool = True
    """Whether each epoch has an order of its own, or that of the data."""
    shuffle_shards: bool = False
    """Whether to shuffle shards, and rows within each: for text larger than memory."""
    prefetch_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that make batches ahead; batches do not depend on it."""
    prefetch_batches: Count = 16
    """Batches that they make ahead."""
    jitter: PositiveOrZero = 0.0
    """Noise on training values, in standard deviations of the channel; series only."""


class ModelConfig(Section):
    """The network."""

    mixer: Literal["mamba"] = "mamba"
    """Kind of sequence mixer."""
    d_model: Count = 64
    """Width of the residual stream."""
    n_layers: Layers = 2
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
    selective: bool = True
    """Whether the scan depends on its input; without, it is linear and the same everywhere."""
    n_convolutions: Annotated[int, Field(ge=0, le=16)] = 0
    """Layers of convolutions of several widths before the blocks; series only."""
    bidirectional: bool = False
    """Whether each block also reads from the end; series only."""
    pooling: tuple[PoolingName, ...] = ("mean",)
    """How a series becomes one vector, several are concatenated; series only."""
    n_pool_heads: Count = 4
    """Heads of the attention pooling."""
    dropout: Share = 0.0
    """Part of what each block adds to the stream that is dropped in training."""
    form: Literal["standard", "rust_trainer"] = "standard"
    """Layout and initial weights: ours, or those of rust_trainer 0.1.4 to reproduce it."""


class PrototypesConfig(Section):
    """The points on the sphere."""

    dim: Count | None = None
    """Dimension of their space; one per class when missing, at most d_model for tokens."""
    init: Literal["separated", "random", "rust_trainer"] = "separated"
    """Placement: as far apart as possible, at random, or N(0, 0.02^2) and never normalised."""
    learnable: bool = False
    """Whether prototypes are trained."""
    loss: Literal["softmax", "squared_cosine", "rust_trainer"] = "softmax"
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
    beta1: Share = 0.9
    """Decay of the mean of gradients."""
    beta2: Share = 0.99
    """Decay of the mean of squared gradients."""
    warmup_steps: CountOrZero = 20
    """Steps of linear warm-up."""
    min_lr_scale: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the end of the cosine, as a part of the peak."""
    grad_clip: PositiveOrZero = 1.0
    """Largest norm of the gradient over all trained parameters; 0 for no clipping."""
    decayed: Literal["matrices", "all"] = "matrices"
    """What is decayed; "all" is for rust_trainer."""
    step_count: Literal["parameter", "run"] = "parameter"
    """Steps in the bias correction: updates of the parameter, or of the run as in rust_trainer."""


class LocalConfig(Section):
    """How blocks learn by themselves."""

    loss: Literal[
        "none", "prototype", "cross_entropy", "goodness", "symmetric_goodness", "rust_trainer"
    ] = "none"
    """What a block learns by; "none" is backpropagation alone."""
    mode: Literal["detached", "grouped", "deep", "surgery"] = "deep"
    """How it meets backpropagation: never (one block, or a group of blocks, alone), as one sum of
    losses, or as two gradients that an aggregator merges."""
    group: Count = 1
    """Blocks that share a local loss."""
    stop_gradient_every: CountOrZero = 0
    """Backpropagation stops at every so many blocks; 0 for never."""
    weight: Positive = 1.0
    """Weight of each local loss beside the loss of the task."""
    lr: Positive | None = None
    """Learning rate of a step without backpropagation; optim.lr when missing."""
    update: Literal["adamw", "sgd"] = "adamw"
    """How such a step moves the weights; "sgd" is for rust_trainer."""
    negatives: Literal["wrong_label", "shuffled_segments", "time_shift", "rust_trainer"] = (
        "wrong_label"
    )
    """What the goodness is taught to tell from real data."""
    threshold: Positive = 1.0
    """Goodness of one channel at which real and negative are equally likely."""
    alpha: Positive = 4.0
    """Sharpness of the symmetric goodness loss, per channel."""
    predict: Literal["last", "mean"] = "last"
    """Whether the last head predicts, or all prototype heads together."""

    @property
    def has_heads(self) -> bool:
        """Whether blocks are read out by heads of their own."""
        return self.loss in {"prototype", "cross_entropy"}


class SurgeryConfig(Section):
    """When backpropagation joins, and how its gradient is merged with the local one."""

    backprop_every: Count = 1
    """Backpropagation joins when (step + 1) is a multiple of this; other steps are local."""
    aggregator: AggregatorName = "upgrad"
    """Makes one direction of the two gradients of a block."""
    weighting: Literal["none", "gradnorm"] = "none"
    """Scales the two gradients before they are merged."""
    cagrad_c: PositiveOrZero = 0.5
    """Radius of CAGrad's ball, as a part of the mean gradient."""
    gradnorm_alpha: PositiveOrZero = 1.5
    """How strongly GradNorm favours the objective that lags behind."""
    rust_epsilon: PositiveOrZero = 1e-8
    """Epsilon of the three methods of rust_trainer."""
    rust_alpha: PositiveOrZero = 0.2
    """Alpha of rust_gradnorm."""
    rust_lambda: PositiveOrZero = 1.0
    """Lambda of rust_cagradstep."""


class GrowConfig(Section):
    """Blocks that are added to the model."""

    layers: Layers | None = None
    """Blocks of the grown model; it does not grow when missing."""
    placement: Name = "append"
    """Where: append, prepend, insert:N (before block N), specific:I,J,... (final places)."""
    at_step: CountOrZero = 0
    """Step at which it grows; 0 for before the first."""
    base: Name | None = None
    """Run or checkpoint whose weights the model starts with, before it grows."""
    init: Literal["identity", "rust_trainer"] = "identity"
    """New weights: random with a projection of zero, or all zero, which never learns."""


class FreezeConfig(Section):
    """What is not trained from `grow.at_step` on."""

    blocks: Name = "none"
    """Blocks of the grown model: none, first:N, or indices:I,J,... from 0."""
    embedding: bool = False
    """Whether the embedding stays as it is."""
    prototypes: bool = False
    """Whether learnable prototypes stay as they are."""
    until_step: CountOrZero = 0
    """Step from which everything is trained; 0 for never."""


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
    """Newest checkpoints to keep; the best that each of them names is kept besides."""
    verify: bool = False
    """Whether to read each checkpoint back after it was written."""


class RunSection(Section):
    """The run itself."""

    dir: Name | None = None
    """Folder of the run; a new one below runs/ when missing."""
    steps: Count = 600
    """Training steps."""
    recompute: bool | None = None
    """Whether to compute the inside of each block again in the backward pass: less memory. When
    missing, with a local.loss in local.mode = "deep"."""
    seed: CountOrZero = 0
    """Seed of everything random."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of torch; its own choice when missing."""
    precision: Literal["fp32", "medium", "bf16"] = "fp32"
    """Arithmetic of training: float32, float32 with bfloat16 products, or bfloat16 activations."""
    log_every: Count = 20
    """Steps between lines of progress."""
    on_non_finite: Literal["fail", "skip", "rollback"] = "fail"
    """On a loss or gradient that is not finite: stop, leave the step out, or go back."""


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
    local: LocalConfig = LocalConfig()
    """Local learning."""
    surgery: SurgeryConfig = SurgeryConfig()
    """Local and global gradients."""
    grow: GrowConfig = GrowConfig()
    """Growth."""
    freeze: FreezeConfig = FreezeConfig()
    """Freezing."""
    validation: ValidationConfig = ValidationConfig()
    """Validation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    run: RunSection = RunSection()
    """The run itself."""

    @model_validator(mode="after")
    def _across_sections(self) -> "RunConfig":
        from spherescan.config.checks import check  # noqa: PLC0415  it needs this class

        check(self)
        return self

    @property
    def recomputes(self) -> bool:
        """Whether the inside of each block is computed again in the backward pass."""
        deep = self.local.loss != "none" and self.local.mode == "deep"
        return deep if self.run.recompute is None else self.run.recompute

    @property
    def n_layers_grown(self) -> int:
        """Blocks of the model at the end of the run."""
        return self.grow.layers or self.model.n_layers

    def n_layers_at(self, step: int) -> int:
        """Return the blocks of the model after so many steps."""
        return self.n_layers_grown if step >= self.grow.at_step else self.model.n_layers

    def new_positions(self) -> tuple[int, ...]:
        """Return where the new blocks are in the grown model; none when it does not grow."""
        if self.grow.layers is None:
            return ()
        return new_positions(self.grow.placement, base=self.model.n_layers, target=self.grow.layers)

    def frozen_blocks(self) -> tuple[int, ...]:
        """Return the blocks of the grown model that `freeze.blocks` names."""
        return frozen_blocks(self.freeze.blocks, depth=self.n_layers_grown)

    def is_frozen_at(self, step: int) -> bool:
        """Return whether what is to be frozen is so in the step after so many steps."""
        until = self.freeze.until_step
        return self.grow.at_step <= step and (until == 0 or step < until)

    def local_heads(self, n_layers: int) -> tuple[int, ...]:
        """Return the blocks that have a head of their own, in a model of so many blocks."""
        if not self.local.has_heads:
            return ()
        return tuple(range(self.local.group - 1, n_layers - 1, self.local.group))

"""The training step of rust_trainer 0.1.4 in plain NumPy: the oracle of the compatibility preset.

Written from the published forms alone, with gradients by hand, in float64.

Shapes: b batch, l positions, d features, n states, k taps of the convolution, v tokens, c classes.
"""

import copy
from dataclasses import KW_ONLY, dataclass, fields
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

Array = np.ndarray
Anything = Float64[Array, "..."]
Vector = Float64[Array, " d"]
Stream = Float64[Array, "b l d"]
Tokens = Int[Array, "b l"]
Named = dict[str, Anything]


@dataclass
class Layer:
    """The tensors of one selective layer, or their gradients."""

    A_log: Float64[Array, "d n"]
    D: Vector
    x_proj: Float64[Array, "d 2*n+1"]
    dt_proj_w: Float64[Array, "1 d"]
    dt_proj_b: Vector
    conv_w: Float64[Array, "d k"]
    conv_b: Vector
    out_proj: Float64[Array, "d d"]


class LayerTape(NamedTuple):
    """What the backward pass of a layer needs from its forward pass."""

    padded: Float64[Array, "b l+k-1 d"]
    conv: Stream
    u: Stream
    B: Float64[Array, "b l n"]
    C: Float64[Array, "b l n"]
    r: Float64[Array, "b l 1"]
    raw_delta: Stream
    delta: Stream
    decay: Float64[Array, "b l d n"]
    states: Float64[Array, "b l+1 d n"]  # states[:, t + 1] follows position t
    y: Stream


def sigmoid(x: Anything) -> Anything:
    return np.exp(-np.logaddexp(0.0, -x))


def softplus(x: Anything) -> Anything:
    """Return log(1 + exp(x)), and x itself above 20."""
    return np.where(x > 20.0, x, np.log1p(np.exp(np.minimum(x, 20.0))))


def softplus_slope(x: Anything) -> Anything:
    return np.where(x > 20.0, 1.0, sigmoid(x))


def layer_forward(layer: Layer, x: Stream) -> tuple[Stream, LayerTape]:
    """Return x plus the output of the layer, and the tape."""
    batch, length, d_model = x.shape
    n = layer.A_log.shape[1]
    taps = layer.conv_w.shape[1]
    padded = np.concatenate([np.zeros((batch, taps - 1, d_model)), x], axis=1)
    conv = layer.conv_b + sum(layer.conv_w[:, j] * padded[:, j : j + length] for j in range(taps))
    u = conv * sigmoid(conv)
    B, C, r = np.split(u @ layer.x_proj, [n, 2 * n], axis=-1)
    raw_delta = r @ layer.dt_proj_w + layer.dt_proj_b
    delta = softplus(raw_delta)

    decay = np.exp(delta[..., None] * -np.exp(layer.A_log))
    states = np.zeros((batch, length + 1, d_model, n))
    for t in range(length):
        drive = (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        states[:, t + 1] = decay[:, t] * states[:, t] + drive
    y = np.einsum("bldn,bln->bld", states[:, 1:], C) + layer.D * u
    tape = LayerTape(padded, conv, u, B, C, r, raw_delta, delta, decay, states, y)
    return x + y @ layer.out_proj, tape


def layer_backward(layer: Layer, tape: LayerTape, grad: Stream) -> tuple[Stream, Layer]:
    """Return the gradient of the layer's input and those of its parameters."""
    A = -np.exp(layer.A_log)
    u, delta, decay = tape.u, tape.delta, tape.decay
    length = u.shape[1]

    grad_y = grad @ layer.out_proj.T
    grad_state = grad_y[..., None] * tape.C[:, :, None, :]
    for t in reversed(range(length - 1)):
        grad_state[:, t] += decay[:, t + 1] * grad_state[:, t + 1]

    grad_exponent = grad_state * tape.states[:, :-1] * decay
    grad_drive = np.einsum("bldn,bln->bld", grad_state, tape.B)
    grad_raw = np.einsum("bldn,dn->bld", grad_exponent, A) + grad_drive * u
    grad_raw *= softplus_slope(tape.raw_delta)
    grad_B = np.einsum("bldn,bld->bln", grad_state, delta * u)
    grad_C = np.einsum("bldn,bld->bln", tape.states[:, 1:], grad_y)
    grad_r = grad_raw @ layer.dt_proj_w.T
    grad_projected = np.concatenate([grad_B, grad_C, grad_r], axis=-1)
    grad_u = grad_y * layer.D + grad_drive * delta + grad_projected @ layer.x_proj.T

    gate = sigmoid(tape.conv)
    grad_conv = grad_u * gate * (1.0 + tape.conv * (1.0 - gate))
    grad_padded = np.zeros_like(tape.padded)
    grad_conv_w = np.zeros_like(layer.conv_w)
    taps = layer.conv_w.shape[1]
    for j in range(taps):
        grad_padded[:, j : j + length] += grad_conv * layer.conv_w[:, j]
        grad_conv_w[:, j] = (grad_conv * tape.padded[:, j : j + length]).sum(axis=(0, 1))

    grads = Layer(
        A_log=np.einsum("bldn,bld->dn", grad_exponent, delta) * A,
        D=(grad_y * u).sum(axis=(0, 1)),
        x_proj=np.einsum("bld,blm->dm", u, grad_projected),
        dt_proj_w=np.einsum("blr,bld->rd", tape.r, grad_raw),
        dt_proj_b=grad_raw.sum(axis=(0, 1)),
        conv_w=grad_conv_w,
        conv_b=grad_conv.sum(axis=(0, 1)),
        out_proj=np.einsum("blk,bld->kd", tape.y, grad),
    )
    return grad + grad_padded[:, taps - 1 :], grads


def head(
    x: Stream, prototypes: Float64[Array, "c d"], targets: Tokens
) -> tuple[float, Stream, Float64[Array, "c d"]]:
    """Return the loss of LayerNorm and raw prototypes, with the gradients of both inputs."""
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse_std = 1.0 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    z = centred * inverse_std
    length = np.sqrt((z**2).sum(axis=-1, keepdims=True))
    unit = z / np.maximum(length, 1e-8)
    chosen = prototypes[targets]
    error = 1.0 - (unit * chosen).sum(axis=-1, keepdims=True)

    grad_cosine = -2.0 * error / error.size
    grad_prototypes = np.zeros_like(prototypes)
    np.add.at(grad_prototypes, targets, grad_cosine * unit)
    grad_unit = grad_cosine * chosen
    radial = np.where(length > 1e-8, (grad_unit * unit).sum(axis=-1, keepdims=True), 0.0)
    grad_z = (grad_unit - unit * radial) / np.maximum(length, 1e-8)
    grad_x = grad_z - grad_z.mean(axis=-1, keepdims=True)
    grad_x -= z * (grad_z * z).mean(axis=-1, keepdims=True)
    return float((error**2).mean()), grad_x * inverse_std, grad_prototypes


def forward_forward(theta: Vector, x: Stream) -> tuple[float, Vector]:
    """Return the hinge of the two goodnesses and the gradient used while the hinge is positive."""
    _, length, d_model = x.shape
    parity = (np.arange(length)[:, None] + np.arange(d_model)) % 2
    h_pos = x.mean(axis=(0, 1))
    h_neg = (np.roll(x, 1, axis=1) * np.where(parity == 0, 1.0, -1.0)).mean(axis=(0, 1))
    contrast = h_pos / (h_pos.std() + 1e-5) - h_neg / (h_neg.std() + 1e-5)
    direction = contrast / (np.linalg.norm(theta) + 1e-5)
    return max(0.0, 1.0 - float(direction @ theta)), -direction


def pcgrad(f: Vector, b: Vector, *, epsilon: float) -> Vector:
    check_same_shape(f, b)
    return f if f @ b >= 0.0 else f - (f @ b) / (b @ b + max(epsilon, 0.0)) * b


def gradnorm_ff_scale(f: Vector, b: Vector, *, alpha: float, epsilon: float) -> float:
    check_same_shape(f, b)
    disagreement = f / (np.linalg.norm(f) + epsilon) - b / (np.linalg.norm(b) + epsilon)
    return float(np.exp(alpha * np.linalg.norm(disagreement)))


def cagradstep(f: Vector, b: Vector, *, lam: float, epsilon: float) -> Vector:
    check_same_shape(f, b)
    return f if f @ b >= 0.0 else f - max(lam, 0.0) * (f @ b) / (b @ b + max(epsilon, 0.0)) * b


def check_same_shape(f: Anything, b: Anything) -> None:
    if f.shape != b.shape:
        raise ValueError(f"the gradients have unequal shapes {f.shape} and {b.shape}")


def new_positions(placement: str, *, n_base: int, n_target: int) -> list[int]:
    """Return where the new layers stand in the expanded stack."""
    n_new = n_target - n_base
    kind, _, argument = placement.partition(":")
    match kind:
        case "append":
            positions = list(range(n_base, n_target))
        case "prepend":
            positions = list(range(n_new))
        case "insert":
            positions = list(range(int(argument), int(argument) + n_new))
        case "specific":
            positions = sorted(int(position) for position in argument.split(","))
        case _:
            raise ValueError(
                f"unknown placement {placement!r}; choose append, prepend, insert:N or specific:I,J"
            )
    if len(set(positions)) != n_new or not set(positions) <= set(range(n_target)):
        raise ValueError(f"{placement!r} does not place {n_new} layers in a stack of {n_target}")
    return positions


def expand(base: list[Layer], positions: list[int]) -> list[Layer]:
    """Return copies of the base layers in order, with layers of zeros at the given positions."""
    remaining = iter(base)
    template = base[0]
    return [
        Layer(**{f.name: np.zeros_like(getattr(template, f.name)) for f in fields(Layer)})
        if position in positions
        else copy.deepcopy(next(remaining))
        for position in range(len(base) + len(positions))
    ]


@dataclass
class ReferenceTrainer:
    """Forward-Forward on every step, backpropagation on every `cadence`-th, one AdamW.

    Args:
        lr: the configured peak rate.
        ff_lr: that of a step of Forward-Forward; `ff_lr / schedule(step)` scales what it adds to
            D's gradient in a step of backpropagation.
        warmup, total, floor: steps of linear warm-up and of the whole run, and the least rate as a
            part of the peak.
        grad_clip: the largest global norm of the trained tensors' gradients; 0 disables.
    """

    embedding: Float64[Array, "v d"]
    layers: list[Layer]
    prototypes: Float64[Array, "c d"]
    _: KW_ONLY
    method: str
    lr: float
    ff_lr: float
    cadence: int
    epsilon: float
    alpha: float
    lam: float
    weight_decay: float
    grad_clip: float
    warmup: int
    total: int
    floor: float
    frozen_layers: set[int]
    freeze_embedding: bool

    def __post_init__(self) -> None:
        if self.method not in {"pcgrad", "gradnorm", "cagradstep"}:
            raise ValueError(f"unknown method {self.method!r}; choose pcgrad, gradnorm, cagradstep")
        self.embedding = np.array(self.embedding, dtype=np.float64)
        self.layers = [
            Layer(**{f.name: np.array(getattr(layer, f.name), np.float64) for f in fields(Layer)})
            for layer in self.layers
        ]
        self.prototypes = np.array(self.prototypes, dtype=np.float64)
        self.step_count = 0
        self.moments = {
            name: (np.zeros_like(value), np.zeros_like(value))
            for name, value in self.parameters().items()
        }

    def schedule(self, step: int) -> float:
        """Return the rate of AdamW in a step, counted from 0."""
        if step < self.warmup:
            return self.lr * max(self.floor, (step + 1) / self.warmup)
        turn = np.pi * (step - self.warmup) / (self.total - 1 - self.warmup)
        return self.lr * float(self.floor + (1.0 - self.floor) * (0.5 + 0.5 * np.cos(turn)))

    def parameters(self) -> Named:
        """Return the live tensors by name: embedding, layers.0.A_log, ..., prototypes."""
        return named(self.embedding, self.layers, self.prototypes)

    def gradients(self, inputs: Tokens, targets: Tokens) -> tuple[float, Named]:
        """Return the loss and its gradients, those of frozen tensors included."""
        x, tapes = self.embedding[inputs], []
        for layer in self.layers:
            x, tape = layer_forward(layer, x)
            tapes.append(tape)
        loss, grad, grad_prototypes = head(x, self.prototypes, targets)
        layer_grads: list[Layer] = []
        for layer, tape in zip(reversed(self.layers), reversed(tapes), strict=True):
            grad, layer_grad = layer_backward(layer, tape, grad)
            layer_grads.insert(0, layer_grad)
        grad_embedding = np.zeros_like(self.embedding)
        np.add.at(grad_embedding, inputs, grad)
        return loss, named(grad_embedding, layer_grads, grad_prototypes)

    def step(self, inputs: Tokens, targets: Tokens) -> dict[str, object]:
        """Train on one batch; every gradient is taken at the parameters before the step."""
        step = self.step_count
        self.step_count += 1
        ff_losses, ff_grads = self._forward_forward(inputs)
        if (step + 1) % self.cadence != 0:
            for i, ff_grad in ff_grads.items():
                self.layers[i].D -= self.ff_lr * ff_grad
            return {"loss": None, "ff_losses": ff_losses, "conflicts": 0, "grad_norm": None}

        loss, grads = self.gradients(inputs, targets)
        conflicts = 0
        for i, ff_grad in ff_grads.items():
            bp_grad = grads[f"layers.{i}.D"]
            conflicts += int(ff_grad @ bp_grad < 0.0)
            surgery = self._surgery(ff_grad, bp_grad)
            grads[f"layers.{i}.D"] = bp_grad + self.ff_lr / self.schedule(step) * surgery
        grads = {name: grad for name, grad in grads.items() if not self._frozen(name)}
        norm = float(np.sqrt(sum((grad**2).sum() for grad in grads.values())))
        clip = self.grad_clip / norm if 0.0 < self.grad_clip < norm else 1.0
        self._adamw({name: grad * clip for name, grad in grads.items()}, step)
        return {"loss": loss, "ff_losses": ff_losses, "conflicts": conflicts, "grad_norm": norm}

    def _forward_forward(self, inputs: Tokens) -> tuple[list[float], dict[int, Vector]]:
        """Return all losses, and the gradients of the trained layers whose loss is positive."""
        x, losses, grads = self.embedding[inputs], [], {}
        for i, layer in enumerate(self.layers):
            loss, grad = forward_forward(layer.D, x)
            losses.append(loss)
            if loss > 0.0 and i not in self.frozen_layers:
                grads[i] = grad
            x, _ = layer_forward(layer, x)
        return losses, grads

    def _surgery(self, f: Vector, b: Vector) -> Vector:
        if self.method == "pcgrad":
            return pcgrad(f, b, epsilon=self.epsilon)
        if self.method == "cagradstep":
            return cagradstep(f, b, lam=self.lam, epsilon=self.epsilon)
        return f * gradnorm_ff_scale(f, b, alpha=self.alpha, epsilon=self.epsilon)

    def _frozen(self, name: str) -> bool:
        if name == "embedding":
            return self.freeze_embedding
        return name.startswith("layers.") and int(name.split(".")[1]) in self.frozen_layers

    def _adamw(self, grads: Named, step: int) -> None:
        rate, t = self.schedule(step), step + 1
        parameters = self.parameters()
        for name, grad in grads.items():
            first, second = self.moments[name]
            first += (1.0 - 0.9) * (grad - first)
            second += (1.0 - 0.999) * (grad**2 - second)
            direction = first / (1.0 - 0.9**t) / (np.sqrt(second / (1.0 - 0.999**t)) + 1e-8)
            parameters[name] -= rate * (direction + self.weight_decay * parameters[name])


def named(
    embedding: Float64[Array, "v d"], layers: list[Layer], prototypes: Float64[Array, "c d"]
) -> Named:
    return {
        "embedding": embedding,
        **{
            f"layers.{i}.{f.name}": getattr(layer, f.name)
            for i, layer in enumerate(layers)
            for f in fields(Layer)
        },
        "prototypes": prototypes,
    }

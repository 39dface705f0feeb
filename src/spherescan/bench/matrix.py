"""The reduced model whose speed the Rust program publishes."""

from collections.abc import Callable
from functools import partial

import torch

from spherescan.losses import prototype_cosine_loss
from spherescan.nn import Mamba, PrototypeHead, SequenceModel

_VOCABULARY = 8192

# (batch, length, d_model, layers) -> tokens per second on its author's laptop.
PUBLISHED: dict[tuple[int, int, int, int], float] = {
    (4, 32, 512, 2): 1984.50,
    (4, 64, 512, 2): 2716.18,
    (4, 128, 512, 2): 3681.25,
    (8, 32, 512, 2): 2849.72,
    (8, 64, 512, 2): 3409.54,
    (8, 128, 512, 2): 4695.45,
    (16, 32, 512, 2): 3913.38,
    (16, 64, 512, 2): 5013.46,
    (16, 128, 512, 2): 6019.10,
    (8, 64, 256, 2): 8126.98,
    (8, 64, 256, 4): 5560.18,
    (8, 64, 256, 6): 4002.61,
    (8, 64, 256, 8): 3278.55,
    (8, 64, 256, 10): 2783.87,
    (8, 64, 512, 4): 2315.00,
    (8, 64, 512, 6): 1721.01,
    (8, 64, 512, 8): 1440.23,
    (8, 64, 512, 10): 1219.53,
}


def reduced_model_step(
    batch: int, length: int, d_model: int, n_layers: int, *, autocast: bool
) -> Callable[[], None]:
    """Return a whole training step: forward, loss, backward, AdamW."""
    generator = torch.Generator().manual_seed(0)
    head = PrototypeHead(_VOCABULARY, d_model, init="random", generator=generator)
    model = SequenceModel(
        head=head,
        vocab_size=_VOCABULARY,
        d_model=d_model,
        n_layers=n_layers,
        mixer=partial(Mamba, expand=1, gate=False, dt_rank=1),
        pooling=(),
        generator=generator,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(0, _VOCABULARY, (batch, length + 1), generator=generator)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            z = model.embed(tokens[:, :-1])
        losses = prototype_cosine_loss(
            z.float().flatten(0, 1), head.prototypes, tokens[:, 1:].flatten()
        )
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step

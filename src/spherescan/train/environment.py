"""What the bits of a run depend on besides its configuration and its data."""

import json
import os
import random

import numpy as np
import torch
from torch import Tensor

from spherescan import __version__
from spherescan.data.order import derived_seed
from spherescan.errors import CheckpointError, ConfigError
from spherescan.ops import native
from spherescan.ops.form import selected_form
from spherescan.ops.linear import onednn_is_faster

# The generators of the process, which nothing here draws from; code of the user may.
GENERATORS = ("numpy", "python", "torch")


def environment() -> dict[str, str | int]:
    """Return versions and choices that may change the last bit of a sum."""
    form = selected_form()
    return {
        "spherescan": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "ops": form,
        "products": "onednn" if onednn_is_faster() else "torch",
        "simd": native.SIMD_LEVELS[native.simd()] if form == "native" else "none",
    }


def differences(saved: dict[str, str | int] | None) -> dict[str, list[str | int | None]]:
    """Return what differs from a saved environment, each as before and now."""
    now = environment()
    before = saved or {}
    return {
        name: [before.get(name), now.get(name)]
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    }


def expect_one_process() -> None:
    """Refuse to be one of several processes of a launcher such as torchrun.

    Raises:
        ConfigError: It is: each would train the whole run, and all but one be refused the folder.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ConfigError(
            f"WORLD_SIZE is {size}; a run is trained by 1 process; start it without a launcher"
        )


def seed_generators(seed: int) -> None:
    """Seed the generators of the process, so that code of the user draws the same every time."""
    random.seed(derived_seed(seed, "python"))
    np.random.seed(derived_seed(seed, "numpy") % 2**32)  # noqa: NPY002  the global one is meant
    torch.manual_seed(derived_seed(seed, "torch"))


def generator_tensors() -> dict[str, Tensor]:
    """Return the states of the generators of the process, as bytes."""
    version, keys, gauss = random.getstate()
    name, numbers, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  the global one is meant
    return {
        "python": _bytes([version, list(keys), gauss]),
        "numpy": _bytes([name, np.asarray(numbers).tolist(), *map(float, rest)]),
        "torch": torch.get_rng_state(),
    }


def restore_generators(saved: dict[str, Tensor]) -> None:
    """Set the generators of the process.

    Raises:
        CheckpointError: One of the states has no meaning; the others may have been set.
    """
    try:
        for name, state in saved.items():
            if name == "python":
                version, keys, gauss = json.loads(state.numpy().tobytes())
                random.setstate((version, tuple(keys), gauss))
            elif name == "numpy":
                kind, numbers, position, has_gauss, gauss = json.loads(state.numpy().tobytes())
                array = np.array(numbers, dtype=np.uint32)
                legacy = (kind, array, int(position), int(has_gauss), gauss)
                np.random.set_state(legacy)  # noqa: NPY002  see above
            else:
                torch.set_rng_state(state)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"the checkpoint has no meaningful generator {name}") from error


def _bytes(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)

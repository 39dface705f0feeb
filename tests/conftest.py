"""Every unit test runs on one thread: on a busy machine more of them cost more than they bring."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("spherescan", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("spherescan")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)

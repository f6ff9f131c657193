"""Weights that are drawn from a seed, and leave torch's own generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Tensors drawn within the context lie on the CPU and follow from the seed alone.

    torch.manual_seed would seed the GPUs' generators as well, which belong to the caller.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield

"""Every random stream of a run, derived from its one seed."""

from __future__ import annotations

import numpy as np
import torch

# Streams are numbered for good: renumbering would change every seeded result.
TRAIN_EPISODES, EVAL_EPISODES, ACTING, REPLAY, HEADS, RANDOM_POLICY, MINIBATCHES = range(7)


def derive(seed: int, *path: int) -> int:
    """A 63-bit seed for the stream named by `path`."""
    words = np.random.SeedSequence([seed, *path]).generate_state(2, dtype=np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def episode_seed(seed: int, stream: int, *path: int) -> int:
    """A 31-bit seed for `env.reset`, which Gymnasium environments accept."""
    return derive(seed, stream, *path) & 0x7FFFFFFF


def generator(seed: int, *path: int) -> torch.Generator:
    """A CPU generator for the stream named by `path`."""
    return torch.Generator().manual_seed(derive(seed, *path))

"""What the trainer needs of an algorithm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config import TrainConfig
from ..envs.vector import VectorEnv
from ..models.policy import Policy
from .checkpoint import CheckpointWriter
from .collector import Collector


class Algorithm(Protocol):
    """Acts through its collector, learns from what was collected, and can be saved."""

    @property
    def collector(self) -> Collector:
        """What acts, and keeps what it saw."""
        ...

    @property
    def updates(self) -> int:
        """Gradient updates so far."""
        ...

    def learn(self, env_steps: int) -> Iterator[dict[str, float]]:
        """Make the updates that are due after `env_steps`; the losses and statistics of each.

        Raises:
            DivergedError: a loss or the gradient is not finite; the parameters stay as they were.
        """
        ...

    def behind(self, env_steps: int) -> bool:
        """Whether updates that are due after `env_steps` were left, which `learn` then makes."""
        ...

    def save(self, writer: CheckpointWriter) -> dict[str, Any]:
        """Write all that is not the policy into a checkpoint; returns entries of state.json."""
        ...

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """The inverse of `save`. KeyError if a part is missing."""
        ...


def make_algorithm(
    config: TrainConfig,
    policy: Policy,
    envs: VectorEnv,
    noise: torch.Generator,
    reset_options: Mapping[str, Any],
) -> Algorithm:
    """The algorithm that `config.algo` names.

    Args:
        config: resolved.
        policy: what acts and is trained.
        envs: where it acts.
        noise: for sampling actions.
        reset_options: passed to every `reset`.
    """
    if config.algo == "ppo":
        from .ppo import PpoAlgorithm

        return PpoAlgorithm(config, policy, envs, noise, reset_options)
    from .sac import SacAlgorithm

    return SacAlgorithm(config, policy, envs, noise, reset_options)

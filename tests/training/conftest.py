"""A configuration that trains in a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sacglam import TrainConfig

QUICK: dict[str, Any] = {
    "env.num_envs": 4,
    "model.hidden_size": 32,
    "model.feed_forward": 32,
    "optim.batch_size": 8,
    "total_steps": 400,
    "learning_starts": 100,
    "log_interval": 100,
    "eval.episodes": 12,
    "prompt.instruction": "",
}


@pytest.fixture
def quick_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """quick_config("name", **{"sac.alpha": 0.1}) -> configuration with its folder in tmp_path."""

    def make(name: str = "run", **overrides: Any) -> TrainConfig:
        values = {**QUICK, "out": str(tmp_path / name), **overrides}
        return TrainConfig().with_overrides(values)

    return make

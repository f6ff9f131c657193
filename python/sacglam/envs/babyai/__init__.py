"""BabyAI-Text: minigrid's BabyAI levels as a text environment, in GLAM's wording.

Needs the optional package `minigrid` (`pip install 'sacglam[babyai]'`), imported on first use only.
"""

from __future__ import annotations

from typing import Any

from sacglam.envs.babyai.env import ACTIONS, BabyAITextEnv
from sacglam.envs.babyai.levels import babyai_levels

__all__ = ["ACTIONS", "BabyAITextEnv", "babyai_levels", "make_babyai"]


def make_babyai(level: str, **kwargs: Any) -> BabyAITextEnv:
    """The environment `babyai/<level>`; see `BabyAITextEnv` for the keyword arguments.

    `level` is a name such as `GoToLocal`, or the gymnasium id `BabyAI-GoToLocal-v0`.

    Raises:
        MissingDependencyError: minigrid is not installed.
        UnknownEnvironmentError: there is no such level; near matches are named.
        ConfigError: an argument that the level does not take, or out of range.
    """
    return BabyAITextEnv(level, **kwargs)

"""Steps of the environments with random actions; a sample is `STEPS` environment steps, resets
included, so that steps/s = STEPS / median."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
from collections.abc import Callable
from typing import Any

import pytest
from sacglam import list_envs, make_env
from sacglam.envs.vector import VectorEnv

STEPS = 1000
PLAYGROUND = [name for name in list_envs() if name.startswith("playground/")]


def steps_alone(env: Any, count: int) -> Callable[[], None]:
    """`count` steps in one environment, without any check."""
    chance = random.Random(0)
    state = {"info": env.reset(seed=0)[1], "episode": 0}

    def run() -> None:
        info, episode = state["info"], state["episode"]
        for _ in range(count):
            _, _, terminated, truncated, info = env.step(chance.choice(info["possible_actions"]))
            if terminated or truncated:
                episode += 1
                _, info = env.reset(seed=episode)
        state["info"], state["episode"] = info, episode

    return run


def steps_together(id: str, count: int, width: int = 16) -> Callable[[], None]:
    """`count` steps spread over `width` environments stepped together, the protocol checked."""
    envs = VectorEnv([make_env(id) for _ in range(width)])
    chance = random.Random(0)
    actions = {i: envs.reset(i, seed=i)[1]["possible_actions"] for i in range(width)}
    episode = [width]

    def run() -> None:
        for _ in range(count // width):
            chosen = {i: chance.choice(possible) for i, possible in actions.items()}
            for i, step in envs.step(chosen).items():
                actions[i] = step.info["possible_actions"]
                if step.terminated or step.truncated:
                    episode[0] += 1
                    actions[i] = envs.reset(i, seed=episode[0])[1]["possible_actions"]

    return run


def steps_of_minigrid(level: str, count: int) -> Callable[[], None]:
    """Minigrid's own environment with its arrays: what the text is added to."""
    import gymnasium
    import minigrid  # noqa: F401  registers the levels

    env = gymnasium.make(f"BabyAI-{level}-v0").unwrapped
    chance = random.Random(0)
    episode = [0]
    with contextlib.redirect_stdout(io.StringIO()):  # rejected layouts are printed
        env.reset(seed=0)

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            for _ in range(count):
                _, _, terminated, truncated, _ = env.step(chance.randrange(6))
                if terminated or truncated:
                    episode[0] += 1
                    env.reset(seed=episode[0])

    return run


@pytest.mark.parametrize("id", PLAYGROUND)
def test_playground(compare, quick, id):
    count = 64 if quick else STEPS - STEPS % 16
    compare(
        f"{id}, {count} steps",
        {
            "sacglam": steps_alone(make_env(id), count),
            "sacglam, 16 stepped together and checked": steps_together(id, count),
        },
    )


@pytest.mark.skipif(importlib.util.find_spec("minigrid") is None, reason="minigrid is missing")
def test_babyai(compare, quick):
    count = 64 if quick else STEPS - STEPS % 16
    id = "babyai/GoToLocal"
    compare(
        f"{id}, {count} steps",
        {
            "sacglam": steps_alone(make_env(id), count),
            "sacglam, 16 stepped together and checked": steps_together(id, count),
            "minigrid without text": steps_of_minigrid("GoToLocal", count),
        },
    )

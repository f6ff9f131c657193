"""The example of a TextWorld environment, where TextWorld is installed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from sacglam import check_env

pytest.importorskip("textworld")


@pytest.fixture
def example(examples_on_path: None) -> Any:
    import textworld_environment

    return textworld_environment


def test_every_goal_can_be_reached_in_its_house(example: Any):
    env, choose = example.Houses(max_steps=300), random.Random(0)
    check_env(env)
    assert len(env.train_goals) >= 15
    for goal in env.train_goals:
        for seed in range(20):
            _, info = env.reset(seed=seed, options={"goal": goal})
            assert info["goal"] == goal
            ended = False
            while not ended:
                action = choose.choice(info["possible_actions"])
                _, reward, terminated, truncated, info = env.step(action)
                ended = terminated or truncated
            assert terminated == (goal in info["achieved_goals"]) == (reward > 0)
            if terminated:
                break
        else:
            pytest.fail(f"{goal} was never reached")


def test_it_trains(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = {"total_steps": 96, "learning_starts": 32, "eval.episodes": 8, "log_interval": 32}
    result = example.main(example.config(str(tmp_path / "houses")).with_overrides(few))
    assert result["updates"] > 0
    assert set(result["success"]) <= {"take", "eat", "open", "go to"}
    assert "trained" in capsys.readouterr().out

"""The example of one's own environment: sound, solvable, and it trains from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sacglam import check_env
from sacglam.training.reevaluation import evaluate_run


@pytest.fixture
def example(examples_on_path: None) -> Any:
    import own_environment

    return own_environment


def test_every_goal_is_reached_in_two_steps(example: Any):
    for seed, goal in enumerate(example.Lamps.train_goals):
        env = example.Lamps()
        check_env(env, episodes=2, seed=seed)
        _, info = env.reset(seed=seed, options={"goal": goal})
        assert info["goal"] == goal
        _, reward, terminated, _, _ = env.step(f"Go to the {goal.removeprefix('Turn on the ')}")
        assert (reward, terminated) == (0.0, False)
        text, reward, terminated, truncated, info = env.step("Press")
        assert (reward, terminated, truncated) == (1.0, True, False)
        assert info["achieved_goals"] == [goal]
        assert "lamp" in text.partition("On:")[2]


def test_it_trains(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = {"total_steps": 96, "learning_starts": 32, "eval.episodes": 8, "log_interval": 32}
    run = example.config(str(tmp_path / "lamps")).with_overrides(few)
    result = example.main(run)
    assert result["updates"] > 0
    assert "trained" in capsys.readouterr().out
    # What `sacglam eval` does: the environment is found again by its id.
    again = evaluate_run(run.out, episodes=8)
    assert again["success"] == result["success"]
    assert json.loads((tmp_path / "lamps" / "eval.json").read_text())["episodes"] == 8

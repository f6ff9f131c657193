"""Goals that are held back: asked for only where an environment has some."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from sacglam import Trainer
from sacglam.errors import ConfigError
from sacglam.training.reevaluation import evaluate_run


class Room:
    """An episode of one step, whose goal is one of a list that depends on the split."""

    vocabulary = ("take key coin lamp in a room",)

    def __init__(self, **goals: list[str]) -> None:
        self.goals = goals
        for name, value in goals.items():
            setattr(self, name, value)
        self.seen: set[str] = set()
        self.random = random.Random(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.random = random.Random(seed)
        split = (options or {}).get("split", "train")
        self.goal = self.random.choice(self.goals.get(f"{split}_goals", ["take key"]))
        self.seen.add(self.goal)
        return "in a room", self._info([])

    def step(self, action: str) -> Any:
        done = action == self.goal
        return "in a room", float(done), done, not done, self._info([action])

    def _info(self, achieved: list[str]) -> dict[str, Any]:
        actions = ["take key", "take coin", "take lamp"]
        return {"goal": self.goal, "possible_actions": actions, "achieved_goals": achieved}


WITHOUT: dict[str, dict[str, list[str]]] = {
    "no lists": {},
    "training goals alone": {"train_goals": ["take key"]},
    "none held back": {"train_goals": ["take key"], "test_goals": []},
}


@pytest.mark.parametrize("goals", WITHOUT.values(), ids=WITHOUT)
def test_an_environment_that_holds_none_back(quick_config: Any, goals: dict[str, list[str]]):
    with pytest.raises(ConfigError, match="the split is 'test', but Room has no test_goals"):
        Trainer(quick_config(**{"env.split": "test"}), env=Room(**goals))
    run = Trainer(quick_config(total_steps=120), env=Room(**goals)).train()
    with pytest.raises(ConfigError, match="Room has no test_goals: ask for 'train'"):
        evaluate_run(run.out, split="test", env=Room(**goals))
    assert not list(Path(run.out).glob("eval-*.json"))


def test_an_environment_that_does(quick_config: Any):
    made: list[Room] = []

    def make() -> Room:
        made.append(Room(train_goals=["take key", "take coin"], test_goals=["take lamp"]))
        return made[-1]

    run = Trainer(quick_config(total_steps=120), env=make).train()
    assert set().union(*(env.seen for env in made)) == {"take key", "take coin"}
    made.clear()
    evaluate_run(run.out, split="test", env=make)
    assert set().union(*(env.seen for env in made)) == {"take lamp"}
    assert (run.out / "eval-test.json").is_file()

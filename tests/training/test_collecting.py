"""What the collector makes of environments that are not as the built-in ones."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from sacglam import Callback, Trainer, check_training


class Corridor:
    """Walk `length` steps to the end, which pays `pays`; `patience` steps are the limit."""

    vocabulary = ("the end", "walk wait", "at place 0 1 2")

    def __init__(self, length: int = 2, pays: float = 1.0, patience: int = 8) -> None:
        self.length, self.pays, self.patience = length, pays, patience

    def _info(self, achieved: list[str]) -> dict[str, Any]:
        actions = ["walk", "wait"]
        return {"goal": "the end", "possible_actions": actions, "achieved_goals": achieved}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.at = self.time = 0
        return "at 0", self._info([])

    def step(self, action: str) -> Any:
        self.time += 1
        self.at += action == "walk"
        there = self.at == self.length
        cut = self.time == self.patience and not there
        achieved = ["the end"] if there else [f"place {min(self.at, 2)}"]
        paid = self.pays if there else 0.0
        return f"at {min(self.at, 2)}", paid, there, cut, self._info(achieved)


def test_a_reward_that_hindsight_does_not_pay_is_warned_of_once(quick_config: Any):
    config = quick_config(total_steps=200)
    with pytest.warns(RuntimeWarning, match="set --replay.her-reward 10") as said:
        Trainer(config, env=lambda: Corridor(pays=10.0)).train()
    assert len([w for w in said if "her-reward" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        config = quick_config("equal", total_steps=200, **{"replay.her_reward": 10.0})
        trainer = Trainer(config, env=lambda: Corridor(pays=10.0))
        trainer.train()
        none = quick_config("none", total_steps=200, **{"replay.her_strategy": "none"})
        Trainer(none, env=lambda: Corridor(pays=10.0)).train()
    batch = trainer.algorithm.buffer.sample(512)
    reached = batch.discount == 0
    assert reached.any()
    assert set(batch.relabeled[reached].tolist()) == {0, 1}
    assert (batch.n_step_return[reached & (batch.steps == 1)] == 10.0).all()


def test_updates_are_not_made_up_for_when_the_first_episode_ends_late(quick_config: Any):
    """Four environments, whose first episodes end after 280 steps together."""
    config = quick_config(steps_per_update=2.0, learning_starts=100)
    trainer = Trainer(config, env=lambda: Corridor(length=1000, patience=70))

    class Count(Callback):
        def on_progress(self, env_steps: int, updates: int) -> None:
            assert updates <= max(0, (env_steps - 276) // 2), (env_steps, updates)

    trainer.callbacks.append(Count())
    result = trainer.train()
    assert result.updates == 62  # of (400 - 100) / 2 = 150: those after step 276


def test_a_run_without_an_update_says_so(quick_config: Any):
    config = quick_config(total_steps=200)
    with pytest.warns(RuntimeWarning, match="no update was made"):
        Trainer(config, env=lambda: Corridor(length=1000, patience=60)).train()


def test_a_check_does_not_wait_for_the_end_of_an_episode(quick_config: Any):
    stages: list[str] = []
    steps = 0

    class Slow(Corridor):
        def step(self, action: str) -> Any:
            nonlocal steps
            steps += stages[-1:] == ["timing updates"]
            return super().step(action)

    config = quick_config(total_steps=10**6)
    found = check_training(config, env=lambda: Slow(10**9, patience=3000), tell=stages.append)
    assert found.update_s > 0
    assert steps < 100


def test_a_step_returns_the_episodes_that_it_ended(quick_config: Any):
    collector = Trainer(quick_config(), env=lambda: Corridor(patience=3)).algorithm.collector
    collector.start()
    for _ in range(2):
        assert collector.apply(dict.fromkeys(range(4), 1)) == []
    ended = collector.apply({0: 0, 1: 1, 2: 0, 3: 1})
    assert [(e.goal, e.success, e.length) for e in ended] == [("the end", False, 3)] * 4
    for _ in range(6):
        before = sum(e.number for e in collector.episodes)
        ended = collector.step()
        assert len(ended) == sum(e.number for e in collector.episodes) - before
        assert all(e.length <= 3 and e.success == (e.episode_return == 1) for e in ended)


class Moody(Corridor):
    """Does something else once `mood` is set."""

    mood = ""

    def _info(self, achieved: list[str]) -> dict[str, Any]:
        info = super()._info(achieved)
        return {**info, "possible_actions": ["other"]} if self.mood == "other actions" else info

    def step(self, action: str) -> Any:
        if self.mood == "ends sooner":
            self.time = self.patience - 1
        return super().step(action)


@pytest.mark.parametrize("algo", ["sac", "ppo"])
@pytest.mark.parametrize("mood", ["other actions", "ends sooner"])
def test_an_environment_that_does_not_do_the_same_again_gets_new_episodes(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch, algo: str, mood: str
):
    brief = {"total_steps": 60, "eval.episodes": 2, "learning_starts": 1000, "env.num_envs": 2}
    config = quick_config(algo=algo, **brief)
    out = Trainer(config, env=lambda: Moody(length=50, patience=40)).train().out
    monkeypatch.setattr(Moody, "mood", mood)
    with pytest.warns(RuntimeWarning, match="episode 0 could not be replayed") as said:
        trainer = Trainer.resume(out, env=lambda: Moody(length=50, patience=40), total_steps=80)
    said = [str(w.message).split(":")[0] for w in said if "replayed" in str(w.message)]
    assert said == [f"environment {i} is not deterministic" for i in range(2)]
    episodes = trainer.algorithm.collector.episodes
    assert [(e.number, len(e.rewards)) for e in episodes] == [(1, 0)] * 2
    assert trainer.env_steps == 60
    monkeypatch.setattr(Moody, "mood", "")
    assert trainer.train().env_steps == 80
    assert [len(e.rewards) for e in trainer.algorithm.collector.episodes] == [10, 10]

"""The point of hindsight, on a task where chance is too rare to learn from, with the real trainer.

In the spirit of the bit flipping of HER's paper (Andrychowicz et al. 2017, section 4.1): as many
goals as there are states that can be reached, no reward on the way, and a random agent gets there
once in 3^5 episodes.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sacglam import Callback, TrainConfig, Trainer, check_env

COLOURS = ("red", "blue", "green")
LENGTH = 5
BUDGET = 6400  # environment steps


class Beads:
    """Thread beads one by one, each in one of three colours, until the string is full. The goal is
    a string; a full string that is another one is what was achieved instead."""

    vocabulary = (*(f"{c}{k}" for c in COLOURS for k in range(LENGTH)), "string: empty full tie it")

    def __init__(self) -> None:
        self._rng = random.Random()

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        if seed is not None:
            self._rng.seed(seed)
        self._goal = self._name([self._rng.choice(COLOURS) for _ in range(LENGTH)])
        self._string: list[str] = []
        return self._seen([])

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._string.append(action.rstrip("0123456789"))
        full = len(self._string) == LENGTH
        now = self._name(self._string)
        done = now == self._goal
        text, info = self._seen([now] if full else [])
        return text, float(done), done, full and not done, info

    def _seen(self, achieved: list[str]) -> tuple[str, dict[str, Any]]:
        k = len(self._string)
        return f"string: {self._name(self._string) or 'empty'}", {
            "goal": self._goal,
            "possible_actions": [f"{c}{k}" for c in COLOURS] if k < LENGTH else ["tie it"],
            "achieved_goals": achieved,
        }

    @staticmethod
    def _name(colours: list[str]) -> str:
        return " ".join(f"{colour}{k}" for k, colour in enumerate(colours))


class _UntilLearned(Callback):
    """Presses Ctrl-C once an evaluation found more than 95 %."""

    def __init__(self) -> None:
        self.learned_at = BUDGET

    def on_log(self, metrics: Mapping[str, Any]) -> None:
        if metrics.get("eval", {}).get("success_mean", 0.0) > 0.95:
            self.learned_at = min(self.learned_at, metrics["env_steps"])
            signal.raise_signal(signal.SIGINT)


def _trainer(folder: Path, callback: Callback, **fields: Any) -> Trainer:
    common = {
        "model.hidden_size": 32,
        "model.feed_forward": 64,
        "prompt.instruction": "",
        "sac.target_policy": True,
        "replay.her_ratio": 0.5,
        "replay.her_balance": "events",
        "optim.lr": 3e-3,
        "optim.final_lr": 1.0,  # so that no rate depends on when training ends
        "learning_starts": 200,
        "steps_per_update": 2.0,
        "eval.interval": 400,
        "eval.interval_episodes": 50,
        "eval.episodes": 100,
        "out": str(folder),
    }
    return Trainer(
        TrainConfig().with_overrides({**common, **fields}), env=Beads, callbacks=[callback]
    )


def test_hindsight_learns_what_chance_does_not_show(tmp_path: Path):
    check_env(Beads())
    stop = _UntilLearned()
    trained = _trainer(tmp_path / "her", stop, total_steps=BUDGET)
    trained.train()
    with_hindsight = trained.evaluate(100)["success_mean"]
    assert trained.evaluate(100, "random")["success_mean"] < 0.05
    assert with_hindsight > 0.9, "with hindsight"

    fields = {"total_steps": stop.learned_at, "replay.her_strategy": "none"}
    result = _trainer(tmp_path / "none", Callback(), **fields).train()
    assert result.evaluation is not None
    assert result.evaluation["success_mean"] < 0.1, f"without, after {stop.learned_at} steps too"

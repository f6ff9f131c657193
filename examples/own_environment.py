"""An environment of one's own, checked and trained on in about a minute:

    python examples/own_environment.py [FOLDER OF THE RUN]

Lamps stand in a room. To turn on the red lamp takes two steps: go to it, press its switch.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from sacglam import TrainConfig, Trainer, check_env

COLOURS = ("red", "green", "blue", "white")


class Lamps:
    train_goals = [f"Turn on the {colour} lamp" for colour in COLOURS]
    test_goals: list[str] = []
    # Optional; tiny models build their tokenizer from it: every word that can occur.
    vocabulary = ["You are at the red green blue white lamp door . On : none , Turn on Press Go to"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed is not None:
            self._random = random.Random(seed)
        self._goal = (options or {}).get("goal") or self._random.choice(self.train_goals)
        wanted = self._goal.removeprefix("Turn on the ")
        others = [f"{colour} lamp" for colour in COLOURS if f"{colour} lamp" != wanted]
        self._lamps = [wanted, *self._random.sample(others, 2)]
        self._random.shuffle(self._lamps)
        self._place, self._lit, self._steps = "door", [], 0
        return self._text(), self._info([])

    def step(self, action: str):
        self._steps += 1
        achieved = []
        if action.startswith("Go to"):
            self._place = action.removeprefix("Go to the ")
        elif self._place != "door" and self._place not in self._lit:
            self._lit.append(self._place)
            achieved = [f"Turn on the {self._place}"]  # all that this step newly achieved
        success = self._goal in achieved
        truncated = not success and self._steps >= 4
        return self._text(), float(success), success, truncated, self._info(achieved)

    def _text(self) -> str:
        return f"You are at the {self._place}. On: {', '.join(self._lit) or 'none'}"

    def _info(self, achieved: list[str]) -> dict[str, Any]:
        actions = [*(f"Go to the {lamp}" for lamp in self._lamps), "Press"]
        return {"goal": self._goal, "possible_actions": actions, "achieved_goals": achieved}


def config(out: str) -> TrainConfig:
    fields = {"env.id": "own_environment:Lamps", "total_steps": 8000, "optim.lr": 2e-3, "out": out}
    return TrainConfig().with_overrides({**fields, "optim.batch_size": 32})


def main(run: TrainConfig) -> dict[str, Any]:
    check_env(Lamps())
    result = Trainer(run, env=Lamps()).train(progress=True).evaluation
    assert result is not None, "stopped with Ctrl-C; sacglam train --resume continues"
    before, after = result["baseline_random"]["success_mean"], result["success_mean"]
    print(f"random {before:.0%}, trained {after:.0%}; watch it: sacglam play {run.out}")
    return result


if __name__ == "__main__":
    main(config(sys.argv[1] if len(sys.argv) > 1 else "runs/lamps"))

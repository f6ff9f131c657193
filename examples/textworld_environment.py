"""Microsoft's TextWorld as an environment of one's own: pip install textworld, then

    python examples/textworld_environment.py [FOLDER OF THE RUN]

Houses with locked boxes, keys and food, as TextWorld makes them. A goal is anything that can be
brought about there, whatever TextWorld's own quest is, and a step says all that it brought about:
what hindsight learns from.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import textworld
from sacglam import TrainConfig, Trainer, check_env

# By TextWorld's types: objects, keys, food, containers, rooms.
VERBS = {"o": ["take"], "k": ["take"], "f": ["take", "eat"], "c": ["open"], "r": ["go to"]}
IDLE = ("look", "inventory", "examine ")  # actions that tell what the observation says


def game_file(number: int, rooms: int, objects: int) -> str:
    """A house, compiled on the first call (in a second or two)."""
    options = textworld.GameOptions()
    options.seeds, options.nb_rooms, options.nb_objects = number, rooms, objects
    file = Path(gettempdir()) / "sacglam-textworld" / f"house-{number}-{rooms}-{objects}.z8"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        game = textworld.generator.make_game(options)
        game.quests = []  # the game would end with its quest
        with TemporaryDirectory(dir=file.parent) as folder:  # another run may do the same now
            options.path = str(Path(folder) / file.name)
            textworld.generator.compile_game(game, options)
            for made in sorted(Path(folder).glob(f"{file.stem}.*")):  # the game itself is the last
                made.replace(file.with_suffix(made.suffix))
    return str(file)


def possible_goals(game: Any) -> set[str]:
    """All that can be asked for in a house."""
    things = game.infos.values()
    return {f"{verb} the {thing.name}" for thing in things for verb in VERBS.get(thing.type, ())}


def reached_goals(facts: Iterable[Any]) -> set[str]:
    """What these facts fulfil."""
    reached = set()
    for fact in facts:
        first, last = fact.arguments[0], fact.arguments[-1]
        if fact.name == "at" and first.type == "P":  # the player
            reached.add(f"go to the {last.name}")
        elif fact.name == "in" and last.type == "I":  # the inventory
            reached.add(f"take the {first.name}")
        elif fact.name == "open" and first.type == "c":
            reached.add(f"open the {first.name}")
        elif fact.name == "eaten":
            reached.add(f"eat the {first.name}")
    return reached


class Houses:
    def __init__(
        self, houses: int = 4, rooms: int = 3, objects: int = 6, max_steps: int = 15
    ) -> None:
        asked = textworld.EnvInfos(
            admissible_commands=True, facts=True, description=True, inventory=True, game=True
        )
        self._max_steps = max_steps
        self._houses = []
        for number in range(houses):
            house = textworld.start(game_file(number, rooms, objects), asked)
            state = house.reset()
            goals = possible_goals(state.game) - reached_goals(state.facts)
            self._houses.append((house, sorted(goals)))
        self.train_goals = sorted({goal for _, goals in self._houses for goal in goals})
        self.test_goals: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed is not None:
            self._random = random.Random(seed)
        wanted = (options or {}).get("goal")
        fitting = [each for each in self._houses if wanted in (None, *each[1])]
        self._house, goals = self._random.choice(fitting)
        self._goal = wanted or self._random.choice(goals)
        state = self._house.reset()
        self._reached, self._steps = reached_goals(state.facts), 0
        return self._text(state), self._info(state, [])

    def step(self, action: str):
        state, _, _ = self._house.step(action)
        self._steps += 1
        before, self._reached = self._reached, reached_goals(state.facts)
        achieved = sorted(self._reached - before)
        success = self._goal in achieved
        truncated = not success and self._steps >= self._max_steps
        return self._text(state), float(success), success, truncated, self._info(state, achieved)

    def goal_family(self, goal: str) -> str:
        return goal.partition(" the ")[0]

    def _text(self, state: Any) -> str:
        return " ".join(f"{state.description} {state.inventory}".split())

    def _info(self, state: Any, achieved: list[str]) -> dict[str, Any]:
        actions = [action for action in state.admissible_commands if not action.startswith(IDLE)]
        return {"goal": self._goal, "possible_actions": actions, "achieved_goals": achieved}


def config(out: str) -> TrainConfig:
    fields = {"env.id": "textworld_environment:Houses", "env.processes": 2, "sac.gamma": 0.8}
    return TrainConfig().with_overrides({**fields, "total_steps": 5000, "out": out})


def main(run: TrainConfig) -> dict[str, Any]:
    check_env(Houses())
    result = Trainer(run).train(progress=True).evaluation
    assert result is not None, "stopped with Ctrl-C; sacglam train --resume continues"
    before, after = result["baseline_random"]["success_mean"], result["success_mean"]
    print(f"random {before:.0%}, trained {after:.0%}; watch it: sacglam play {run.out}")
    return result


if __name__ == "__main__":
    main(config(sys.argv[1] if len(sys.argv) > 1 else "runs/houses"))

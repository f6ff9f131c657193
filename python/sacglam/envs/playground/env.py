"""Playground-Text as an environment of the text protocol."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from sacglam.envs.near import hint
from sacglam.envs.playground.expert import Planner
from sacglam.envs.playground.goals import FAMILIES, Goal, GoalSpace
from sacglam.envs.playground.objects import ObjectSpec, make_specs
from sacglam.envs.playground.scene import SceneMaker, nominal_optimum, optimum
from sacglam.envs.playground.world import HANDS, World
from sacglam.errors import ConfigError, EnvironmentProtocolError

SPLITS = ("train", "test")
SAMPLINGS = ("families", "goals")


class PlaygroundText:
    """A room of things to grasp, water and feed, described in words.

    After the Playground of the SAC-GLAM paper (arXiv 2410.12481) and the LittleZoo of MAGELLAN
    (arXiv 2502.07709); the code is our own, and so are the rules where these leave a choice (see
    `world.py`). Reward 1 and termination when the episode's goal is reached, truncation at a time
    limit that grows with the fewest steps that the goal needs.

    `info["achieved_goals"]` lists every goal that a transition satisfies, so that hindsight can
    learn from it. By default held-out goals are left out, as they would be no test otherwise; the
    episode's own goal is always listed when it is reached.

    Args:
        types: the types of objects, of the catalogue in `objects.py`.
        colours: their colours; none: objects have no colours, and goals name none.
        families: of `FAMILIES`; what goals ask for.
        categories: whether goals may name categories ("Grasp any plant").
        n_objects: objects in a scene; more where the goal needs more.
        always: categories of which every scene holds an object ("water", "plant", ...).
        unique_objects: avoid equal objects in a scene, beyond those that the goal needs.
        time_factor: time limit / fewest steps to the goal.
        time_slack: the limit is at least the fewest steps plus this [steps].
        goal_sampling: "families": first a family, then a goal of it; "goals": any goal alike.
        unreachable: share of episodes whose scene lacks the goal's object.
        impossible_goals: have goals to grow furniture too, as the family "Impossible".
        hindsight: "train": describe train goals only in `achieved_goals`; "all": all of them.
        split: whose goals `reset` draws where its options name neither a goal nor a split.

    Raises:
        ConfigError: an argument is out of range, or contradicts another one.
    """

    def __init__(
        self,
        *,
        types: Sequence[str],
        colours: Sequence[str] = (),
        families: Sequence[str] = FAMILIES[:-1],
        categories: bool = True,
        n_objects: int = 6,
        always: Sequence[str] = (),
        unique_objects: bool = False,
        time_factor: float = 2.0,
        time_slack: int = 2,
        goal_sampling: str = "families",
        unreachable: float = 0.0,
        impossible_goals: bool = False,
        hindsight: str = "train",
        split: str = "train",
    ) -> None:
        _one_of("split", split, SPLITS)
        _one_of("goal_sampling", goal_sampling, SAMPLINGS)
        _one_of("hindsight", hindsight, ("train", "all"))
        _in_range("n_objects", n_objects, 2, 64)
        _in_range("time_factor", time_factor, 1.0, 1e6)
        _in_range("time_slack", time_slack, 0, 1e6)
        _in_range("unreachable", unreachable, 0.0, 1.0)
        specs = make_specs(tuple(colours), tuple(types))
        present = {spec.category for spec in specs}
        for category in always:
            if category not in present:
                raise ConfigError(
                    f"always={category!r}, but no type of that category is in types="
                    f"{list(types)}; {hint(category, sorted(present))}"
                )
        if len(always) > n_objects:
            raise ConfigError(
                f"always names {len(always)} categories, but scenes have n_objects={n_objects}"
            )
        self.goals = GoalSpace(
            specs, tuple(families), categories=categories, impossible=impossible_goals
        )
        self.instruction = "Reach the goal."
        self.train_goals = list(self.goals.train)
        self.test_goals = list(self.goals.test)
        self.vocabulary = self._vocabulary()
        self._maker = SceneMaker(
            self.goals, n_objects=n_objects, always=always, unique=unique_objects
        )
        self._time_factor, self._time_slack = float(time_factor), int(time_slack)
        self._sampling = goal_sampling
        self._unreachable = float(unreachable)
        self._train_only = hindsight == "train"
        self._default_split = split
        self._by_family = {
            name: self._group(goals)
            for name, goals in (("train", self.train_goals), ("test", self.test_goals))
        }
        self._planner = Planner()
        self._rng = random.Random()
        self._world: World | None = None
        self._goal: Goal = self.goals.parse(self.train_goals[0])
        self._grown: list[ObjectSpec] = []
        self._done = False
        self._step = 0
        #: Steps until truncation, and the fewest in which the goal can be reached (None: it
        #: cannot be), of the present episode.
        self.max_steps = 0
        self.optimum: int | None = None

    def _group(self, goals: Sequence[str]) -> list[list[str]]:
        groups: dict[str, list[str]] = {}
        for goal in goals:
            groups.setdefault(self.goals.family(goal), []).append(goal)
        return list(groups.values())

    def _vocabulary(self) -> list[str]:
        world = World(self.goals.specs[:2])
        texts = [world.observe(), "You are standing on: nothing", "Inventory (0/2): empty"]
        texts += [f"Inventory ({n}/{HANDS}):" for n in range(HANDS + 1)]
        texts += ["Go to", "Grasp", "Release all", "Grow any then grasp", self.instruction]
        for spec in self.goals.specs:
            texts += [spec.young, spec.text]
        texts += [text for text in (*self.train_goals, *self.test_goals) if "then" not in text]
        return list(dict.fromkeys(texts))

    def goal_family(self, goal: str) -> str:
        """The family of a goal, such as "Grow plant"."""
        return self.goals.family(goal)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: makes this episode, and those after it until the next seed, reproducible.
            options: "goal": the goal's text; else "split": "train" or "test", to draw one.

        Raises:
            ConfigError: an option or the goal is unknown, or the split is empty.
        """
        if seed is not None:
            self._rng.seed(int(seed))
        self._goal = goal = self._pick(dict(options or {}))
        rng = self._rng
        if self._unreachable and rng.random() < self._unreachable:
            scene = self._maker.hopeless_scene(goal, rng)
        else:
            scene = self._maker.scene(goal, rng)
        self.optimum = optimum(goal, scene)
        fewest = nominal_optimum(goal) if self.optimum is None else self.optimum
        self.max_steps = max(fewest + self._time_slack, int(self._time_factor * fewest))
        self._world = World(scene)
        self._grown = []
        self._step = 0
        self._done = False
        return self._world.observe(), self._info([])

    def _pick(self, options: dict[str, Any]) -> Goal:
        goal = options.pop("goal", None)
        split = options.pop("split", None)
        if options:
            name = next(iter(options))
            raise ConfigError(f"unknown reset option {name!r}; known are 'goal' and 'split'")
        if goal is not None:
            return self.goals.parse(goal)
        split = self._default_split if split is None else split
        _one_of("split", split, SPLITS)
        groups = self._by_family[split]
        if not groups:
            raise ConfigError(
                f"the split {split!r} has no goals here: more types or colours are needed to hold "
                "some out; ask for split='train' or name a goal"
            )
        rng = self._rng
        if self._sampling == "families":
            return self.goals.parse(rng.choice(rng.choice(groups)))
        return self.goals.parse(
            rng.choice(self.train_goals if split == "train" else self.test_goals)
        )

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes one of the possible actions.

        Raises:
            EnvironmentProtocolError: the action is not possible now, or the episode is over.
        """
        world = self._world
        if world is None or self._done:
            when = "no episode has begun" if world is None else "the episode is over"
            raise EnvironmentProtocolError(f"step was called, but {when}; call reset first")
        if action not in world.menu:
            raise EnvironmentProtocolError(
                f"the action {action!r} is not possible now; {hint(action, list(world.menu))}"
            )
        grasped, grown = world.act(action)
        achieved: list[str] = []
        reached = False
        if grasped is not None or grown is not None:
            goals = self.goals
            achieved = goals.satisfied(grasped, grown, self._grown, train_only=self._train_only)
            reached = self._reaches(grasped, grown)
            if reached and self._goal.text not in achieved:
                achieved = [*achieved, self._goal.text]
            if grown is not None:
                self._grown.append(grown)
        self._step += 1
        truncated = not reached and self._step >= self.max_steps
        self._done = reached or truncated
        return world.observe(), float(reached), reached, truncated, self._info(achieved)

    def _reaches(self, grasped: ObjectSpec | None, grown: ObjectSpec | None) -> bool:
        goal = self._goal
        if goal.grasp is None:
            return grown is not None and goal.grow is not None and goal.grow.matches(grown)
        if grasped is None or not goal.grasp.matches(grasped):
            return False
        return goal.grow is None or any(goal.grow.matches(spec) for spec in self._grown)

    def _info(self, achieved: list[str]) -> dict[str, Any]:
        return {
            "goal": self._goal.text,
            "goal_family": self._goal.family,
            "possible_actions": [] if self._world is None else list(self._world.menu),
            "achieved_goals": achieved,
        }

    def expert_action(self) -> str:
        """The first action of a shortest way to the goal. Where there is no way (any more), any
        action is as good: the first possible one.

        Raises:
            EnvironmentProtocolError: no episode has begun.
        """
        if self._world is None:
            raise EnvironmentProtocolError("expert_action was called before reset")
        return self._planner.action(self._world, self._goal, self._grown)

    def close(self) -> None:
        """Nothing to release."""


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r}; {hint(value, known)}")


def _in_range(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name}={value!r} is out of range; give a number from {low} to {high}")

"""`check_env` passes what keeps the protocol, and names the rule that anything else breaks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from sacglam.envs import check_env, make_env, protocol
from sacglam.errors import ConfigError, EnvironmentProtocolError

RULES = {rule.name for rule in vars(protocol).values() if isinstance(rule, protocol.Rule)}


class Lights:
    """A small environment that keeps the protocol: switch the right one of three lights on."""

    instruction = "Switch a light on."
    train_goals = ["light red", "light green"]
    test_goals = ["light blue"]
    vocabulary = ["Switch a light on.", "light red green blue", "press wait", "3 2 1 0 left"]

    def __init__(self) -> None:
        self.rng = random.Random()
        self.goal = ""
        self.left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.rng.seed(seed)
        options = options or {}
        goals = self.test_goals if options.get("split") == "test" else self.train_goals
        self.goal = options.get("goal") or self.rng.choice(goals)
        self.left = 3
        return self.obs(), self.info([])

    def step(self, action: str) -> Any:
        self.left -= 1
        achieved = [f"light {action.split()[1]}"] if action.startswith("press") else []
        won = self.goal in achieved
        return self.obs(), float(won), won, self.left == 0 and not won, self.info(achieved)

    def obs(self) -> str:
        return f"{self.left} left"

    def actions(self) -> Any:
        return ["press red", "press green", "press blue", "wait"]

    def info(self, achieved: list[str]) -> dict[str, Any]:
        return {
            "goal": self.goal,
            "possible_actions": self.actions(),
            "achieved_goals": achieved,
            "goal_family": self.goal_family(self.goal),
        }

    def goal_family(self, goal: str) -> str:
        return "warm" if goal == "light red" else "cold"

    def expert_action(self) -> str:
        return "press " + self.goal.split()[1]


def breaking(**methods: Any) -> Any:
    """An environment like Lights, with some methods or attributes replaced."""
    return type("Broken", (Lights,), methods)()


def changed_info(**values: Any) -> Callable[..., dict[str, Any]]:
    """An `info` method with some entries replaced, or dropped where the value is `dropped`."""

    def info(self: Lights, achieved: list[str]) -> dict[str, Any]:
        entries = {**Lights.info(self, achieved), **values}
        return {key: value for key, value in entries.items() if value is not dropped}

    return info


def changed_step(**at: Any) -> Callable[..., Any]:
    """A `step` method with some of its five results replaced."""
    places = ["obs", "reward", "terminated", "truncated", "info"]

    def step(self: Lights, action: str) -> Any:
        result = list(Lights.step(self, action))
        for name, value in at.items():
            result[places.index(name)] = value
        return tuple(result)

    return step


def after_reset(entry: str, value: Any) -> Callable[..., dict[str, Any]]:
    """An `info` method with an entry replaced once the first step was taken."""

    def info(self: Lights, achieved: list[str]) -> dict[str, Any]:
        entries = Lights.info(self, achieved)
        return {**entries, entry: value} if self.left < 3 else entries

    return info


class Shared(Lights):
    """Returns the same list of actions again and again, and changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[str] = []

    def actions(self) -> Any:
        self.listed[:] = ["press red", f"{self.left}", "wait"]
        return self.listed

    def expert_action(self) -> str:
        return "wait"


def crash(self: Lights, *_: Any, **__: Any) -> Any:
    raise KeyError("no such light")


def steps_without_end(self: Lights, action: str) -> Any:
    self.left = 2
    return self.obs(), 0.0, False, False, self.info([])


def forgetful_reset(self: Lights, *, seed: int | None = None, options: Any = None) -> Any:
    """Another goal than the last time, whatever the seed; one by chance would be the same one now
    and then, and nothing to notice."""
    goals = [goal for goal in self.train_goals if goal != self.goal]
    return Lights.reset(self, seed=seed, options={"goal": goals[0], **(options or {})})


def keeps_no_goal(self: Lights, *, seed: int | None = None, options: Any = None) -> Any:
    return Lights.reset(self, seed=seed, options={"split": (options or {}).get("split")})


def keeps_no_split(self: Lights, *, seed: int | None = None, options: Any = None) -> Any:
    return Lights.reset(self, seed=seed, options={"goal": (options or {}).get("goal")})


def unpaid(self: Lights, action: str) -> Any:
    obs, _, _, truncated, info = Lights.step(self, action)
    return obs, 0.0, False, truncated, info


def without_family(self: Lights, achieved: list[str]) -> dict[str, Any]:
    return {"goal": self.goal, "possible_actions": self.actions(), "achieved_goals": achieved}


dropped = object()

BROKEN: list[tuple[str, Any]] = [
    ("methods", object()),
    ("methods", type("NoStep", (), {"reset": Lights.reset})()),
    ("result-of-reset", breaking(reset=lambda self, **_: "only an observation")),
    ("result-of-step", breaking(step=lambda self, action: ("obs", 0.0, False, {}))),
    ("observation", breaking(obs=lambda self: "  \n")),
    ("observation", breaking(obs=lambda self: 3)),
    ("observation", breaking(step=changed_step(obs=None))),
    ("reward", breaking(step=changed_step(reward=float("nan")))),
    ("reward", breaking(step=changed_step(reward=None))),
    ("reward", breaking(step=changed_step(reward="1"))),
    ("flags", breaking(step=changed_step(terminated=None))),
    ("flags", breaking(step=changed_step(truncated=0))),
    ("info", breaking(step=changed_step(info=None))),
    ("info", breaking(info=changed_info(goal=dropped))),
    ("info", breaking(info=changed_info(possible_actions=dropped))),
    ("info", breaking(info=changed_info(achieved_goals=dropped))),
    ("goal", breaking(info=changed_info(goal=""))),
    ("goal", breaking(info=changed_info(goal=None))),
    ("goal-constant", breaking(info=after_reset("goal", "light pink"))),
    ("goal-family", breaking(info=changed_info(goal_family=7))),
    ("goal-family-of-goal", breaking(info=changed_info(goal_family="hot"))),
    ("goal-family-of-goal", breaking(goal_family=lambda self, goal: None)),
    ("goal-family-of-goal", breaking(goal_family=crash, info=without_family)),
    ("possible-actions", breaking(actions=lambda self: "press red")),
    ("possible-actions", breaking(actions=lambda self: ["press red", 5])),
    ("possible-actions-empty", breaking(actions=lambda self: [])),
    ("possible-actions-empty", breaking(info=after_reset("possible_actions", []))),
    ("possible-actions-unique", breaking(actions=lambda self: ["wait", "press red", "wait"])),
    ("possible-actions-blank", breaking(actions=lambda self: ["wait", " "])),
    ("possible-actions-alike", breaking(actions=lambda self: ["press red", "press  red"])),
    ("possible-actions-alike", breaking(actions=lambda self: ["press red", "wait", "wait "])),
    ("surrogates", breaking(actions=lambda self: ["press red", "wait \ud800"])),
    ("surrogates", breaking(info=after_reset("achieved_goals", ["light \ud800"]))),
    ("surrogates", breaking(info=changed_info(goal="light \udfff"))),
    ("surrogates", breaking(obs=lambda self: "1 left \ud800")),
    ("surrogates", breaking(vocabulary=["light \ud800"])),
    ("surrogates", breaking(instruction="light \ud800")),
    ("achieved-goals", breaking(info=changed_info(achieved_goals=None))),
    ("achieved-goals", breaking(info=after_reset("achieved_goals", [None]))),
    ("achieved-goals-unique", breaking(info=after_reset("achieved_goals", ["a", "a"]))),
    ("achieved-goals-at-reset", breaking(info=changed_info(achieved_goals=["light red"]))),
    ("achieved-goal-pays", breaking(step=unpaid)),
    ("fresh-info", Shared()),
    ("determinism", breaking(reset=forgetful_reset)),
    ("determinism", breaking(obs=lambda self: f"{random.getrandbits(60)} left", vocabulary=None)),
    ("no-exception", breaking(step=crash)),
    ("no-exception", breaking(reset=crash)),
    ("ends", breaking(step=steps_without_end)),
    ("goal-lists", breaking(test_goals=["light red"])),
    ("goal-lists", breaking(train_goals=["light red", "light red"])),
    ("goal-lists", breaking(train_goals="light red")),
    ("option-goal", breaking(reset=keeps_no_goal)),
    ("option-split", breaking(reset=keeps_no_split)),
    ("expert", breaking(expert_action=lambda self: "press pink")),
    ("expert", breaking(expert_action=crash)),
    ("instruction", breaking(instruction=3)),
    ("vocabulary", breaking(vocabulary="light")),
    ("vocabulary", breaking(vocabulary=["light red green blue"])),
]  # fmt: skip


def test_an_environment_that_keeps_the_protocol_passes() -> None:
    check_env(Lights())


def test_optional_parts_are_optional() -> None:
    class Bare:
        def __init__(self) -> None:
            self.inner = Lights()

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            obs, info = self.inner.reset(seed=seed, options=options)
            del info["goal_family"]
            return obs, info

        def step(self, action: str) -> Any:
            obs, reward, terminated, truncated, info = self.inner.step(action)
            del info["goal_family"]
            return obs, int(reward), terminated, truncated, info

    check_env(Bare())


@pytest.mark.parametrize("name", ["small", "zoo", "full", "sequential"])
@pytest.mark.parametrize("arguments", [{}, {"impossible_goals": True, "unreachable": 0.5}])
def test_presets_pass(name: str, arguments: dict[str, Any]) -> None:
    check_env(make_env(f"playground/{name}", **arguments), episodes=20)


@pytest.mark.parametrize(("rule", "env"), BROKEN)
def test_the_broken_rule_is_named(rule: str, env: Any) -> None:
    with pytest.raises(EnvironmentProtocolError) as caught:
        check_env(env)
    message = str(caught.value)
    assert f"'{rule}'" in message
    assert "at reset" in message or "at step" in message
    assert "To do: " in message


def test_every_rule_has_an_environment_that_breaks_it() -> None:
    assert {rule for rule, _ in BROKEN} == RULES


def test_the_step_is_named() -> None:
    class Late(Lights):
        def obs(self) -> str:
            return "" if self.left == 1 else Lights.obs(self)

        def expert_action(self) -> str:
            return "wait"

        def actions(self) -> Any:
            return ["wait"]

    with pytest.raises(EnvironmentProtocolError, match="'observation' at step 2:"):
        check_env(Late())


def test_what_the_environment_raised_is_kept_as_the_cause() -> None:
    with pytest.raises(EnvironmentProtocolError, match="no such light") as caught:
        check_env(breaking(step=crash))
    assert isinstance(caught.value.__cause__, KeyError)


def test_attributes_are_found_behind_a_wrapper() -> None:
    class Wrapper:
        def __init__(self, env: Any) -> None:
            self.unwrapped = env
            self.reset, self.step = env.reset, env.step

    check_env(Wrapper(Lights()))
    with pytest.raises(EnvironmentProtocolError, match="'expert'"):
        check_env(Wrapper(breaking(expert_action=lambda self: "press pink")))


def test_episodes_are_left_after_a_time_limit() -> None:
    endless = breaking(step=steps_without_end)
    check_env(endless, max_steps=50)
    with pytest.raises(ConfigError, match="max_steps=0"):
        check_env(endless, max_steps=0)


def test_at_least_one_episode() -> None:
    with pytest.raises(ConfigError, match="episodes=0"):
        check_env(Lights(), episodes=0)

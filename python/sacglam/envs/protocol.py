"""The text-environment protocol: its rules, checked cheaply at every step and thoroughly on demand.

An environment is a plain object:

    reset(*, seed=None, options=None) -> (observation: str, info)
    step(action: str) -> (observation: str, reward, terminated, truncated, info)

    info["goal"]: str                     the goal of the episode
    info["possible_actions"]: list[str]   for the returned state: not empty, unique, not blank
    info["achieved_goals"]: list[str]     what this transition newly satisfies; [] after reset
    info["goal_family"]: str              optional; groups goals in reports
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from sacglam.errors import EnvironmentProtocolError


class TextEnv(Protocol):
    """What every environment has. No base class is needed."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode; `options` may hold "goal" and "split" ("train" or "test")."""
        ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes one of `info["possible_actions"]`."""
        ...


class Transition(NamedTuple):
    """What a step returned."""

    obs: str
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class Rule(NamedTuple):
    """A rule of the protocol: its name, and what to do to keep it."""

    name: str
    advice: str


RESULT_OF_RESET = Rule("result-of-reset", "return (observation, info) from reset")
RESULT_OF_STEP = Rule(
    "result-of-step", "return (observation, reward, terminated, truncated, info) from step"
)
OBSERVATION = Rule("observation", "return the observation as a str that is not blank")
REWARD = Rule("reward", "return the reward as a finite number")
FLAGS = Rule("flags", "return terminated and truncated as bool")
INFO = Rule("info", "return info as a dict with 'goal', 'possible_actions', 'achieved_goals'")
GOAL = Rule("goal", "put the episode's goal into info['goal'], as a str that is not blank")
ACTIONS = Rule(
    "possible-actions", "list the actions of the returned state in info['possible_actions'], as str"
)
NO_ACTIONS = Rule(
    "possible-actions-empty", "list at least one action, also for the last state of an episode"
)
TWIN_ACTIONS = Rule("possible-actions-unique", "list every action once")
BLANK_ACTION = Rule("possible-actions-blank", "list no empty or blank action")
LIKE_ACTIONS = Rule(
    "possible-actions-alike", "list no two actions that differ in white space alone: strip them"
)
SURROGATE = Rule(
    "surrogates",
    "clean texts with text.encode(errors='replace').decode(), or read the file that they come from "
    "with open(..., errors='replace')",
)
ACHIEVED = Rule(
    "achieved-goals",
    "list the goals that the transition newly satisfied in info['achieved_goals'], as str "
    "([] for none)",
)
TWIN_ACHIEVED = Rule("achieved-goals-unique", "list every achieved goal once")
ACHIEVED_AT_RESET = Rule("achieved-goals-at-reset", "return [] in info['achieved_goals'] on reset")
FAMILY = Rule("goal-family", "leave info['goal_family'] away, or make it a str")
GOAL_CHANGED = Rule("goal-constant", "keep info['goal'] the same from reset to the episode's end")
OPTION_GOAL = Rule("option-goal", "pursue the goal that reset is given as options['goal']")
OPTION_SPLIT = Rule(
    "option-split", "draw the goal from train_goals or test_goals, as options['split'] says"
)
ACHIEVED_PAYS = Rule(
    "achieved-goal-pays",
    "terminate with a reward above 0 when the episode's own goal is in info['achieved_goals'], "
    "as hindsight does for every other goal",
)
ALIASED = Rule("fresh-info", "build new lists for every info; those returned must not change later")
SEEDED = Rule("determinism", "draw all randomness from the seed given to reset")
NO_CRASH = Rule("no-exception", "let reset and step accept every listed action, goal and seed")
ENDS = Rule(
    "ends",
    "end every episode, by termination or with a time limit; env.max_steps sets one for a run, and "
    "max_steps for check_env",
)
GOAL_LISTS = Rule("goal-lists", "make train_goals and test_goals lists of unique str, disjoint")
FAMILY_OF_GOAL = Rule(
    "goal-family-of-goal",
    "let goal_family(goal) return a str: the one in info['goal_family'], if that is there",
)
EXPERT = Rule("expert", "return one of the possible actions from expert_action()")
INSTRUCTION = Rule("instruction", "make the attribute instruction a str")
VOCABULARY = Rule(
    "vocabulary",
    "make the attribute vocabulary a list of texts with every word of the environment, or leave "
    "it away",
)
METHODS = Rule("methods", "have the methods reset(*, seed, options) and step(action)")


def broken(
    rule: Rule, found: str, *, step: int, env: int | None = None
) -> EnvironmentProtocolError:
    """The error for a broken rule.

    Args:
        rule: what was broken.
        found: what the environment did.
        step: steps since reset; 0 is the reset itself.
        env: the environment's index in a vector.
    """
    where = "at reset" if step == 0 else f"at step {step}"
    if env is not None:
        where += f" of environment {env}"
    return EnvironmentProtocolError(
        f"the environment breaks the protocol's rule '{rule.name}' {where}: {found}. "
        f"To do: {rule.advice}"
    )


def validate_reset(result: Any, *, env: int | None = None) -> tuple[str, dict[str, Any]]:
    """Checks what `reset` returned.

    Raises:
        EnvironmentProtocolError: names the rule, the step and `env`.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise broken(RESULT_OF_RESET, f"reset returned {_shape(result)}", step=0, env=env)
    obs, info = result
    _validate_state(obs, info, 0, env)
    if info["achieved_goals"]:
        found = f"info['achieved_goals'] is {info['achieved_goals']!r}"
        raise broken(ACHIEVED_AT_RESET, found, step=0, env=env)
    return obs, info


def validate_step(
    result: Any, *, step: int, goal: str | None = None, env: int | None = None
) -> Transition:
    """Checks what `step` returned.

    Args:
        result: what it returned.
        step: the number of this step, the first after reset being 1.
        goal: the episode's goal, which must not have changed.
        env: the environment's index in a vector, for the message.

    Raises:
        EnvironmentProtocolError: names the rule, the step and `env`.
    """
    if not isinstance(result, tuple) or len(result) != 5:
        raise broken(RESULT_OF_STEP, f"step returned {_shape(result)}", step=step, env=env)
    obs, reward, terminated, truncated, info = result
    try:
        value = math.nan if isinstance(reward, (str, bytes)) else float(reward)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise broken(REWARD, f"the reward is {reward!r}", step=step, env=env)
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        # NumPy has a bool of its own, which environments return in good faith.
        if not isinstance(flag, bool) and type(flag).__name__ not in ("bool_", "bool"):
            raise broken(FLAGS, f"{name} is {flag!r}", step=step, env=env)
    _validate_state(obs, info, step, env)
    if goal is not None and info["goal"] != goal:
        found = f"info['goal'] was {goal!r} and is now {info['goal']!r}"
        raise broken(GOAL_CHANGED, found, step=step, env=env)
    return Transition(obs, value, bool(terminated), bool(truncated), info)


def validate_encoding(texts: Iterable[str], *, step: int = 0, env: int | None = None) -> None:
    """Checks that texts can be encoded: tokenizers cannot take those with half of a surrogate pair.

    Raises:
        EnvironmentProtocolError: names the rule, the step and `env`.
    """
    for text in texts:
        if text.isascii():  # which a str knows of itself
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = (
                f"the text {_brief(text)} has half of a surrogate pair at character {error.start}, "
                "which no encoding has"
            )
            raise broken(SURROGATE, found, step=step, env=env) from None


def validate_vocabulary(texts: Any) -> list[str]:
    """Checks an environment's attribute `vocabulary`, and returns it as a list.

    Raises:
        EnvironmentProtocolError: names the rule.
    """
    listed = isinstance(texts, Collection) and not isinstance(texts, str)
    if not listed or not all(isinstance(text, str) for text in texts):
        raise broken(VOCABULARY, "it is no list of str", step=0)
    validate_encoding(texts)
    return list(texts)


def _validate_state(obs: Any, info: Any, step: int, env: int | None) -> None:
    if not isinstance(obs, str) or not obs.strip():
        raise broken(OBSERVATION, f"the observation is {_brief(obs)}", step=step, env=env)
    if not isinstance(info, Mapping):
        raise broken(INFO, f"info is a {type(info).__name__}", step=step, env=env)
    for key in ("goal", "possible_actions", "achieved_goals"):
        if key not in info:
            raise broken(INFO, f"info has no {key!r}", step=step, env=env)
    goal = info["goal"]
    if not isinstance(goal, str) or not goal.strip():
        raise broken(GOAL, f"info['goal'] is {_brief(goal)}", step=step, env=env)
    family = info.get("goal_family")
    if family is not None and not isinstance(family, str):
        found = f"info['goal_family'] is {_brief(family)}"
        raise broken(FAMILY, found, step=step, env=env)
    _validate_texts(info["possible_actions"], ACTIONS, TWIN_ACTIONS, step, env)
    _validate_texts(info["achieved_goals"], ACHIEVED, TWIN_ACHIEVED, step, env)
    actions = info["possible_actions"]
    if not actions:
        raise broken(NO_ACTIONS, "info['possible_actions'] is empty", step=step, env=env)
    for action in actions:
        if not action or action.isspace():
            raise broken(BLANK_ACTION, f"an action is {action!r}", step=step, env=env)
    texts = (obs, goal, family or "", *actions, *info["achieved_goals"])
    validate_encoding(texts, step=step, env=env)


def _validate_texts(texts: Any, kind: Rule, twin: Rule, step: int, env: int | None) -> None:
    if not isinstance(texts, (list, tuple)):
        raise broken(kind, f"it is a {type(texts).__name__}", step=step, env=env)
    for text in texts:
        if not isinstance(text, str):
            raise broken(kind, f"it holds {_brief(text)}", step=step, env=env)
    if len(set(texts)) != len(texts):
        double = next(text for text in texts if texts.count(text) > 1)
        raise broken(twin, f"{double!r} is listed more than once", step=step, env=env)


def _shape(result: Any) -> str:
    if isinstance(result, tuple):
        return f"a tuple of {len(result)}"
    return f"a {type(result).__name__}"


def _brief(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}..." if len(text) > 60 else text

"""`check_env`: plays episodes of an environment and names the first rule of the protocol that it
breaks."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from sacglam.envs import protocol as rules
from sacglam.envs.protocol import Transition, broken, validate_reset, validate_step
from sacglam.envs.vector import find
from sacglam.errors import ConfigError

#: An episode that is longer is taken to have no end [steps].
LONGEST_EPISODE = 20_000
#: Goals tried through options["goal"], for each split.
GOALS_TRIED = 8

_WORDS = re.compile(r"\w+|[^\w\s]")
_TOKENS = re.compile(r"\([^)\s]*\)|\w+|[^\w\s]")  # the words of the tiny models


def check_env(env: Any, *, episodes: int = 3, seed: int = 0, max_steps: int | None = None) -> None:
    """Checks an environment against the text-environment protocol.

    It plays some episodes with random actions, plays them again with the same seeds and actions,
    and tries the options and the optional attributes that the environment has. It returns when
    all is well.

    Args:
        env: the environment; not closed afterwards.
        episodes: how many to play.
        seed: of the environment and of the actions.
        max_steps: episodes are left after so many steps, as in training with `env.max_steps`.

    Raises:
        EnvironmentProtocolError: names the first rule broken, the step, what was found, and what
            to do.
        ConfigError: `episodes` or `max_steps` is below 1.
    """
    for name, value in (("episodes", episodes), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}; give at least 1")
    for method in ("reset", "step"):
        if not callable(getattr(env, method, None)):
            found = f"a {type(env).__name__} has no method {method}()"
            raise broken(rules.METHODS, found, step=0)
    words = _check_attributes(env)
    player = _Player(env, words, max_steps)
    records = []
    for episode in range(episodes):
        rng = random.Random(seed + episode)
        records.append(player.play(seed + episode, None, rng, None))
    # Played again in another order, so that nothing may linger from the episode before.
    for episode in reversed(range(episodes)):
        actions = [action for action, _, _ in records[episode] if action is not None]
        again = player.play(seed + episode, None, None, actions)
        _compare(records[episode], again)
    _check_options(env, player, seed)


#: (action or None at reset, transition, the lists of its info as they were then)
_Record = list[tuple["str | None", Transition, tuple[list[str], list[str]]]]


class _Player:
    """Plays episodes, checking every rule that shows in a single one."""

    def __init__(self, env: Any, words: frozenset[str] | None, max_steps: int | None) -> None:
        self.env = env
        self.words = words
        self.max_steps = max_steps

    def reset(self, seed: int, options: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
        """A checked reset."""
        try:
            result = self.env.reset(seed=seed, options=options)
        except Exception as error:
            found = f"reset(seed={seed}, options={options}) raised {_raised(error)}"
            raise broken(rules.NO_CRASH, found, step=0) from error
        obs, info = validate_reset(result)
        self._check_state(obs, info, 0)
        return obs, info

    def play(
        self,
        seed: int,
        options: dict[str, Any] | None,
        rng: random.Random | None,
        actions: Sequence[str] | None,
    ) -> _Record:
        """An episode of random actions, or the given ones as long as they last."""
        obs, info = self.reset(seed, options)
        record: _Record = [(None, Transition(obs, 0.0, False, False, info), _lists(info))]
        goal = info["goal"]
        step = 0
        while True:
            if actions is not None:
                if step >= len(actions):
                    return record
                action = actions[step]
                if action not in info["possible_actions"]:
                    found = (
                        f"the same seed and actions gave {action!r} as possible once, and not when "
                        "played again"
                    )
                    raise broken(rules.SEEDED, found, step=step)
            else:
                action = (rng or random.Random(0)).choice(list(info["possible_actions"]))
            step += 1
            try:
                result = self.env.step(action)
            except Exception as error:
                found = f"step({action!r}) raised {_raised(error)}"
                raise broken(rules.NO_CRASH, found, step=step) from error
            before = info
            transition = validate_step(result, step=step, goal=goal)
            info = transition.info
            if _lists(before) != record[-1][2]:
                found = "a list in the info returned before this step changed during it"
                raise broken(rules.ALIASED, found, step=step)
            self._check_state(transition.obs, info, step)
            paid = transition.terminated and transition.reward > 0
            if goal in info["achieved_goals"] and not paid:
                found = (
                    f"the goal {goal!r} was achieved, but the reward is {transition.reward:g} and "
                    f"terminated is {transition.terminated}"
                )
                raise broken(rules.ACHIEVED_PAYS, found, step=step)
            record.append((action, transition, _lists(info)))
            if transition.terminated or transition.truncated or step == self.max_steps:
                return record
            if step >= LONGEST_EPISODE:
                found = f"the episode of seed {seed} still goes on after {step} random actions"
                raise broken(rules.ENDS, found, step=step)

    def _check_state(self, obs: str, info: dict[str, Any], step: int) -> None:
        if self.words is not None:
            for text in (obs, info["goal"], *info["possible_actions"], *info["achieved_goals"]):
                for word in _WORDS.findall(text):
                    if word not in self.words:
                        found = f"the word {word!r} of {text!r} is not in it"
                        raise broken(rules.VOCABULARY, found, step=step)
        alike: dict[tuple[str, ...], str] = {}
        for action in info["possible_actions"]:
            other = alike.setdefault(tuple(_TOKENS.findall(action)), action)
            if other != action:
                found = f"{other!r} and {action!r} are the same words: tokens may not differ"
                raise broken(rules.LIKE_ACTIONS, found, step=step)
        family_of = _optional(self.env, "goal_family")
        if family_of is not None:
            try:
                family = family_of(info["goal"])
            except Exception as error:
                found = f"goal_family({info['goal']!r}) raised {_raised(error)}"
                raise broken(rules.FAMILY_OF_GOAL, found, step=step) from error
            if not isinstance(family, str) or info.get("goal_family", family) != family:
                found = (
                    f"goal_family({info['goal']!r}) is {family!r} and info['goal_family'] is "
                    f"{info.get('goal_family')!r}"
                )
                raise broken(rules.FAMILY_OF_GOAL, found, step=step)
        expert = _optional(self.env, "expert_action")
        if expert is not None and step == 0:
            try:
                action = expert()
            except Exception as error:
                found = f"expert_action() raised {_raised(error)}"
                raise broken(rules.EXPERT, found, step=step) from error
            if action not in info["possible_actions"]:
                raise broken(rules.EXPERT, f"it returned {action!r}", step=step)


def _check_attributes(env: Any) -> frozenset[str] | None:
    instruction = _optional(env, "instruction")
    if instruction is not None and not isinstance(instruction, str):
        raise broken(rules.INSTRUCTION, f"it is a {type(instruction).__name__}", step=0)
    rules.validate_encoding([instruction or ""])
    seen: set[str] = set()
    for name in ("train_goals", "test_goals"):
        goals = _optional(env, name)
        if goals is None:
            continue
        if not isinstance(goals, (list, tuple)) or not all(isinstance(g, str) for g in goals):
            raise broken(rules.GOAL_LISTS, f"{name} is no list of str", step=0)
        twice = [goal for goal in goals if goals.count(goal) > 1 or goal in seen]
        if twice:
            raise broken(rules.GOAL_LISTS, f"{twice[0]!r} is listed twice", step=0)
        seen.update(goals)
    texts = _optional(env, "vocabulary")
    if texts is None:
        return None
    known = rules.validate_vocabulary(texts)
    return frozenset(word for text in known for word in _WORDS.findall(text))


def _check_options(env: Any, player: _Player, seed: int) -> None:
    for split, name in (("train", "train_goals"), ("test", "test_goals")):
        goals = _optional(env, name)
        if not goals:
            continue
        for attempt in range(GOALS_TRIED):
            _, info = player.reset(seed + attempt, {"split": split})
            if info["goal"] not in goals:
                found = f"options {{'split': {split!r}}} gave the goal {info['goal']!r}"
                raise broken(rules.OPTION_SPLIT, f"{found}, which is not in {name}", step=0)
        every = max(1, len(goals) // GOALS_TRIED)
        for goal in list(goals)[::every]:
            _, info = player.reset(seed, {"goal": goal})
            if info["goal"] != goal:
                found = f"options {{'goal': {goal!r}}} gave the goal {info['goal']!r}"
                raise broken(rules.OPTION_GOAL, found, step=0)


def _compare(first: _Record, second: _Record) -> None:
    for step, ((_, one, _), (_, two, _)) in enumerate(zip(first, second, strict=True)):
        pairs = {
            "the observation": (one.obs, two.obs),
            "the reward": (one.reward, two.reward),
            "terminated": (one.terminated, two.terminated),
            "truncated": (one.truncated, two.truncated),
        }
        for key in ("goal", "possible_actions", "achieved_goals"):
            pairs[f"info[{key!r}]"] = (one.info[key], two.info[key])
        for what, (before, now) in pairs.items():
            if before != now:
                found = f"with the same seed and actions, {what} was {before!r} and then {now!r}"
                raise broken(rules.SEEDED, found, step=step)


def _lists(info: dict[str, Any]) -> tuple[list[str], list[str]]:
    return list(info["possible_actions"]), list(info["achieved_goals"])


def _optional(env: Any, name: str) -> Any:
    try:
        return find(env, name)
    except AttributeError:
        return None


def _raised(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

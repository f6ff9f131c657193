"""Many environments stepped side by side, in this process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sacglam.envs.near import hint
from sacglam.envs.protocol import (
    FAMILY_OF_GOAL,
    Transition,
    broken,
    validate_reset,
    validate_step,
)
from sacglam.errors import ConfigError, EnvironmentProtocolError

__all__ = ["Transition", "VectorEnv"]

#: An episode without a time limit that is longer is warned of [steps].
LONG_EPISODE = 2000


class Ledger:
    """Where each environment of a vector stands: what may be done next, and what must hold.

    Args:
        count: how many environments there are.
        max_steps: a time limit for every episode [steps], beside those of the environments.
    """

    def __init__(self, count: int, max_steps: int | None = None) -> None:
        if count < 1:
            raise ConfigError("a vector needs at least one environment; none was given")
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"max_steps={max_steps}; give at least 1, or None for no limit")
        self._max_steps = max_steps
        self._warned = False
        self._actions: list[Sequence[str] | None] = [None] * count
        self._goals = [""] * count
        self._steps = [0] * count

    def check_index(self, i: int) -> None:
        """Raises ConfigError where there is no environment i."""
        if not 0 <= i < len(self._actions):
            raise ConfigError(
                f"there is no environment {i}: this vector has {len(self._actions)}, counted from 0"
            )

    def check_action(self, i: int, action: str) -> None:
        """Raises EnvironmentProtocolError where environment i cannot take the action."""
        self.check_index(i)
        actions = self._actions[i]
        if actions is None:
            raise EnvironmentProtocolError(
                f"environment {i} was stepped, but its episode is over or has not begun; reset it"
            )
        if action not in actions:
            raise EnvironmentProtocolError(
                f"environment {i} cannot take the action {action!r} at step {self._steps[i] + 1}; "
                f"{hint(action, list(actions))}"
            )

    def after_reset(self, i: int, result: Any) -> tuple[str, dict[str, Any]]:
        """Checks and notes what environment i returned from reset."""
        self._actions[i] = None
        obs, info = validate_reset(result, env=i)
        self._actions[i] = info["possible_actions"]
        self._goals[i] = info["goal"]
        self._steps[i] = 0
        return obs, info

    def after_step(self, i: int, result: Any) -> Transition:
        """Checks and notes what environment i returned from step."""
        self._steps[i] += 1
        self._actions[i] = None
        transition = validate_step(result, step=self._steps[i], goal=self._goals[i], env=i)
        if transition.terminated or transition.truncated:
            return transition
        if self._steps[i] == self._max_steps:
            return transition._replace(truncated=True)
        if self._steps[i] >= LONG_EPISODE and self._max_steps is None:
            self._warn_of_length(i)
        self._actions[i] = transition.info["possible_actions"]
        return transition

    def _warn_of_length(self, i: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"an episode with the goal {self._goals[i]!r} has not ended after "
                f"{self._steps[i]} steps. Every episode must end: give the environment a time "
                "limit (return truncated=True), or set one with --env.max-steps",
                RuntimeWarning,
                stacklevel=2,
            )


class VectorEnv:
    """Environments stepped one after the other in this process, which is the fastest way for all
    that are not slow themselves. Every result is checked against the protocol.

    Nothing is reset by itself: after a transition that is terminated or truncated, call `reset`.

    Args:
        envs: the environments; they may differ.
        max_steps: ends every episode that is not over after so many steps, as truncated.

    Raises:
        ConfigError: there is none, one object is given twice, or `max_steps` is below 1.
    """

    def __init__(self, envs: Sequence[Any], *, max_steps: int | None = None) -> None:
        self.envs = list(envs)
        self._ledger = Ledger(len(self.envs), max_steps)
        if len({id(env) for env in self.envs}) != len(self.envs):
            raise ConfigError(
                "one environment object is given more than once; make a new one for every place"
            )

    @property
    def num_envs(self) -> int:
        """How many environments there are."""
        return len(self.envs)

    def reset(
        self, i: int, *, seed: int | None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts an episode of environment `i`.

        Raises:
            EnvironmentProtocolError: what it returned breaks a rule, which is named.
        """
        self._ledger.check_index(i)
        options = None if options is None else dict(options)
        env = self.envs[i]
        obs, info = self._ledger.after_reset(i, env.reset(seed=seed, options=options))
        return obs, with_family(env, info, i)

    def step(self, actions: Mapping[int, str]) -> dict[int, Transition]:
        """Steps some of the environments.

        Args:
            actions: index of an environment -> its action. Those left away stand still.

        Returns:
            index -> transition, in the order of `actions`.

        Raises:
            EnvironmentProtocolError: an action is not possible, an episode is over, or what was
                returned breaks a rule. Bad actions are found before anything is stepped.
        """
        for i, action in actions.items():
            self._ledger.check_action(i, action)
        after = self._ledger.after_step
        return {i: after(i, self.envs[i].step(action)) for i, action in actions.items()}

    def call(self, i: int, method: str, *args: Any) -> Any:
        """Calls a method of environment `i`, such as "expert_action", also through wrappers."""
        self._ledger.check_index(i)
        return find(self.envs[i], method)(*args)

    def attribute(self, i: int, name: str, default: Any = None) -> Any:
        """An attribute of environment `i`, also through wrappers, or else `default`."""
        self._ledger.check_index(i)
        try:
            return find(self.envs[i], name)
        except AttributeError:
            return default

    def close(self) -> None:
        """Closes all environments that can be closed."""
        for env in self.envs:
            close = getattr(env, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def with_family(env: Any, info: dict[str, Any], i: int) -> dict[str, Any]:
    """The info of environment i after reset: where it names no family, with what the environment's
    method `goal_family` says, if it has one."""
    if "goal_family" in info:
        return info
    try:
        family_of = find(env, "goal_family")
    except AttributeError:
        return info
    if not callable(family_of):
        return info
    family = family_of(info["goal"])
    if not isinstance(family, str):
        found = f"goal_family({info['goal']!r}) is {family!r}"
        raise broken(FAMILY_OF_GOAL, found, step=0, env=i)
    return {**info, "goal_family": family}


def close(env: Any) -> None:
    """Close an environment, if it can be."""
    if callable(getattr(env, "close", None)):
        env.close()


def find(env: Any, name: str) -> Any:
    """An attribute of an environment, or else of what it wraps (`env.unwrapped`).

    Raises:
        AttributeError: neither has it.
    """
    if hasattr(env, name):
        return getattr(env, name)
    return getattr(getattr(env, "unwrapped", env), name)

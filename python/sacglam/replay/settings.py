"""The settings of a buffer: how each is checked, and how the native side gets them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sacglam import _C
from sacglam.replay.checks import choice, integer, real

STRATEGIES = ("future", "final", "episode", "random", "none")
BALANCES = ("events", "goals")
SAMPLINGS = ("transitions", "episodes", "prioritised")
LONG_EPISODES = ("refuse", "split")


def _bytes(name: str, value: Any) -> int:
    return 0 if value is None else integer(name, value, 4096, 2**50)


# In the order in which _C.ReplaySettings takes them. Each raises ReplayError.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "capacity": partial(integer, low=1, high=2**40),
    "n_step": partial(integer, low=1, high=2**31 - 1),
    "gamma": partial(real, low=0.0, high=1.0),
    "her_strategy": partial(choice, allowed=STRATEGIES),
    "her_ratio": partial(real, low=0.0, high=1.0),
    "her_random": partial(real, low=0.0, high=1.0),
    "her_balance": partial(choice, allowed=BALANCES),
    "her_reward": partial(real, low=-1e30, high=1e30),
    "sampling": partial(choice, allowed=SAMPLINGS),
    "long_episodes": partial(choice, allowed=LONG_EPISODES),
    "priority_exponent": partial(real, low=0.0, high=10.0),
    "priority_beta": partial(real, low=0.0, high=10.0),
    "priority_epsilon": partial(real, low=0.0, high=1e30),
    "capacity_bytes": _bytes,
}


def checked_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings among `given`, of their proper types."""
    return {name: check(name, given[name]) for name, check in _CHECKS.items()}


def native_settings(settings: dict[str, Any]) -> Any:
    """What the native side takes."""
    return _C.ReplaySettings(*(settings[name] for name in _CHECKS))

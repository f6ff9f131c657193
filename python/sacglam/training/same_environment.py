"""Whether two ways to make an environment make the same, as far as a second of play can tell."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..envs.vector import close

SEEDS = 2
STEPS = 200  # an episode
SECONDS = 1.0  # for each of the three that are played


def is_another(made: Callable[[], Any], given: Callable[[], Any]) -> bool:
    """Whether `made` makes another environment than `given`: with the same seeds and actions other
    things happen in it. False where that cannot be told: one of them fails, or what is given is
    itself not the same twice."""
    try:
        mine, again, theirs = (list(_trace(make())) for make in (given, given, made))
    except Exception:  # whatever a user's environment may raise: it is said where it is used
        return False

    def differ(a: list[Any], b: list[Any]) -> bool:
        return any(x != y for x, y in zip(a, b, strict=False))  # one may have been slower

    return differ(mine, theirs) and not differ(mine, again)


def _trace(env: Any) -> Iterator[Any]:
    """What happens in an environment that acts at random, closed at the end."""
    end = time.monotonic() + SECONDS
    try:
        for seed in range(SEEDS):
            rng = random.Random(seed)
            observation, info = env.reset(seed=seed)
            yield observation, info["goal"], info["possible_actions"]
            for _ in range(STEPS):
                if time.monotonic() > end:
                    return
                step = env.step(rng.choice(info["possible_actions"]))
                info = step[4]
                yield *step[:4], info["possible_actions"], info["achieved_goals"]
                if step[2] or step[3]:
                    break
    finally:
        close(env)

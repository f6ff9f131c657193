"""Finding and building minigrid's BabyAI levels, without their chatter on stdout."""

from __future__ import annotations

import importlib
import logging
import os
import re
import types
from typing import Any

from sacglam.envs.near import hint
from sacglam.errors import ConfigError, MissingDependencyError, UnknownEnvironmentError

_log = logging.getLogger(__name__)
_GYM_ID = re.compile(r"BabyAI-(?P<name>.+)-v(?P<version>\d+)")


def import_minigrid(module: str = "minigrid") -> Any:
    """Import `module` of the optional package minigrid (importing it registers its levels)."""
    # minigrid imports pygame, which greets on stdout unless this variable is set.
    greeting = "PYGAME_HIDE_SUPPORT_PROMPT"
    hidden = greeting in os.environ
    os.environ.setdefault(greeting, "1")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"the babyai environments need the package minigrid, which cannot be imported "
            f"({error}); install it with: pip install 'sacglam[babyai]'"
        ) from error
    finally:
        if not hidden:
            os.environ.pop(greeting, None)


def babyai_levels() -> list[str]:
    """Names of all installed levels, sorted, as `babyai/<name>` takes them."""
    return sorted(_gym_ids())


def _gym_ids() -> dict[str, str]:
    """Level name -> gymnasium id, of the newest version where there are several."""
    import_minigrid()
    registry = importlib.import_module("gymnasium").registry
    versions: dict[str, int] = {}
    for gym_id in registry:
        match = _GYM_ID.fullmatch(gym_id)
        if match:
            name, version = match["name"], int(match["version"])
            versions[name] = max(version, versions.get(name, version))
    return {name: f"BabyAI-{name}-v{version}" for name, version in versions.items()}


def resolve_level(level: str) -> tuple[str, str]:
    """(name, gymnasium id) of a level that is given by either.

    Raises:
        UnknownEnvironmentError: there is no such level; near matches are named.
    """
    known = _gym_ids()
    match = _GYM_ID.fullmatch(level)
    if match and level in importlib.import_module("gymnasium").registry:
        return match["name"], level
    if level in known:
        return level, known[level]
    wanted = match["name"] if match else level
    raise UnknownEnvironmentError(
        f"there is no BabyAI level {level!r}; {hint(wanted, sorted(known))}"
        f" sacglam.envs.babyai.babyai_levels() lists the {len(known)} installed ones"
    )


def build_level(gym_id: str, **level_kwargs: Any) -> Any:
    """The bare minigrid level (no gymnasium wrapper), printing nothing on reset."""
    import_minigrid()
    gymnasium = importlib.import_module("gymnasium")
    try:
        level = gymnasium.make(gym_id, disable_env_checker=True, **level_kwargs).unwrapped
    except (TypeError, AssertionError) as error:
        if not level_kwargs:
            raise
        raise ConfigError(
            f"the level {gym_id} does not accept {level_kwargs}: {error}; most levels take "
            "max_steps, and some room_size, num_dists, num_rows or num_cols (see minigrid's "
            "documentation of the level)"
        ) from error
    _silence(level)
    return level


def _silence(level: Any) -> None:
    """Send the level's messages about rejected layouts to `logging` (DEBUG) instead of stdout.

    They come from `print` calls in `RoomGridLevel._gen_grid`. Redirecting `sys.stdout` would not be
    thread-safe, and changing minigrid's module would touch everybody's levels; so this one level
    gets a copy of the method whose global `print` is ours.
    """
    method = type(level)._gen_grid
    quiet_globals = {**method.__globals__, "print": _print_to_log}
    copy = types.FunctionType(
        method.__code__, quiet_globals, method.__name__, method.__defaults__, method.__closure__
    )
    level._gen_grid = types.MethodType(copy, level)


def _print_to_log(*values: object, **_: object) -> None:
    _log.debug("%s", " ".join(map(str, values)))

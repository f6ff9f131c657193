"""Environments by id."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

from sacglam.envs.near import hint
from sacglam.envs.playground import PRESETS, PlaygroundText
from sacglam.errors import (
    ConfigError,
    EnvironmentProtocolError,
    MissingDependencyError,
    UnknownEnvironmentError,
)

BABYAI = "babyai/"
GIVEN = "given as an object: "  # of environments that no id makes

_factories: dict[str, Callable[..., Any]] = {
    name: functools.partial(PlaygroundText, **preset) for name, preset in PRESETS.items()
}
_built_in = frozenset(_factories)


def register_env(id: str, factory: Callable[..., Any], *, overwrite: bool = False) -> None:
    """Makes `make_env(id, **kwargs)` call `factory(**kwargs)`.

    Args:
        id: any text without blanks or ":", such as "kitchen/easy".
        factory: called with the keyword arguments given to `make_env`; returns an environment.
        overwrite: replace an environment registered under the same id.

    Raises:
        ConfigError: the id is taken or malformed, or the factory cannot be called.
    """
    if not isinstance(id, str) or not id or any(char.isspace() or char == ":" for char in id):
        raise ConfigError(f"{id!r} cannot be an environment's id: use no blanks and no ':'")
    if not callable(factory):
        raise ConfigError(f"the factory of {id!r} is a {type(factory).__name__}; give a callable")
    if id.startswith(BABYAI) or id in _built_in or (id in _factories and not overwrite):
        raise ConfigError(
            f"the environment id {id!r} is taken; choose another one"
            + ("" if id in _built_in or id.startswith(BABYAI) else ", or pass overwrite=True")
        )
    _factories[id] = factory


def list_envs() -> list[str]:
    """The ids that can be made, sorted; of `babyai/<level>` those whose level is known.

    Levels of BabyAI are listed only where the package minigrid is installed.
    """
    return sorted([*_factories, *_babyai_ids()])


def make_env(id: str, **kwargs: Any) -> Any:
    """A new environment.

    Args:
        id: one of `list_envs()`, or "package.module:callable" for an environment of one's own
            that is not registered.
        **kwargs: passed on to the environment.

    Raises:
        UnknownEnvironmentError: nothing is registered under the id.
        ConfigError: a keyword argument is unknown or out of range.
        MissingDependencyError: the environment needs a package that is not installed.
        EnvironmentProtocolError: what was made has no `reset` and `step`.
    """
    return checked(_call(id, factory_of(id), kwargs), repr(id))


def checked(env: Any, name: str) -> Any:
    """What a factory made, if it is an environment; else raises EnvironmentProtocolError."""
    for method in ("reset", "step"):
        if not callable(getattr(env, method, None)):
            raise EnvironmentProtocolError(
                f"the factory of {name} returned a {type(env).__name__} without a method "
                f"{method}(); it must return an environment"
            )
    return env


def factory_of(id: str) -> Callable[..., Any]:
    """What `make_env(id)` calls.

    Raises:
        UnknownEnvironmentError: nothing is registered under the id.
        MissingDependencyError: the environment needs a package that is not installed.
    """
    if not isinstance(id, str):
        raise UnknownEnvironmentError(
            f"an environment's id is a text, not a {type(id).__name__}; {_known('')}"
        )
    factory = _factories.get(id)
    if factory is not None:
        return factory
    if id.startswith(GIVEN):
        raise UnknownEnvironmentError(
            f"the run's environment was {id}, and no id makes the same one. Give it again, in "
            "Python: Trainer.resume(folder, env=...), evaluate_run(folder, env=...), "
            "play_episodes(folder, env=...)"
        )
    if id.startswith(BABYAI) and len(id) > len(BABYAI):
        return functools.partial(_babyai_module().make_babyai, id[len(BABYAI) :])
    if ":" in id:
        return _imported(id)
    raise UnknownEnvironmentError(f"unknown environment {id!r}; {_known(id)}")


def portable_id(env: str | Callable[..., Any]) -> str:
    """An id under which another process of the same program finds the same environment.

    Args:
        env: an id, or a factory.

    Raises:
        ConfigError: only this process has the factory.
        UnknownEnvironmentError: nothing is registered under the id.
    """
    factory: Callable[..., Any]
    if isinstance(env, str):
        factory = factory_of(env)
        if env in _built_in or env not in _factories:
            return env
    else:
        factory = env
    module = getattr(factory, "__module__", None)
    name = getattr(factory, "__qualname__", "<none>")
    if module == "__main__" and "<" not in name:
        raise ConfigError(
            f"the environment {name} is defined in __main__, the program that was started, which "
            "worker processes cannot import; move it to a file of its own, and import it from there"
        )
    if module in (None, "__main__") or "<" in name:
        raise ConfigError(
            f"the environment {env!r} is made by {factory!r}, which another process cannot import; "
            "give a function or class at the top level of a module, or an id such as "
            "'package.module:callable'"
        )
    return f"{module}:{name}"


def _call(id: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return factory(**kwargs)
    accepted = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in kwargs:
        if name not in accepted and not open_ended:
            near = hint(name, accepted, limit=0)
            near = f" {near}" if near.endswith("?") else ""
            raise ConfigError(
                f"the environment {id!r} takes no argument {name!r};{near} Valid arguments: "
                f"{', '.join(accepted) or 'none'}"
            )
    for name, parameter in signature.parameters.items():
        required = parameter.default is parameter.empty and name in accepted
        if required and name not in kwargs:
            raise ConfigError(f"the environment {id!r} needs the argument {name!r}; give it")
    return factory(**kwargs)


def _imported(id: str) -> Callable[..., Any]:
    module_name, _, path = id.partition(":")
    if not module_name or not path:
        raise UnknownEnvironmentError(f"{id!r} names no environment; write package.module:MyEnv")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.split(".")[0] != error.name.split(".")[0]:
            raise MissingDependencyError(
                f"the environment {id!r} needs the package {error.name!r}; install it"
            ) from error
        raise UnknownEnvironmentError(
            f"the environment {id!r} names the module {module_name!r}, which cannot be found; "
            "check its spelling and that it is installed or on PYTHONPATH"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise UnknownEnvironmentError(
                f"the environment {id!r}: {module_name} has no {name!r}; {hint(name, public)}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise UnknownEnvironmentError(
            f"the environment {id!r} names a {type(found).__name__}; name a class or function"
        )
    return found  # type: ignore[no-any-return]


def _babyai_module() -> Any:
    return importlib.import_module("sacglam.envs.babyai")


def _babyai_ids() -> list[str]:
    # The adapter imports minigrid when it is used; without it, no level can be made.
    if importlib.util.find_spec("minigrid") is None:
        return []
    return [BABYAI + level for level in _babyai_module().babyai_levels()]


def _known(id: str) -> str:
    return hint(id, [*_factories, BABYAI + "GoToLocal"])

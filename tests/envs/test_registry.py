"""Environments by id."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sacglam.envs import list_envs, make_env, register_env, registry
from sacglam.envs.playground import PlaygroundText
from sacglam.errors import (
    ConfigError,
    EnvironmentProtocolError,
    MissingDependencyError,
    UnknownEnvironmentError,
)


@pytest.fixture(autouse=True)
def _forget_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's own, with an environment in it."""
    (tmp_path / "kitchen_of_test.py").write_text(
        "from sacglam.envs import make_env\n"
        "def make(n_objects=4):\n"
        "    return make_env('playground/small', n_objects=n_objects)\n"
        "class Box:\n"
        "    make = staticmethod(make)\n"
        "number = 3\n"
    )
    (tmp_path / "needy_of_test.py").write_text("import package_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "kitchen_of_test"
    sys.modules.pop("kitchen_of_test", None)


def test_presets_are_listed_and_made() -> None:
    for name in ("small", "zoo", "full", "sequential"):
        assert f"playground/{name}" in list_envs()
        assert isinstance(make_env(f"playground/{name}"), PlaygroundText)


def test_each_call_makes_a_new_environment() -> None:
    assert make_env("playground/small") is not make_env("playground/small")


def test_keyword_arguments_override_the_preset() -> None:
    obs, _ = make_env("playground/small", n_objects=9).reset(seed=0)
    assert obs.split("\n")[0].count(",") == 8


@pytest.mark.parametrize(
    ("id", "near"),
    [("playground/smal", "playground/small"), ("Playground/Zoo", "playground/zoo"),
     ("playground", "playground/"), ("nothing like it at all", "known are")],
)  # fmt: skip
def test_unknown_id_names_near_matches(id: str, near: str) -> None:
    with pytest.raises(UnknownEnvironmentError) as caught:
        make_env(id)
    assert near in str(caught.value)


def test_unknown_id_of_the_wrong_type() -> None:
    with pytest.raises(UnknownEnvironmentError, match="not a int"):
        make_env(3)  # type: ignore[arg-type]


def test_unknown_argument_names_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'n_objects'.*Valid arguments: types, "):
        make_env("playground/small", n_object=3)
    with pytest.raises(ConfigError) as caught:
        make_env("playground/small", zzz=3)
    assert str(caught.value).count("'types'") + str(caught.value).count(" types,") == 1


def test_registered_environments_are_made_with_their_arguments() -> None:
    def factory(size: int, *, deep: bool = False) -> PlaygroundText:
        assert deep
        return make_env("playground/small", n_objects=size)  # type: ignore[no-any-return]

    register_env("mine/one", factory)
    assert "mine/one" in list_envs()
    obs, _ = make_env("mine/one", size=4, deep=True).reset(seed=0)
    assert obs.split("\n")[0].count(",") == 3
    with pytest.raises(ConfigError, match="needs the argument 'size'"):
        make_env("mine/one")
    with pytest.raises(ConfigError, match="no argument 'sise'; did you mean 'size'"):
        make_env("mine/one", sise=3)


def test_open_ended_factories_take_every_argument() -> None:
    seen: dict[str, object] = {}

    def factory(**kwargs: object) -> PlaygroundText:
        seen.update(kwargs)
        return make_env("playground/small")  # type: ignore[no-any-return]

    register_env("mine/open", factory)
    make_env("mine/open", anything=1)
    assert seen == {"anything": 1}


def test_ids_are_not_taken_twice_by_accident() -> None:
    register_env("mine/two", lambda: make_env("playground/small"))
    with pytest.raises(ConfigError, match="overwrite=True"):
        register_env("mine/two", lambda: make_env("playground/zoo"))
    register_env("mine/two", lambda: make_env("playground/zoo"), overwrite=True)
    assert "Grow carnivore" in {
        make_env("mine/two").goal_family(g) for g in make_env("mine/two").train_goals
    }
    for taken in ("playground/small", "babyai/Mine"):
        with pytest.raises(ConfigError, match="taken"):
            register_env(taken, PlaygroundText, overwrite=True)


@pytest.mark.parametrize("id", ["", "two words", "a:b", 5])
def test_malformed_ids_are_refused(id: object) -> None:
    with pytest.raises(ConfigError):
        register_env(id, PlaygroundText)  # type: ignore[arg-type]


def test_what_cannot_make_an_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match="give a callable"):
        register_env("mine/three", 7)  # type: ignore[arg-type]
    register_env("mine/four", lambda: "no environment")
    with pytest.raises(EnvironmentProtocolError, match=r"without a method reset\(\)"):
        make_env("mine/four")


def test_module_and_callable_as_an_id(kitchen: str) -> None:
    assert isinstance(make_env(f"{kitchen}:make", n_objects=5), PlaygroundText)
    assert isinstance(make_env(f"{kitchen}:Box.make"), PlaygroundText)
    with pytest.raises(UnknownEnvironmentError, match="did you mean 'make'"):
        make_env(f"{kitchen}:mak")
    with pytest.raises(UnknownEnvironmentError, match="names a int"):
        make_env(f"{kitchen}:number")
    with pytest.raises(UnknownEnvironmentError, match="cannot be found"):
        make_env("no_such_module_here:make")
    with pytest.raises(MissingDependencyError, match="package_that_nobody_has"):
        make_env("needy_of_test:make")


def test_portable_ids(kitchen: str) -> None:
    assert registry.portable_id("playground/small") == "playground/small"
    assert registry.portable_id(f"{kitchen}:make") == f"{kitchen}:make"
    register_env("mine/top", registry._imported(f"{kitchen}:make"))
    assert registry.portable_id("mine/top") == f"{kitchen}:make"
    register_env("mine/local", lambda: make_env("playground/small"))
    with pytest.raises(ConfigError, match="another process cannot import"):
        registry.portable_id("mine/local")


def test_babyai_needs_minigrid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    assert not [name for name in list_envs() if name.startswith("babyai/")]

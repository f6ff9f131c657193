"""Command-line flags generated from the configuration's fields."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import Any

import yaml

from .. import config as configuration
from ..config import NOT_A_VALUE, TrainConfig, field_types
from ..errors import ConfigError

ALIASES = {"env": "env.id", "model": "model.id"}


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """One flag a field: --sac.alpha 0.02, --total-steps 5000; --env and --model name the ids."""
    parser.add_argument("--env", dest="env.id", metavar="ID", help="environment (env.id)")
    parser.add_argument("--model", dest="model.id", metavar="ID", help="model (model.id)")
    comments = _comments()
    defaults = _flatten(TrainConfig().to_dict())
    group = parser.add_argument_group(
        "configuration fields (flags win over --config, and that over --preset)"
    )
    for name in field_types(TrainConfig):
        names = [f"--{name}"]
        dashed = f"--{name.replace('_', '-')}"
        if dashed not in names:
            names.append(dashed)
        default = "null" if defaults[name] is None else defaults[name]
        text = f"{comments.get(name, '')} [{default}]".strip().replace("%", "%%")
        group.add_argument(*names, dest=name, metavar="VALUE", help=text)


def overrides_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields given as flags, as typed values.

    Raises:
        ConfigError: a value cannot be read.
    """
    found = {}
    for name, kind in field_types(TrainConfig).items():
        raw = getattr(arguments, name, None)
        if raw is None:
            continue
        if kind in (str, str | None):
            found[name] = None if kind is not str and raw == "null" else raw
            continue
        try:
            found[name] = yaml.safe_load(raw)
        except (yaml.YAMLError, *NOT_A_VALUE) as error:
            raise ConfigError(f"--{name} {raw!r} cannot be read: {error}") from error
    return found


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    fields = field_types(TrainConfig)
    for name, value in values.items():
        if f"{prefix}{name}" in fields:
            found[f"{prefix}{name}"] = value
        else:
            found.update(_flatten(value, f"{prefix}{name}."))
    return found


def _comments() -> dict[str, str]:
    """The comment beside each field in config.py: documentation is written once."""
    groups = {"TrainConfig": ""}
    for name, kind in vars(configuration).items():
        if name.endswith("Config") and name != "TrainConfig":
            groups[kind.__name__] = f"{name.removesuffix('Config').lower()}."
    found = {}
    for class_name, prefix in groups.items():
        source = inspect.getsource(getattr(configuration, class_name))
        for field, comment in re.findall(r"^    (\w+): .*?  # (.*)$", source, re.MULTILINE):
            found[f"{prefix}{field}"] = comment
    return found

"""Numbers that are given to a function rather than to the configuration."""

from __future__ import annotations

import operator

from ..errors import ConfigError


def refuse_below(name: str, value: int, least: int) -> None:
    """Raise ConfigError unless `value` is a whole number of at least `least`."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise ConfigError(
            f"{name} is {value!r} ({type(value).__name__}); it must be a whole number"
        ) from None
    if whole < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def refuse_out_of_range(episodes: int | None, seed: int | None) -> None:
    """Raise ConfigError for what no evaluation can have."""
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if value is not None:
            refuse_below(name, value, least)

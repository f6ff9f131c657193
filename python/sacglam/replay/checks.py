"""Settings of a wrong type or out of range raise ReplayError."""

from __future__ import annotations

import difflib
import os
from typing import Any

import numpy as np

from sacglam.errors import CheckpointError, ReplayError


def shown(value: Any) -> str:
    """For a message; what cannot be shown (an integer of 5000 digits cannot) is named."""
    try:
        text = repr(value)
    except Exception:
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def path_bytes(path: Any) -> bytes:
    """As the system takes it; a NUL would end it early and name another file."""
    try:
        name = os.fsencode(path)
    except (TypeError, UnicodeError) as error:
        raise CheckpointError(f"not a path: {shown(path)}; {error}") from error
    if b"\0" in name:
        raise CheckpointError(f"a path holds no NUL character, got {shown(path)}")
    return name


def shared_name(name: Any) -> str:
    """The name of a shared buffer; what it may consist of, the native side says."""
    if not isinstance(name, str) or not name.isascii():
        raise ReplayError(f"the name of a shared buffer must be an ASCII string, got {shown(name)}")
    return name


def integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ReplayError(f"{name} must be an integer, got {shown(value)}")
    if not low <= value <= high:
        raise ReplayError(f"{name} must be in [{low}, {high}], got {shown(value)}")
    return int(value)


def real(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ReplayError(f"{name} must be a number, got {shown(value)}")
    if not low <= value <= high:  # NaN is not either
        raise ReplayError(f"{name} must be in [{low}, {high}], got {shown(value)}")
    return float(value)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in allowed:
        return str(value)
    near = difflib.get_close_matches(shown(value).strip("'"), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ReplayError(f"{name} must be one of {', '.join(allowed)}, got {shown(value)}{hint}")

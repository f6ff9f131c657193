"""Settings of a wrong type or out of range raise ReplayError."""

from __future__ import annotations

import difflib
import math
from typing import Any

import numpy as np

from sacglam.errors import ReplayError


def integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ReplayError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ReplayError(f"{name} must be in [{low}, {high}], got {value}")
    return int(value)


def real(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ReplayError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and low <= value <= high):
        raise ReplayError(f"{name} must be in [{low}, {high}], got {value}")
    return float(value)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value in allowed:
        return str(value)
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ReplayError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")

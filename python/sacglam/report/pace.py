"""How long a run still takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .text import number


class Pace:
    """Seconds an environment step takes, updates included.

    Rows of metrics tell it without the evaluations between them, and are averaged. Until the first
    one that began with updates it is counted from the first update on: steps before took no time,
    and tell nothing.
    """

    def __init__(self) -> None:
        self._of_rows: float | None = None
        self._learns = False  # whether that is of a time with updates
        self._row: tuple[float | None, float | None] = (None, None)  # its steps and updates
        self._row_at = 0.0
        self._began = False  # whether there was an update
        self._since: tuple[float, int] | None = None  # counted from that time and step
        self._updated = (0, -1)  # updates, and the step after which they were counted last
        self._counted: float | None = None

    @property
    def seconds(self) -> float | None:
        """The estimate, None before there is one."""
        if self._learns and self._of_rows is not None:
            return self._of_rows
        acts_only = self._row[1] == 0
        return self._counted if self._began or acts_only else self._of_rows

    def row(self, metrics: Mapping[str, Any], now: float) -> None:
        """A line of metrics.jsonl came at `now` [s]; any key may be missing."""
        rate = number(metrics.get("env_steps_per_s"))
        steps = number(metrics.get("env_steps"))
        before, updates = self._row
        if rate is None and steps is not None and before is not None and now > self._row_at:
            rate = (steps - before) / (now - self._row_at)
        if not self._learns and updates:
            self._learns, self._of_rows = True, None
        if rate is not None and rate > 0:
            old = self._of_rows
            self._of_rows = 1 / rate if old is None else 0.7 * old + 0.3 / rate
        self._row, self._row_at = (steps, number(metrics.get("updates"))), now

    def step(self, env_steps: int, updates: int, now: float) -> None:
        """The run stands at `env_steps` and `updates` at `now` [s]."""
        if not updates:
            return
        self._began = True
        if self._since is None:
            self._since = (now, env_steps)
        elif updates > self._updated[0] and env_steps > max(self._since[1], self._updated[1]):
            # At the first update after a step: from there to there a lesson of PPO counts whole.
            self._updated = (updates, env_steps)
            self._counted = (now - self._since[0]) / (env_steps - self._since[1])
        self._updated = (updates, self._updated[1])

    def pause(self) -> None:
        """Something else takes time now: count anew after it."""
        self._since = None

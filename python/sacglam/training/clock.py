"""Seconds of training, in wall-clock and CPU time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Runs while the agent trains: evaluations are left out, what a resumed run took before counts.

    `cpu_s` is that of all threads of this process; environments in processes of their own are not
    in it. It does not depend on what else the machine is doing, as `wall_s` does.
    """

    def __init__(self) -> None:
        self._passed = (0.0, 0.0)  # until the last pause [s]
        self._since: tuple[float, float] | None = None

    @property
    def wall_s(self) -> float:
        return self._read()[0]

    @property
    def cpu_s(self) -> float:
        return self._read()[1]

    def add(self, wall_s: float, cpu_s: float) -> None:
        """Count what a resumed run took before."""
        self._passed = (self._passed[0] + wall_s, self._passed[1] + cpu_s)

    def start(self) -> None:
        """Go on; a running clock is read first."""
        self._passed, self._since = self._read(), _now()

    def stop(self) -> None:
        """Until the next start nothing is counted."""
        self._passed, self._since = self._read(), None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within is not counted."""
        ran = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if ran:
                self.start()

    def seconds(self) -> dict[str, float]:
        """As in metrics.jsonl and eval.json."""
        return {"wall_s": round(self.wall_s, 3), "cpu_s": round(self.cpu_s, 3)}

    def _read(self) -> tuple[float, float]:
        if self._since is None:
            return self._passed
        wall_s, cpu_s = (n - s for n, s in zip(_now(), self._since, strict=True))
        return self._passed[0] + wall_s, self._passed[1] + cpu_s


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()

"""Notices that other work takes the cores that torch's threads compute on."""

from __future__ import annotations

import warnings
from pathlib import Path

TASKS = Path("/proc/self/task")  # Linux; elsewhere nothing is known
# Of 2 threads beside a program that takes a core: 0.2 to 0.4; alone on the machine: below 0.02.
MUCH = 0.12


class Contention:
    """Threads that compute together wait for the last of them, and spin while they do: beside a
    program that takes one of two cores, two threads are half as fast as one (docs/runs.md)."""

    def __init__(self, tasks: Path = TASKS) -> None:
        self._tasks = tasks
        self._warned = False
        self._seen = self._read()

    def look(self, threads: int) -> None:
        """Warn, once, if they waited for cores since the last look. threads: torch's number."""
        waited = self.waited()
        if threads > 1 and waited > MUCH and not self._warned:
            self._warned = True
            fewer = max(1, threads // 2)
            warnings.warn(
                f"other processes kept this run waiting for cores {waited:.0%} of its "
                f"time. torch's {threads} threads wait for the slowest of them: while that goes "
                f"on, --threads {fewer} is likely faster (Ctrl-C saves; --resume takes it, too)",
                RuntimeWarning,
                stacklevel=2,
            )

    def waited(self) -> float:
        """The share of the time since the last call in which a thread could have run and had no
        core; 0 where the system does not tell."""
        before, self._seen = self._seen, self._read()
        ran = waited = 0
        for thread, (now_ran, now_waited) in self._seen.items():
            then_ran, then_waited = before.get(thread, (0, 0))
            ran += now_ran - then_ran
            waited += now_waited - then_waited
        return waited / (ran + waited) if ran + waited > 0 else 0.0

    def _read(self) -> dict[str, tuple[int, int]]:
        """Nanoseconds that each thread ran and waited for a core (proc(5), schedstat)."""
        found = {}
        for file in self._tasks.glob("*/schedstat"):
            try:
                ran, waited, _ = map(int, file.read_text().split())
            except (OSError, ValueError):  # it ended meanwhile, or the kernel counts otherwise
                continue
            found[file.parent.name] = (ran, waited)
        return found

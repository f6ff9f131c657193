"""Notices that other work takes the cores that torch's threads compute on."""

from __future__ import annotations

import warnings
from pathlib import Path

TASKS = Path("/proc/self/task")  # Linux; elsewhere nothing is known
MUCH = 0.1  # two threads alone on two cores: 0.006; beside a program that takes one: 0.32
IDLE = 0.1  # of what the busiest thread ran


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
        """The share of the time since the last call in which the threads that compute could have
        run and had no core; 0 where the system does not tell."""
        before, self._seen = self._seen, self._read()
        spent = []
        for thread, (ran, waited) in self._seen.items():
            then_ran, then_waited = before.get(thread, (0, 0))
            spent.append((ran - then_ran, waited - then_waited))
        most = max((ran for ran, _ in spent), default=0)
        # Those that compute: the others, such as a display's, wait for these.
        computing = [(ran, waited) for ran, waited in spent if ran > IDLE * most]
        waited = sum(waited for _, waited in computing)
        wanted = waited + sum(ran for ran, _ in computing)
        return waited / wanted if wanted else 0.0

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

"""What a run measures: running means and success per goal family, into metrics.jsonl and
TensorBoard."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import named, write_text
from .episode import EpisodeResult

WINDOW = 100  # episodes per family that the success rate looks back on


class Meter:
    """Running statistics of training, saved in checkpoints so that resuming is exact."""

    def __init__(self) -> None:
        self.episodes = 0
        self._success: dict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._sums: dict[str, float] = defaultdict(float)
        self._updates = 0

    def episode(self, result: EpisodeResult) -> None:
        self.episodes += 1
        self._success[result.family].append(result.success)

    def update(self, values: Mapping[str, float]) -> None:
        self._updates += 1
        for name, value in values.items():
            self._sums[name] += value

    def success(self) -> dict[str, float]:
        """Success rate over each family's recent episodes."""
        return {f: sum(won) / len(won) for f, won in sorted(self._success.items())}

    def line(self) -> dict[str, Any]:
        """Everything since `clear`, as one object of metrics.jsonl."""
        success = self.success()
        found: dict[str, Any] = {
            "episodes": self.episodes,
            "success": success,
            "success_mean": sum(success.values()) / len(success) if success else 0.0,
        }
        for name, total in self._sums.items():
            found[name] = total / self._updates
        return found

    def clear(self) -> None:
        """Begin the next line: this one is written."""
        self._sums.clear()
        self._updates = 0

    def state(self) -> dict[str, Any]:
        return {
            "episodes": self.episodes,
            "success": {family: list(won) for family, won in self._success.items()},
            "sums": dict(self._sums),
            "updates": self._updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.episodes = state["episodes"]
        for family, won in state["success"].items():
            self._success[family].extend(won)
        self._sums.update(state["sums"])
        self._updates = state["updates"]


class MetricsWriter:
    """Appends to metrics.jsonl and TensorBoard's events in a run's folder.

    Args:
        folder: the run's.
        env_steps: of the last line; what TensorBoard has of later steps is no longer shown.
        tensorboard: whether to write its events.
    """

    def __init__(self, folder: Path, env_steps: int, *, tensorboard: bool = True) -> None:
        self._file = (folder / "metrics.jsonl").open("a")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=env_steps + 1)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Add a line; OSError where it cannot be written."""
        with named(Path(self._file.name)):
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in _flatten(metrics):
                self._board.add_scalar(name, value, metrics["env_steps"])

    def close(self) -> None:
        """Must not hide what ended the run, nor keep it from being saved: raises nothing."""
        with suppress(OSError):  # lines are flushed: it is one that could not be written before
            self._file.close()
        try:
            if self._board is not None:
                self._board.close()
        except OSError as error:
            warnings.warn(
                f"the last events for TensorBoard could not be written: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flatten(value, f"{prefix}{name}/")
        else:
            found.append((f"{prefix}{name}", float(value)))
    return found


def drop_after(folder: Path, env_steps: int) -> None:
    """Before resuming behind the line of `env_steps`: move later lines of metrics.jsonl to
    metrics.discarded.jsonl.

    A run that was killed may have logged beyond its last checkpoint; those steps are run again.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    kept: list[bytes] = []
    later: list[bytes] = []
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            (kept if entry["env_steps"] <= env_steps else later).append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            later.append(line)  # half a line, written when the run was killed, or damaged
    if later:
        with (folder / "metrics.discarded.jsonl").open("ab") as discarded:
            discarded.writelines(line + b"\n" for line in later)
        write_text(path, "".join(f"{line.decode()}\n" for line in kept))

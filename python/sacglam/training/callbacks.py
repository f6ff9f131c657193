"""What a user can hook into the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .episode import EpisodeResult


class Callback:
    """Does nothing; override what you need. Called in the training process, between steps."""

    def on_episode(self, result: EpisodeResult) -> None:
        """A training episode ended."""

    def on_log(self, metrics: Mapping[str, Any]) -> None:
        """A line was written to metrics.jsonl; `metrics` is that line."""

    def on_checkpoint(self, folder: Path) -> None:
        """A checkpoint was written."""

    def on_interrupt(self) -> None:
        """Ctrl-C was pressed; the run will be saved after the step under way."""

"""What a user can hook into the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .episode import EpisodeResult


class Callback:
    """Does nothing; override what you need. Called in the training process, between steps."""

    def on_episode(self, result: EpisodeResult) -> None:
        """A training episode ended."""

    def on_progress(self, env_steps: int, updates: int) -> None:
        """The run stands there: told after every step in all environments, and every update."""

    def on_evaluation(self, kind: str, done: int, episodes: int) -> None:
        """`done` of the `episodes` of an evaluation ended: of the "policy", of "random" actions or
        of the "expert". First told with 0."""

    def on_log(self, metrics: Mapping[str, Any]) -> None:
        """A line was written to metrics.jsonl; `metrics` is that line."""

    def on_checkpoint(self, folder: Path) -> None:
        """A checkpoint was written."""

    def on_interrupt(self) -> None:
        """Ctrl-C was pressed, SIGTERM or SIGHUP came, or `Trainer.stop` was called: the run will be
        saved after the step or update under way."""


def checked(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks as a list; raises ConfigError for what cannot be told what they are told."""
    if not isinstance(callbacks, Iterable):
        raise ConfigError(f"callbacks is a {type(callbacks).__name__}; give a list of callbacks")
    found = list(callbacks)
    needed = [name for name in vars(Callback) if name.startswith("on_")]
    for each in found:
        missing = [name for name in needed if not callable(getattr(each, name, None))]
        if missing:
            raise ConfigError(
                f"the callback {each!r} has no {', '.join(missing)}: derive its class from "
                "sacglam.Callback, which does nothing, and give an object of it"
            )
    return found

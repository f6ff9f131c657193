"""A training shown while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..report.progress import ProgressDisplay
from .callbacks import Callback

if TYPE_CHECKING:
    from .trainer import Trainer


class _Show(Callback):
    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display

    def on_log(self, metrics: Mapping[str, Any]) -> None:
        self._display.update(metrics)

    def on_progress(self, env_steps: int, updates: int) -> None:
        self._display.progress(env_steps, updates)

    def on_evaluation(self, kind: str, done: int, episodes: int) -> None:
        self._display.evaluating(kind, done, episodes)

    def on_interrupt(self) -> None:
        self._display.message(
            "stopping after this step or update, then saving (Ctrl-C again: at once)"
        )


@contextmanager
def shown(trainer: Trainer) -> Iterator[None]:
    """What the trainer does within is shown: live on a terminal, line by line elsewhere."""
    with ProgressDisplay(trainer.config.total_steps, before_s=trainer.clock.wall_s) as display:
        show = _Show(display)
        trainer.callbacks.append(show)
        try:
            yield
        finally:
            trainer.callbacks.remove(show)

"""Progress while training: a live display on a terminal, one line per log interval elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from .display import Display
from .evaluating import Evaluation, add_evaluation, evaluation_line, progress_table
from .pace import Pace
from .text import bar, compact, count, duration, number, percent, rates, sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_HISTORY = 24  # log intervals in a sparkline
_LINE_FAMILIES = 6  # families named in a line; the live display names what fits the terminal


class ProgressDisplay(Display):
    """Shows a running training.

    Args:
        total_steps: environment steps at which training ends.
        before_s: seconds of training before, of a resumed run.
        stream, interactive: as for `Display`.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        before_s: float = 0.0,
        stream: TextIO | None = None,
        interactive: bool | None = None,
    ) -> None:
        super().__init__(stream=stream, interactive=interactive)
        self.total_steps = total_steps
        self._before_s = before_s
        self._pace = Pace()
        self._metrics: Mapping[str, Any] = {}
        self._history: dict[str, tuple[float | None, ...]] = {}
        self._last_eval: tuple[float | None, Mapping[str, Any]] | None = None
        self._stepped = time.monotonic()
        self._position: tuple[float | None, float | None] = (None, None)  # steps and updates
        self._evaluation: Evaluation | None = None  # under way

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Show one log interval: an object as in metrics.jsonl, any key may be missing."""
        self._guarded(lambda: self._update(dict(metrics)))

    def progress(self, env_steps: int, updates: int) -> None:
        """Show how far it is between log intervals; where there is no terminal, once a minute."""
        self._guarded(lambda: self._progress(env_steps, updates))

    def evaluating(self, kind: str, done: int, episodes: int) -> None:
        """Show that `done` of the `episodes` of an evaluation ended; `kind` as for
        `Callback.on_evaluation`."""
        self._guarded(lambda: self._evaluating((kind, done, episodes)))

    def _update(self, metrics: dict[str, Any]) -> None:
        now = time.monotonic()
        self._pace.row(metrics, now)
        self._stepped = now
        self._position = (number(metrics.get("env_steps")), number(metrics.get("updates")))
        self._evaluation = None  # one that was left has no end of its own
        success = rates(metrics.get("success"))
        self._history = {
            **self._history,
            **{f: (*self._history.get(f, ()), r)[-_HISTORY:] for f, r in success.items()},
        }
        if isinstance(metrics.get("eval"), Mapping):
            self._last_eval = (number(metrics.get("env_steps")), metrics["eval"])
        self._metrics = metrics
        if self._live is not None:
            self._live.refresh()
        elif not self.interactive:
            self._write(self._line(metrics))

    def _progress(self, env_steps: int, updates: int) -> None:
        self._stepped = time.monotonic()
        self._pace.step(env_steps, updates, self._stepped)
        self._position = (env_steps, updates)
        self._write_after_a_while(lambda: f"{self._standing()} | {updates} updates")

    def _evaluating(self, evaluation: Evaluation) -> None:
        self._pace.pause()
        _, done, episodes = evaluation
        self._evaluation = evaluation if done < episodes else None
        self._write_after_a_while(
            lambda: f"[{duration(self._elapsed())}] {evaluation_line(evaluation)}"
        )

    def _time_left(self) -> float | None:
        steps, pace = self._position[0], self._pace.seconds
        if steps is None or pace is None:
            return None
        since = time.monotonic() - self._stepped if self._live is not None else 0.0
        return max(0.0, (self.total_steps - steps) * pace - since)

    def _elapsed(self) -> float:
        """Seconds, evaluations too; of a resumed run what it trained before counts."""
        return self._before_s + time.monotonic() - self._started

    def _fraction(self) -> float:
        steps = self._position[0] or 0.0
        return min(1.0, steps / self.total_steps) if self.total_steps > 0 else 1.0

    def _standing(self) -> str:
        return (
            f"[{duration(self._elapsed())}] "
            f"{_plain(self._position[0])}/{self.total_steps} steps "
            f"({math.floor(100 * self._fraction())} %, {duration(self._time_left())} left)"
        )

    def _line(self, metrics: Mapping[str, Any]) -> str:
        parts = [self._standing()]
        success = rates(metrics.get("success"))
        named = ", ".join(f"{f} {percent(r)}" for f, r in list(success.items())[:_LINE_FAMILIES])
        if len(success) > _LINE_FAMILIES:
            named += f", {len(success) - _LINE_FAMILIES} more"
        mean = percent(number(metrics.get("success_mean")))
        parts.append(f"success {mean}" + (f": {named}" if named else ""))
        if isinstance(metrics.get("eval"), Mapping):
            parts.append(f"eval {percent(number(metrics['eval'].get('success_mean')))}")
        parts.append(
            f"{compact(number(metrics.get('env_steps_per_s')))} steps/s, "
            f"{compact(number(metrics.get('updates_per_s')))} updates/s"
        )
        parts.append(f"critic {_figure(metrics, 'critic_loss')}")
        parts.append(f"entropy {_figure(metrics, 'entropy')}")
        return " | ".join(parts)

    def layout(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        metrics = self._metrics
        console = self._live.console if self._live is not None else None
        width, height = (console.width, console.height) if console is not None else (80, 24)
        head = progress_table()
        steps, updates = self._position
        head.add_row(
            Text("training", style="bold"),
            ProgressBar(total=1.0, completed=self._fraction()),
            Text(
                f"{math.floor(100 * self._fraction())} %  "
                f"{count(steps or 0)} / {count(self.total_steps)} steps"
            ),
        )
        if self._evaluation is not None:
            add_evaluation(head, self._evaluation)
        timing = f"{duration(self._elapsed())} elapsed, {duration(self._time_left())} left"
        if not metrics:
            return Group(
                head,
                Text(f"{timing}   {count(updates or 0)} updates"),
                Text("first figures come with the first log interval"),
            )
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim", no_wrap=True, min_width=8)
        body.add_column(no_wrap=True, overflow="ellipsis", max_width=max(10, width - 56))
        body.add_column(no_wrap=True)
        body.add_column(no_wrap=True, justify="right")
        body.add_column(no_wrap=True)
        self._add_families(body, rows=max(1, height - 10), bar_width=20 if width >= 72 else 8)
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True, min_width=8)
        facts.add_column(overflow="fold")
        facts.add_row("time", timing)
        facts.add_row(
            "speed",
            _facts(metrics, ("env_steps_per_s", "steps/s"), ("updates_per_s", "updates/s"))
            + f"   {count(updates)} updates"
            + f"   {count(number(metrics.get('episodes')))} episodes",
        )
        facts.add_row(
            "losses",
            f"critic {_figure(metrics, 'critic_loss')}   actor {_figure(metrics, 'actor_loss')}"
            f"   gradient norm {_figure(metrics, 'grad_norm')}",
        )
        facts.add_row(
            "policy",
            f"alpha {_figure(metrics, 'alpha')}   entropy {_figure(metrics, 'entropy')}"
            f"   mean Q {_figure(metrics, 'q_mean')}",
        )
        if self._last_eval is not None:
            at, result = self._last_eval
            facts.add_row(
                "eval",
                f"{percent(number(result.get('success_mean')))} mean success over "
                f"{count(number(result.get('episodes')))} episodes, at step {count(at)}",
            )
        return Group(head, body, facts)

    def _add_families(self, body: Any, rows: int, bar_width: int) -> None:
        from rich.text import Text

        history = self._history
        families = list(history)
        shown = families if len(families) <= rows else families[: rows - 1]
        label = "success"
        for family in shown:
            rate = history[family][-1]
            body.add_row(
                label,
                Text(family),
                self._bar(rate, bar_width),
                percent(rate),
                Text(sparkline(history[family], ascii_only=self._ascii), style="cyan"),
            )
            label = ""
        mean = number(self._metrics.get("success_mean"))
        if len(shown) < len(families):
            more = f"{len(families) - len(shown)} more families"
            body.add_row(
                label, Text(more, style="dim"), self._bar(mean, bar_width), percent(mean), "mean"
            )
        elif len(families) > 1 or not families:
            body.add_row(label, Text("mean"), self._bar(mean, bar_width), percent(mean), "")

    def _bar(self, rate: float | None, width: int) -> Text:
        from rich.text import Text

        style = "green" if (rate or 0.0) >= 0.9 else "yellow"
        return Text(bar(rate, width, ascii_only=self._ascii), style=f"{style} on grey23")


def _facts(metrics: Mapping[str, Any], *pairs: tuple[str, str]) -> str:
    return "   ".join(f"{_figure(metrics, key)} {unit}" for key, unit in pairs)


def _figure(metrics: Mapping[str, Any], key: str) -> str:
    return compact(number(metrics.get(key)))


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"

"""Progress while training: a live display on a terminal, one line per log interval elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from .text import bar, compact, count, duration, encodes, number, percent, rates, sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_HISTORY = 24  # log intervals in a sparkline
_LINE_FAMILIES = 6  # families named in a line; the live display names what fits the terminal


class _Outlet:
    """A stream whose failures are remembered instead of raised. rich draws from a thread of its
    own, and answers a broken pipe with SystemExit."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding: str | None = getattr(stream, "encoding", None)
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        self._attempt(lambda: self._write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            escaped = text.encode(error.encoding, errors="backslashreplace")
            self._stream.write(escaped.decode(error.encoding))

    def _attempt(self, call: Callable[[], object]) -> None:
        if self.error is None:
            try:
                call()
            except (OSError, ValueError, AttributeError) as error:  # gone, closed, or no stream
                self.error = error


class ProgressDisplay:
    """Shows the metrics of a running training; use it as a context manager.

    It never raises into the training loop: a display that fails says so once on stderr and stays
    silent from then on. KeyboardInterrupt passes through, and leaving the `with` block restores
    the terminal.

    Args:
        total_steps: environment steps at which training ends.
        stream: where to write; standard output by default.
        interactive: a live display (True), lines (False), or what `stream` is fit for (None).
    """

    def __init__(
        self, total_steps: int, *, stream: TextIO | None = None, interactive: bool | None = None
    ) -> None:
        self.total_steps = total_steps
        target = sys.stdout if stream is None else stream
        self.interactive = _is_terminal(target) if interactive is None else interactive
        self._ascii = not encodes(getattr(target, "encoding", None))
        self._stream = _Outlet(target)
        self._stderr = sys.stderr  # the live display replaces it
        self._failed = False
        self._live: Any = None
        self._started = self._updated = time.monotonic()
        self._pace: float | None = None  # seconds per environment step, smoothed
        self._learns = False  # whether that is of a time with updates
        # The live display draws from a thread of its own: everything below is replaced as a whole,
        # never changed in place.
        self._metrics: Mapping[str, Any] = {}
        self._history: dict[str, tuple[float | None, ...]] = {}
        self._last_eval: tuple[float | None, Mapping[str, Any]] | None = None

    def __enter__(self) -> ProgressDisplay:
        self._started = self._updated = time.monotonic()
        if self.interactive:
            self._guarded(self._start_live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._guarded(self._stop_live)

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Show one log interval: an object as in metrics.jsonl, any key may be missing."""
        self._guarded(lambda: self._update(dict(metrics)))

    def message(self, text: str) -> None:
        """Print a line of text, above the live display where there is one."""
        self._guarded(lambda: self._message(text))

    def _guarded(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
            if self._stream.error is not None:
                raise self._stream.error
        except Exception as error:  # a display must not end a training
            self._failed = True
            self._restore_terminal()
            self._complain(error)

    def _start_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        stream: Any = self._stream
        console = Console(file=stream, force_terminal=True, highlight=False)
        self._live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=2, transient=False
        )
        self._live.start(refresh=True)

    def _stop_live(self) -> None:
        if self._live is None:
            return
        live, self._live = self._live, None
        try:
            live.stop()
        finally:
            # A second Ctrl-C may interrupt stop() before it has shown the cursor again.
            live.console.show_cursor(True)

    def _restore_terminal(self) -> None:
        try:
            self._stop_live()
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        _Outlet(self._stderr).write(f"progress display stopped ({error!r}); training goes on\n")

    def _message(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _update(self, metrics: dict[str, Any]) -> None:
        self._track_rate(metrics)
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

    def _track_rate(self, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        rate = number(metrics.get("env_steps_per_s"))
        if rate is None:
            steps, before = number(metrics.get("env_steps")), number(self._metrics.get("env_steps"))
            if steps is not None and before is not None and now > self._updated:
                rate = (steps - before) / (now - self._updated)
        if not self._learns and number(self._metrics.get("updates")):
            self._learns, self._pace = True, None  # steps before the first update took no time
        if rate is not None and rate > 0:
            self._pace = 1 / rate if self._pace is None else 0.7 * self._pace + 0.3 / rate
        self._updated = now

    def _time_left(self) -> float | None:
        steps = number(self._metrics.get("env_steps"))
        if steps is None or self._pace is None:
            return None
        since = time.monotonic() - self._updated if self._live is not None else 0.0
        return max(0.0, (self.total_steps - steps) * self._pace - since)

    def _elapsed(self) -> float:
        """Seconds of training: of the whole run where the metrics know it (a resumed run)."""
        wall = number(self._metrics.get("wall_s"))
        if wall is None:
            return time.monotonic() - self._started
        return wall + (time.monotonic() - self._updated if self._live is not None else 0.0)

    def _fraction(self) -> float:
        steps = number(self._metrics.get("env_steps")) or 0.0
        return min(1.0, steps / self.total_steps) if self.total_steps > 0 else 1.0

    def _line(self, metrics: Mapping[str, Any]) -> str:
        steps = number(metrics.get("env_steps"))
        parts = [
            f"[{duration(self._elapsed())}] "
            f"{_plain(steps)}/{self.total_steps} steps ({math.floor(100 * self._fraction())} %, "
            f"{duration(self._time_left())} left)"
        ]
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

    def _draw(self) -> RenderableType:
        """Called by rich, mostly from its refresh thread, where an exception would end that thread
        and print a traceback over the display."""
        from rich.text import Text

        try:
            return self._layout()
        except Exception as error:
            return Text(f"progress cannot be shown: {error!r}; training goes on")

    def _layout(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        metrics = self._metrics
        console = self._live.console if self._live is not None else None
        width, height = (console.width, console.height) if console is not None else (80, 24)
        head = Table.grid(expand=True, padding=(0, 2))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        steps = number(metrics.get("env_steps"))
        head.add_row(
            Text("training", style="bold"),
            ProgressBar(total=1.0, completed=self._fraction()),
            Text(
                f"{math.floor(100 * self._fraction())} %  "
                f"{count(steps or 0)} / {count(self.total_steps)} steps"
            ),
        )
        timing = f"{duration(self._elapsed())} elapsed, {duration(self._time_left())} left"
        if not metrics:
            return Group(head, Text(f"{timing}   first figures come with the first log interval"))
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
            + f"   {count(number(metrics.get('updates')))} updates"
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


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except (AttributeError, ValueError, OSError):
        return False

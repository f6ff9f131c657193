"""A display of something long: drawn live on a terminal, lines elsewhere, and harmless always."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from .text import encodes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from typing_extensions import Self

_QUIET = 60.0  # seconds without a line after which one says how far things are


class Outlet:
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


class Display:
    """Draws `layout()` twice a second on a terminal; use it as a context manager.

    It never raises into what it shows: a display that fails says so once on stderr and stays
    silent from then on. KeyboardInterrupt passes through, and leaving the `with` block restores
    the terminal.

    Args:
        stream: where to write; standard output by default.
        interactive: a live display (True), lines (False), or what `stream` is fit for (None).
    """

    remains = True  # on the terminal, once it is left

    def __init__(self, *, stream: TextIO | None = None, interactive: bool | None = None) -> None:
        target = sys.stdout if stream is None else stream
        self.interactive = _is_terminal(target) if interactive is None else interactive
        self._ascii = not encodes(getattr(target, "encoding", None))
        self._stream = Outlet(target)
        self._stderr = sys.stderr  # the live display replaces it
        self._failed = False
        self._live: Any = None
        self._started = self._spoke = time.monotonic()

    def layout(self) -> RenderableType:
        """What is drawn. Called from a thread of its own: state that it reads is replaced as a
        whole, never changed in place."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._started = self._spoke = time.monotonic()
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
        except Exception as error:  # a display must not end what it shows
            self._failed = True
            self._restore_terminal()
            self._complain(error)

    def _start_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        stream: Any = self._stream
        console = Console(file=stream, force_terminal=True, highlight=False)
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=2,
            transient=not self.remains,
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
        Outlet(self._stderr).write(f"progress display stopped ({error!r}); the work goes on\n")

    def _message(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
        self._spoke = time.monotonic()

    def _write_after_a_while(self, line: Callable[[], str]) -> None:
        """Where there is no live display, and for a minute there was no line."""
        if not self.interactive and time.monotonic() - self._spoke >= _QUIET:
            self._write(line())

    def _draw(self) -> RenderableType:
        """Called by rich, mostly from its refresh thread, where an exception would end that thread
        and print a traceback over the display."""
        from rich.text import Text

        try:
            return self.layout()
        except Exception as error:
            return Text(f"progress cannot be shown: {error!r}; the work goes on")


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except (AttributeError, ValueError, OSError):
        return False

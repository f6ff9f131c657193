"""Signals that end a run in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C, what a scheduler or `kill` sends, and what a closed terminal does (not on Windows).
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def stopping(request: Callable[[], None]) -> Iterator[None]:
    """Within, the first SIGINT, SIGTERM or SIGHUP calls `request`, and no other does.

    After it Ctrl-C has its usual effect, and so ends what takes too long; SIGTERM and SIGHUP, which
    shells and schedulers repeat, have none. SIGHUP or SIGTERM that the process ignores (`nohup`)
    stays ignored; SIGINT does not, though a script's background jobs ignore it: who sends it to one
    means it. Nothing is changed outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        number: signal.getsignal(number)
        for number in (getattr(signal, name, None) for name in _NAMES)
        if number is not None
    }
    # None: a handler that was not set from Python, and which could not be put back.
    handled = [
        number
        for number, was in previous.items()
        if was is not None and (was != signal.SIG_IGN or number == signal.SIGINT)
    ]
    asked = False

    def stop(*_: Any) -> None:
        nonlocal asked
        if not asked:
            asked = True
            signal.signal(signal.SIGINT, previous[signal.SIGINT])
            request()

    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])

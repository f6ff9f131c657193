"""What stands in for a native buffer: after close, and in a forked process."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from sacglam.errors import ReplayError
from sacglam.replay.settings import native_settings

if TYPE_CHECKING:
    from sacglam.replay.buffer import ReplayBuffer


class Closed:
    def __getattr__(self, name: str) -> Any:
        raise ReplayError("the replay buffer is closed")


class Forked:
    """Stands in for the native buffer that a forked process inherits, until it is first used.

    The inherited one belongs to the parent (its open segments, its locks): it is kept, untouched.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self._buffer, self._inherited = buffer, buffer._native

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        buffer = self._buffer
        native = self._inherited.with_settings(native_settings(buffer._settings), buffer.seed)
        if buffer._template is not None:
            native.set_template(buffer._template)
        _inherited.append(self._inherited)
        buffer._native = native
        return getattr(native, name)


shared_buffers: weakref.WeakSet[ReplayBuffer] = weakref.WeakSet()
prefetching: weakref.WeakSet[ReplayBuffer] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    for buffer in list(prefetching):
        buffer._ahead = None  # its thread does not exist here
    for buffer in list(shared_buffers):
        buffer._native = Forked(buffer)


os.register_at_fork(after_in_child=_after_fork)

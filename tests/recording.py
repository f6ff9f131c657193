"""Stands in for CUDA graphs where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sacglam.models import graphs


class Recording:
    """Does what a CUDA graph does: the recorded call again, with weights and inputs where they were
    then, into the memory of the first result; recording alone computes nothing.

    running: whether it runs the call, to record or as a replay.
    full_at: the recording that does not fit into the device's memory; 0: none.
    full: what it raises.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        full_at: int = 0,
        full: Exception = torch.OutOfMemoryError("CUDA out of memory."),  # noqa: B008
    ) -> None:
        self.model, self.made, self.full_at, self.full = model, 0, full_at, full
        self.running = self.forgot = False

    def __call__(self, run: Callable[[], torch.Tensor]) -> Any:
        self.made += 1
        weights = [p.data for p in self.model.parameters()]
        self.running = True
        result = torch.full_like(run(), torch.nan)
        self.running = False
        if self.made == self.full_at:
            raise self.full

        def replay() -> None:
            present = [p.data for p in self.model.parameters()]
            self._point_to(weights)
            self.running = True
            result.copy_(run())
            self.running = False
            self._point_to(present)

        return replay, result

    def forget(self) -> None:
        self.forgot = True

    def _point_to(self, weights: list[torch.Tensor]) -> None:
        for parameter, data in zip(self.model.parameters(), weights, strict=True):
            parameter.data = data


class LateStream:
    """A device that works only when it is waited for, in order: at copies that do not block, and at
    replays of what `capture` recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module) -> None:
        self._queue: list[Callable[[], object]] = []
        self._record = Recording(model)
        copy = torch.Tensor.copy_

        def late(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> None:
            if non_blocking:
                self.tell(lambda: copy(to, source))
            else:
                copy(to, source)

        monkeypatch.setattr(torch.Tensor, "copy_", late)
        monkeypatch.setattr(graphs, "_copies_done", lambda device: Event(self))

    def capture(self, run: Callable[[], torch.Tensor]) -> Any:
        self.wait()
        replay, result = self._record(run)
        return lambda: self.tell(replay), result

    def tell(self, work: Callable[[], object]) -> None:
        self._queue.append(work)

    def wait(self, until: Callable[[], bool] = lambda: False) -> None:
        while self._queue and not until():
            self._queue.pop(0)()


class Event:
    """Stands in for torch.cuda.Event on a LateStream."""

    def __init__(self, stream: LateStream) -> None:
        self._stream, self._due, self._reached = stream, 0, 0

    def record(self) -> None:
        self._due += 1
        self._stream.tell(self._reach)

    def synchronize(self) -> None:
        self._stream.wait(lambda: self._reached == self._due)

    def _reach(self) -> None:
        self._reached += 1

"""Stands in for CUDA graphs where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sacglam.models import graphs


class Recording:
    """Does what a CUDA graph does: the recorded call again, with weights and inputs where they were
    then, into the memory of the first result; recording alone computes nothing."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.made = model, 0

    def __call__(self, run: Callable[[], torch.Tensor]) -> Any:
        self.made += 1
        weights = [p.data for p in self.model.parameters()]
        result = torch.full_like(run(), torch.nan)

        def replay() -> None:
            present = [p.data for p in self.model.parameters()]
            self._point_to(weights)
            result.copy_(run())
            self._point_to(present)

        return replay, result

    def _point_to(self, weights: list[torch.Tensor]) -> None:
        for parameter, data in zip(self.model.parameters(), weights, strict=True):
            parameter.data = data


class LateStream:
    """A device that works only when it is waited for, in order: at copies that do not block, and at
    replays of what `capture` recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module) -> None:
        self._queue: list[Callable[[], object]] = []
        self._recording = Recording(model)
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
        replay, result = self._recording(run)
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

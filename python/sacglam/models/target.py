"""The target critic: an exponential moving average of the trainable parameters alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class TargetParameters:
    """theta' <- (1 - tau) theta' + tau theta, over the parameters that are trained.

    The frozen base of a LoRA model is never copied: `applied` swaps the averaged values in for the
    time of a forward pass. Averages of 16-bit parameters are kept in float32 beside: a step of the
    average is less than their eight bits can show.

    Args:
        parameters: the trained parameters by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._online = dict(parameters)
        self._average = {name: p.detach().clone() for name, p in self._online.items()}
        self._exact = {n: p.float() for n, p in self._average.items() if p.dtype.itemsize == 2}

    @torch.no_grad()
    def update(self, tau: float) -> None:
        """One step of the average with rate tau in (0, 1]."""
        wide = [name for name in self._online if name not in self._exact]
        if wide:
            online = [self._online[name].data for name in wide]
            torch._foreach_lerp_([self._average[name] for name in wide], online, tau)
        for name, exact in self._exact.items():
            self._average[name].copy_(exact.lerp_(self._online[name].float(), tau))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the model computes with the averaged parameters (no gradients)."""
        self._swap()
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._online.items():
            parameter.data, self._average[name] = self._average[name], parameter.data

    def averages(self) -> list[Tensor]:
        """What `applied` swaps in, in the parameters' types."""
        return list(self._average.values())

    def state_dict(self) -> dict[str, Tensor]:
        return self._average | self._exact

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy saved averages; the names must be those of the trained parameters."""
        if set(state) != set(self._average):
            wrong = sorted(set(state) ^ set(self._average))[:3]
            raise KeyError(f"target parameters do not match the model: {wrong}")
        for name, value in state.items():
            self._average[name].copy_(value)
            if name in self._exact:
                self._exact[name].copy_(value)

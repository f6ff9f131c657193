"""The optimiser of both algorithms: AdamW, a warm-up, a linear fall, a largest gradient norm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..errors import ConfigError, DivergedError
from . import checkpoint


class Optimiser:
    """AdamW over the trained parameters, the heads with a learning rate of their own.

    Parameters of 16 bits are stepped as float32 copies, of which they are the rounded values: most
    steps are less than their eight bits can show (Micikevicius et al., "Mixed precision training",
    2018).

    Args:
        parameters: the trained parameters by name, heads under "heads.".
        config: resolved; its group `optim` is used.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> None:
        self._parameters = list(parameters.values())
        self._config = config.optim
        lr = config.optim.lr
        if lr is None:
            raise ConfigError("optim.lr is null; a resolved configuration has a number there")
        self._rates = [lr, config.optim.head_lr or lr]
        self._copies = {
            i: p.detach().float() for i, p in enumerate(self._parameters) if p.dtype.itemsize == 2
        }
        stepped = [self._copies.get(i, p) for i, p in enumerate(self._parameters)]
        named = list(zip(parameters, stepped, strict=True))
        heads = [p for n, p in named if n.startswith("heads.")]
        body = [p for n, p in named if not n.startswith("heads.")]
        self.adam = torch.optim.AdamW(
            [{"params": body}, {"params": heads}],
            lr=lr,
            weight_decay=config.optim.weight_decay,
            fused=all(p.dtype in (torch.float32, torch.float64) for p in stepped),
        )

    def gradient(self, loss: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Set the loss's gradient, scaled down to a norm of `optim.grad_clip`.

        With a share below 1 the loss is that of a part: its gradient by its share is added to what
        is there, and `clip` ends the update.

        Returns:
            the norm that it had before, and whether it was clipped; zeros for a part.
        """
        if share == 1.0:
            self.zero_grad()
            loss.backward()
            return self.clip()
        (share * loss).backward()
        return loss.new_zeros(()), loss.new_zeros(())

    def clip(self) -> tuple[Tensor, Tensor]:
        """Scale the gradient down; the norm that it had, and whether it was larger (scalars)."""
        most = self._config.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, most)
        return norm, norm > most

    def step(self, updates: int, progress: float) -> float:
        """Step along the gradient; returns the learning rate (of what are not heads).

        Args:
            updates: made before this one, for the warm-up.
            progress: share of the training that is done, for the fall of the learning rate.
        """
        warmup = self._config.warmup_updates
        share = min(1.0, (updates + 1) / warmup) if warmup else 1.0
        share *= 1.0 - (1.0 - self._config.final_lr) * min(1.0, progress)
        for group, rate in zip(self.adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        for i, copy in self._copies.items():
            gradient = self._parameters[i].grad
            copy.grad = None if gradient is None else gradient.float()
        self.adam.step()
        with torch.no_grad():
            for i, copy in self._copies.items():
                self._parameters[i].copy_(copy)
                copy.grad = None
        return self._rates[0] * share

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """AdamW's state and the float32 copies, as tensors."""
        copies = {f"copy.{i}": copy for i, copy in self._copies.items()}
        return checkpoint.optimizer_tensors(self.adam) | copies

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse. Copies that are not among the tensors are made of the parameters."""
        rest = dict(tensors)
        for i, copy in self._copies.items():
            copy.copy_(rest.pop(f"copy.{i}", self._parameters[i]))
        checkpoint.restore_optimizer(self.adam, rest)


def check_finite(metrics: Mapping[str, float], updates: int, *, huber: bool = False) -> None:
    """Raise DivergedError where a loss or statistic is not a number.

    Args:
        metrics: the update's losses and statistics.
        updates: made before this one.
        huber: whether to advise a Huber loss.
    """
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(
            f"{', '.join(bad)} became NaN or infinite at update {updates}. Try a smaller learning "
            f"rate (optim.lr), a smaller optim.grad_clip, {'critic.huber = 1, ' if huber else ''}"
            "or model.dtype = float32"
        )

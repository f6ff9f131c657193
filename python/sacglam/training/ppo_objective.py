"""What one update of PPO computes on the device: the losses and their gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithms import ppo
from ..config import TrainConfig
from ..models.forest import Forest
from ..models.policy import Policy
from .optimiser import Optimiser

# The numbers of what `PpoObjective.gradient` returns.
STATISTICS = (
    "critic_loss", "actor_loss", "grad_norm", "grad_clipped", "entropy", "v_mean", "return_mean",
    "kl", "ratio_clipped",
)  # fmt: skip


class Rows(NamedTuple):
    """Of a minibatch, [B] each."""

    action: Tensor  # int64, the column of the candidate that was taken
    log_prob: Tensor  # when it was taken
    advantage: Tensor  # normalised, if `ppo.normalise`
    returns: Tensor

    def to(self, device: torch.device) -> Rows:
        """The same on another device."""
        return Rows(*(x.to(device) for x in self))


class PpoObjective:
    """Its method waits for nothing, so that a CUDA graph can hold it.

    Args:
        policy: what is trained; its heads say V.
        optimiser: whose gradient is set.
        config: resolved.
    """

    def __init__(self, policy: Policy, optimiser: Optimiser, config: TrainConfig) -> None:
        self.policy, self.optimiser, self.config = policy, optimiser, config

    def gradient(self, forest: Forest, rows: Rows, share: float = 1.0) -> Tensor:
        """Set the gradient, clipped, of PPO's equation (9): the policy's and the value's loss, and
        an entropy bonus; of a part of the minibatch, its `share` of the rows, as
        `Optimiser.gradient` says.

        Returns:
            float64 [len(STATISTICS)].
        """
        options = self.config.ppo
        scores = self.policy.forward(forest)
        assert scores.v is not None
        log_prob = scores.log_pi.gather(-1, rows.action[:, None]).squeeze(-1)
        actor_loss, log_ratio = ppo.policy_loss(
            log_prob, rows.log_prob, rows.advantage, options.clip
        )
        critic_loss = ppo.value_loss(scores.v, rows.returns)
        entropy = scores.entropy.mean()
        loss = actor_loss + options.value_weight * critic_loss - options.entropy_weight * entropy
        norm, clipped = self.optimiser.gradient(loss, share)
        far = (log_ratio.expm1().abs() > options.clip).float().mean()
        statistics = [critic_loss, actor_loss, norm, clipped, entropy,
                      scores.v.mean(), rows.returns.mean(), ppo.approximate_kl(log_ratio),
                      far]  # fmt: skip
        return torch.stack([x.detach().double() for x in statistics])

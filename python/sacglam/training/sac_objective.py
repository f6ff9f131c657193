"""What one update of SAC computes on the device: bootstrapped values, losses, the gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithms import sac
from ..config import TrainConfig
from ..models.forest import Forest
from ..models.policy import Policy
from ..models.scoring import Scores
from ..models.target import TargetParameters
from .optimiser import Optimiser

# The first numbers of what `SacObjective.gradient` returns.
STATISTICS = (
    "critic_loss", "actor_loss", "grad_norm", "grad_clipped", "entropy", "q_mean", "target_mean",
    "td_error",
)  # fmt: skip


class Rows(NamedTuple):
    """Of a batch or a part of it, float [B] each; `action` int64 [B], the chosen candidate's
    column, and `row` int64 [B], the batch's row."""

    n_step_return: Tensor
    discount: Tensor
    weight: Tensor
    action: Tensor
    row: Tensor


class SacObjective:
    """Both methods wait for nothing, so that a CUDA graph can hold them.

    Args:
        policy: what is trained.
        target: the average of its parameters.
        optimiser: whose gradient is set.
        config: resolved.
    """

    def __init__(
        self, policy: Policy, target: TargetParameters, optimiser: Optimiser, config: TrainConfig
    ) -> None:
        self.policy, self.target, self.optimiser, self.config = policy, target, optimiser, config
        # V(p_{t+m}) of the batch's rows, 0 where nothing is bootstrapped; the last number belongs
        # to no row.
        rows = config.optim.batch_size
        self.value = torch.zeros(rows + 1, dtype=torch.float32, device=policy.device)

    @torch.no_grad()
    def bootstrap(self, forest: Forest, rows: Tensor, alpha: float | Tensor) -> Tensor:
        """Set `value` of the batch's `rows`, int64, one for each of the forest's."""
        self.value.index_copy_(0, rows, self._next_value(forest, alpha).to(self.value.dtype))
        return self.value

    def gradient(
        self,
        forest: Forest,
        rows: Rows,
        alpha: float | Tensor,
        *,
        with_actor: bool,
        share: float = 1.0,
    ) -> Tensor:
        """Set the gradient, clipped, of the critic's loss and, `with_actor`, of the actor's; of a
        part of the batch, its `share` of the rows, as `Optimiser.gradient` says.

        Returns:
            float64 [len(STATISTICS) + 2 B]: the statistics, each row's absolute TD error, and each
            row's entropy.
        """
        config = self.config
        y = sac.td_target(rows.n_step_return, rows.discount, self.value[rows.row])
        scores = self.policy.forward(forest)
        assert scores.q is not None
        critic_loss, td_error = sac.critic_loss(
            scores.q, rows.action, y, rows.weight, huber=config.critic.huber
        )
        prior = self.policy.prior(forest).log_pi if config.sac.prior else None
        actor_loss = sac.actor_loss(
            scores.pi, scores.log_pi, scores.q, alpha, rows.weight, log_prior=prior
        )
        loss = critic_loss
        if with_actor:
            loss = loss + config.optim.actor_weight * actor_loss
        norm, clipped = self.optimiser.gradient(loss, share)

        chosen = scores.q.detach().min(0).values.gather(-1, rows.action[:, None])
        entropy = scores.entropy.detach()
        statistics = [critic_loss, actor_loss, norm, clipped,
                      entropy.mean(), chosen.mean(), y.mean(), td_error.mean()]  # fmt: skip
        numbers = torch.stack([x.detach().double() for x in statistics])
        return torch.cat([numbers, td_error.double(), entropy.double()])

    def _next_value(self, forest: Forest, alpha: float | Tensor) -> Tensor:
        """V(p_{t+m}) with the target's Q and the current policy (or the target's)."""
        with self.target.applied():
            target: Scores = self.policy.forward(forest)
        assert target.q is not None
        current = target
        if not self.config.sac.target_policy:
            current = self.policy.forward(forest, with_q=False)
        if self.config.sac.prior:
            prior = self.policy.prior(forest).log_pi
            return sac.soft_value_with_prior(current.pi, current.log_pi, prior, target.q, alpha)
        return sac.soft_value(current.pi, current.log_pi, target.q, alpha)

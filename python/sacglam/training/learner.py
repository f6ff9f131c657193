"""One gradient update of SAC from one relabeled batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..algorithms import sac
from ..config import TrainConfig
from ..models.forest import Forest
from ..models.policy import Policy
from ..models.scoring import Scores
from ..models.target import TargetParameters
from ..replay import ReplayBuffer
from .optimiser import Optimiser, check_finite
from .texts import ReplayTexts


class Learner:
    """Samples, computes the targets and losses, and steps the optimiser.

    Args:
        policy: the policy that is trained.
        buffer, texts: where batches come from.
        config: the run's configuration.
    """

    def __init__(
        self, policy: Policy, buffer: ReplayBuffer, texts: ReplayTexts, config: TrainConfig
    ) -> None:
        self.policy, self.buffer, self.texts, self.config = policy, buffer, texts, config
        self.parameters = policy.trainable_parameters()
        self.target = TargetParameters(self.parameters)
        self.updates = 0
        self.optimiser = Optimiser(self.parameters, config)
        self.optimizer = self.optimiser.adam
        start = math.log(max(config.sac.alpha, 1e-8))
        self.log_alpha = torch.tensor(start, device=policy.device, requires_grad=True)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=config.sac.alpha_lr)

    @property
    def alpha(self) -> float:
        """The temperature now in use."""
        sac_config = self.config.sac
        return float(self.log_alpha.detach().exp()) if sac_config.learn_alpha else sac_config.alpha

    def update(self) -> dict[str, float]:
        """One update; returns its losses and statistics.

        Raises:
            DivergedError: a loss or the gradient is not finite; the parameters stay as they were.
        """
        config, device = self.config, self.policy.device
        due = max(1.0, (config.total_steps - config.learning_starts) / config.steps_per_update)
        # Importance weights: their exponent rises linearly, to 1 at the end (Schaul et al. 2016).
        beta = config.replay.priority_beta
        beta += (1.0 - beta) * min(1.0, self.updates / due)
        batch = self.buffer.sample(config.optim.batch_size, beta=beta)
        alpha = self.alpha

        def tensor(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        discount = tensor(batch.discount)
        value = torch.zeros_like(discount)
        alive = np.flatnonzero(batch.discount)  # nothing is bootstrapped where the goal was reached
        if len(alive):
            next_forest = self.policy.pack(
                batch.next_prompt_ids,
                batch.next_prompt_offsets,
                self.texts.policy_sets(batch.next_candidates),
                rows=alive,
            )
            value[tensor(alive)] = self._next_value(next_forest, alpha).to(value.dtype)
        y = sac.td_target(tensor(batch.n_step_return), discount, value)

        forest = self.policy.pack(
            batch.prompt_ids, batch.prompt_offsets, self.texts.policy_sets(batch.candidates)
        )
        scores = self.policy.forward(forest)
        assert scores.q is not None
        weight = tensor(batch.weight)
        action = tensor(batch.action.astype(np.int64))
        critic_loss, td_error = sac.critic_loss(
            scores.q, action, y, weight, huber=config.critic.huber
        )
        prior = self.policy.prior(forest).log_pi if config.sac.prior else None
        actor_loss = sac.actor_loss(
            scores.pi, scores.log_pi, scores.q, alpha, weight, log_prior=prior
        )
        loss = critic_loss
        if self.updates >= config.critic_warmup:
            loss = loss + config.optim.actor_weight * actor_loss
        norm = self.optimiser.gradient(loss)

        q_chosen = scores.q.detach().min(0).values.gather(-1, action[:, None])
        names = ("critic_loss", "actor_loss", "grad_norm", "grad_clipped", "entropy", "q_mean",
                 "target_mean", "td_error")  # fmt: skip
        stats = [critic_loss, actor_loss, norm, norm > config.optim.grad_clip,
                 scores.entropy.mean(), q_chosen.mean(), y.mean(), td_error.mean()]  # fmt: skip
        values = torch.stack([x.detach().double() for x in stats]).tolist()  # one synchronisation
        metrics = dict(zip(names, values, strict=True))
        check_finite(metrics, self.updates, huber=True)

        if config.replay.sampling == "prioritised":
            self.buffer.update_priorities(batch.key, td_error.float().cpu().numpy())
        self.optimiser.step(self.updates, self.updates / due)
        self.target.update(config.sac.target_rate)
        if config.sac.learn_alpha:
            self.alpha_optimizer.zero_grad(set_to_none=True)
            sac.temperature_loss(
                self.log_alpha, scores.entropy, scores.mask, config.sac.entropy_share
            ).backward()
            self.alpha_optimizer.step()
        self.updates += 1
        return {**metrics, "alpha": alpha}

    def _next_value(self, forest: Forest, alpha: float) -> Tensor:
        """V(p_{t+m}) with the target's Q and the current policy (or the target's)."""
        with self.target.applied():
            target: Scores = self.policy.forward(forest)
        assert target.q is not None
        with torch.no_grad():
            current = target
            if not self.config.sac.target_policy:
                current = self.policy.forward(forest, with_q=False)
            if self.config.sac.prior:
                prior = self.policy.prior(forest).log_pi
                return sac.soft_value_with_prior(current.pi, current.log_pi, prior, target.q, alpha)
            return sac.soft_value(current.pi, current.log_pi, target.q, alpha)

"""PPO-GLAM, the on-policy baseline: rollouts, and epochs of clipped updates on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..algorithms import ppo
from ..config import TrainConfig
from ..envs.vector import VectorEnv
from ..models.policy import Policy
from . import checkpoint
from .optimiser import Optimiser, check_finite
from .rollout import Minibatch, Rollout, RolloutCollector
from .seeds import MINIBATCHES, derive


class PpoAlgorithm:
    """Learns whenever every environment has made `ppo.rollout` steps. As for `make_algorithm`."""

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        envs: VectorEnv,
        noise: torch.Generator,
        reset_options: Mapping[str, Any],
    ) -> None:
        self.config, self.policy = config, policy
        self.optimiser = Optimiser(policy.trainable_parameters(), config)
        self.collector: RolloutCollector = RolloutCollector(
            envs, policy, seed=config.seed, generator=noise, reset_options=reset_options
        )
        self.updates = 0
        self._rollouts = 0

    def learn(self, env_steps: int) -> Iterator[dict[str, float]]:
        options = self.config.ppo
        if len(self.collector.rollout) < options.rollout * self.config.env.num_envs:
            return
        progress = env_steps / self.config.total_steps
        experience = self.collector.take(options.gamma, options.gae_lambda)
        # Seeded by their number alone, so that nothing has to be saved.
        rng = np.random.default_rng(derive(self.config.seed, MINIBATCHES, self._rollouts))
        self._rollouts += 1
        for _ in range(options.epochs):
            divergence = []
            for minibatch in experience.minibatches(options.minibatch, rng):
                metrics = self._update(minibatch, progress)
                divergence.append(metrics["kl"])
                yield metrics
            if options.target_kl is not None and np.mean(divergence) > options.target_kl:
                break

    def _update(self, batch: Minibatch, progress: float) -> dict[str, float]:
        """One gradient update: PPO's equation (9), with the value's loss and an entropy bonus."""
        options = self.config.ppo
        scores = self.policy.forward(batch.forest)
        assert scores.v is not None
        log_prob = scores.log_pi.gather(-1, batch.action[:, None]).squeeze(-1)
        advantage = ppo.normalise(batch.advantage) if options.normalise else batch.advantage
        actor_loss, ratio = ppo.policy_loss(log_prob, batch.log_prob, advantage, options.clip)
        critic_loss = ppo.value_loss(scores.v, batch.returns)
        entropy = scores.entropy.mean()
        loss = actor_loss + options.value_weight * critic_loss - options.entropy_weight * entropy
        norm = self.optimiser.gradient(loss)
        clipped = ((ratio - 1.0).abs() > options.clip).float().mean()
        names = ("critic_loss", "actor_loss", "grad_norm", "grad_clipped", "entropy", "v_mean",
                 "return_mean", "kl", "ratio_clipped")  # fmt: skip
        stats = [critic_loss, actor_loss, norm, norm > self.config.optim.grad_clip, entropy,
                 scores.v.mean(), batch.returns.mean(), ppo.approximate_kl(ratio),
                 clipped]  # fmt: skip
        values = torch.stack([x.detach().double() for x in stats]).tolist()  # one synchronisation
        metrics = dict(zip(names, values, strict=True))
        check_finite(metrics, self.updates)
        self.optimiser.step(self.updates, progress)
        self.updates += 1
        return metrics

    def save(self, writer: checkpoint.CheckpointWriter) -> dict[str, Any]:
        writer.tensors("optimizer", self.optimiser.state_dict())
        writer.tensors("rollout", self.collector.rollout.tensors())
        return {"updates": self.updates, "rollouts": self._rollouts}

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.optimiser.load_state_dict(checkpoint.read_tensors(folder, "optimizer"))
        self.updates, self._rollouts = state["updates"], state["rollouts"]
        self.collector.restore(state["episodes"])
        # After the episodes: playing them again has recorded their steps anew.
        self.collector.rollout = Rollout.of(checkpoint.read_tensors(folder, "rollout"))

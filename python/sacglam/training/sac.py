"""SAC-GLAM as the trainer sees it: replay buffer, collector and learner together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..envs.vector import VectorEnv
from ..models.policy import Policy
from ..replay import ReplayBuffer
from . import checkpoint
from .collector import ReplayCollector
from .learner import Learner
from .seeds import REPLAY, derive
from .subgoals import Subgoals
from .texts import ReplayTexts


class SacAlgorithm:
    """Off-policy: an update every `steps_per_update` environment steps, from relabeled batches.

    Arguments as for `make_algorithm`.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        envs: VectorEnv,
        noise: torch.Generator,
        reset_options: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.buffer = ReplayBuffer(
            config.replay.capacity,
            capacity_bytes=config.replay.capacity_bytes,
            n_step=config.sac.n_step,
            gamma=config.sac.gamma,
            her_strategy=config.replay.her_strategy,
            her_ratio=config.replay.her_ratio,
            her_random=config.replay.her_random,
            her_balance=config.replay.her_balance,
            her_reward=config.replay.her_reward,
            sampling=config.replay.sampling,
            priority_exponent=config.replay.priority_exponent,
            seed=derive(config.seed, REPLAY),
            long_episodes="split",
        )
        self.texts = ReplayTexts(policy, self.buffer)
        self.learner = Learner(policy, self.buffer, self.texts, config)
        share = config.sac.subgoals
        self.subgoals = Subgoals(policy, share, noise) if share else None
        self.collector = ReplayCollector(
            envs,
            policy,
            self.buffer,
            self.texts,
            explore=config.sac.explore,
            subgoals=self.subgoals,
            her_reward=None if config.replay.her_strategy == "none" else config.replay.her_reward,
            seed=config.seed,
            generator=noise,
            reset_options=reset_options,
        )

    @property
    def updates(self) -> int:
        return self.learner.updates

    def learn(self, env_steps: int) -> Iterator[dict[str, float]]:
        if not len(self.buffer):  # what there is nothing to learn from is not made up for later
            self.learner.missed = self.config.updates_due(env_steps)
        while self.behind(env_steps):
            yield self.learner.update()

    def behind(self, env_steps: int) -> bool:
        due = self.config.updates_due(env_steps) - self.learner.missed
        return len(self.buffer) > 0 and self.updates < due

    def save(self, writer: checkpoint.CheckpointWriter) -> dict[str, Any]:
        learner = self.learner
        writer.tensors("target", learner.target.state_dict())
        tensors = learner.optimiser.state_dict()
        alpha = checkpoint.optimizer_tensors(learner.alpha_optimizer)
        tensors |= {f"alpha.{name}": value for name, value in alpha.items()}
        tensors["log_alpha"] = learner.log_alpha
        writer.tensors("optimizer", tensors)
        self.buffer.save(str(writer.folder / "replay.bin"))
        return {
            "updates": learner.updates,
            "missed_updates": self.learner.missed,
            "achieved_goals": self.subgoals.known if self.subgoals is not None else [],
        }

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        learner = self.learner
        learner.target.load_state_dict(checkpoint.read_tensors(folder, "target"))
        tensors = checkpoint.read_tensors(folder, "optimizer")
        with torch.no_grad():
            learner.log_alpha.copy_(tensors.pop("log_alpha"))
        alpha = {k[6:]: v for k, v in tensors.items() if k.startswith("alpha.")}
        body = {k: v for k, v in tensors.items() if not k.startswith("alpha.")}
        checkpoint.restore_optimizer(learner.alpha_optimizer, alpha)
        learner.optimiser.load_state_dict(body)
        learner.updates = state["updates"]
        self.learner.missed = state.get("missed_updates", 0)
        self.buffer.load(str(folder / "replay.bin"))
        self.texts.forget()  # ids may be others now
        if self.subgoals is not None:
            self.subgoals.note(state.get("achieved_goals", []))

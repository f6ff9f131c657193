"""PPO-GLAM, the on-policy baseline: rollouts, and epochs of clipped updates on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import TrainConfig
from ..envs.vector import VectorEnv
from ..models.forest import Forest
from ..models.graphs import with_room
from ..models.policy import Policy
from . import checkpoint
from .optimiser import Optimiser, check_finite
from .parts import whole_statistics
from .ppo_graphs import PpoGraphs, ppo_graphs
from .ppo_objective import STATISTICS, PpoObjective, Rows
from .rollout import Experience, Minibatch, Rollout, RolloutCollector
from .seeds import MINIBATCHES, derive


@dataclass
class Lesson:
    """What is being learned from a rollout, and how far that is.

    Attributes:
        experience: the rollout with its advantages.
        epoch: the one under way.
        divergence: approximate KL of each of its updates so far.
    """

    experience: Experience
    epoch: int = 0
    divergence: list[float] = field(default_factory=list)


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
        self.objective = PpoObjective(policy, self.optimiser, config)
        self._graphs: PpoGraphs | None = None
        self.collector: RolloutCollector = RolloutCollector(
            envs, policy, seed=config.seed, generator=noise, reset_options=reset_options
        )
        self.updates = 0
        self._rollouts = 0
        self._lesson: Lesson | None = None

    def learn(self, env_steps: int) -> Iterator[dict[str, float]]:
        options = self.config.ppo
        if self._lesson is None:
            if len(self.collector.rollout) < options.rollout * self.config.env.num_envs:
                return
            self._lesson = Lesson(self.collector.take(options.gamma, options.gae_lambda))
            self._rollouts += 1
        lesson = self._lesson
        before = env_steps - options.rollout * self.config.env.num_envs
        # Seeded by their number alone, so that nothing has to be saved.
        rng = np.random.default_rng(derive(self.config.seed, MINIBATCHES, self._rollouts - 1))
        self._graphs = ppo_graphs(self.objective, self._graphs)
        packed_on = None if self._graphs is None else "cpu"  # from where a graph takes forests
        for epoch in range(options.epochs):
            order = rng.permutation(len(lesson.experience))
            if epoch < lesson.epoch:
                continue
            for parts in lesson.experience.minibatches(
                order,
                options.minibatch,
                first=len(lesson.divergence),
                most=self.config.optim.micro_batch,
                normalise=options.normalise,
                device=packed_on,
            ):
                metrics = self._update(parts, before / self.config.total_steps)
                lesson.divergence.append(metrics["kl"])
                yield metrics
            if options.target_kl is not None and np.mean(lesson.divergence) > options.target_kl:
                break
            lesson.epoch, lesson.divergence = epoch + 1, []
        self._lesson = None

    def behind(self, env_steps: int) -> bool:
        return self._lesson is not None

    def _update(self, parts: list[Minibatch], progress: float) -> dict[str, float]:
        """One gradient update."""
        report = with_room(partial(self._computed, parts), self._graphs, self.policy)
        values = report.tolist()  # the only synchronisation
        metrics = dict(zip(STATISTICS, values, strict=True))
        check_finite(metrics, self.updates)
        metrics["lr"] = self.optimiser.step(self.updates, progress)
        self.updates += 1
        return metrics

    def _computed(self, parts: list[Minibatch], graphs: PpoGraphs | None) -> Tensor:
        """Set the gradient, from nothing; the minibatch's statistics."""
        sizes = [part.forest.num_rows for part in parts]
        shares = [size / sum(sizes) for size in sizes]
        self.optimiser.zero_grad()
        reports = [
            self._gradient(*part, share, graphs) for part, share in zip(parts, shares, strict=True)
        ]
        return whole_statistics(reports, shares, self.optimiser, STATISTICS)

    def _gradient(
        self, forest: Forest, rows: Rows, share: float, graphs: PpoGraphs | None
    ) -> Tensor:
        """Set the gradient of a minibatch, or add that of a part; the objective's report."""
        report = None if graphs is None else graphs.gradient(forest, rows, share)
        if report is None:
            device = self.policy.device
            report = self.objective.gradient(forest.to(device), rows.to(device), share)
        return report

    def save(self, writer: checkpoint.CheckpointWriter) -> dict[str, Any]:
        writer.tensors("optimizer", self.optimiser.state_dict())
        writer.tensors("rollout", self.collector.rollout.tensors())
        state: dict[str, Any] = {"updates": self.updates, "rollouts": self._rollouts}
        if self._lesson is not None:
            writer.tensors("lesson", self._lesson.experience.tensors())
            state["lesson"] = {
                "epoch": self._lesson.epoch,
                "divergence": self._lesson.divergence,
            }
        return state

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.optimiser.load_state_dict(checkpoint.read_tensors(folder, "optimizer"))
        self.updates, self._rollouts = state["updates"], state["rollouts"]
        self.collector.rollout = Rollout.of(checkpoint.read_tensors(folder, "rollout"))
        if "lesson" in state:
            tensors = checkpoint.read_tensors(folder, "lesson")
            self._lesson = Lesson(Experience.of(self.policy, tensors), **state["lesson"])

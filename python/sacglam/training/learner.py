"""One gradient update of SAC from one relabeled batch."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..algorithms import sac
from ..config import TrainConfig
from ..models.forest import Forest
from ..models.graphs import with_room
from ..models.policy import Policy
from ..models.target import TargetParameters
from ..replay import Batch, ReplayBuffer
from .optimiser import Optimiser, check_finite
from .parts import row_parts, whole_statistics
from .sac_graphs import SacGraphs, sac_graphs
from .sac_objective import STATISTICS, Rows, SacObjective
from .texts import ReplayTexts


class Learner:
    """Samples, lets the objective compute targets, losses and gradient, and steps the optimiser.

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
        self.missed = 0  # updates that were due before there was anything to learn from
        self.optimiser = Optimiser(self.parameters, config)
        self.objective = SacObjective(policy, self.target, self.optimiser, config)
        self._graphs: SacGraphs | None = None
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
        progress = self.updates / max(1, config.updates_due(config.total_steps) - self.missed)
        # Importance weights: their exponent rises linearly, to 1 at the end (Schaul et al. 2016).
        beta = config.replay.priority_beta
        beta += (1.0 - beta) * min(1.0, progress)
        batch = self.buffer.sample(config.optim.batch_size, beta=beta)
        alpha = self.alpha
        self._graphs = sac_graphs(self.objective, self._graphs)
        report = with_room(partial(self._computed, batch, alpha), self._graphs, self.policy)
        report = report.cpu()  # the only synchronisation
        count, rows = len(STATISTICS), config.optim.batch_size
        metrics = dict(zip(STATISTICS, report[:count].tolist(), strict=True))
        check_finite(metrics, self.updates, huber=True)
        td_error, entropy = report[count:].split(rows)

        if config.replay.sampling == "prioritised":
            self.buffer.update_priorities(batch.key, td_error.float().numpy())
        rate = self.optimiser.step(self.updates, progress)
        self.target.update(config.sac.target_rate)
        if config.sac.learn_alpha and self.updates >= config.critic_warmup:
            sets = self.texts.policy_sets(batch.candidates)
            self.alpha_optimizer.zero_grad(set_to_none=True)
            sac.temperature_loss(
                self.log_alpha,
                entropy.to(self.log_alpha),
                torch.tensor([len(actions) for actions in sets], device=device),
                config.sac.entropy_share,
            ).backward()
            self.alpha_optimizer.step()
        self.updates += 1
        relabeled = float(batch.relabeled.mean())
        return {**metrics, "alpha": alpha, "lr": rate, "relabeled": relabeled}

    def _computed(self, batch: Batch, alpha: float, graphs: SacGraphs | None) -> Tensor:
        """Set the gradient, from nothing; the objective's report."""
        self._bootstrap(batch, alpha, graphs)
        return self._gradient(batch, alpha, graphs)

    def _bootstrap(self, batch: Batch, alpha: float, graphs: SacGraphs | None) -> None:
        """Set the objective's values of the next prompts."""
        self.objective.value.zero_()
        alive = np.flatnonzero(batch.discount)  # nothing is bootstrapped where the goal was reached
        sets = self.texts.policy_sets(batch.next_candidates)
        for part in row_parts(len(alive), self.config.optim.micro_batch):
            rows = alive[part]
            forest = self.policy.pack(
                batch.next_prompt_ids,
                batch.next_prompt_offsets,
                sets,
                rows=rows,
                device=_packed_on(graphs),
            )
            if graphs is None or not graphs.bootstrap(forest, rows, alpha):
                device = self.policy.device
                to = torch.from_numpy(rows).to(device)
                self.objective.bootstrap(forest.to(device), to, alpha)

    def _gradient(self, batch: Batch, alpha: float, graphs: SacGraphs | None) -> Tensor:
        """Set the gradient; the objective's report."""
        count = self.config.optim.batch_size
        parts = row_parts(count, self.config.optim.micro_batch)
        shares = [(part.stop - part.start) / count for part in parts]
        index = np.arange(count)
        arrays = (batch.n_step_return, batch.discount, batch.weight, batch.action, index)
        sets = self.texts.policy_sets(batch.candidates)
        reports = []
        self.optimiser.zero_grad()
        for part, share in zip(parts, shares, strict=True):
            forest = self.policy.pack(
                batch.prompt_ids,
                batch.prompt_offsets,
                sets,
                rows=index[part] if len(parts) > 1 else None,
                taken=batch.action,
                device=_packed_on(graphs),
            )
            rows = Rows(*(torch.from_numpy(array[part]) for array in arrays))
            reports.append(self._part_gradient(forest, rows, alpha, share, graphs))
        statistics = whole_statistics(reports, shares, self.optimiser, STATISTICS)
        each = [r[len(STATISTICS) :].view(2, -1) for r in reports]
        return torch.cat([statistics, torch.cat(each, 1).flatten()])

    def _part_gradient(
        self, forest: Forest, rows: Rows, alpha: float, share: float, graphs: SacGraphs | None
    ) -> Tensor:
        """Set the gradient of a batch, or add that of a part; the objective's report."""
        with_actor = self.updates >= self.config.critic_warmup
        report = None
        if graphs is not None:
            report = graphs.gradient(forest, rows, alpha, with_actor=with_actor, share=share)
        if report is None:
            device = self.policy.device
            there = Rows(*(x.to(device) for x in rows))
            there = there._replace(action=there.action.long())
            report = self.objective.gradient(
                forest.to(device), there, alpha, with_actor=with_actor, share=share
            )
        return report


def _packed_on(graphs: SacGraphs | None) -> str | None:
    """Where forests are made: where the policy is, unless a graph takes them from the CPU."""
    return None if graphs is None else "cpu"

"""Updates by CUDA graphs: the two passes of an update at a launch each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models.forest import Forest
from ..models.graphs import Capture, CudaCapture, Graphs, Padding, graphs_serve
from ..models.padding import power_of_two
from ..replay import Batch
from .objective import Rows, SacObjective


class UpdateGraphs:
    """The objective's two methods, by graphs where they apply.

    Sizes are rounded more finely than for acting, since an update takes longer than its launches
    sooner. The graphs of the gradient write it to memory that all share.

    Args:
        objective: what is computed.
        capture: records calls; CudaCapture on a GPU.
    """

    def __init__(self, objective: SacObjective, capture: Capture) -> None:
        policy, config = objective.policy, objective.config
        self._objective, self._capture = objective, capture
        self._rows = config.optim.batch_size
        self._most_rows = power_of_two(self._rows)  # that a padded forest of some of them has
        self._parameters = list(policy.trainable_parameters().values())
        self._gradient = [torch.zeros_like(p) for p in self._parameters]
        self._used: dict[bool, list[bool]] = {}
        padding = Padding(True, parts=8)
        self._bootstrap = self._graphs(self._bootstrapped, 1 + self._most_rows, padding)
        # One for updates of the critic alone, one for those of the actor too.
        self._updates: dict[bool, Graphs] = {}

    def bootstrap(self, forest: Forest, rows: npt.NDArray[np.int64], alpha: float) -> bool:
        """As `SacObjective.bootstrap`, for a forest on the CPU; False where no graph serves."""
        # Rows of padding go to the number that belongs to no row.
        to = np.full(self._most_rows, self._rows, dtype=np.float64)
        to[: len(rows)] = rows
        return self._bootstrap.run(forest, np.concatenate([[alpha], to])) is not None

    def gradient(
        self, forest: Forest, batch: Batch, alpha: float, *, with_actor: bool
    ) -> Tensor | None:
        """As `SacObjective.gradient`, for a forest on the CPU; None where no graph serves."""
        if with_actor not in self._updates:

            def call(forest: Forest, numbers: Tensor) -> Tensor:
                return self._updated(forest, numbers, with_actor)

            padding = Padding(True, self._rows, parts=8)
            self._updates[with_actor] = self._graphs(call, 1 + 4 * self._rows, padding)
        arrays = (batch.n_step_return, batch.discount, batch.weight, batch.action)
        numbers = np.concatenate([[alpha], *arrays], dtype=np.float64)
        report = self._updates[with_actor].run(forest, numbers)
        if report is not None:
            used = self._used[with_actor]
            for parameter, gradient, there in zip(
                self._parameters, self._gradient, used, strict=True
            ):
                parameter.grad = gradient if there else None
        return report

    def __len__(self) -> int:
        """Graphs recorded."""
        return sum(map(len, [self._bootstrap, *self._updates.values()]))

    def _graphs(
        self, call: Callable[[Forest, Tensor], Tensor], numbers: int, padding: Padding
    ) -> Graphs:
        policy = self._objective.policy
        return Graphs(
            call, policy.model, self._capture,
            doing="training",
            reads=[*policy.heads.parameters(), *self._objective.target.averages()],
            adapter="default" if policy.options.critic_trunk == "adapter" else None,
            padding=padding,
            numbers=numbers,
        )  # fmt: skip

    def _bootstrapped(self, forest: Forest, numbers: Tensor) -> Tensor:
        rows = numbers[1 : 1 + forest.num_rows].long()
        return self._objective.bootstrap(forest, rows, numbers[0])

    def _updated(self, forest: Forest, numbers: Tensor, with_actor: bool) -> Tensor:
        n_step_return, discount, weight, action = numbers[1:].view(4, self._rows)
        rows = Rows(n_step_return.float(), discount.float(), weight.float(), action.long())
        report = self._objective.gradient(forest, rows, numbers[0], with_actor=with_actor)
        there = [p.grad is not None for p in self._parameters]
        self._used[with_actor] = there
        torch._foreach_copy_(
            [g for g, used in zip(self._gradient, there, strict=True) if used],
            [p.grad for p in self._parameters if p.grad is not None],
        )
        self._objective.optimiser.zero_grad()
        return report


def update_graphs(objective: SacObjective, present: UpdateGraphs | None) -> UpdateGraphs | None:
    """The graphs of an objective, `present` if there are some; None where its calls must run."""
    policy = objective.policy
    if not graphs_serve(policy) or policy.reencodes:
        return None
    if present is not None:
        return present
    return UpdateGraphs(objective, CudaCapture(policy.device))

"""SAC's updates by CUDA graphs: the two passes of an update at a launch each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..models.forest import Forest
from ..models.graphs import Capture, CudaCapture, Padding, graphs_serve
from ..models.padding import power_of_two
from .gradient_graphs import GradientGraphs
from .sac_objective import Rows, SacObjective


class SacGraphs:
    """The objective's two methods, by graphs where they apply.

    Args:
        objective: what is computed.
        capture: records calls; CudaCapture on a GPU.
    """

    def __init__(self, objective: SacObjective, capture: Capture) -> None:
        self._objective = objective
        config = objective.config.optim
        self._rows = config.batch_size
        # That a padded forest of some of them has.
        self._most_rows = power_of_two(min(self._rows, config.micro_batch or self._rows))
        leaves = not objective.policy.reencodes  # else Q is read elsewhere
        self._gradients = GradientGraphs(
            objective.policy, objective.optimiser, capture,
            leaves=leaves, reads=objective.target.averages(),
        )  # fmt: skip
        self._bootstrap = self._gradients.graphs(
            self._bootstrapped, 1 + self._most_rows, Padding(leaves)
        )
        objective.policy.keep_with(self)

    def bootstrap(self, forest: Forest, rows: npt.NDArray[np.int64], alpha: float) -> bool:
        """As `SacObjective.bootstrap`, for a forest on the CPU; False where no graph serves."""
        # Rows of padding go to the number that belongs to no row.
        to = np.full(self._most_rows, self._rows, dtype=np.float64)
        to[: len(rows)] = rows
        return self._bootstrap.run(forest, np.concatenate([[alpha], to])) is not None

    def gradient(
        self, forest: Forest, rows: Rows, alpha: float, *, with_actor: bool, share: float = 1.0
    ) -> Tensor | None:
        """As `SacObjective.gradient`, for what is on the CPU; None where no graph serves."""

        def compute(forest: Forest, numbers: Tensor) -> Tensor:
            n_step_return, discount, weight, action, row = numbers[1:].view(len(rows), -1)
            there = Rows(
                n_step_return.float(), discount.float(), weight.float(), action.long(), row.long()
            )
            return self._objective.gradient(
                forest, there, numbers[0], with_actor=with_actor, share=share
            )

        numbers = np.concatenate([[alpha], *(x.numpy() for x in rows)], dtype=np.float64)
        # Updates of the critic alone have graphs of their own.
        kind = (with_actor, share)
        return self._gradients.run(kind, compute, forest, numbers, add=share < 1.0)

    def release(self) -> None:
        """Forget all graphs, and keep no memory for others."""
        self._bootstrap.release()
        self._gradients.release()

    def __len__(self) -> int:
        """Graphs recorded."""
        return len(self._bootstrap) + len(self._gradients)

    def _bootstrapped(self, forest: Forest, numbers: Tensor) -> Tensor:
        rows = numbers[1 : 1 + forest.num_rows].long()
        return self._objective.bootstrap(forest, rows, numbers[0])


def sac_graphs(objective: SacObjective, present: SacGraphs | None) -> SacGraphs | None:
    """The graphs of an objective, `present` if there are some; None where its calls must run."""
    policy = objective.policy
    if not graphs_serve(policy):
        return None
    return present if present is not None else SacGraphs(objective, CudaCapture(policy.device))

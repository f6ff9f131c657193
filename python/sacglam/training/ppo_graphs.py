"""PPO's updates by CUDA graphs: an update's pass, there and back, at one launch."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..models.forest import Forest
from ..models.graphs import Capture, CudaCapture, graphs_serve
from .gradient_graphs import GradientGraphs
from .ppo_objective import PpoObjective, Rows


class PpoGraphs:
    """The objective's method, by graphs where they apply.

    Args:
        objective: what is computed.
        capture: records calls; CudaCapture on a GPU.
    """

    def __init__(self, objective: PpoObjective, capture: Capture) -> None:
        self._objective = objective
        self._gradients = GradientGraphs(
            objective.policy, objective.optimiser, capture, leaves=False
        )
        objective.policy.keep_with(self)

    def gradient(self, forest: Forest, rows: Rows, share: float = 1.0) -> Tensor | None:
        """As `PpoObjective.gradient`, for what is on the CPU; None where no graph serves."""
        dtype = rows.advantage.dtype

        def compute(forest: Forest, numbers: Tensor) -> Tensor:
            action, *others = numbers.view(4, -1)
            return self._objective.gradient(
                forest, Rows(action.long(), *(x.to(dtype) for x in others)), share
            )

        numbers = np.concatenate([x.numpy() for x in rows], dtype=np.float64)
        kind = (dtype, share)
        return self._gradients.run(kind, compute, forest, numbers, add=share < 1.0)

    def release(self) -> None:
        """Forget all graphs, and keep no memory for others."""
        self._gradients.release()

    def __len__(self) -> int:
        """Graphs recorded."""
        return len(self._gradients)


def ppo_graphs(objective: PpoObjective, present: PpoGraphs | None) -> PpoGraphs | None:
    """The graphs of an objective, `present` if there are some; None where its calls must run."""
    policy = objective.policy
    if not graphs_serve(policy):
        return None
    return present if present is not None else PpoGraphs(objective, CudaCapture(policy.device))

"""An update in parts: a pass for some of its rows at a time, whose gradients add up.

The loss of an update is a mean over its rows. A part's loss counts by the part's share of them, so
that the sum of gradients is that of the whole, with the memory of the largest part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import TrainConfig
from .optimiser import Optimiser


def row_parts(rows: int, most: int) -> list[slice]:
    """Consecutive rows, at most `most` in a part; 0: all in one. Equal but for the last, since
    every size needs CUDA graphs of its own."""
    size = most or max(rows, 1)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def update_rows(config: TrainConfig) -> int:
    """Transitions an update, at most."""
    return config.ppo.minibatch if config.algo == "ppo" else config.optim.batch_size


def smaller_part(config: TrainConfig) -> int:
    """An `optim.micro_batch` that takes half the memory."""
    rows = update_rows(config)
    return max(1, min(config.optim.micro_batch or rows, rows) // 2)


def whole_statistics(
    reports: Sequence[Tensor],
    shares: Sequence[float],
    optimiser: Optimiser,
    statistics: Sequence[str],
) -> Tensor:
    """The statistics of an update of which these are the parts'; their added gradient is clipped.

    Args:
        reports: float64 each; they begin with the S statistics.
        shares: of the update's rows, in each part.
        optimiser: that has the gradient.
        statistics: their names. Means over rows, but for the gradient's norm.

    Returns:
        float64 [S]. A whole update is its one part.
    """
    count = len(statistics)
    if len(reports) == 1:
        return reports[0][:count]
    numbers = torch.stack([share * r[:count] for share, r in zip(shares, reports, strict=True)])
    means = numbers.sum(0)
    norm, clipped = optimiser.clip()
    means[statistics.index("grad_norm")] = norm
    means[statistics.index("grad_clipped")] = clipped
    return means

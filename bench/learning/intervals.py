"""Interquartile means with stratified bootstrap intervals.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv
2108.13264), whose library is rliable.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def interquartile_mean(scores: npt.ArrayLike) -> Floats:
    """Mean of what is left of the runs' scores without the lowest and the highest quarter.

    Args:
        scores: [..., R, M], R runs on M tasks; taken together, as in the paper. As many are left
            out at each end as fit wholly into a quarter: 1 of 5.

    Returns:
        float [...].
    """
    values = np.asarray(scores, dtype=np.float64)
    flat = np.sort(values.reshape(*values.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    scores: npt.ArrayLike, *, share: float = 0.95, samples: int = 5000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Percentile interval of the interquartile mean under resampled runs.

    Args:
        scores: [..., R, M]; the runs of each task are drawn by themselves, with replacement (M
            strata), and the same ones for all leading axes.
        share: of the distribution inside the interval.
        samples: how often runs are drawn.
        seed: of the drawing.

    Returns:
        its ends, each float [...].
    """
    values = np.asarray(scores, dtype=np.float64)
    runs, tasks = values.shape[-2:]
    drawn = np.random.default_rng(seed).integers(runs, size=(samples, runs, tasks))
    task = np.broadcast_to(np.arange(tasks), drawn.shape)
    means = interquartile_mean(values[..., drawn, task])  # [..., samples]
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2], axis=-1)
    return low, high

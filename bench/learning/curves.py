"""What the runs of a method have in common: success at the same steps, or after the same time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sacglam.report.runs import read_run

from .intervals import bootstrap_interval, interquartile_mean

Floats = npt.NDArray[np.float64]
AXES = ("env_steps", "wall_s", "cpu_s")


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run while it trained, N of them, the untrained policy first.

    Attributes:
        at: for each of `AXES`, where the evaluations were made [N].
        success: mean over goal families [N].
        families: the same by family [N].
    """

    at: dict[str, Floats]
    success: Floats
    families: dict[str, Floats]


@dataclass(frozen=True)
class Summary:
    """Interquartile mean over runs, and its 95 % interval, at points x [N] of an axis."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    runs: int


def read_curve(folder: Path) -> Curve | None:
    """The curve of a run's folder; None where no evaluation has been made yet."""
    if not (folder / "metrics.jsonl").is_file() or not (folder / "baselines.json").is_file():
        return None
    if not (folder / "metrics.jsonl").stat().st_size:
        return None
    untrained = json.loads((folder / "baselines.json").read_text())["untrained"]
    rows: list[dict[str, Any]] = [dict.fromkeys(AXES, 0) | {"eval": untrained}]
    rows += [row for row in read_run(folder).metrics if "eval" in row]
    if len(rows) < 2:
        return None
    names = rows[-1]["eval"]["success"]
    return Curve(
        {axis: np.array([row[axis] for row in rows], dtype=np.float64) for axis in AXES},
        np.array([row["eval"]["success_mean"] for row in rows]),
        {f: np.array([row["eval"]["success"].get(f, np.nan) for row in rows]) for f in names},
    )


def steps_to(curve: Curve, threshold: float, axis: str = "env_steps") -> float | None:
    """Where the first evaluation with at least this success was made; None: it never was."""
    reached = np.flatnonzero(curve.success >= threshold)
    return float(curve.at[axis][reached[0]]) if len(reached) else None


def summarise(curves: Sequence[Curve], axis: str, points: int = 60) -> Summary:
    """Runs joined over what all of them cover; between evaluations success runs straight.

    Over environment steps the points are the evaluations themselves, else `points` equal parts.
    """
    end = min(curve.at[axis][-1] for curve in curves)
    if axis == "env_steps":
        x = np.unique(np.concatenate([curve.at[axis] for curve in curves]))
        x = x[x <= end]
    else:
        x = np.linspace(0.0, end, points)
    table = np.stack([np.interp(x, c.at[axis], c.success) for c in curves], -1)[..., None]
    low, high = bootstrap_interval(table)  # of [N, runs, 1]
    return Summary(x, interquartile_mean(table), low, high, len(curves))

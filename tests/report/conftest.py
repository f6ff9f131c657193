"""Run folders as a training leaves them, made without one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

FAMILIES = ("Grasp", "Grow plant")


def metrics_row(steps: int, *, late: float = 6000.0, evaluated: bool = False) -> dict[str, Any]:
    """One log interval: Grasp is learned at about 2500 steps, Grow plant at `late`."""
    success = {
        family: round(1 / (1 + math.exp((middle - steps) / 800)), 3)
        for family, middle in zip(FAMILIES, (2500.0, late), strict=True)
    }
    mean = sum(success.values()) / len(success)
    row: dict[str, Any] = {
        "env_steps": steps, "updates": steps // 4, "episodes": steps // 15, "wall_s": steps / 48,
        "success": success, "success_mean": mean, "critic_loss": 0.0123, "actor_loss": -0.31,
        "alpha": 0.005, "entropy": 1.21, "q_mean": 0.62, "grad_norm": 1.23,
        "env_steps_per_s": 48.2, "updates_per_s": 12.05,
    }  # fmt: skip
    if evaluated:
        row["eval"] = {"success": success, "success_mean": mean, "episodes": 100}
    return row


def evaluation(grasp: float = 0.987, grow: float = 0.94) -> dict[str, Any]:
    """An eval.json."""

    def agent(first: float, second: float) -> dict[str, Any]:
        success = dict(zip(FAMILIES, (first, second), strict=True))
        return {
            "episodes": 300, "success": success, "success_mean": (first + second) / 2,
            "count": {"Grasp": 200, "Grow plant": 100},
        }  # fmt: skip

    return {
        "env_steps": 12000, "wall_s": 251.3, **agent(grasp, grow),
        "baseline_random": agent(0.14, 0.02), "untrained": agent(0.15, 0.01),
        "expert": agent(1.0, 1.0),
    }  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(
        name: str = "run",
        *,
        seed: int = 0,
        model: str = "tiny-t5",
        her_ratio: float = 0.8,
        total: int = 12000,
        config: bool = True,
        evaluated: bool = True,
        settings: Mapping[str, Any] | None = None,  # dotted names
        evals_every: int = 0,  # steps between evaluations while training, whose success is half
        **row: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if config:
            (folder / "config.yaml").write_text(
                f"env: {{id: playground/small, kwargs: {{}}}}\nmodel: {{id: {model}}}\n"
                f"replay: {{her_ratio: {her_ratio}}}\nseed: {seed}\nout: {folder}\n"
                f"total_steps: {total}\n"
            )
        if settings:
            values = yaml.safe_load((folder / "config.yaml").read_text())
            for name, value in settings.items():
                section, _, field = name.rpartition(".")
                (values.setdefault(section, {}) if section else values)[field] = value
            (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        rows = [metrics_row(steps, **row) for steps in range(500, total + 1, 500)]
        for row_ in rows:
            if evals_every and row_["env_steps"] % evals_every == 0:
                success = {family: rate / 2 for family, rate in row_["success"].items()}
                row_["eval"] = {"success": success, "success_mean": row_["success_mean"] / 2}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        if evaluated:
            (folder / "eval.json").write_text(json.dumps(evaluation()))
        return folder

    return make


@pytest.fixture(name="metrics_row")
def metrics_row_fixture() -> Callable[..., dict[str, Any]]:
    return metrics_row


@pytest.fixture(name="evaluation")
def evaluation_fixture() -> Callable[..., dict[str, Any]]:
    return evaluation

"""bench/device.py rehearsed at small sizes: a GPU that is lent for minutes must not find a section
that does not run. What its checks find is theirs to judge; nothing is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_kernels import quick_kernels

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import device_checks as checks  # noqa: E402
import device_graphs as graphs  # noqa: E402
import device_kernels as kernels  # noqa: E402
import device_model_checks as model_checks  # noqa: E402
import device_models as models  # noqa: E402
import device_training as training  # noqa: E402
import device_workloads as workloads  # noqa: E402

SMALL = {
    "total_steps": 100, "learning_starts": 100, "steps_per_update": 1e9, "eval.episodes": 1,
    "optim.batch_size": 8, "model.hidden_size": 32, "model.feed_forward": 32, "model.layers": 1,
    "model.heads": 4, "env.num_envs": 4,
}  # fmt: skip
PPO = {**training.PPO, "ppo.rollout": 40, "ppo.minibatch": 12}


@pytest.fixture(autouse=True)
def quickly(device: Any) -> Iterator[None]:
    with quick_kernels():
        yield


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "QWEN", workloads.Model("Qwen", 4, 2, 8, 32, 600, 2))
    monkeypatch.setattr(workloads, "T5", workloads.Model("T5", 4, 4, 64, 32, 600, 1))
    monkeypatch.setattr(models, "PROMPT", 12)
    filled = training._filled

    def smaller(changes: Any, model: Any = None) -> Any:
        sizes = {k: v for k, v in changes.items() if not k.startswith(("env.num", "model.", "opt"))}
        names = ("model.id", "model.dtype", "optim.micro_batch")
        kept = {k: changes[k] for k in names if k in changes}
        both = {**sizes, **kept, **SMALL}
        if changes.get("critic.kind") == "reencode":
            both["optim.batch_size"] = 2
        if "ppo.rollout" in changes:
            both |= PPO | {"env.num_envs": 4, "total_steps": 148}  # most of a rollout
        return filled(both, model)

    monkeypatch.setattr(training, "_filled", smaller)
    batch = graphs.random_batch

    def fewer(policy: Any, seed: int, prompts: int, length: int, *vocab: int) -> Any:
        return batch(policy, seed, max(1, prompts // 4), max(5, length // 8), *vocab)

    monkeypatch.setattr(graphs, "random_batch", fewer)


class Report:
    """Takes what checks report, and calls what is to be timed, once."""

    def __init__(self) -> None:
        self.cases: list[str] = []

    def check(self, suite: str, case: str, errors: dict[str, float], tolerance: float) -> None:
        self.cases.append(case)
        assert max(errors.values()) <= tolerance, (case, errors)

    def record(
        self, suite: str, case: str, methods: dict[str, Any], floor_s: float | None,
        slow: bool = False,
    ) -> None:  # fmt: skip
        for method in methods.values():
            call: Callable[[], Any] = method.build() if hasattr(method, "build") else method
            call()
        self.cases.append(case)


def test_models_are_checked():
    report = Report()
    model_checks.check_qwen(report.check, torch.float32, 1e-4)
    model_checks.check_qwen(report.check, torch.float32, 1e-4, shared=40)
    model_checks.check_t5(report.check, torch.float32, 1e-4)
    assert len(report.cases) == 3


def test_graphs_are_checked():
    report = Report()
    policy = graphs.make_policy(model_checks.small_qwen(), torch.float32, critic=True)
    graphs.check_policy(policy, "Qwen2", report.check)
    assert len(report.cases) == 3


@pytest.mark.parametrize("name", training.UPDATES)
def test_updates_are_checked(name: str):
    report = Report()
    training.check_updates(report.check, name, updates=20 if "PPO" in name else 8)
    assert report.cases


@pytest.mark.parametrize("name", training.TRAINING)
def test_training_is_timed(name: str):
    report = Report()
    training.time_training(report.record, name)
    assert len(report.cases) == 2


def test_acting_is_timed():
    report = Report()
    graphs.time_graphs(report.record)
    assert len(report.cases) == 4


@pytest.mark.parametrize("shared", [0, 5])
def test_passes_are_timed(shared: int):
    report, ceilings = Report(), workloads.Ceilings()
    models.time_qwen(3, ceilings, report.record, shared=shared)
    if not shared:
        models.time_t5(3, ceilings, report.record)
    assert len(report.cases) == (2 if shared else 4)


def test_kernels_are_checked_and_timed():
    report, ceilings = Report(), workloads.Ceilings()
    for dtype in (torch.float32, torch.bfloat16):
        report.check(*checks.check_norm((9, 48, 0), dtype))
        report.check(*checks.check_gate((9, 48, 64), dtype))
        report.check(*checks.check_rotary((4, 2, 16), dtype))
    kernels.time_head(workloads.QWEN, 2, ceilings, report.record)
    kernels.time_policy(2, ceilings, report.record)
    assert len(report.cases) == 10

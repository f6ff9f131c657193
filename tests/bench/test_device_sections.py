"""The GPU benchmark's sections: one that breaks the device costs no other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

import device  # noqa: E402


class Device:
    """Until it is broken it can be waited for; a new process has a new one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken = False
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def synchronize(self) -> None:
        if self.broken:
            raise RuntimeError("device-side assert triggered")


def test_a_broken_device_costs_one_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[str] = []

    def work(name: str) -> None:
        ran.append(name)
        if name == "died":
            raise SystemExit(-11)
        if name == "failed":
            raise ValueError("wrong shape")
        gpu.broken = name == "broken"

    def process(command: list[str], **_: Any) -> Any:
        """What `run_sections` does, with sections of its own."""
        nonlocal gpu
        gpu = Device(monkeypatch)
        session = device.Session(tmp_path, float(command[-1]))
        try:
            for name in ("first", "failed", "broken", "next", "died", "last"):
                session.section(name, lambda name=name: work(name))
        except SystemExit as end:
            return SimpleNamespace(returncode=end.code)
        return SimpleNamespace(returncode=0)

    gpu = Device(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["device.py", "--out", str(tmp_path)])
    monkeypatch.setattr(subprocess, "run", process)
    (tmp_path / "results.json").write_text('{"sections": {"first": 1.0}}')  # of another time
    assert device.main() == 1
    assert ran == ["first", "failed", "broken", "next", "died", "last"]
    result = json.loads((tmp_path / "results.json").read_text())
    assert list(result["sections"]) == ran
    assert [f["where"] for f in result["failures"]] == ["failed", "broken", "died"]
    assert "--deadline" not in result["command"]


def test_what_is_important_comes_first(tmp_path: Path):
    from device_workloads import Ceilings

    session = device.Session(tmp_path, time.time())
    names = list(device.all_sections(session, Ceilings(), 1))
    order = ["ceilings", "check", "check updates, tiny-llama", "check updates, tiny-llama, PPO",
             "training, tiny-llama, float32", "model Qwen 256", "act", "sweep 256"]  # fmt: skip
    assert [name for name in names if name in order] == order


def test_updates_of_ppo_are_timed_from_one_rollout(monkeypatch: pytest.MonkeyPatch):
    import device_training as training

    monkeypatch.setattr(training.workloads, "DEVICE", "cpu")
    algorithm = training._filled(training.PPO).algorithm
    update = training._ppo_updates(algorithm)
    before = algorithm.updates
    update()
    assert algorithm.updates == before + 1

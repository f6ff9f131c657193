"""What is remembered of texts and candidate sets saves time, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sacglam import Trainer
from sacglam.models import policy as policy_module
from sacglam.text import codec as codec_module
from sacglam.training import texts as texts_module

TIMES = ("wall_s", "cpu_s", "env_steps_per_s", "updates_per_s")


@pytest.mark.parametrize(
    "options",
    [
        {"env.id": "playground/zoo", "prompt.list_actions": True},
        {"env.id": "playground/zoo", "model.id": "tiny-t5", "critic.kind": "reencode"},
        {"replay.capacity_bytes": 60_000},
        {"algo": "ppo", "ppo.rollout": 30},
    ],
    ids=["list", "reencode", "bytes", "ppo"],
)
def test_a_run_that_remembers_nearly_nothing_is_the_same(
    quick_config: Any, monkeypatch: Any, options: dict[str, Any]
):
    def run(name: str) -> list[dict[str, Any]]:
        folder = Path(Trainer(quick_config(name, **options)).train().out)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]

    want = run("remembers")
    for module in (codec_module, texts_module):
        monkeypatch.setattr(module, "REMEMBERED_TEXTS", 2)
    for module in (policy_module, texts_module):
        monkeypatch.setattr(module, "REMEMBERED_SETS", 2)
    assert run("forgets") == want

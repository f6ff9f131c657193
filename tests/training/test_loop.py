"""When a run logs and saves, and what its lines hold."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sacglam import Callback, Trainer
from sacglam.errors import ConfigError
from sacglam.training import trainer as trainer_module
from sacglam.training.checkpoint import list_checkpoints

BRIEF = {"total_steps": 120, "eval.episodes": 2, "optim.batch_size": 2}
LEARNED = ("critic_loss", "actor_loss", "grad_norm", "grad_clipped", "entropy", "lr")
SAC = ("q_mean", "target_mean", "td_error", "alpha", "relabeled")
PPO = ("v_mean", "return_mean", "kl", "ratio_clipped")


class _Saved(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_checkpoint(self, folder: Path) -> None:
        self.steps.append(int(folder.name.removeprefix("step-")))


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("algo", "own", "others"), [("sac", SAC, PPO), ("ppo", PPO, SAC)])
def test_lines_hold_what_was_learned_since_the_line_before(
    quick_config: Any, algo: str, own: tuple[str, ...], others: tuple[str, ...]
):
    more = {"log_interval": 40, "learning_starts": 40, "ppo.rollout": 15}
    out = Trainer(quick_config(**BRIEF, **more, algo=algo)).train().out
    lines = _lines(out)
    assert [line["env_steps"] for line in lines] == [40, 80, 120]
    assert not {"critic_loss", *own} & set(lines[0])
    assert lines[0]["updates"] == 0 < lines[-1]["updates"]
    assert {*LEARNED, *own} <= set(lines[-1])
    assert not set(others) & set(lines[-1])


def test_intervals_of_one_step_are_each_step_of_all_environments(quick_config: Any):
    saved = _Saved()
    more = {"log_interval": 1, "checkpoint_interval": 1, "learning_starts": 1000}
    config = quick_config(**{**BRIEF, **more, "total_steps": 16})
    out = Trainer(config, callbacks=[saved]).train().out
    assert [line["env_steps"] for line in _lines(out)] == [4, 8, 12, 16]
    assert saved.steps == [4, 8, 12, 16]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(quick_config: Any, keep: int):
    more = {"keep_checkpoints": keep, "checkpoint_interval": 20, "learning_starts": 1000}
    out = Trainer(quick_config(**BRIEF, **more)).train().out
    kept = [int(path.name.removeprefix("step-")) for path in list_checkpoints(out)]
    assert kept == [80, 100, 120][-keep:]


def test_a_checkpoint_is_written_after_so_many_minutes(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    now = [10.0**6]

    class Minute(Callback):
        """Each step of all environments takes one."""

        def on_progress(self, env_steps: int, updates: int) -> None:
            now[0] += 60.0

    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    saved = _Saved()
    more = {"checkpoint_minutes": 9.5, "checkpoint_interval": 10_000, "learning_starts": 1000}
    trainer = Trainer(quick_config(**BRIEF, **more), callbacks=[Minute(), saved])
    now[0] += 3600.0  # what goes before is no training
    trainer.train()
    assert saved.steps == [40, 80, 120]


def test_a_finished_run_may_be_resumed_up_to_where_it_is(quick_config: Any):
    out = Trainer(quick_config(**BRIEF, learning_starts=1000)).train().out
    assert Trainer.resume(out, total_steps=120).train().env_steps == 120
    assert len(_lines(out)) == 1
    with pytest.raises(ConfigError, match="has made 120 steps already"):
        Trainer.resume(out, total_steps=119)

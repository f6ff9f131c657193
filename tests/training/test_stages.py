"""A run in stages, steered from Python: pauses, evaluations between, checkpoints by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sacglam import Callback, Trainer, load_policy
from sacglam.errors import ConfigError, RunFolderError


def learned(out: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the machine."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]


class Told(Callback):
    """Calls a function at every line of metrics."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def on_log(self, metrics: Any) -> None:
        self._function()


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_a_run_in_stages_is_the_run_without(quick_config: Any, algo: str):
    options = {"algo": algo, "ppo.rollout": 20}
    whole = Trainer(quick_config("whole", **options)).train()
    trainer = Trainer(quick_config("stages", **options))
    for until, reached in ((0, 0), (130, 132), (130, 132), (200, 200)):
        result = trainer.train(until=until)
        assert (result.env_steps, result.interrupted, result.evaluation) == (reached, False, None)
        assert trainer.evaluate(4)["episodes"] == 4
    resumed = Trainer.resume(result.out)
    assert resumed.train(until=300).evaluation is None
    result = resumed.train(until=10_000)  # the run's end, if that is nearer
    assert (result.env_steps, result.interrupted) == (400, False)
    assert learned(result.out) == learned(whole.out)
    assert result.evaluation is not None
    assert whole.evaluation is not None
    assert result.evaluation["success"] == whole.evaluation["success"]


def test_a_stage_can_be_interrupted(quick_config: Any):
    trainer = Trainer(quick_config(), callbacks=[Told(lambda: trainer.stop())])
    result = trainer.train(until=300)
    assert (result.env_steps, result.interrupted, result.evaluation) == (100, True, None)


def test_a_second_call_meanwhile_is_refused_and_changes_nothing(quick_config: Any):
    def again() -> None:
        with pytest.raises(RunFolderError, match="another trainer of this one"):
            trainer.train()

    trainer = Trainer(quick_config(), callbacks=[Told(again)])
    assert trainer.train(until=150).env_steps == 152


def test_a_tiny_model_shows_no_progress_bars(
    quick_config: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    from transformers.utils import logging

    logging.enable_progress_bar()
    trainer = Trainer(quick_config())
    trainer.policy.save(tmp_path / "policy")
    load_policy(tmp_path / "policy")
    assert "%|" not in capsys.readouterr().err
    assert repr(trainer).endswith("run', 0 of 400 environment steps, 0 updates)")


@pytest.mark.parametrize("until", [-1, 1.5, "100"])
def test_a_stage_ends_at_a_number_of_steps(quick_config: Any, until: Any):
    with pytest.raises(ConfigError, match="until is"):
        Trainer(quick_config()).train(until=until)


@pytest.mark.parametrize("episodes", [0, -3, "5", 2.5])
def test_an_evaluation_has_at_least_one_episode(quick_config: Any, episodes: Any):
    with pytest.raises(ConfigError, match="episodes is"):
        Trainer(quick_config()).evaluate(episodes)


def test_an_evaluation_can_follow_a_stop(quick_config: Any):
    found = []

    def judge() -> None:
        trainer.stop()
        found.append(trainer.evaluate(4))

    trainer = Trainer(quick_config(), callbacks=[Told(judge)])
    assert trainer.train().interrupted
    trainer.stop()
    found.append(trainer.evaluate(4))
    assert [f["episodes"] for f in found] == [4, 4]


def test_an_evaluation_by_a_callback_takes_no_time_of_training(quick_config: Any):
    passed = []

    def judge() -> None:
        before = trainer.clock.cpu_s
        trainer.evaluate(4)
        passed.append(trainer.clock.cpu_s - before)

    trainer = Trainer(quick_config(total_steps=100), callbacks=[Told(judge)])
    trainer.train()
    assert 0 <= passed[0] < 0.005


def test_a_run_that_was_saved_before_its_first_step_goes_on(quick_config: Any):
    whole = Trainer(quick_config("whole")).train()
    trainer = Trainer(quick_config("here"))
    trainer.save()
    there = Trainer(quick_config("there"))
    there.save()
    late = Trainer(quick_config("late"))
    Trainer(quick_config("late")).save()
    with pytest.raises(RunFolderError, match="already holds a run"):
        late.save()
    for result in (trainer.train(), Trainer.resume(there.out).train()):
        assert learned(result.out) == learned(whole.out)
        assert json.loads((result.out / "eval.json").read_text())["untrained"]["episodes"] == 12

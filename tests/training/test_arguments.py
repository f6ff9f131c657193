"""What is given to a trainer in the place of what it takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sacglam import Callback, TrainConfig, Trainer
from sacglam.errors import ConfigError
from sacglam.training import runner


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        (Callback(), r"callbacks is a Callback; give a list"),
        ([print], r"<built-in function print> has no on_episode, .*derive its class"),
        ([SimpleNamespace(on_log=print)], r"has no on_episode, on_progress"),
    ],
    ids=["one", "a function", "half of one"],
)
def test_callbacks_that_are_none(quick_config: Any, callbacks: Any, words: str):
    config = quick_config()
    with pytest.raises(ConfigError, match=words):
        Trainer(config, callbacks=callbacks)
    assert not Path(config.out).exists()


def test_a_configuration_that_is_none():
    with pytest.raises(ConfigError, match="config is a dict; give a TrainConfig"):
        Trainer({"total_steps": 100})  # type: ignore[arg-type]


def test_an_evaluation_of_nobody(quick_config: Any):
    with pytest.raises(ConfigError, match="'rand'; choose one of policy, random, expert"):
        Trainer(quick_config()).evaluate(4, "rand")


def test_whole_numbers_and_paths_as_people_write_them(tmp_path: Path):
    for steps in (2e4, "2e4", 20_000):
        config = TrainConfig().with_overrides({"total_steps": steps, "out": tmp_path})
        assert (config.total_steps, config.out) == (20_000, str(tmp_path))
        assert isinstance(config.total_steps, int)
    for steps in (2.5, "2.5e0", "many", True):
        with pytest.raises(ConfigError, match="total_steps is"):
            TrainConfig().with_overrides({"total_steps": steps})


def test_the_learning_rate_is_logged(quick_config: Any):
    rates: list[float] = []

    class Log(Callback):
        def on_log(self, metrics: Any) -> None:
            rates.append(metrics.get("lr"))

    options = {"optim.lr": 1e-3, "optim.final_lr": 0.1, "optim.warmup_updates": 0}
    Trainer(quick_config(**options), callbacks=[Log()]).train()
    assert rates[0] is None  # no update yet
    assert rates[1] > rates[2] > rates[3]
    assert 0.1e-3 < rates[3] < rates[1] < 1e-3


def test_the_prompt_is_that_of_training(quick_config: Any):
    options = {"prompt.history": 1, "prompt.list_actions": True, "prompt.instruction": "Do it ."}
    policy = Trainer(quick_config(**options)).policy
    past = [("You see: red chair", "Grasp"), ("You see: blue chair", "Go to red chair")]
    assert policy.prompt("Grasp water", "You see: water", past, ["Grasp", "Go to water"]) == (
        "Do it .\nGoal: Grasp water\nYou see: blue chair\nAction: Go to red chair\nYou see: water"
        "\nPossible actions: Grasp, Go to water\nAction:"
    )
    segments = policy.codec.prompt("Grasp water", "You see: water", past, ["Grasp", "Go to water"])
    text = policy.prompt("Grasp water", "You see: water", past, ["Grasp", "Go to water"])
    assert policy.codec.text(text).tolist() == segments.tolist()


@pytest.mark.parametrize(
    ("training", "found", "greedy", "hints"),
    [(0.9, 0.5, True, True), (0.9, 0.5, False, False), (0.6, 0.5, True, False)],
)
def test_an_agent_that_did_better_while_it_sampled_is_pointed_out(
    tmp_path: Path, training: float, found: float, greedy: bool, hints: bool
):
    (tmp_path / "metrics.jsonl").write_text(f'{{"success_mean": {training}}}\n')
    evaluation = {"success_mean": found, "greedy": greedy}
    hint = runner._greedy_hint(SimpleNamespace(out=tmp_path, evaluation=evaluation))  # type: ignore[arg-type]
    assert (f"sacglam eval {tmp_path} --sample" in hint) is hints


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_a_run_that_is_good_enough_is_evaluated(quick_config: Any, algo: str):
    class Enough(Callback):
        def on_progress(self, env_steps: int, updates: int) -> None:
            if env_steps == 200:
                trainer.stop(finish=True)

    options = {"algo": algo, "ppo.rollout": 10, "ppo.minibatch": 16}
    trainer = Trainer(quick_config(**options), callbacks=[Enough()])
    result = trainer.train()
    assert not result.interrupted
    assert result.env_steps == 200
    assert result.evaluation is not None
    assert result.evaluation["episodes"] == 12
    longer = Trainer.resume(result.out).train()
    assert longer.env_steps == 400
    whole = Trainer(quick_config("whole", **options)).train()
    assert longer.evaluation["success"] == whole.evaluation["success"]

"""Environments that are given as objects, close, never end, or say something odd."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sacglam import Callback, TrainConfig, Trainer, check_env, make_env, register_env
from sacglam.envs import vector
from sacglam.envs.playground import PRESETS, PlaygroundText
from sacglam.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentProtocolError,
    UnknownEnvironmentError,
)
from sacglam.training import checkpoint, setup
from sacglam.training.check import check_training
from sacglam.training.checkpoint import latest_checkpoint
from sacglam.training.playing import play_episodes
from sacglam.training.reevaluation import evaluate_run

SMALL = PRESETS["playground/small"]
SHORT = {"time_factor": 1.0, "time_slack": 0}  # as many steps as the expert takes


class Small(PlaygroundText):
    made = closed = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**SMALL, **options})
        type(self).made += 1

    def close(self) -> None:
        type(self).closed += 1


class Plain:
    """Its objects are alike."""

    def __init__(self, size: int = 2) -> None:
        self.size = size

    def reset(self, **_: Any) -> Any: ...

    def step(self, action: str) -> Any: ...


def test_an_object_has_an_id_only_if_the_id_makes_the_same():
    here = __name__
    assert setup.name_of(Plain) == setup.name_of(Plain()) == f"{here}:Plain"
    for other in (Plain(3), lambda: Plain(), Small()):
        name = setup.name_of(other)
        assert name.startswith("given as an object: ")
        with pytest.raises(UnknownEnvironmentError, match="Give it again"):
            make_env(name)


def test_a_run_with_an_object_is_evaluated_with_the_object_alone(quick_config: Any):
    env = Small(**SHORT)
    out = Trainer(quick_config(total_steps=60), env=env).train().out
    with pytest.raises(UnknownEnvironmentError, match="Give it again"):
        evaluate_run(out)
    with pytest.raises(UnknownEnvironmentError, match="Give it again"):
        Trainer.resume(out)
    assert evaluate_run(out, env=env, episodes=4)["length_mean"] <= 4


def test_an_object_that_its_name_does_not_make_is_not_mixed_up_with_it(quick_config: Any):
    """Evaluated by name, it would silently be another environment."""
    register_env("unusual/small", Small, overwrite=True)
    name = {"env.id": "unusual/small", "total_steps": 60}
    with pytest.warns(RuntimeWarning, match="makes another environment than the one that is given"):
        out = Trainer(quick_config(**name, **{"env.num_envs": 2}), env=Small(**SHORT)).train().out
    with pytest.raises(UnknownEnvironmentError, match="Give it again"):
        evaluate_run(out)
    assert evaluate_run(out, env=Small(**SHORT), episodes=4)["length_mean"] <= 4


def test_an_object_that_its_name_makes_is_found_by_it(quick_config: Any, recwarn: Any):
    register_env("unusual/small", Small, overwrite=True)
    name = {"env.id": "unusual/small", "total_steps": 60}
    for env in (Small(), Small, lambda: Small()):
        config = quick_config(f"{id(env)}", **name)
        assert Trainer(config, env=env).config.env.id == "unusual/small"
    assert not [w for w in recwarn if "another environment" in str(w.message)]


def test_arguments_go_to_a_class_and_not_to_an_object(quick_config: Any):
    config = quick_config(total_steps=60, **{"env.kwargs": SHORT})
    result = Trainer(config, env=Small).train()
    assert result.evaluation is not None
    assert result.evaluation["length_mean"] <= 4
    with pytest.raises(ConfigError, match=r"env\.kwargs"):
        Trainer(quick_config("object", **{"env.kwargs": SHORT}), env=Small())


def test_every_environment_that_is_made_is_closed(quick_config: Any):
    Small.made = Small.closed = 0
    with Trainer(quick_config(total_steps=20, **{"eval.episodes": 1}), env=Small) as trainer:
        out = trainer.train().out
    assert Small.made == Small.closed > 8
    evaluate_run(out, env=Small, episodes=1)
    assert Small.made == Small.closed
    Trainer(quick_config("unclosed", total_steps=20), env=Small)  # at its end
    assert Small.made == Small.closed


def test_an_evaluation_that_never_ends_can_be_stopped(quick_config: Any):
    steps = 0

    class Endless:
        vocabulary = ("wait for the end",)
        info: ClassVar = {"goal": "the end", "possible_actions": ["wait"], "achieved_goals": []}

        def reset(self, **_: Any) -> Any:
            return "wait", self.info

        def step(self, action: str) -> Any:
            nonlocal steps
            steps += 1
            if steps == 50:
                signal.raise_signal(signal.SIGINT)
            return "wait", 0.0, False, False, self.info

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = Trainer(quick_config(), env=Endless).train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.interrupted, result.env_steps) == (True, 0)
    assert steps < 100


class Endless(Small):
    """Play goes on for ever, or for so many steps."""

    def __init__(self, longest: float = math.inf, pause_s: float = 0.0) -> None:
        super().__init__()
        self.longest, self.pause_s, self.steps = longest, pause_s, 0
        self.begun = self.taken = 0

    def reset(self, **options: Any) -> Any:
        self.steps = 0
        self.begun += 1
        return super().reset(**options)

    def step(self, action: str) -> Any:
        time.sleep(self.pause_s)
        self.steps += 1
        self.taken += 1
        observation, _, terminated, truncated, info = super().step(action)
        if terminated or truncated:  # begins again, unnoticed
            goal = info["goal"]
            observation, info = super().reset(options={"goal": goal})
        return observation, 0.0, False, self.steps >= self.longest, info


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_max_steps_ends_what_would_never_end(quick_config: Any, algo: str, capsys: Any):
    config = quick_config(**{"env.max_steps": 7, "algo": algo, "ppo.rollout": 20})
    result = Trainer(config, env=Endless()).train()
    assert result.updates > 0
    assert result.evaluation is not None
    for found in (result.evaluation, evaluate_run(result.out, env=Endless(), episodes=4)):
        assert found["length_mean"] == found["baseline_random"]["length_mean"] == 7
    metrics = (result.out / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["episodes"] == 4 * (100 // 7)
    play_episodes(result.out, env=Endless())
    assert "time limit" in capsys.readouterr().out


def test_max_steps_is_the_same_in_worker_processes(quick_config: Any):
    found = []
    for processes in (0, 2):
        options = {"env.max_steps": 3, "env.processes": processes, "total_steps": 200}
        result = Trainer(quick_config(f"in-{processes}", **options)).train()
        assert result.evaluation is not None
        found.append((result.evaluation["success"], result.evaluation["length_mean"]))
        assert result.evaluation["baseline_random"]["length_mean"] <= 3
    assert found[0] == found[1]


def test_max_steps_is_heeded_before_a_run(quick_config: Any):
    with pytest.raises(EnvironmentProtocolError, match=r"rule 'ends'.*env\.max_steps"):
        check_training(quick_config(), env=Endless())
    assert check_training(quick_config(**{"env.max_steps": 7}), env=Endless()).updates > 0


@pytest.mark.parametrize("value", [0, -1])
def test_max_steps_is_at_least_one(value: int):
    with pytest.raises(ConfigError, match=r"env\.max_steps is .* at least 1"):
        TrainConfig().with_overrides({"env.max_steps": value})


def test_long_episodes_of_evaluations_and_of_training_are_warned_of(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vector, "LONG_EPISODE", 20)
    options = {"eval.episodes": 4, "total_steps": 120}
    with pytest.warns(
        RuntimeWarning, match="has not ended after 20 steps.*--env.max-steps"
    ) as said:
        Trainer(quick_config(**options), env=Endless(25)).train()
    # Environments to train and to evaluate say it apart.
    assert len([w for w in said if "has not ended" in str(w.message)]) == 2


def test_words_are_not_collected_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "COLLECTING_S", 0.3)
    env = Endless(pause_s=0.01)
    env.vocabulary = None  # type: ignore[assignment]
    begin = time.monotonic()
    with pytest.warns(RuntimeWarning, match="is slow.* from 5 episodes.*`vocabulary`"):
        texts = setup.vocabulary(env)
    assert time.monotonic() - begin < 10
    assert env.begun == 5
    assert len(texts) > 10


@pytest.mark.parametrize(("limit", "longest"), [(7, 7), (None, 2000)])
def test_episodes_played_for_words_end(limit: int | None, longest: int):
    class Waiting:
        steps = most = 0

        def info(self) -> Any:
            return {"goal": "wait", "possible_actions": ["wait"], "achieved_goals": []}

        def reset(self, **_: Any) -> Any:
            self.steps = 0
            return "wait", self.info()

        def step(self, action: str) -> Any:
            self.steps += 1
            self.most = max(self.most, self.steps)
            return "wait", 0.0, False, False, self.info()

    env = Waiting()
    with pytest.warns(RuntimeWarning, match="no `vocabulary`"):
        setup.vocabulary(env, limit)
    assert env.most == longest


def test_a_family_comes_from_the_method_where_info_has_none(quick_config: Any):
    class Quiet(Small):
        def reset(self, **options: Any) -> Any:
            observation, info = super().reset(**options)
            return observation, {k: v for k, v in info.items() if k != "goal_family"}

    result = Trainer(quick_config(total_steps=60), env=Quiet).train()
    assert result.evaluation is not None
    assert set(result.evaluation["success"]) == {"Grasp", "Grow plant"}


@pytest.mark.parametrize(
    ("name", "value"), [("instruction", 3), ("history", []), ("history", -1), ("history", True)]
)
def test_attributes_of_another_meaning_are_refused(quick_config: Any, name: str, value: Any):
    env = Small()
    setattr(env, name, value)
    with pytest.raises(ConfigError, match=f"attribute `{name}`"):
        setup.resolve(TrainConfig(), env)


def test_no_instruction_is_none():
    env = Small()
    env.instruction = None  # type: ignore[assignment]  # as users do
    assert setup.resolve(TrainConfig(), env).prompt.instruction == ""


def test_a_family_of_none_is_no_family(quick_config: Any):
    class Some(Small):
        def reset(self, **options: Any) -> Any:
            observation, info = super().reset(**options)
            if info["goal"].startswith("Grow"):
                info = {**info, "goal_family": None}
            return observation, info

    result = Trainer(quick_config(total_steps=60), env=Some).train()
    assert result.evaluation is not None
    assert set(result.evaluation["success"]) == {"all", "Grasp"}


def test_a_goal_that_is_paid_for_and_not_listed_is_warned_of(quick_config: Any):
    class Silent(Small):
        def step(self, action: str) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated:
                info = {**info, "achieved_goals": []}
            return observation, reward, terminated, truncated, info

    with pytest.warns(RuntimeWarning, match="not among the step's achieved_goals"):
        Trainer(quick_config(), env=Silent).train()


def test_what_is_no_environment_is_named(quick_config: Any):
    with pytest.raises(EnvironmentProtocolError, match="must return an environment"):
        Trainer(quick_config(), env=lambda: None)
    with pytest.raises(ConfigError, match=r"env\.id"):
        Trainer(quick_config(), env="module:Name")
    for name in (":Name", "module:"):
        with pytest.raises(UnknownEnvironmentError, match="names no environment"):
            make_env(name)


class Broken(Small):
    """Says another thing after some steps; 0 is the reset."""

    def __init__(self, at: int, change: Callable[[Any], Any], *, words: bool) -> None:
        super().__init__()
        self.at, self.change, self.steps = at, change, 0
        if not words:
            self.vocabulary = None  # type: ignore[assignment]

    def reset(self, **options: Any) -> Any:
        self.steps = 0
        return self._said(super().reset(**options))

    def step(self, action: str) -> Any:
        self.steps += 1
        return self._said(super().step(action))

    def _said(self, result: Any) -> Any:
        return self.change(result) if self.steps == self.at else result


def informed(**values: Any) -> Callable[[Any], Any]:
    return lambda result: (*result[:-1], {**result[-1], **values})


def without(name: str) -> Callable[[Any], Any]:
    return lambda result: (*result[:-1], {k: v for k, v in result[-1].items() if k != name})


BREACHES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "no actions": ("possible-actions-empty", informed(possible_actions=[])),
    "no goal": ("info", without("goal")),
    "no observation": ("observation", lambda result: (None, *result[1:])),
    "a number among the actions": ("possible-actions", informed(possible_actions=["wait", 3])),
    "one text of actions": ("possible-actions", informed(possible_actions="wait")),
    "a blank action": ("possible-actions-blank", informed(possible_actions=["wait", " "])),
    "half of a pair": ("surrogates", informed(possible_actions=["wait \ud800"])),
}


@pytest.mark.parametrize("words", [False, True], ids=["collected", "listed"])
@pytest.mark.parametrize("at", [0, 1], ids=["reset", "step"])
@pytest.mark.parametrize("breach", [*BREACHES, "another shape"])
def test_what_breaks_the_protocol_is_named_before_training(
    quick_config: Any, breach: str, at: int, words: bool
):
    shape = f"result-of-{'step' if at else 'reset'}"
    rule, change = BREACHES.get(breach, (shape, lambda result: result[:-1] if at else result[0]))
    env = Broken(at, change, words=words)
    named = f"rule '{rule}' at .*To do: "
    with pytest.raises(EnvironmentProtocolError, match=named) as checked:
        check_env(env)
    if words and at:  # nothing is stepped before
        trainer = Trainer(quick_config(), env=env)
        with pytest.raises(EnvironmentProtocolError, match=named):
            trainer.train()
        return
    with pytest.raises(EnvironmentProtocolError, match=named) as caught:
        Trainer(quick_config(), env=env)
    assert str(caught.value) == str(checked.value)


@pytest.mark.parametrize("texts", ["press red", ["press", 3], 7, ["press \ud800"]], ids=repr)
def test_a_vocabulary_of_something_else_is_named(quick_config: Any, texts: Any):
    env = Small()
    env.vocabulary = texts
    rule = "surrogates" if texts == ["press \ud800"] else "vocabulary"
    with pytest.raises(EnvironmentProtocolError, match=f"rule '{rule}'"):
        Trainer(quick_config(), env=env)


def test_an_expert_s_action_must_be_possible(quick_config: Any):
    class Lost(Small):
        def expert_action(self) -> str:
            return "despair"

    with pytest.raises(EnvironmentProtocolError, match="'despair', which is not among"):
        Trainer(quick_config(), env=Lost).train()


def test_a_callback_can_stop_the_run(quick_config: Any):
    class Enough(Callback):
        def on_log(self, metrics: Any) -> None:
            trainer.stop()

    trainer = Trainer(quick_config(), callbacks=[Enough()])
    stopped = trainer.train()
    assert (stopped.interrupted, stopped.env_steps) == (True, 100)
    assert trainer.train().env_steps == 200
    metrics = json.loads((stopped.out / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < metrics["relabeled"] < 1


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"episodes": -3}, {"seed": -1}])
def test_evaluations_out_of_range_are_refused(quick_config: Any, wrong: dict[str, int]):
    out = Trainer(quick_config(total_steps=20, **{"eval.episodes": 1})).train().out
    before = (out / "eval.json").read_text()
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        evaluate_run(out, **wrong)
    assert (out / "eval.json").read_text() == before


def test_a_run_is_not_resumed_to_fewer_steps(quick_config: Any):
    out = Trainer(quick_config(total_steps=60)).train().out
    before = (out / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="has made 60 steps already"):
        Trainer.resume(out, total_steps=40)
    assert (out / "config.yaml").read_text() == before


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    trainer = Trainer(quick_config(total_steps=60))
    out = trainer.train().out
    before = latest_checkpoint(out)
    monkeypatch.setattr(checkpoint, "save_file", _no_space)
    with pytest.raises(CheckpointError, match="No space left"):
        Trainer.resume(out, total_steps=80).train()
    monkeypatch.undo()
    assert [p.name for p in before.parent.iterdir()] == [before.name]
    assert Trainer.resume(out, total_steps=80).train().env_steps == 80


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_damaged_checkpoint_names_the_one_before(quick_config: Any):
    out = Trainer(quick_config(total_steps=60, checkpoint_interval=40)).train().out
    newest = latest_checkpoint(out)
    for text in ("[]", "{", '{"format": 2}'):
        (newest / "state.json").write_text(text)
        with pytest.raises(CheckpointError, match=f"delete {newest} to go on from step-0000000000"):
            Trainer.resume(out)


def test_an_interrupted_save_leaves_the_old_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "config.yaml"
    TrainConfig().save(path)
    before = path.read_text()
    monkeypatch.setattr(Path, "replace", _no_space)
    with pytest.raises(OSError, match="No space left"):
        TrainConfig(total_steps=7).save(path)
    assert path.read_text() == before

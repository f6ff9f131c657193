"""Stopping and resuming gives the same run, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Callback, Trainer, load_policy
from sacglam.errors import CheckpointError, RunFolderError
from sacglam.training.checkpoint import latest_checkpoint

TIMES = ("wall_s", "cpu_s", "env_steps_per_s", "updates_per_s")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


class _InterruptAt(Callback):
    """Presses Ctrl-C while a given log line is written."""

    def __init__(self, env_steps: int) -> None:
        self._at = env_steps

    def on_log(self, metrics: Any) -> None:
        if metrics["env_steps"] == self._at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model.id": "tiny-t5", "sac.learn_alpha": True, "replay.her_balance": "events"},
        {"prompt.history": 2, "prompt.list_actions": True, "env.id": "playground/zoo"},
        {"algo": "ppo", "ppo.rollout": 20, "ppo.minibatch": 16, "ppo.target_kl": 0.001},
        {"algo": "ppo", "ppo.rollout": 16, "model.id": "tiny-t5", "prompt.history": 1},
        {"model.id": "tiny-t5", "critic.kind": "reencode", "eval.interval": 80, "eval.episodes": 4},
        {"replay.sampling": "prioritised", "replay.capacity": 100},
        {"replay.capacity_bytes": 40_000, "prompt.list_actions": True},
        {"sac.subgoals": 0.7, "env.id": "playground/zoo"},
        {"env.max_steps": 3, "prompt.history": 1},
        {"env.max_steps": 3, "env.processes": 2, "algo": "ppo", "ppo.rollout": 20},
        {"model.dtype": "bfloat16"},
        {"model.dtype": "bfloat16", "algo": "ppo", "ppo.rollout": 20, "ppo.minibatch": 16},
    ],
    ids=[
        "llama",
        "t5-learned-alpha",
        "history",
        "ppo",
        "ppo-t5",
        "reencode",
        "prioritised",
        "bytes",
        "subgoals",
        "max-steps",
        "max-steps-ppo",
        "bfloat16",
        "ppo-bfloat16",
    ],
)
def test_resuming_after_ctrl_c_is_exact(quick_config: Any, options: dict[str, Any]):
    options = {"total_steps": 240, "learning_starts": 60, "log_interval": 60, **options}
    whole = Trainer(quick_config("whole", **options)).train()
    stopped = Trainer(quick_config("parts", **options), callbacks=[_InterruptAt(120)]).train()
    assert stopped.interrupted
    assert stopped.env_steps == 120
    resumed = Trainer.resume(stopped.out).train()
    assert not resumed.interrupted
    assert _metrics(whole.out) == _metrics(resumed.out)
    assert [m["env_steps"] for m in _metrics(whole.out) if m["env_steps"] % 60 == 0] == [
        *(60, 120, 180, 240)
    ]
    assert whole.evaluation is not None
    assert resumed.evaluation is not None
    assert whole.evaluation["success"] == resumed.evaluation["success"]
    for (name, a), (_, b) in zip(
        whole.policy.trainable_parameters().items(),
        resumed.policy.trainable_parameters().items(),
        strict=True,
    ):
        assert torch.equal(a, b), name


class _InterruptAfter(Callback):
    """Presses Ctrl-C when a given number of updates has been made."""

    def __init__(self, updates: int) -> None:
        self._updates = updates

    def on_progress(self, env_steps: int, updates: int) -> None:
        if updates == self._updates:
            self._updates = -1
            signal.raise_signal(signal.SIGINT)


OFF_POLICY = {"steps_per_update": 1.0, "replay.sampling": "prioritised", "sac.learn_alpha": True}
# 50 steps of 4 environments, in 7 minibatches, 3 times
ON_POLICY = {"algo": "ppo", "ppo.rollout": 50, "ppo.minibatch": 32, "ppo.epochs": 3}
DIVERGING = {**ON_POLICY, "ppo.target_kl": 1e-9}  # the first epoch is the last


@pytest.mark.parametrize(
    ("options", "env_steps", "updates"),
    [
        (OFF_POLICY, 200, (97, 99)),  # 100 are due: the last four after the same step
        (OFF_POLICY, 400, (297, 299)),
        (ON_POLICY, 200, (1, 7, 16, 21)),
        (ON_POLICY, 400, (28, 41)),
        (DIVERGING, 200, (3, 7)),
    ],
    ids=["sac", "sac-at-the-end", "ppo", "ppo-at-the-end", "ppo-diverging"],
)
def test_resuming_between_the_updates_after_a_step_is_exact(
    quick_config: Any, options: dict[str, Any], env_steps: int, updates: tuple[int, ...]
):
    """Stops within the updates after one step, where a line, an evaluation and a checkpoint are
    due."""
    options = {**options, "eval.interval": 200, "checkpoint_interval": 200}
    whole = Trainer(quick_config("whole", **options)).train()
    config = quick_config("parts", **options)
    stopped = Trainer(config, callbacks=[_InterruptAfter(updates[0])]).train()
    for made, following in zip(updates, (*updates[1:], 0), strict=True):
        assert stopped.interrupted
        assert (stopped.env_steps, stopped.updates) == (env_steps, made)
        state = json.loads((latest_checkpoint(stopped.out) / "state.json").read_text())
        assert (state["env_steps"], state["updates"]) == (env_steps, made)
        stopped = Trainer.resume(stopped.out, callbacks=[_InterruptAfter(following)]).train()
    assert not stopped.interrupted
    assert _metrics(whole.out) == _metrics(stopped.out)
    for (name, a), (_, b) in zip(
        whole.policy.trainable_parameters().items(),
        stopped.policy.trainable_parameters().items(),
        strict=True,
    ):
        assert torch.equal(a, b), name


def test_a_killed_run_resumes_from_its_last_checkpoint(quick_config: Any):
    """Log lines beyond the checkpoint are set aside and written again, the same."""
    config = quick_config("killed", checkpoint_interval=200)
    Trainer(config).train()
    folder = Path(config.out)
    complete = _metrics(folder)
    newest = latest_checkpoint(folder)
    for path in newest.rglob("*"):
        if path.is_file():
            path.unlink()  # as if killed before the last save
    assert latest_checkpoint(folder).name == "step-000000000200"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 9')
    Trainer.resume(folder).train()
    assert _metrics(folder) == complete
    assert (folder / "metrics.discarded.jsonl").read_text().count("\n") == 3


def test_a_checkpoint_is_not_lost_where_its_replacement_was_killed(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    first = Trainer(quick_config("replaced", keep_checkpoints=1)).train()
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise SystemExit
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(SystemExit):
        Trainer.resume(first.out).save()
    monkeypatch.undo()
    assert not list((first.out / "checkpoints").glob("step-*"))
    longer = Trainer.resume(first.out, total_steps=440).train()
    assert longer.env_steps == 440
    assert [p.name for p in (first.out / "checkpoints").iterdir()] == ["step-000000000440"]


def test_training_longer_than_planned(quick_config: Any):
    first = Trainer(quick_config("longer")).train()
    longer = Trainer.resume(first.out, total_steps=600).train()
    assert longer.env_steps == 600
    assert _metrics(first.out)[-1]["env_steps"] == 600


def test_a_used_folder_is_refused_and_kept(quick_config: Any):
    config = quick_config("used")
    Trainer(config).train()
    before = (Path(config.out) / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="already holds a run"):
        Trainer(config)
    assert (Path(config.out) / "metrics.jsonl").read_bytes() == before


def test_nothing_to_resume(tmp_path: Path):
    with pytest.raises(RunFolderError, match=r"no config\.yaml"):
        Trainer.resume(tmp_path / "nowhere")


@pytest.mark.parametrize("victim", ["state.json", "target.safetensors", "policy/heads.safetensors",
                                    "optimizer.safetensors", "replay.bin"])  # fmt: skip
def test_a_damaged_checkpoint_is_refused(quick_config: Any, victim: str):
    config = quick_config("damaged")
    Trainer(config).train()
    path = latest_checkpoint(config.out) / victim
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError):
        Trainer.resume(config.out)


def test_a_trained_policy_loads_and_scores_alike(quick_config: Any):
    result = Trainer(quick_config("policy")).train()
    loaded = load_policy(result.out)
    prompt, actions = "Goal: Grasp red table\nYou see: red table\nAction:", ["Grasp", "Release all"]
    mine, theirs = (p.score([prompt], [actions])[0] for p in (result.policy, loaded))
    assert mine.log_pi.tolist() == theirs.log_pi.tolist()
    assert mine.q.tolist() == theirs.q.tolist()
    assert loaded.act([prompt], [actions], greedy=True)[0] == actions[mine.log_pi.argmax()]


def test_a_users_environment_by_class_object_or_function(quick_config: Any):
    from sacglam.envs.playground import PRESETS, PlaygroundText

    class Mine(PlaygroundText):
        def __init__(self) -> None:
            super().__init__(**PRESETS["playground/small"])

    results = [
        Trainer(quick_config(f"env{k}", total_steps=200), env=env).train()
        for k, env in enumerate((Mine, Mine(), lambda: Mine()))
    ]
    assert all(_metrics(r.out) == _metrics(results[0].out) for r in results)
    config = (results[0].out / "config.yaml").read_text()
    assert "Mine" in config
    assert "playground/small" not in config


def test_evaluations_have_lines_of_their_own(quick_config: Any):
    options = {"log_interval": 100, "eval.interval": 80, "eval.interval_episodes": 5}
    lines = _metrics(Trainer(quick_config("evals", **options)).train().out)
    assert [m["env_steps"] for m in lines] == [80, 100, 160, 200, 240, 300, 320, 400]
    evaluated = {m["env_steps"]: m["eval"]["episodes"] for m in lines if "eval" in m}
    assert evaluated == dict.fromkeys((80, 160, 240, 320, 400), 5)


def test_a_trainer_made_before_another_went_on_is_refused(quick_config: Any):
    out = Trainer(quick_config("late")).train().out
    late = Trainer.resume(out, total_steps=500)
    Trainer.resume(out, total_steps=450).train()
    before = _metrics(out)
    with pytest.raises(RunFolderError, match=r"another process has trained .*step-000000000452"):
        late.train()
    assert _metrics(out) == before


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_after_an_error_of_a_callback_the_run_can_go_on_exactly(quick_config: Any, algo: str):
    options = {"algo": algo, "ppo.rollout": 30, "ppo.minibatch": 16}
    whole = Trainer(quick_config("whole", **options)).train()

    class Fail(Callback):
        def on_episode(self, result: Any) -> None:
            if trainer.env_steps >= 250:
                raise ConnectionError("the logging service is gone")

    trainer = Trainer(quick_config("parts", **options), callbacks=[Fail()])
    with pytest.raises(ConnectionError) as caught:
        trainer.train()
    assert f"sacglam train --resume {trainer.out}" in caught.value.__notes__[0]
    resumed = Trainer.resume(trainer.out).train()
    assert _metrics(whole.out) == _metrics(resumed.out)


@pytest.mark.parametrize("algo", ["sac", "ppo"])
@pytest.mark.parametrize("call", ["step", "reset"])
def test_an_error_of_an_environment_loses_nothing(quick_config: Any, algo: str, call: str):
    from sacglam.envs.playground import PRESETS, PlaygroundText

    class Failing(PlaygroundText):
        armed, calls = False, 0

        def __init__(self) -> None:
            super().__init__(**PRESETS["playground/small"])

        def step(self, action: str) -> Any:
            self._count("step", 250)  # of all environments
            return super().step(action)

        def reset(self, **options: Any) -> Any:
            self._count("reset", 8)
            return super().reset(**options)

        def _count(self, name: str, most: int) -> None:
            if name != call or not Failing.armed:
                return
            Failing.calls += 1
            if Failing.calls == most:
                raise OSError("the simulator is gone")

    class Arm(Callback):
        def on_progress(self, env_steps: int, updates: int) -> None:
            Failing.armed = True

    options = {"algo": algo, "ppo.rollout": 30, "eval.episodes": 1, "env.id": "own"}
    whole = Trainer(quick_config("whole", **options), env=Failing).train()
    trainer = Trainer(quick_config("parts", **options), env=Failing, callbacks=[Arm()])
    with pytest.raises(OSError, match="the simulator is gone"):
        trainer.train()
    assert int(latest_checkpoint(trainer.out).name[5:]) == trainer.env_steps
    Failing.armed = False
    resumed = Trainer.resume(trainer.out, env=Failing).train()
    assert _metrics(whole.out) == _metrics(resumed.out)


@pytest.mark.parametrize("where", ["on_progress", "on_evaluation", "on_log", "on_checkpoint"])
def test_an_error_of_a_callback_where_a_line_is_due_loses_no_line(quick_config: Any, where: str):
    """At a step after which a line, an evaluation and a checkpoint are due, and no update."""
    options = {
        "learning_starts": 300, "eval.interval": 200, "eval.interval_episodes": 2,
        "checkpoint_interval": 200,
    }  # fmt: skip
    whole = Trainer(quick_config("whole", **options)).train()

    class Fail(Callback):
        def _fail(self, *_: Any) -> None:
            if trainer.env_steps == 200:
                raise ConnectionError("the logging service is gone")

    setattr(Fail, where, Fail._fail)
    trainer = Trainer(quick_config("parts", **options), callbacks=[Fail()])
    with pytest.raises(ConnectionError):
        trainer.train()
    resumed = Trainer.resume(trainer.out).train()
    assert _metrics(whole.out) == _metrics(resumed.out)
    assert [m["env_steps"] for m in _metrics(whole.out) if "eval" in m] == [200, 400]


def test_two_trainers_in_one_folder_are_refused(quick_config: Any):
    """The second would overwrite the first one's checkpoints."""
    seen: list[str] = []

    class Second(Callback):
        def on_log(self, metrics: Any) -> None:
            with pytest.raises(RunFolderError, match="another process is training in") as refused:
                Trainer.resume(first.out).train()
            seen.append(str(refused.value))

    config = quick_config("shared", checkpoint_interval=50)
    first = Trainer(config, callbacks=[Second()])
    early = first.train()
    assert len(seen) == 4
    assert [m["env_steps"] for m in _metrics(early.out)] == [100, 200, 300, 400]
    assert not (early.out / "metrics.discarded.jsonl").exists()
    state = latest_checkpoint(first.out)
    assert Trainer.resume(first.out, total_steps=420).train().env_steps == 420  # free again
    assert latest_checkpoint(first.out) != state

"""`check_training`: what it finds is true, and it finds what is wrong."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Trainer, check_training, make_env
from sacglam.cli.checking import check_lines
from sacglam.cli.main import main
from sacglam.errors import DeviceMemoryError, EnvironmentProtocolError
from sacglam.kernels import cpu
from sacglam.models.loading import load_language_model
from sacglam.models.policy import Policy
from sacglam.training import check

CASES: dict[str, dict[str, Any]] = {
    "sac": {},
    "reencode": {"model.id": "tiny-t5", "critic.kind": "reencode"},
    "ppo": {"algo": "ppo", "ppo.rollout": 25, "ppo.minibatch": 16, "ppo.epochs": 3},
    "bfloat16": {"model.dtype": "bfloat16"},
    "raw logits": {"model.id": "tiny-t5", "policy.score": "raw_logit", "policy.reduce": "mean"},
    "history": {"prompt.history": 2, "prompt.list_actions": True, "env.id": "playground/zoo"},
}


@pytest.mark.parametrize("case", CASES)
def test_what_it_promises_is_what_a_run_does(quick_config: Any, case: str):
    config = quick_config(**CASES[case])
    stages: list[str] = []
    found = check_training(config, tell=stages.append)
    assert not Path(config.out).exists()
    assert len(stages) == 5
    assert found.agreement is not None
    assert found.agreement.holds
    assert found.agreement.prompts > 1
    assert found.agreement.score_error < (0.3 if case == "bfloat16" else 1e-4)
    assert found.agreement.pi_error < (0.05 if case == "bfloat16" else 1e-5)
    result = Trainer(config).train()
    assert found.updates == result.updates
    assert found.config == Trainer.resume(config.out).config
    assert found.trained == sum(p.numel() for p in result.policy.trainable_parameters().values())
    assert found.step_s > 0
    assert found.update_s > 0
    assert found.memory_bytes > 1e7


def test_prompts_and_actions_are_those_of_the_environment(quick_config: Any):
    found = check_training(quick_config())
    env = make_env("playground/small")
    sizes = set()
    for seed in range(30):
        _, info = env.reset(seed=seed)
        sizes.add(len(info["possible_actions"]))
    assert found.actions[0] in sizes
    assert found.actions[0] <= found.actions[1]
    assert found.prompt_tokens[0] <= found.prompt_tokens[1]
    assert 1 <= found.action_tokens[0] <= found.action_tokens[1] <= 5


def test_scores_that_are_not_the_models_are_found(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    forward = Policy.forward

    def spoilt(policy: Policy, forest: Any, **options: Any) -> Any:
        scores = forward(policy, forest, **options)
        return dataclasses.replace(scores, log_prob=1.01 * scores.log_prob)

    monkeypatch.setattr(Policy, "forward", spoilt)
    found = check_training(quick_config()).agreement
    assert found is not None
    assert not found.holds
    sizes = "--env.num-envs 4 --optim.batch-size 8 --model.hidden-size 32".split()
    assert main(["check", *sizes]) == 1
    assert "NOT those of the stock model" in capsys.readouterr().out


def test_objects_of_a_user(quick_config: Any):
    folder = Path(quick_config("made").out) / "model"
    Trainer(quick_config("made")).policy.save_base(folder)
    model, tokenizer = load_language_model(folder)
    weights = {name: w.clone() for name, w in model.state_dict().items()}
    model.train()
    model.model.norm.eval()
    modes = [module.training for module in model.modules()]
    config = quick_config(**{"lora.r": 0})
    found = check_training(
        config, env=lambda: make_env("playground/small"), model=(model, tokenizer)
    )
    assert found.agreement is not None
    assert found.agreement.holds
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("close", [True, False])
def test_its_workers_end(quick_config: Any, monkeypatch: pytest.MonkeyPatch, close: bool):
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            started.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    if not close:  # the test sees workers that are left
        monkeypatch.setattr(Trainer, "close", lambda trainer: kept.append(trainer))
    kept: list[Trainer] = []
    check_training(quick_config(**{"env.processes": 2, "env.num_envs": 4}))
    workers = [process for process in started if "sacglam.envs.worker" in str(process.args)]
    assert len(workers) == 4
    running = [process.poll() is None for process in workers]
    for trainer in kept:
        trainer._envs.close()
        trainer._eval_envs.close()
    assert any(running) != close


def test_an_environment_that_breaks_the_protocol_is_named(quick_config: Any):
    class Broken:
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return "a room", {"goal": "x", "possible_actions": [], "achieved_goals": []}

        def step(self, action: str) -> Any:
            raise NotImplementedError

    with pytest.raises(EnvironmentProtocolError):
        check_training(quick_config(), env=Broken)


def test_no_memory_for_the_stock_model(quick_config: Any, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(check, "_stock_model", full)
    assert check_training(quick_config()).agreement is None


def test_an_update_that_does_not_fit(quick_config: Any, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nA hint.")

    monkeypatch.setattr(check, "_updates", full)
    with pytest.raises(
        DeviceMemoryError, match=r"Tried 2 GiB\. An update .* --optim.micro-batch 4"
    ):
        check_training(quick_config())


@pytest.mark.parametrize(
    ("durations", "expected", "made"),
    [
        ([9.0, 1.0, 3.0, 2.0, 7.0], 2.0, 4),  # the first is not counted
        ([40.0, 1.0], 40.0, 1),  # once is enough
        ([20.0, 12.0, 1.0], 12.0, 2),
    ],
)
def test_what_takes_long_is_measured_less_often(
    monkeypatch: pytest.MonkeyPatch, durations: list[float], expected: float, made: int
):
    now, count = [0.0], itertools.count(1)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def work() -> Any:
        for duration in durations:
            now[0] += duration
            yield next(count)

    assert check._seconds(work(), "cpu") == expected
    assert next(count) == made + 1


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]):
    sizes = "--env.num-envs 4 --optim.batch-size 8 --model.hidden-size 32".split()
    assert main(["check", "--total-steps", "30000", *sizes]) == 0
    text = capsys.readouterr().out
    assert text.startswith("environment playground/small keeps the protocol; prompts of ")
    for part in (
        "tiny-llama, float32: ", "segments give the ids of the whole prompt",
        "scores      those of the stock model: ", "a step of 4 environments",
        "an update of 8 transitions, on cpu", "the run     30 000 steps, 7 375 updates: about ",
    ):  # fmt: skip
        assert part in text, text
    assert max(map(len, text.splitlines())) <= 100


def test_the_command_takes_what_train_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("total_steps: 3000\n")
    common = ["--config", str(file), "--preset", "glam", "--lora.r", "0"]
    assert main(["check", *common, "--env.num-envs", "4", "--model.hidden-size", "32"]) == 0
    assert "the run     3 000 steps, " in capsys.readouterr().out
    assert main(["check", "--model", str(tmp_path)]) == 2
    assert "UnknownModelError" in capsys.readouterr().err


def test_bfloat16_is_proposed_where_it_is_faster(quick_config: Any, monkeypatch: Any):
    found = check_training(quick_config(**{"lora.r": 4}))
    narrow = dataclasses.replace(
        found, config=found.config.with_overrides({"model.dtype": "bfloat16"})
    )
    full = dataclasses.replace(found, trained=found.parameters)
    for multiplies in (True, False):
        monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda known=multiplies: known)
        proposed = [
            "--model.dtype bfloat16" in " ".join(check_lines(f)) for f in (found, narrow, full)
        ]
        assert proposed == [multiplies, False, False]
    on_gpu = dataclasses.replace(found, config=found.config.with_overrides({"device": "cuda"}))
    for multiplies in (True, False):  # without: one before compute capability 8.0
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda known=multiplies, **_: known)
        assert ("this GPU" in " ".join(check_lines(on_gpu))) is multiplies

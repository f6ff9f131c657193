"""Training runs on an emulated GPU, by graphs, against the same runs on the CPU."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_kernels import quick_kernels
from sacglam import TrainConfig, Trainer, check_training, evaluate_run, load_policy
from sacglam.training.learner import Learner

QUICK: dict[str, Any] = {
    "env.num_envs": 4,
    "model.hidden_size": 32,
    "model.feed_forward": 32,
    "model.dtype": "float32",
    "optim.batch_size": 8,
    "total_steps": 96,
    "learning_starts": 60,
    "log_interval": 12,
    "eval.episodes": 1,
    "prompt.instruction": "",
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "t5": {"model.id": "tiny-t5"},
    "t5, reencoding": {"model.id": "tiny-t5", "critic.kind": "reencode", "optim.batch_size": 3},
    "LoRA, the critic's adapter, a prior": {
        "lora.r": 4, "critic.trunk": "adapter", "sac.prior": True,
    },
    "the actor later, alpha learned, priorities": {
        "critic_warmup": 4, "sac.learn_alpha": True, "replay.sampling": "prioritised",
    },
    "in parts": {"optim.micro_batch": 4},
    "subgoals": {"sac.subgoals": 0.7, "env.id": "playground/zoo"},
    "the other GPU": {"device": "cuda:1"},
    "bfloat16": {"model.dtype": "bfloat16"},
    "ppo": {"algo": "ppo", "ppo.rollout": 15, "ppo.minibatch": 15},
}  # fmt: skip
NAMES = ("critic_loss", "actor_loss", "grad_norm", "entropy", "td_error", "alpha", "kl")


@pytest.fixture(autouse=True)
def quickly(device: Any) -> Iterator[None]:
    with quick_kernels():
        yield


@pytest.fixture
def quick(tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(name: str, **overrides: Any) -> TrainConfig:
        values = {**QUICK, "out": str(tmp_path / name), "device": "cuda", **overrides}
        return TrainConfig().with_overrides(values)

    return make


def run(config: TrainConfig) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    trainer = Trainer(config)
    trainer.train()
    lines = (trainer.out / "metrics.jsonl").read_text().splitlines()
    return weights(trainer), [json.loads(line) for line in lines]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    policy = getattr(trainer, "policy", trainer)
    return {name: x.detach().cpu() for name, x in policy.trainable_parameters().items()}


@pytest.mark.parametrize("case", CASES)
def test_the_run_of_the_cpu(case: str, quick: Any, device: Any, monkeypatch: pytest.MonkeyPatch):
    want, lines = run(quick("cpu", **{**CASES[case], "device": "cpu"}))
    waits: list[int] = []
    update = Learner.update

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = sum(device.waits.values())
        found = update(self, *args, **kwargs)
        waits.append(sum(device.waits.values()) - before)
        return found

    monkeypatch.setattr(Learner, "update", counted)
    device.graphs.clear()
    found, others = run(quick("gpu", **CASES[case]))
    assert len(device.graphs) >= 4
    narrow = case == "bfloat16"  # where another rounding draws another action
    for name, value in want.items():
        close = 0.01 if narrow else 1e-4
        torch.testing.assert_close(found[name], value, rtol=close, atol=close, msg=name)
    learning = [(line, other) for line, other in zip(lines, others, strict=True) if line["updates"]]
    assert learning
    for line, other in [] if narrow else learning:
        for name in NAMES:
            if name in line:
                assert other[name] == pytest.approx(line[name], rel=1e-4), name
    if "ppo" not in case:  # by graphs it waits where its report is read, and where alpha learns
        assert min(waits) <= (4 if "alpha" in case else 1)


def test_a_run_goes_on_where_it_was(quick: Any, tmp_path: Path):
    whole = Trainer(quick("whole"))
    whole.train()
    Trainer(quick("parts")).train(until=72)
    resumed = Trainer.resume(tmp_path / "parts")
    assert resumed.policy.device.type == "cuda"
    resumed.train()
    # Not bit for bit: what a graph served before the pause may be a plain pass after it.
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-4, atol=1e-6)
    here = load_policy(whole.out, device="cpu")
    there = load_policy(whole.out, device="cuda:1")
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(here)[name], value, rtol=0, atol=0)
        torch.testing.assert_close(weights(there)[name], value, rtol=0, atol=0)
    results = [
        evaluate_run(whole.out, episodes=2, device=where)["success_mean"]
        for where in ("cpu", "cuda")
    ]
    assert results[0] == results[1]


def test_checks_and_given_models(quick: Any, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = check_training(quick("check"))
    assert report.config.device.startswith("cuda")
    run(quick("made", total_steps=64))
    folder = tmp_path / "made" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    checked = check_training(quick("check-given", device="cuda"), model=(model, tokenizer))
    assert checked.config.device.startswith("cuda")
    assert checked.agreement is not None
    assert checked.agreement.holds
    assert {p.device.type for p in model.parameters()} == {"cpu"}  # as it was
    for where, asked, got in (("cuda:1", "auto", 1), ("cpu", "cuda:0", 0), ("cuda:1", "cuda:0", 0)):
        given = copy.deepcopy(model).to(where)
        config = quick(f"{where}-{asked}", device=asked, total_steps=68)
        trainer = Trainer(config, model=(given, tokenizer))
        assert trainer.policy.device == torch.device("cuda", got)
        trainer.train()
        assert trainer.algorithm.updates > 0

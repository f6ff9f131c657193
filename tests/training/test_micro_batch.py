"""An update in parts is the update: the same run, from passes over fewer rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from sacglam import Policy, TrainConfig, Trainer
from sacglam.cli.main import main
from sacglam.errors import DeviceMemoryError
from sacglam.training.parts import row_parts

CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "t5, unequal parts": {"model.id": "tiny-t5", "optim.micro_batch": 3},
    "one row at a time, huber": {"optim.micro_batch": 1, "critic.huber": 0.1},
    "reencoding": {"model.id": "tiny-t5", "critic.kind": "reencode"},
    "LoRA, the critic's adapter alone at first, a prior": {
        "lora.r": 4, "critic.trunk": "adapter", "critic_warmup": 30, "sac.prior": True,
    },
    "alpha learned, priorities, often clipped": {
        "sac.learn_alpha": True, "replay.sampling": "prioritised", "optim.grad_clip": 0.3,
    },
    "ppo": {"algo": "ppo", "ppo.rollout": 25, "ppo.minibatch": 25, "optim.micro_batch": 7},
    "ppo, raw advantages, t5": {
        "algo": "ppo", "ppo.rollout": 25, "ppo.minibatch": 30, "ppo.normalise": False,
        "ppo.target_kl": 0.01, "model.id": "tiny-t5", "optim.micro_batch": 12,
    },
}  # fmt: skip

TIMES = {"wall_s", "cpu_s", "env_steps_per_s", "updates_per_s"}


def metrics(trainer: Trainer) -> list[dict[str, Any]]:
    lines = (trainer.out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_the_same_run(case: str, quick_config: Any, monkeypatch: pytest.MonkeyPatch):
    changes = {
        "model.dtype": "float64", "total_steps": 300, "eval.episodes": 1, "optim.micro_batch": 4,
        **CASES[case],
    }  # fmt: skip
    whole = Trainer(quick_config("whole", **{**changes, "optim.micro_batch": 0}))
    whole.train()

    parts = Trainer(quick_config("parts", **changes))
    rows: list[int] = []
    forward = Policy.forward

    def noted(self: Policy, forest: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            rows.append(forest.num_rows)
        return forward(self, forest, **options)

    monkeypatch.setattr(Policy, "forward", noted)
    parts.train()
    most = changes["optim.micro_batch"]
    assert max(rows) == most
    assert len(rows) >= 2 * parts.algorithm.updates

    others = parts.policy.trainable_parameters()
    for name, parameter in whole.policy.trainable_parameters().items():
        torch.testing.assert_close(others[name], parameter, rtol=1e-6, atol=1e-8)
    for line, want in zip(metrics(parts), metrics(whole), strict=True):
        assert set(line) == set(want)
        for name, value in want.items():
            if isinstance(value, float):
                assert line[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
            else:
                assert line[name] == value, name


def test_parts_hold_every_row_once():
    assert row_parts(8, 0) == [slice(0, 8)]
    assert row_parts(8, 8) == row_parts(8, 9) == [slice(0, 8)]
    assert row_parts(8, 3) == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert row_parts(1, 1) == [slice(0, 1)]


class OutOfMemoryAt:
    """The forward pass fails as torch does on a full GPU, at the n-th gradient."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
        forward, self.left = Policy.forward, call

        def failing(policy: Policy, forest: Any, **options: Any) -> Any:
            if torch.is_grad_enabled():
                self.left -= 1
                if self.left == 0:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nA hint.")
            return forward(policy, forest, **options)

        monkeypatch.setattr(Policy, "forward", failing)


@pytest.mark.parametrize("options", [{}, {"optim.micro_batch": 4}], ids=["whole", "in parts"])
def test_a_run_out_of_memory_is_saved_and_goes_on_in_parts(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
):
    config = quick_config("full", **options)
    OutOfMemoryAt(monkeypatch, 60)
    with pytest.raises(
        DeviceMemoryError, match="CUDA out of memory. Tried 2 GiB. The run was "
    ) as e:
        Trainer(config).train()
    part = 2 if options else 4
    assert f"sacglam train --resume {config.out} --optim.micro-batch {part}" in str(e.value)
    resumed = Trainer.resume(config.out, micro_batch=part)
    made = resumed.algorithm.updates
    assert made == (29 if options else 59)
    result = resumed.train()
    assert not result.interrupted
    assert result.updates == 75
    assert resumed.config.optim.micro_batch == part


def test_resuming_by_the_command_line_takes_another_part_and_number_of_threads(
    quick_config: Any, capsys: pytest.CaptureFixture[str]
):
    before = torch.get_num_threads()
    config = quick_config("short", total_steps=120, **{"eval.episodes": 2})
    Trainer(config).train()
    resume = ["train", "--resume", config.out, "--total-steps", "140"]
    try:
        assert main([*resume, "--optim.micro-batch", "2", "--threads", "2"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    saved = TrainConfig.load(f"{config.out}/config.yaml")
    assert (saved.optim.micro_batch, saved.threads) == (2, 2)
    assert main([*resume, "--optim.batch-size", "4"]) == 2
    assert "only --total-steps may be given" in capsys.readouterr().err

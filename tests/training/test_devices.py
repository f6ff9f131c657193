"""Where a run computes: a device that torch has, and as many threads as it can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Trainer, evaluate_run, load_policy, play_episodes
from sacglam.errors import ConfigError


@pytest.fixture
def out(quick_config: Any) -> Path:
    return Trainer(quick_config(total_steps=20, **{"eval.episodes": 2})).train().out


@pytest.mark.parametrize("device", ["gpu", "meta", "xpu", "cuda:99"])
def test_devices_that_are_none(out: Path, quick_config: Any, device: str, monkeypatch: Any):
    if device == "xpu" and torch.xpu.is_available():
        pytest.skip("it is one here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    calls = [
        lambda: Trainer(quick_config("other", device=device)),
        lambda: evaluate_run(out, device=device),
        lambda: load_policy(out, device=device),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=f"device is '{device}', which torch cannot compute"):
            call()


def test_auto_is_a_device_of_evaluations_too(out: Path):
    assert evaluate_run(out, device="auto", episodes=1)["episodes"] == 1
    assert load_policy(out, device="auto").device.type in ("cpu", "cuda")


@pytest.mark.parametrize("threads", [-1, 100_000])
def test_threads_that_torch_cannot_have(out: Path, threads: int):
    for use in (evaluate_run, play_episodes):
        with pytest.raises(ConfigError, match=f"threads is {threads}"):
            use(out, threads=threads)


@pytest.mark.parametrize(
    "changes", [{"sac.subgoals": 0.5, "learning_starts": 32}, {"algo": "ppo", "ppo.rollout": 4}]
)
def test_torchs_default_device_is_not_where_a_run_computes(
    quick_config: Any, changes: dict[str, Any]
):
    """A script may have set it to its GPU; "meta" stands for one."""
    trainer = Trainer(quick_config(total_steps=64, **{"eval.episodes": 2, **changes}))
    with torch.device("meta"):
        assert trainer.train().updates > 0


@pytest.mark.parametrize("changes", [{}, {"lora.r": 4, "critic.trunk": "adapter"}])
def test_weights_follow_from_the_seed_alone(
    quick_config: Any, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """Whatever the default device, and the GPUs' generators are the caller's."""

    def seed_all(seed: int) -> None:
        raise AssertionError("the GPUs' generators were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seed_all)
    monkeypatch.setattr(torch.cuda, "manual_seed", seed_all)
    before = torch.get_rng_state()
    plain = Trainer(quick_config("plain", **changes)).policy.trainable_parameters()
    with torch.device("meta"):
        other = Trainer(quick_config("other", **changes)).policy.trainable_parameters()
    for name, weights in plain.items():
        torch.testing.assert_close(other[name], weights, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)

"""Where models are put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils import load_peft_weights
from sacglam import load_policy
from sacglam.models.loading import LoraOptions, add_lora, use_device
from sacglam.models.policy import Policy, PolicyOptions


def test_triton_launches_on_the_gpu_that_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for device in ("cuda:1", torch.device("cuda", 2), "cuda", "cpu"):
        use_device(device)
    assert current == [torch.device("cuda:1"), torch.device("cuda:2")]


def test_adapters_are_not_read_by_way_of_a_gpu(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As peft does where it sees one, whatever device is asked for."""
    model, tokenizer = make_model("llama", torch.float32)
    model = add_lora(model, LoraOptions(r=2), critic_adapter=True)
    Policy(model, tokenizer, options=PolicyOptions(critic_trunk="adapter")).save(tmp_path)

    def load(path: str, device: str | None = None, **options: Any) -> Any:
        asked.append(device)
        return load_peft_weights(path, device="cpu", **options)

    asked: list[str | None] = []
    monkeypatch.setattr(peft.peft_model, "infer_device", lambda: "cuda")
    monkeypatch.setattr(peft.peft_model, "load_peft_weights", load)
    load_policy(tmp_path)
    assert asked == ["cpu", "cpu"]  # and the critic's

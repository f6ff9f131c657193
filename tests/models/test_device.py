"""The current GPU while a model computes; no GPU is needed to see which is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sacglam.models import device as device_module
from sacglam.models.policy import Policy


def test_a_policy_computes_with_its_own_gpu_as_the_current_one(
    make_policy: Any, monkeypatch: pytest.MonkeyPatch
):
    policy = make_policy("llama")
    forest = policy.pack_texts(["a b"], [["go", "red"]], leaves=True)
    entered: list[Any] = []
    inside = False

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        nonlocal inside
        entered.append(device)
        inside = True
        yield
        inside = False

    hidden = policy.trunk.hidden

    def seen(forest: Any) -> Any:
        assert inside
        return hidden(forest)

    monkeypatch.setattr(policy.trunk, "hidden", seen)
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(Policy, "device", torch.device("cuda", 1))
    policy.forward(forest)
    assert entered == [torch.device("cuda", 1)]
    with device_module.on_device(torch.device("cpu")):
        assert len(entered) == 1

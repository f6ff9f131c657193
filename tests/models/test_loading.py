"""Where models are put."""

from __future__ import annotations

import pytest
import torch
from sacglam.models.loading import use_device


def test_triton_launches_on_the_gpu_that_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for device in ("cuda:1", torch.device("cuda", 2), "cuda", "cpu"):
        use_device(device)
    assert current == [torch.device("cuda:1"), torch.device("cuda:2")]

"""The current GPU while a model computes; no GPU is needed to see which is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sacglam.models import device as device_module
from sacglam.models.padding import pad_forest
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_torchs_default_device_is_not_where_a_policy_computes(
    make_policy: Any, kind: str, dtype: torch.dtype
):
    """A script may have set it to its GPU; "meta" stands for one."""
    policy = make_policy(kind, dtype)
    ask = (["a b c", "red lion"] * 3, [["go", "go to", "water"], ["release all", "go"]] * 3)
    want = policy.score(*ask)
    with torch.device("meta"):
        got = policy.score(*ask)
        padded = pad_forest(policy.pack_texts(*ask, leaves=False))
        assert policy.forward(padded, with_q=False).log_pi.device.type == "cpu"
    for a, b in zip(got, want, strict=True):
        assert a.log_probs.tolist() == b.log_probs.tolist()
        assert a.q.tolist() == b.q.tolist()

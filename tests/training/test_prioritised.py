"""Prioritised replay in the trainer: TD errors become priorities, weights enter the losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sacglam import Trainer
from sacglam.replay import ReplayBuffer


def test_td_errors_become_priorities_and_beta_rises(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Any] = []
    sample, update = ReplayBuffer.sample, ReplayBuffer.update_priorities

    def spied_sample(self: ReplayBuffer, *args: Any, **kw: Any) -> Any:
        batch = sample(self, *args, **kw)
        seen.append((kw["beta"], batch))
        return batch

    def spied_update(self: ReplayBuffer, keys: Any, priorities: Any) -> int:
        seen.append((keys, priorities))
        return update(self, keys, priorities)

    monkeypatch.setattr(ReplayBuffer, "sample", spied_sample)
    monkeypatch.setattr(ReplayBuffer, "update_priorities", spied_update)
    Trainer(quick_config(**{"replay.sampling": "prioritised"})).train()
    draws, updates = seen[::2], seen[1::2]
    assert len(draws) == len(updates) == 75
    betas = [beta for beta, _ in draws]
    assert betas[0] == 0.4
    assert np.allclose(np.diff(betas), 0.6 / 75)
    for (_, batch), (keys, priorities) in zip(draws, updates, strict=True):
        assert keys is batch.key
        assert priorities.shape == (8,)
        assert (priorities >= 0).all()
    assert any(batch.weight.min() < 1 for _, batch in draws)


def test_other_draws_train_too(quick_config: Any):
    result = Trainer(quick_config(**{"replay.sampling": "episodes"})).train()
    assert result.env_steps == 400

"""A loss that is not finite stops the run, keeps what was learned, and says what to try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Callback, Trainer
from sacglam.errors import DivergedError
from sacglam.training.checkpoint import latest_checkpoint, read_tensors


class _Poison(Callback):
    """Makes the replay's returns infinite, as a broken reward would."""

    trainer: Trainer

    def on_log(self, metrics: Any) -> None:
        if metrics["env_steps"] == 200:
            sample = self.trainer.algorithm.buffer.sample

            def poisoned(*args: Any, **kwargs: Any) -> Any:
                batch = sample(*args, **kwargs)
                batch.n_step_return[:] = float("nan")
                return batch

            self.trainer.algorithm.buffer.sample = poisoned  # type: ignore[method-assign]


def test_nan_stops_saves_and_explains(quick_config: Any):
    poison = _Poison()
    trainer = Trainer(quick_config("nan"), callbacks=[poison])
    poison.trainer = trainer
    with pytest.raises(DivergedError, match=r"critic_loss.*optim\.lr.*critic\.huber.*saved in"):
        trainer.train()
    folder = latest_checkpoint(trainer.out)
    assert all(torch.isfinite(x).all() for x in read_tensors(folder, "target").values())
    del trainer.algorithm.buffer.sample
    resumed = Trainer.resume(trainer.out).train()
    assert resumed.env_steps == 400
    assert (Path(trainer.out) / "eval.json").is_file()


def test_ppo_keeps_its_parameters_as_they_were(quick_config: Any):
    options = {"ppo.rollout": 10, "ppo.minibatch": 16, "ppo.epochs": 2}
    algorithm: Any = Trainer(quick_config(algo="ppo", **options)).algorithm
    algorithm.collector.start()
    for _ in range(10):
        algorithm.collector.step()
    algorithm.collector.rollout.reward = [float("nan")] * 40
    parameters = algorithm.policy.trainable_parameters()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with pytest.raises(DivergedError, match=r"critic_loss.*optim\.lr") as error:
        list(algorithm.learn(40))
    assert "huber" not in str(error.value)  # it has no such setting
    assert algorithm.updates == 0
    assert all(torch.equal(parameters[name], value) for name, value in before.items())

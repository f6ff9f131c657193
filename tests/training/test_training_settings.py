"""Settings of the training loop that must act: clipping, critic warm-up, update ratio, rates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sacglam import Callback, Trainer, TrainResult
from sacglam.training.optimiser import Optimiser


class _Log(Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, metrics: Any) -> None:
        self.rows.append(dict(metrics))


def _train(config: Any) -> tuple[Trainer, TrainResult, list[dict[str, Any]]]:
    log = _Log()
    trainer = Trainer(config, callbacks=[log])
    return trainer, trainer.train(), log.rows


def _parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    named = trainer.policy.trainable_parameters()
    return {name: value.detach().clone() for name, value in named.items()}


@pytest.mark.parametrize(("steps_per_update", "updates"), [(1.0, 300), (4.0, 75), (7.5, 40)])
def test_updates_follow_the_environment_steps(
    quick_config: Any, steps_per_update: float, updates: int
):
    config = quick_config("ratio", **{"steps_per_update": steps_per_update})
    trainer, result, _ = _train(config)
    assert result.updates == trainer.algorithm.updates == updates


def test_no_update_before_learning_starts(quick_config: Any):
    with pytest.warns(UserWarning, match=r"400 .* makes no update: the first is due after 404"):
        _, result, rows = _train(quick_config("late", learning_starts=400))
    assert result.updates == 0
    assert [row["updates"] for row in rows] == [0] * len(rows)


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        ({"learning_starts": 399}, 0),
        ({"learning_starts": 396}, 1),
        ({"learning_starts": 396, "total_steps": 398}, 1),  # 400 steps of 4 environments
        ({"algo": "ppo", "ppo.rollout": 101}, 0),
        ({"algo": "ppo", "ppo.rollout": 100, "ppo.epochs": 1, "ppo.minibatch": 400}, 1),
    ],
    ids=str,
)
def test_a_run_without_an_update_is_warned_of(
    quick_config: Any, recwarn: pytest.WarningsRecorder, options: dict[str, Any], updates: int
):
    _, result, _ = _train(quick_config(**{"eval.episodes": 2, **options}))
    assert result.updates == updates
    warned = [str(w.message) for w in recwarn if "makes no update" in str(w.message)]
    assert len(warned) == (updates == 0)


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_the_gradient_is_clipped_to_its_largest_norm(quick_config: Any, algo: str):
    common = {"algo": algo, "ppo.rollout": 10, "ppo.minibatch": 16}
    trainer, _, rows = _train(quick_config("clipped", **{**common, "optim.grad_clip": 0.01}))
    norm = math.sqrt(
        sum(float(p.grad.double().pow(2).sum()) for p in _trained(trainer) if p.grad is not None)
    )
    assert norm == pytest.approx(0.01, rel=1e-3)  # of the last update, after clipping
    assert rows[-1]["grad_clipped"] == 1.0
    assert rows[-1]["grad_norm"] > 0.01  # what is reported is the norm before
    _, _, free = _train(quick_config("free", **{**common, "optim.grad_clip": math.inf}))
    assert free[-1]["grad_clipped"] == 0.0


def test_during_the_warm_up_only_the_critic_learns(quick_config: Any):
    # Without the critic's gradient in the trunk, only the actor moves it.
    common = {"critic.gradient": False, "optim.warmup_updates": 0}
    start = _parameters(Trainer(quick_config("start", **common)))
    warm, _, _ = _train(quick_config("warm", **{**common, "critic_warmup": 75}))
    moved = {n for n, p in _parameters(warm).items() if not torch.equal(p, start[n])}
    assert moved
    assert all(name.startswith("heads.") for name in moved)
    both, _, _ = _train(quick_config("both", **{**common, "critic_warmup": 74}))
    moved = {n for n, p in _parameters(both).items() if not torch.equal(p, start[n])}
    assert not all(name.startswith("heads.") for name in moved)


def test_during_the_warm_up_the_temperature_stays(quick_config: Any):
    common = {"sac.learn_alpha": True, "sac.alpha": 0.01, "log_interval": 1000}
    warm, _, _ = _train(quick_config("warm", **{**common, "critic_warmup": 75}))
    assert warm.algorithm.learner.alpha == pytest.approx(0.01)
    both, _, _ = _train(quick_config("both", **{**common, "critic_warmup": 74}))
    assert both.algorithm.learner.alpha != pytest.approx(0.01, rel=1e-6)


class _Long:
    """Episodes of 100 steps without a goal that is reached."""

    vocabulary = ("place go stop reach end",)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return "place", self._info()

    def step(self, action: str) -> Any:
        self.steps += 1
        return "place", 0.0, False, self.steps == 100, self._info()

    def _info(self) -> dict[str, Any]:
        return {"goal": "reach end", "possible_actions": ["go", "stop"], "achieved_goals": []}


def _rates(trainer: Trainer, optimiser: Any) -> list[float]:
    rates: list[float] = []
    step = optimiser.step

    def noted(updates: int, progress: float) -> float:
        rates.append(step(updates, progress))
        return rates[-1]

    optimiser.step = noted
    trainer.train()
    return rates


FALLING = {"optim.lr": 1e-3, "optim.final_lr": 0.0, "optim.warmup_updates": 0, "eval.episodes": 1}


def test_the_rate_and_beta_come_to_their_ends_where_the_first_episode_ends_late(quick_config: Any):
    options = {**FALLING, "learning_starts": 0, "replay.sampling": "prioritised"}
    trainer = Trainer(quick_config(**{**options, "total_steps": 800}), env=_Long)
    betas: list[float] = []
    learner: Any = trainer.algorithm.learner
    sample = learner.buffer.sample

    def sampled(count: int, *, beta: float) -> Any:
        betas.append(beta)
        return sample(count, beta=beta)

    learner.buffer.sample = sampled
    rates = _rates(trainer, learner.optimiser)
    assert len(rates) == learner.updates < 0.6 * trainer.config.updates_due(800)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] < 0.02e-3
    assert betas[0] == pytest.approx(0.4)
    assert betas[-1] > 0.98


def test_the_rate_of_ppo_falls_from_the_first_rollout_on(quick_config: Any):
    options = {**FALLING, "algo": "ppo", "ppo.rollout": 10, "ppo.epochs": 1, "ppo.minibatch": 40}
    trainer = Trainer(quick_config(**{**options, "total_steps": 160}))
    rates = _rates(trainer, trainer.algorithm.optimiser)
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_learning_rates_warm_up_fall_and_differ_for_the_heads(quick_config: Any):
    config = quick_config(
        "rates",
        **{
            "optim.lr": 1e-3,
            "optim.head_lr": 5e-3,
            "optim.warmup_updates": 10,
            "optim.final_lr": 0.2,
        },
    )
    weight = torch.nn.Parameter(torch.zeros(2))
    head = torch.nn.Parameter(torch.zeros(2))
    optimiser = Optimiser({"trunk.weight": weight, "heads.q.weight": head}, config)

    def rates(updates: int, progress: float) -> list[float]:
        optimiser.gradient((weight + head).sum())
        optimiser.step(updates, progress)
        return [group["lr"] for group in optimiser.adam.param_groups]

    assert rates(0, 0.0) == pytest.approx([1e-4, 5e-4])
    assert rates(9, 0.0) == pytest.approx([1e-3, 5e-3])
    assert rates(50, 0.5) == pytest.approx([6e-4, 3e-3])
    assert rates(99, 1.0) == pytest.approx([2e-4, 1e-3])
    assert rates(120, 1.2) == pytest.approx([2e-4, 1e-3])  # no further than the share that is left


def _trained(trainer: Trainer) -> list[torch.nn.Parameter]:
    return list(trainer.policy.trainable_parameters().values())

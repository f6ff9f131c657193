"""What a run says of itself: success of episodes and families, means of the updates, and that the
configuration's numbers are those that the parts work with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Trainer
from sacglam.envs.vector import VectorEnv
from sacglam.training import setup
from sacglam.training.episode import Episode, EpisodeResult
from sacglam.training.evaluation import evaluate, policy_chooser, settings, summarise
from sacglam.training.metrics import Meter, MetricsWriter, drop_after
from sacglam.training.seeds import EVAL_EPISODES, TRAIN_EPISODES, episode_seed
from sacglam.training.subgoals import Subgoals


def _result(family: str, success: bool, length: int = 1) -> EpisodeResult:
    return EpisodeResult("", family, success, length, float(success))


def test_families_count_alike_however_many_episodes_they_have():
    results = [_result("b", won, length) for won, length in ((True, 3), (False, 5), (False, 6))]
    found = summarise([*results, _result("a", True, 2)])
    assert found == {
        "episodes": 4,
        "success": {"a": 1.0, "b": pytest.approx(1 / 3)},
        "success_mean": pytest.approx(2 / 3),
        "count": {"a": 1, "b": 3},
        "length_mean": 4.0,
    }
    assert list(found["success"]) == ["a", "b"]
    assert summarise([])["success_mean"] == summarise([])["length_mean"] == 0.0


@pytest.mark.parametrize(
    ("rewards", "terminated", "success"),
    [
        ([0.0, 1.0], True, True),
        ([0.0, 1.0], False, False),  # paid at the time limit, but not for the end
        ([1.0, 0.0], True, False),  # over, and not for what was paid before
        ([0.0, -1.0], True, False),
    ],
)
def test_success_is_an_end_that_is_paid_for(rewards: list[float], terminated: bool, success: bool):
    episode = Episode(0, 0, "goal", family="f", rewards=rewards)
    assert episode.result(terminated) == ("goal", "f", success, 2, sum(rewards))


class Lasting:
    """An episode lasts one to three steps and is won or not, as its seed and option say."""

    vocabulary = ("a b c",)

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.seen.append((seed, options))
        self.seed, self.left = seed, 1 + seed % 3
        return "a", self._info()

    def step(self, action: str) -> Any:
        self.left -= 1
        over = self.left == 0
        won = over and self.seed % 2 == 0
        return "b", float(won), won, over and not won, self._info()

    def _info(self) -> dict[str, Any]:
        info = {"goal": "c", "possible_actions": ["a"], "achieved_goals": []}
        return {**info, "goal_family": "even" if self.seed % 5 < 2 else "odd"}


@pytest.mark.parametrize("episodes", [2, 11])
def test_an_evaluation_is_of_the_episodes_of_its_seeds(episodes: int):
    seen: list[Any] = []
    told: list[int] = []
    envs = VectorEnv([Lasting(seen) for _ in range(3)])
    found = evaluate(
        envs, lambda indices, _: [0 for _ in indices], episodes=episodes, seed=5,
        reset_options={"split": "test"}, on_progress=told.append,
    )  # fmt: skip
    seeds = [episode_seed(5, EVAL_EPISODES, k) for k in range(episodes)]
    assert len(set(seeds)) == episodes
    assert [s for s, _ in seen] == seeds
    assert all(options == {"split": "test"} for _, options in seen)
    assert told == list(range(episodes + 1))
    assert found["length_mean"] == pytest.approx(sum(1 + s % 3 for s in seeds) / episodes)
    families = {"even": [s for s in seeds if s % 5 < 2], "odd": [s for s in seeds if s % 5 >= 2]}
    rates = {f: sum(s % 2 == 0 for s in ss) / len(ss) for f, ss in families.items() if ss}
    assert found["success"] == pytest.approx(rates)
    assert found["count"] == {f: len(ss) for f, ss in families.items() if ss}


def test_the_meter_means_over_updates_and_recent_episodes_and_is_saved():
    meter = Meter()
    for k in range(150):  # the last hundred of a family count: here those from 50 on
        meter.episode(_result("long", k >= 75))
    meter.episode(_result("brief", False))
    for value in (1.0, 2.0, 6.0):
        meter.update({"loss": value, "lr": 0.5})
    again = Meter()
    again.restore(json.loads(json.dumps(meter.state())))
    for each in (meter, again):
        found = each.line()
        each.clear()
        assert found == {
            "episodes": 151, "success": {"brief": 0.0, "long": 0.75}, "success_mean": 0.375,
            "loss": 3.0, "lr": 0.5,
        }  # fmt: skip
        each.update({"loss": 4.0})
        for _ in range(30):
            each.episode(_result("long", False))
        found = each.line()
        assert found["loss"] == 4.0
        assert "lr" not in found
        assert found["success"]["long"] == 0.70
        assert found["episodes"] == 181


def test_lines_beyond_a_checkpoint_are_set_aside(tmp_path: Path):
    writer = MetricsWriter(tmp_path, 0, tensorboard=False)
    for steps in (100, 200, 300):
        writer.write({"env_steps": steps, "loss": 0.5})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"env_st')
    drop_after(tmp_path, 200)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["env_steps"] for line in lines] == [100, 200]
    later = (tmp_path / "metrics.discarded.jsonl").read_text().splitlines()
    assert json.loads(later[0])["env_steps"] == 300
    assert later[1] == '{"env_st'


REPLAY = {
    "capacity": 1234, "her_strategy": "final", "her_ratio": 0.31, "her_random": 0.23,
    "her_balance": "events", "her_reward": 1.5, "sampling": "prioritised",
    "priority_exponent": 0.71, "capacity_bytes": 10**7,
}  # fmt: skip


def test_the_buffer_is_made_as_configured(quick_config: Any, monkeypatch: pytest.MonkeyPatch):
    from sacglam.training import sac as sac_module

    made: dict[str, Any] = {}
    buffer = sac_module.ReplayBuffer

    def noted(capacity: int, **given: Any) -> Any:
        made.update(given, capacity=capacity)
        return buffer(capacity, **given)

    monkeypatch.setattr(sac_module, "ReplayBuffer", noted)
    options = {f"replay.{name}": value for name, value in REPLAY.items()}
    Trainer(quick_config(**{**options, "sac.n_step": 4, "sac.gamma": 0.83}))
    seed = made.pop("seed")
    assert made == {**REPLAY, "n_step": 4, "gamma": 0.83, "long_episodes": "split"}
    Trainer(quick_config("other", seed=1))
    assert made["seed"] != seed


@pytest.mark.parametrize("greedy", [True, False])
def test_acting_explores_as_configured_and_evaluating_does_not(quick_config: Any, greedy: bool):
    options = {"sac.explore": 0.37, "eval.temperature": 0.6, "eval.greedy": greedy}
    trainer = Trainer(quick_config(**options))
    policy: Any = trainer.policy
    asked: list[dict[str, Any]] = []
    choose = policy.choose

    def noted(forest: Any, **options: Any) -> Any:
        asked.append(options)
        return choose(forest, **options)

    policy.choose = noted
    collector = trainer.algorithm.collector
    collector.start()
    collector.step()
    evaluated = trainer.config.eval
    policy_chooser(policy, evaluated, 0)([0], collector.episodes[:1])
    acting, evaluating = asked
    assert (acting["explore"], acting["greedy"], acting["temperature"]) == (0.37, False, 1.0)
    assert acting["generator"] is trainer._noise
    assert (evaluating["explore"], evaluating["temperature"]) == (0.0, 0.6)
    assert evaluating["greedy"] is greedy
    assert evaluating["generator"] not in (None, trainer._noise)  # training draws as without it
    told = settings(evaluated, "test", 3)
    temperature = None if greedy else 0.6
    assert told == {"split": "test", "seed": 3, "greedy": greedy, "temperature": temperature}


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_episodes_begin_with_their_seeds_and_the_options(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch, algo: str
):
    seen: list[Any] = []
    monkeypatch.setattr(setup, "reset_options", lambda probe, split: {"split": split})
    trainer = Trainer(quick_config(algo=algo, seed=9), env=lambda: Lasting(seen))
    seen.clear()
    collector = trainer.algorithm.collector
    collector.start()
    first = [(episode_seed(9, TRAIN_EPISODES, i, 0), {"split": "train"}) for i in range(4)]
    assert seen == first
    for _ in range(3):
        collector.step()
    begun = [(i, k) for i in range(4) for k in range(collector.episodes[i].number + 1)]
    wanted = sorted(episode_seed(9, TRAIN_EPISODES, i, k) for i, k in begun)
    assert len(begun) > 4
    assert sorted(seed for seed, _ in seen) == wanted
    seen.clear()
    trainer.evaluate(2)
    assert seen == [(episode_seed(9, EVAL_EPISODES, k), {"split": "train"}) for k in range(2)]


def test_what_is_within_reach_is_what_the_critic_expects_of_the_policy(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    trainer = Trainer(quick_config(**{"sac.subgoals": 1.0}))
    collector: Any = trainer.algorithm.collector
    collector.start()
    policy, codec = trainer.policy, trainer.policy.codec
    monkeypatch.setattr("sacglam.training.subgoals.ROWS", 3)  # in several passes
    found = Subgoals(policy, 1.0, torch.Generator())._values(collector.episodes)
    for value, episode in zip(found.tolist(), collector.episodes, strict=True):
        prompt = "".join(codec.template.segments(episode.goal, episode.observation))
        score = policy.score([prompt], [episode.actions])[0]
        assert score.q is not None
        expected = sum(math.exp(p) * q for p, q in zip(score.log_pi, score.q, strict=True))
        assert value == pytest.approx(expected, abs=1e-5)


def test_ppo_goes_through_a_rollout_as_configured(quick_config: Any):
    options = {"ppo.rollout": 10, "ppo.minibatch": 16, "ppo.epochs": 2, "ppo.target_kl": None}
    returns = {"ppo.gamma": 0.83, "ppo.gae_lambda": 0.61}
    trainer = Trainer(quick_config(algo="ppo", total_steps=80, **options, **returns))
    algorithm: Any = trainer.algorithm
    take = algorithm.collector.take
    orders: list[list[int]] = []
    asked: list[Any] = []

    def taken(gamma: float, lam: float) -> Any:
        asked.append((gamma, lam))
        experience = take(gamma, lam)
        minibatches = experience.minibatches

        def noted(order: Any, size: int, **given: Any) -> Any:
            orders.append(order.tolist())
            assert (size, given["normalise"]) == (16, True)
            return minibatches(order, size, **given)

        experience.minibatches = noted
        return experience

    algorithm.collector.take = taken
    trainer.train()
    assert asked == [(0.83, 0.61)] * 2
    assert algorithm.updates == 2 * 2 * 3  # rollouts, epochs, minibatches of 40 rows
    assert len(orders) == 4
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(
    ("divergence", "updates"),
    [
        ([0.1] * 12, 12),  # their mean counts, not their sum
        ([0.0, 0.7, 0.0, *[0.0] * 9], 3),
        ([0.0] * 3 + [0.3] * 9, 6),  # of one epoch, not of those before it
        ([0.0] * 9 + [0.3] * 3, 12),
    ],
)
def test_ppo_ends_with_the_epoch_that_moved_too_far(
    quick_config: Any, divergence: list[float], updates: int
):
    options = {"ppo.rollout": 10, "ppo.minibatch": 16, "ppo.epochs": 4, "ppo.target_kl": 0.2}
    algorithm: Any = Trainer(quick_config(algo="ppo", **options)).algorithm
    told = iter(divergence)
    algorithm._update = lambda parts, progress: {"kl": next(told)}
    algorithm.collector.start()
    for _ in range(10):
        assert not list(algorithm.learn(0))
        algorithm.collector.step()
    assert len(list(algorithm.learn(40))) == updates
    assert not algorithm.behind(40)
    assert not list(algorithm.learn(40))  # the next rollout is not there yet

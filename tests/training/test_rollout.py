"""What PPO learns from: advantages of hand-made episodes, by a loop over them in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sacglam import Trainer
from sacglam.training.episode import prompts_of
from sacglam.training.ppo import PpoAlgorithm
from sacglam.training.rollout import Experience, Rollout, RolloutCollector


class Line:
    """Walk along a line; place 2 is the goal, the third step is the last. The
    number of actions varies with the place."""

    vocabulary = ("place 0 1 2 3", "left right wait", "reach the end")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self._place, self._step = 0, 0
        return self._seen([])

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._place += {"left": -1, "right": 1, "wait": 0}[action]
        self._step += 1
        done = self._place == 2
        text, info = self._seen(["reach the end"] if done else [])
        return text, float(done), done, not done and self._step == 3, info

    def _seen(self, achieved: list[str]) -> tuple[str, dict[str, Any]]:
        actions = ["right", "wait"] if self._place == 0 else ["left", "right", "wait"]
        return f"place {self._place}", {
            "goal": "reach the end",
            "possible_actions": actions,
            "achieved_goals": achieved,
        }


@pytest.fixture
def algorithm(quick_config: Any) -> PpoAlgorithm:
    config = quick_config("line", algo="ppo", **{"model.dtype": "float64", "env.num_envs": 3})
    found = Trainer(config, env=Line).algorithm
    assert isinstance(found, PpoAlgorithm)
    return found


def _play(collector: RolloutCollector, steps: int) -> list[list[Any]]:
    """Act, and note for each step of each environment what an outsider sees."""
    collector.start()
    seen: list[list[Any]] = [[] for _ in range(collector.envs.num_envs)]
    for _ in range(steps):
        before = [(e, len(e.rewards), e.observation) for e in collector.episodes]
        collector.step()
        for i, (episode, k, text) in enumerate(before):
            ended = collector.episodes[i] is not episode
            last = "terminated" if episode.rewards[k] else "truncated"
            seen[i].append((text, episode.rewards[k], last if ended else "", episode.observation))
    return seen


def test_advantages_of_terminated_cut_and_open_episodes(algorithm: PpoAlgorithm):
    collector, policy = algorithm.collector, algorithm.policy
    seen = _play(collector, 25)
    kinds = [kind for steps in seen for _, _, kind, _ in steps]
    assert {"terminated", "truncated", ""} <= set(kinds)  # or the test would show nothing
    gamma, lam = 0.9, 0.7

    def value(observation: str) -> float:
        prompt = policy.codec.template.segments("reach the end", observation)
        scores = policy.forward(policy.pack_texts(["".join(prompt)], [["wait"]], leaves=True))
        assert scores.v is not None
        return float(scores.v.detach())

    experience = collector.take(gamma, lam)
    found = experience.advantage.reshape(25, 3)
    returns = experience.returns.reshape(25, 3)
    for i, steps in enumerate(seen):
        running = 0.0
        for t in range(24, -1, -1):
            text, reward, kind, after = steps[t]
            v_next = 0.0 if kind == "terminated" else value(after)
            delta = reward + gamma * v_next - value(text)
            running = delta + (0.0 if kind else gamma * lam * running)
            assert found[t, i].item() == pytest.approx(running, abs=1e-9)
            assert returns[t, i].item() == pytest.approx(running + value(text), abs=1e-9)
    assert len(collector.rollout) == 0


def _order(experience: Experience) -> Any:
    return np.random.default_rng(0).permutation(len(experience))


def test_minibatches_hold_every_step_once_as_it_was_acted(algorithm: PpoAlgorithm):
    collector = algorithm.collector
    _play(collector, 7)
    taken = list(zip(collector.rollout.action, collector.rollout.log_prob, strict=True))
    experience = collector.take(0.9, 0.7)
    batches = [part for [part] in experience.minibatches(_order(experience), 8)]
    assert [len(b.rows.action) for b in batches] == [7, 7, 7]
    found = []
    for batch in batches:
        with torch.no_grad():
            log_pi = algorithm.policy.forward(batch.forest).log_pi
        again = log_pi.gather(-1, batch.rows.action[:, None]).squeeze(-1)
        torch.testing.assert_close(again, batch.rows.log_prob, rtol=1e-9, atol=1e-9)
        found += list(zip(batch.rows.action.tolist(), batch.rows.log_prob.tolist(), strict=True))
    assert sorted(found) == sorted(taken)


def test_minibatches_in_parts_are_normalised_as_wholes(algorithm: PpoAlgorithm):
    _play(algorithm.collector, 7)
    experience = algorithm.collector.take(0.9, 0.7)
    for whole, parts in zip(
        experience.minibatches(_order(experience), 11),
        experience.minibatches(_order(experience), 11, most=4, normalise=True),
        strict=True,
    ):
        assert len(whole) == 1
        sizes = [part.forest.num_rows for part in parts]
        assert max(sizes) == 4
        assert sum(sizes) == whole[0].forest.num_rows
        advantage = whole[0].rows.advantage
        expected = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        found = torch.cat([part.rows.advantage for part in parts])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        for name in ("action", "log_prob", "returns"):
            together = torch.cat([getattr(part.rows, name) for part in parts])
            assert torch.equal(together, getattr(whole[0].rows, name))


def test_a_rollout_is_the_same_after_saving(algorithm: PpoAlgorithm):
    _play(algorithm.collector, 9)
    rollout = algorithm.collector.rollout
    again = Rollout.of(rollout.tensors())
    assert again.last
    for name, value in vars(rollout).items():
        if name == "prompts":
            assert [p.tolist() for p in value] == [p.tolist() for p in again.prompts]
        elif name == "last":
            cut = {row: (ids.tolist(), s) for row, (ids, s) in again.last.items()}
            assert cut == {row: (ids.tolist(), s) for row, (ids, s) in value.items()}
        else:
            assert getattr(again, name) == value
    assert len(Rollout.of(Rollout().tensors())) == 0


def test_prompts_of_episodes_are_what_the_policy_saw(algorithm: PpoAlgorithm):
    algorithm.collector.start()
    ids, offsets, _ = prompts_of(algorithm.policy, algorithm.collector.episodes)
    algorithm.collector.step()
    rollout = algorithm.collector.rollout
    assert [p.tolist() for p in rollout.prompts] == [
        ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)
    ]


def test_steps_of_an_episode_that_cannot_be_played_again_are_not_joined_to_the_next(
    algorithm: PpoAlgorithm, monkeypatch: pytest.MonkeyPatch
):
    """The environment does not do the same again: another episode begins, of which the value says
    nothing about the steps before."""
    collector = algorithm.collector
    collector.start()
    for chosen in (0, 2):
        collector._choose()
        collector.apply(dict.fromkeys(range(3), chosen))
    value = collector.rollout.value
    state = collector.state()
    assert [s["actions"] for s in state] == [["right", "wait"]] * 3
    reset = Line.reset

    def moody(self: Line, **options: Any) -> Any:
        text, info = reset(self, **options)
        return text, {**info, "possible_actions": ["left"]}

    monkeypatch.setattr(collector.envs.envs[0], "reset", moody.__get__(collector.envs.envs[0]))
    with pytest.warns(RuntimeWarning, match="environment 0 is not deterministic: episode 0") as say:
        collector.restore(state)
    assert len(say) == 1
    assert collector.episodes[0].number == 1
    assert [e.number for e in collector.episodes[1:]] == [s["number"] for s in state[1:]]
    experience = collector.take(gamma=0.5, lam=1.0)
    # What came after the last of its steps is not known; the state before stands for it.
    advantage = experience.advantage.double().reshape(2, 3)[:, 0].tolist()
    assert advantage[1] == pytest.approx(0.5 * value[3] - value[3])
    assert advantage[0] == pytest.approx(0.25 * value[3] - value[0])

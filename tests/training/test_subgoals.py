"""Subgoals: which goal is drawn, when it is pursued, and that what is stored keeps its own goal."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from sacglam import Callback, Trainer
from sacglam.replay import ReplayBuffer
from sacglam.training.episode import Episode, prompts_of
from sacglam.training.subgoals import WITHIN_REACH, Subgoals, preference


def test_the_hardest_goal_within_reach_is_preferred():
    value = torch.tensor([0.9, 0.45, 0.27, 0.01, -0.2])
    weight = preference(value)
    assert weight[2] > weight[1] > weight[0] > 0
    assert weight[3:].max() < 1e-30  # out of reach
    assert weight[:3].sum() / weight.sum() == pytest.approx(1.0)
    assert torch.equal(weight, preference(value))
    assert torch.allclose(preference(10 * value[:3]), weight[:3], rtol=1e-4)  # whatever a goal pays


@pytest.mark.parametrize(
    "value", [[0.0, 0.0], [-1.0, -2.0], [0.3], [1e-9, -1e-9], [5.0, 5.0 * WITHIN_REACH]]
)
def test_something_can_be_drawn_whatever_the_values(value: list[float]):
    weight = preference(torch.tensor(value))
    assert torch.isfinite(weight).all()
    assert weight.sum() > 0
    torch.multinomial(weight, 1)


class _Watched(Subgoals):
    """Notes what happens to every episode."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.given: list[tuple[Episode, str]] = []
        self.begun = 0

    def assign(self, episodes: Any) -> None:
        knew = bool(self.known)
        super().assign(episodes)
        for episode in episodes:
            if not episode.history and knew:
                self.begun += 1
                if episode.subgoal:
                    self.given.append((episode, episode.subgoal))


def _watched(trainer: Trainer, share: float) -> _Watched:
    algorithm: Any = trainer.algorithm
    watched = _Watched(trainer.policy, share, torch.Generator().manual_seed(1))
    algorithm.subgoals = algorithm.collector.subgoals = watched
    return watched


def test_a_share_of_the_episodes_pursues_a_known_goal_and_keeps_its_own(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    stored: list[int] = []
    add = ReplayBuffer.add_episode

    def spied(self: ReplayBuffer, *args: Any, **kw: Any) -> Any:
        stored.append(kw["goal"])
        return add(self, *args, **kw)

    monkeypatch.setattr(ReplayBuffer, "add_episode", spied)
    trainer = Trainer(quick_config(**{"sac.subgoals": 0.5, "total_steps": 1200}))
    watched = _watched(trainer, 0.5)
    own: Counter[int] = Counter()
    texts: Any = trainer.algorithm.texts
    trainer.callbacks.append(_Counting(own, texts))
    trainer.train()
    assert len(watched.given) > 30
    assert 0.35 < len(watched.given) / watched.begun < 0.65
    assert {goal for _, goal in watched.given} <= set(watched.known)
    assert Counter(stored) == own  # nobody's goal was replaced in the buffer
    # Some were reached on the way and given up for the episode's own.
    ended = [(e, goal) for e, goal in watched.given if len(e.rewards) and not e.subgoal]
    assert ended
    for episode, _ in ended:
        assert episode.aim == episode.goal


class _Counting(Callback):
    """Counts the goals of finished episodes, as ids of the buffer."""

    def __init__(self, counts: Counter[int], texts: Any) -> None:
        self._counts, self._texts = counts, texts

    def on_episode(self, result: Any) -> None:
        self._counts[self._texts.goal(result.goal)] += 1


def test_the_prompt_asks_for_the_subgoal_until_it_is_reached(quick_config: Any):
    trainer = Trainer(quick_config(**{"sac.subgoals": 1.0}))
    collector: Any = trainer.algorithm.collector
    collector.start()
    episode = collector._episodes[0]
    episode.subgoal = "Grasp any plant"
    asked = prompts_of(trainer.policy, [episode])[0].tolist()
    episode.subgoal = ""
    plain = prompts_of(trainer.policy, [episode])[0].tolist()
    assert asked != plain
    codec = trainer.policy.codec
    assert asked == list(codec.prompt("Grasp any plant", episode.observation, [], episode.actions))
    assert plain == list(codec.prompt(episode.goal, episode.observation, [], episode.actions))


def test_an_episodes_own_goal_is_no_subgoal(quick_config: Any):
    trainer = Trainer(quick_config(**{"sac.subgoals": 1.0}))
    collector: Any = trainer.algorithm.collector
    collector.start()
    first = collector._episodes[0]
    for other in collector._episodes:
        other.goal = "Grasp any animal"
    collector.subgoals.note([first.goal])
    collector.subgoals.assign(collector._episodes)
    assert [e.subgoal for e in collector._episodes] == [""] * 4
    first.goal = "Grasp any plant"
    collector.subgoals.note([first.goal])
    for _ in range(20):
        collector.subgoals.assign(collector._episodes)
        assert first.subgoal == "Grasp any animal"
        assert {e.subgoal for e in collector._episodes[1:]} == {"Grasp any plant"}


def test_nothing_is_drawn_without_known_goals(quick_config: Any):
    trainer = Trainer(quick_config(**{"sac.subgoals": 1.0}))
    collector: Any = trainer.algorithm.collector
    collector.start()
    collector.subgoals.assign(collector._episodes)
    assert [e.subgoal for e in collector._episodes] == [""] * 4

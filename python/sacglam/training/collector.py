"""Acts in many environments at once; for SAC, finished episodes go into the replay buffer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..envs.vector import Transition, VectorEnv
from ..models.forest import Forest
from ..models.policy import Policy
from ..replay import ReplayBuffer
from .seeds import TRAIN_EPISODES, episode_seed
from .texts import ReplayTexts


class EpisodeResult(NamedTuple):
    """One finished episode of training or evaluation."""

    goal: str
    family: str
    success: bool
    length: int
    episode_return: float


@dataclass
class Episode:
    """An episode under way in one environment. Lists grow by one entry a step."""

    number: int
    seed: int
    goal: str = ""
    family: str = "all"
    observation: str = ""
    actions: list[str] = field(default_factory=list)  # admissible now
    history: list[tuple[str, str]] = field(default_factory=list)  # observation, action taken
    observation_ids: list[int] = field(default_factory=list)
    candidate_ids: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    achieved: list[list[int]] = field(default_factory=list)

    def begin(self, observation: str, info: Mapping[str, Any]) -> None:
        self.goal, self.family = info["goal"], info.get("goal_family", "all")
        self.see(observation, info)

    def see(self, observation: str, info: Mapping[str, Any]) -> None:
        self.observation, self.actions = observation, info["possible_actions"]

    def advance(self, action: str, step: Transition) -> None:
        """Note the action taken in the present state, and what it led to."""
        self.history.append((self.observation, action))
        self.rewards.append(float(step.reward))
        self.see(step.obs, step.info)

    def result(self, terminated: bool) -> EpisodeResult:
        success = terminated and self.rewards[-1] > 0
        return EpisodeResult(
            self.goal, self.family, success, len(self.rewards), float(sum(self.rewards))
        )


class Collector:
    """Steps all environments together; a subclass says how actions are chosen and what is kept.

    Args:
        envs: the environments.
        seed: the run's seed; episode k of environment i is seeded by (seed, i, k).
        reset_options: passed to every `reset`.
    """

    def __init__(
        self, envs: VectorEnv, *, seed: int, reset_options: Mapping[str, Any] | None = None
    ) -> None:
        self.envs = envs
        self._seed = seed
        self._options = dict(reset_options or {})
        self._episodes: list[Episode] = []

    def start(self) -> None:
        """Begin the first episode in every environment."""
        self._episodes = [self._begin(i, 0) for i in range(self.envs.num_envs)]

    def step(self) -> list[EpisodeResult]:
        """One step in every environment; returns the episodes that it finished."""
        return self._apply(dict(enumerate(self._choose())))

    def _choose(self) -> list[int]:
        """Index of the action to take in each environment."""
        raise NotImplementedError

    def _started(self, episode: Episode) -> None:
        """An episode is in its first state."""

    def _stepped(self, i: int, episode: Episode, chosen: int, step: Transition) -> None:
        """Environment i took its action number `chosen`; the episode is in the state after it."""

    def _begin(self, i: int, number: int) -> Episode:
        episode = Episode(number, episode_seed(self._seed, TRAIN_EPISODES, i, number))
        observation, info = self.envs.reset(i, seed=episode.seed, options=self._options or None)
        episode.begin(observation, info)
        self._started(episode)
        return episode

    def _apply(self, chosen: Mapping[int, int]) -> list[EpisodeResult]:
        actions = {i: self._episodes[i].actions[k] for i, k in chosen.items()}
        finished = []
        for i, step in sorted(self.envs.step(actions).items()):
            episode = self._episodes[i]
            episode.advance(actions[i], step)
            self._stepped(i, episode, chosen[i], step)
            if step.terminated or step.truncated:
                finished.append(episode.result(step.terminated))
                self._episodes[i] = self._begin(i, episode.number + 1)
        return finished

    # --- resuming -----------------------------------------------------------------------------

    def state(self) -> list[dict[str, Any]]:
        """The episodes under way as what recreates them: number and actions taken."""
        return [
            {"number": e.number, "actions": [action for _, action in e.history]}
            for e in self._episodes
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Replay the episodes under way: same seeds, same actions, hence the same states."""
        self._episodes = []
        for i, saved in enumerate(state):
            self._episodes.append(self._begin(i, int(saved["number"])))
            for action in saved["actions"]:
                known = self._episodes[i].actions
                number = self._episodes[i].number
                if action not in known or self._apply({i: known.index(action)}):
                    warnings.warn(
                        f"environment {i} is not deterministic: episode {number} could not be "
                        "replayed on resuming, a new one begins",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    self._episodes[i] = self._begin(i, number + 1)
                    break


class ReplayCollector(Collector):
    """Acts with one scoring pass a step, and writes finished episodes into the replay buffer.

    Args:
        envs, seed, reset_options: as for `Collector`.
        policy: what acts.
        buffer, texts: where finished episodes go.
        explore: share of actions drawn uniformly instead of from the policy.
        generator: for sampling actions.
    """

    def __init__(
        self,
        envs: VectorEnv,
        policy: Policy,
        buffer: ReplayBuffer,
        texts: ReplayTexts,
        *,
        explore: float = 0.0,
        seed: int,
        generator: torch.Generator,
        reset_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(envs, seed=seed, reset_options=reset_options)
        self.policy, self.buffer, self.texts = policy, buffer, texts
        self.explore = explore
        self.generator = generator

    def _choose(self) -> list[int]:
        return choose_actions(
            self.policy, self._episodes, explore=self.explore, generator=self.generator
        )

    def _started(self, episode: Episode) -> None:
        self._record(episode)

    def _record(self, episode: Episode) -> None:
        episode.observation_ids.append(self.texts.observation(episode.observation))
        episode.candidate_ids.append(self.texts.candidates(episode.actions))

    def _stepped(self, i: int, episode: Episode, chosen: int, step: Transition) -> None:
        episode.chosen.append(chosen)
        episode.achieved.append([self.texts.goal(g) for g in step.info["achieved_goals"]])
        self._record(episode)
        if step.terminated or step.truncated:
            self._store(episode, step.terminated, step.truncated)

    def _store(self, episode: Episode, terminated: bool, truncated: bool) -> None:
        achieved = episode.achieved
        self.buffer.add_episode(
            goal=self.texts.goal(episode.goal),
            observations=np.array(episode.observation_ids, dtype=np.int32),
            candidates=np.array(episode.candidate_ids, dtype=np.int32),
            actions=np.array(episode.chosen, dtype=np.int32),
            rewards=np.array(episode.rewards, dtype=np.float32),
            terminated=terminated,
            truncated=truncated and not terminated,
            achieved_offsets=np.cumsum([0, *map(len, achieved)], dtype=np.int32),
            achieved=np.array([g for goals in achieved for g in goals], dtype=np.int32),
        )


def choose_actions(
    policy: Policy,
    episodes: Sequence[Episode],
    *,
    greedy: bool = False,
    explore: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Index of the action that the policy takes in each episode; options as `Policy.choose`."""
    forest = pack_episodes(policy, episodes, leaves=False)
    return policy.choose(forest, greedy=greedy, explore=explore, generator=generator).tolist()


def pack_episodes(policy: Policy, episodes: Sequence[Episode], *, leaves: bool) -> Forest:
    """The present prompts and candidates of the episodes; `leaves` as in `Policy.pack`."""
    return policy.pack(*prompts_of(policy, episodes), leaves=leaves)


def prompts_of(
    policy: Policy, episodes: Sequence[Episode]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The present prompts as concatenated ids, offsets [B + 1], and candidate sets [B]."""
    codec = policy.codec
    ids = [codec.prompt(e.goal, e.observation, e.history, e.actions) for e in episodes]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    sets = np.array([policy.candidate_set(e.actions) for e in episodes], dtype=np.int32)
    return np.concatenate(ids), offsets, sets

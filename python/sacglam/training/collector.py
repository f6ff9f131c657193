"""Acts in many environments at once; for SAC, finished episodes go into the replay buffer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..envs.vector import Transition, VectorEnv
from ..models.policy import Policy
from ..replay import ReplayBuffer
from .episode import Episode, EpisodeResult, choose_actions
from .seeds import TRAIN_EPISODES, episode_seed
from .subgoals import Subgoals
from .texts import ReplayTexts


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
        self.whole = True  # not in the midst of noting a step: it can be saved
        self.ended: list[EpisodeResult] | None = None  # by the last step, once it is noted

    def start(self) -> None:
        """Begin the first episode in every environment."""
        self._episodes = [self._numbered(i, 0) for i in range(self.envs.num_envs)]
        for i in range(self.envs.num_envs):
            self._begin(i)

    def step(self) -> list[EpisodeResult]:
        """One step in every environment; returns the episodes that it finished."""
        self.ended = None
        return self.apply(dict(enumerate(self._choose())))

    def _choose(self) -> list[int]:
        """Index of the action to take in each environment."""
        raise NotImplementedError

    def _arrived(self, steps: Sequence[Transition]) -> None:
        """What the environments answered, before it is looked at."""

    def _started(self, episode: Episode) -> None:
        """An episode is in its first state."""

    def _stepped(self, i: int, episode: Episode, chosen: int, step: Transition) -> None:
        """Environment i took its action number `chosen`; the episode is in the state after it."""

    def _numbered(self, i: int, number: int) -> Episode:
        return Episode(number, episode_seed(self._seed, TRAIN_EPISODES, i, number))

    def _begin(self, i: int) -> None:
        episode = self._episodes[i]
        observation, info = self.envs.reset(i, seed=episode.seed, options=self._options or None)
        episode.begin(observation, info)
        self._started(episode)

    @property
    def episodes(self) -> Sequence[Episode]:
        """The episodes under way, one an environment."""
        return self._episodes

    def apply(self, chosen: Mapping[int, int]) -> list[EpisodeResult]:
        """Take action number `chosen[i]` in each environment i; returns the episodes that ended."""
        actions = {i: self._episodes[i].actions[k] for i, k in chosen.items()}
        finished = {}
        steps = self.envs.step(actions)
        self.whole = False
        self._arrived([*steps.values()])
        for i, step in sorted(steps.items()):
            episode = self._episodes[i]
            episode.advance(actions[i], step)
            self._stepped(i, episode, chosen[i], step)
            if step.terminated or step.truncated:
                finished[i] = episode.result(step.terminated)
                self._episodes[i] = self._numbered(i, episode.number + 1)
        self.whole, self.ended = True, [*finished.values()]  # should an environment fail to begin
        for i in finished:
            self._begin(i)
        return self.ended

    # --- resuming -----------------------------------------------------------------------------

    def state(self) -> list[dict[str, Any]]:
        """The episodes under way as what recreates them: number and actions taken."""
        return [
            {
                "number": e.number,
                "subgoal": e.subgoal,
                "actions": [action for _, action in e.history],
            }
            for e in self._episodes
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Replay the episodes under way: same seeds, same actions, hence the same states."""
        self._episodes = [self._numbered(i, int(saved["number"])) for i, saved in enumerate(state)]
        for i, saved in enumerate(state):
            self._begin(i)
            for action in saved["actions"]:
                known = self._episodes[i].actions
                number = self._episodes[i].number
                if action not in known or self.apply({i: known.index(action)}):
                    warnings.warn(
                        f"environment {i} is not deterministic: episode {number} could not be "
                        "replayed on resuming, a new one begins",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    self._episodes[i] = self._numbered(i, number + 1)
                    self._begin(i)
                    break
            else:
                self._episodes[i].subgoal = saved.get("subgoal", "")


class ReplayCollector(Collector):
    """Acts with one scoring pass a step, and writes finished episodes into the replay buffer.

    Args:
        envs, seed, reset_options: as for `Collector`.
        policy: what acts.
        buffer, texts: where finished episodes go.
        explore: share of actions drawn uniformly instead of from the policy.
        subgoals: gives episodes other goals to act for at their start.
        her_reward: what is paid in hindsight; a warning says if the environment pays otherwise.
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
        subgoals: Subgoals | None = None,
        her_reward: float | None = None,
        seed: int,
        generator: torch.Generator,
        reset_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(envs, seed=seed, reset_options=reset_options)
        self.policy, self.buffer, self.texts = policy, buffer, texts
        self.explore, self.subgoals = explore, subgoals
        self.generator = generator
        self._her_reward = her_reward
        self._achieves = False  # whether anything was achieved yet
        self._said: set[str] = set()  # warnings, each given once

    def _choose(self) -> list[int]:
        if self.subgoals is not None:
            self.subgoals.assign(self._episodes)
        return choose_actions(
            self.policy, self._episodes, explore=self.explore, generator=self.generator
        )

    def _arrived(self, steps: Sequence[Transition]) -> None:
        self.texts.prepare(
            (goal for step in steps for goal in step.info["achieved_goals"]),
            (step.obs for step in steps),
            (action for step in steps for action in step.info["possible_actions"]),
        )

    def _started(self, episode: Episode) -> None:
        self._record(episode)

    def _record(self, episode: Episode) -> None:
        episode.observation_ids.append(self.texts.observation(episode.observation))
        episode.candidate_ids.append(self.texts.candidates(episode.actions))

    def _stepped(self, i: int, episode: Episode, chosen: int, step: Transition) -> None:
        episode.chosen.append(chosen)
        achieved = step.info["achieved_goals"]
        self._achieves |= bool(achieved)
        if step.terminated and step.reward > 0:
            if episode.goal in achieved:
                self._compare(float(step.reward))
            elif self._achieves:
                self._miss(episode.goal)
        episode.achieved.append([self.texts.goal(g) for g in achieved])
        if self.subgoals is not None:
            self.subgoals.note(achieved)
        if episode.subgoal in achieved:
            episode.subgoal = ""
        self._record(episode)
        if step.terminated or step.truncated:
            self._store(episode, step.terminated, step.truncated)

    def _compare(self, reward: float) -> None:
        """Targets of one goal would differ with how it came to be a row's."""
        paid = self._her_reward
        if paid is None or abs(reward - paid) < 1e-6 or "reward" in self._said:
            return
        self._said.add("reward")
        warnings.warn(
            f"the environment paid {reward:g} for reaching a goal, and a goal that is reached in "
            f"hindsight is paid {paid:g}: set --replay.her-reward {reward:g}, or have the "
            "environment pay every goal alike (what other steps pay is not known in hindsight)",
            RuntimeWarning,
            stacklevel=2,
        )

    def _miss(self, goal: str) -> None:
        """Hindsight then teaches that what was paid for was not reached."""
        if self._her_reward is not None and "goal" not in self._said:
            self._said.add("goal")
            warnings.warn(
                f"the environment paid for reaching {goal!r}, but this goal is not among the "
                "step's achieved_goals: list it there, in the same words",
                RuntimeWarning,
                stacklevel=2,
            )

    def cut(self) -> None:
        """Store the episodes under way as if a time limit had ended them, and begin others."""
        for i, episode in enumerate(self._episodes):
            if episode.chosen:
                self._store(episode, terminated=False, truncated=True)
                self._episodes[i] = self._numbered(i, episode.number + 1)
                self._begin(i)

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

"""An episode under way in one environment, and its prompts as what a policy scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .._C import CandidateSet
from ..envs.vector import Transition
from ..models.forest import Forest
from ..models.policy import Policy


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
    subgoal: str = ""  # pursued first, until it is reached
    family: str = "all"
    observation: str = ""
    actions: list[str] = field(default_factory=list)  # admissible now
    history: list[tuple[str, str]] = field(default_factory=list)  # observation, action taken
    observation_ids: list[int] = field(default_factory=list)
    candidate_ids: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    achieved: list[list[int]] = field(default_factory=list)

    @property
    def aim(self) -> str:
        """The goal that is acted for now."""
        return self.subgoal or self.goal

    def begin(self, observation: str, info: Mapping[str, Any]) -> None:
        self.goal, self.family = info["goal"], info.get("goal_family") or "all"
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


def choose_actions(
    policy: Policy,
    episodes: Sequence[Episode],
    *,
    greedy: bool = False,
    explore: float = 0.0,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Index of the action that the policy takes in each episode; options as `Policy.choose`."""
    forest = policy.pack(*prompts_of(policy, episodes), leaves=False, device="cpu")
    return policy.choose(
        forest, greedy=greedy, explore=explore, temperature=temperature, generator=generator
    ).tolist()


def pack_episodes(policy: Policy, episodes: Sequence[Episode], *, leaves: bool) -> Forest:
    """The present prompts and candidates of the episodes; `leaves` as in `Policy.pack`."""
    return policy.pack(*prompts_of(policy, episodes), leaves=leaves)


def prompts_of(
    policy: Policy, episodes: Sequence[Episode]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], list[CandidateSet]]:
    """The present prompts as concatenated ids, offsets [B + 1], and candidate sets [B]."""
    codec = policy.codec
    codec.prepare(codec.template.action(action) for e in episodes for action in e.actions)
    ids = codec.prompts((e.aim, e.observation, e.history, e.actions) for e in episodes)
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return np.concatenate(ids), offsets, [policy.candidate_set(e.actions) for e in episodes]

"""Greedy, sampled and exploring choices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

PROMPTS = ["a b c", "go to red"]
ACTIONS = [["go", "go to", "red lion", "grasp"], ["blue", "green"]]


@pytest.fixture
def decided(make_policy: Any) -> Any:
    """A policy that gives nearly all probability to one action of each prompt."""
    return make_policy("llama", torch.float32, temperature=1e-3)


def _shares(policy: Any, explore: float, draws: int = 4000) -> torch.Tensor:
    forest = policy.pack_texts(PROMPTS * draws, ACTIONS * draws, leaves=False)
    generator = torch.Generator().manual_seed(0)
    chosen = policy.choose(forest, explore=explore, generator=generator).view(draws, 2)
    return torch.stack([(chosen == k).float().mean(0) for k in range(4)])  # [4, 2]


@pytest.mark.parametrize("explore", [0.0, 0.3, 1.0])
def test_explored_share_is_uniform_over_what_is_admissible(decided: Any, explore: float):
    best = decided.choose(decided.pack_texts(PROMPTS, ACTIONS, leaves=False), greedy=True)
    shares = _shares(decided, explore)
    for b, actions in enumerate(ACTIONS):
        for k in range(4):
            own = float(k == best[b]) * (1 - explore)
            expected = own + explore / len(actions) if k < len(actions) else 0.0
            assert abs(float(shares[k, b]) - expected) < 0.03, (b, k)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sampled_shares_follow_the_temperature(make_policy: Any, temperature: float):
    policy = make_policy("llama", torch.float32)
    draws = 4000
    forest = policy.pack_texts(PROMPTS * draws, ACTIONS * draws, leaves=False)
    chosen = policy.choose(
        forest, temperature=temperature, generator=torch.Generator().manual_seed(0)
    ).view(draws, 2)
    for b, score in enumerate(policy.score(PROMPTS, ACTIONS)):
        weight = [math.exp(x / temperature) for x in score.log_pi.tolist()]
        for k in range(4):
            expected = weight[k] / sum(weight) if k < len(weight) else 0.0
            assert abs(float((chosen[:, b] == k).float().mean()) - expected) < 0.03, (b, k)


def test_greedy_takes_the_most_probable(make_policy: Any):
    policy = make_policy("llama", torch.float32)
    chosen = policy.act(PROMPTS, ACTIONS, greedy=True)
    for action, actions, score in zip(chosen, ACTIONS, policy.score(PROMPTS, ACTIONS), strict=True):
        assert action == actions[score.log_pi.argmax()]

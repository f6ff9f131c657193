"""The stock model's scores, candidate by candidate, beside the tests' own loop."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from sacglam.models.policy import PolicyOptions
from sacglam.models.stock import stock_scores

PROMPT = "Goal : grasp any lion , you see red water . Action :"
ACTIONS = ["go", "go to red lion", "go to red", "release all"]


def test_it_is_the_sum_of_the_tokens_log_probabilities(
    make_policy: Any, make_model: Any, naive: Any, architecture: str
):
    policy = make_policy(architecture)
    stock, _ = make_model(architecture)
    ids = [policy.codec.action(a) for a in ACTIONS]
    prompt = policy.codec.text(PROMPT)
    sums = stock_scores(stock, prompt, ids, PolicyOptions())
    expected = torch.stack([naive(policy, architecture, PROMPT, a)[0] for a in ACTIONS])
    torch.testing.assert_close(sums, expected.detach(), rtol=1e-10, atol=1e-10)
    means = stock_scores(stock, prompt, ids, PolicyOptions(reduce="mean"))
    torch.testing.assert_close(means, sums / torch.tensor([len(i) for i in ids]))


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("score", ["logprob", "raw_logit"])
def test_it_follows_the_policys_options(
    make_policy: Any, make_model: Any, architecture: str, score: str, reduce: str
):
    policy = make_policy(architecture, score=score, reduce=reduce)
    stock, _ = make_model(architecture)
    assert dataclasses.asdict(policy.options)["score"] == score
    theirs = stock_scores(
        stock,
        policy.codec.text(PROMPT),
        [policy.codec.action(a) for a in ACTIONS],
        policy.options,
    )
    ours = torch.from_numpy(policy.score([PROMPT], [ACTIONS])[0].log_probs)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)

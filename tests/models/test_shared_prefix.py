"""What all prompts begin with, packed once for all trees: the same scores, Q and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sacglam.models.padding import pad_forest
from sacglam.models.policy import SHARED_TOKENS

OPENING = "you see go to red blue green lion water grasp Goal on a b c d e f"
PROMPTS = [f"{OPENING} {end}" for end in ("a", "b c", "go to red", "go to red", "a")]
CANDIDATES = [["a", "a b", "c"], ["go", "go to"], ["b"], ["go", "red a"], ["a", "a b", "c"]]


def forests(policy: Any, shared: int, monkeypatch: Any, leaves: bool = True) -> Any:
    monkeypatch.setattr(policy, "_shared_tokens", lambda: shared)
    return policy.pack_texts(PROMPTS, CANDIDATES, leaves=leaves)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt2"])
@pytest.mark.parametrize("attn", ["fast", "reference"])
def test_scores_values_and_gradients(
    make_policy: Any, monkeypatch: Any, architecture: str, attn: str
):
    policy = make_policy(architecture, attn=attn)
    leaves = list(policy.trainable_parameters().values())
    found = []
    for shared in (0, SHARED_TOKENS):
        forest = forests(policy, shared, monkeypatch)
        assert forest.plan.prefix == shared
        out = policy.forward(forest)
        loss = out.entropy.sum() + (out.pi * out.log_prob).sum() + out.q.square().sum()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found.append((forest, [out.log_prob, out.log_pi, out.q, *grads]))
    (whole, expected), (shared_forest, got) = found
    distinct = 4  # of the five rows two are alike
    saved = (distinct - 1) * SHARED_TOKENS
    assert shared_forest.ids.shape[0] == whole.ids.shape[0] - saved
    for a, b in zip(got, expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("leaves", [False, True])
def test_padding_keeps_it(make_policy: Any, monkeypatch: Any, leaves: bool):
    policy = make_policy("llama")
    forest = forests(policy, SHARED_TOKENS, monkeypatch, leaves)
    padded = pad_forest(forest)
    assert padded.plan.prefix == SHARED_TOKENS
    with torch.no_grad():
        want, got = (policy.forward(f, with_q=False) for f in (forest, padded))
    rows, columns = forest.mask.shape
    torch.testing.assert_close(got.log_pi[:rows, :columns], want.log_pi, rtol=1e-12, atol=1e-12)


def packed(
    policy: Any, actions: list[str], prompts: list[list[int]], prefix: int, rows: Any = None
) -> Any:
    ids = np.array([t for p in prompts for t in p], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, prompts)], dtype=np.int64)
    sets = [policy.candidate_set(actions)] * len(prompts)
    return policy.packer.pack(ids, offsets, sets, True, rows, prefix)


def test_only_what_all_rows_share_and_go_on_after(make_policy: Any):
    policy = make_policy("llama")
    two = ["a", "b"]
    alike = [[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 7, 8]]
    assert packed(policy, two, alike, 3)["prefix"] == 3
    assert packed(policy, two, alike, 3)["end"][:3].tolist() == [3 + 2 * 3] * 3
    assert packed(policy, two, alike, 4)["prefix"] == 0  # nothing would be left
    assert packed(policy, two, alike, -1)["prefix"] == 0
    other = [[5, 6, 7, 8], [5, 1, 7, 9]]
    assert packed(policy, two, other, 3)["prefix"] == 0
    assert packed(policy, two, other, 1)["prefix"] == 1
    # Rows that are not packed do not count, and one alone shares with nobody.
    assert packed(policy, two, [*alike, [1, 2]], 3, np.array([0, 1]))["prefix"] == 3
    assert packed(policy, two, alike, 3, np.array([1], dtype=np.int64))["prefix"] == 0


def test_encoders_and_cpus_do_not_share(make_policy: Any):
    assert make_policy("llama")._shared_tokens() == 0
    policy = make_policy("t5")
    assert packed(policy, ["a"], [[5, 6, 7], [5, 6, 8]], 2)["prefix"] == 0

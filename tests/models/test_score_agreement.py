"""Packed scoring against a loop over (prompt, candidate) pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

WORDS = "a b c d e f g h i j k go to red blue green lion water grasp you see Goal on , . :".split()


def _batch(seed: int) -> tuple[list[str], list[list[str]]]:
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(low, high)))

    prompts = [text(1, 30) for _ in range(5)]
    candidates = [list({text(1, 6) for _ in range(rng.integers(1, 9))}) for _ in prompts]
    prompts += [prompts[0], prompts[1], "a b"]
    candidates += [candidates[0], candidates[2], ["go", "go to", "go to red", "go to blue"]]
    return prompts, candidates


@pytest.mark.parametrize("attn", ["fast", "reference"])
def test_float64_agrees_with_naive_loop(make_policy: Any, naive: Any, architecture: str, attn: str):
    policy = make_policy(architecture, attn=attn)
    prompts, candidates = _batch(0)
    for prompt, actions, found in zip(
        prompts, candidates, policy.score(prompts, candidates), strict=True
    ):
        with torch.no_grad():
            pairs = [naive(policy, architecture, prompt, a) for a in actions]
            log_probs = torch.stack([p for p, _ in pairs])
            q = policy.heads(torch.stack([h for _, h in pairs])).min(0).values
        np.testing.assert_allclose(found.log_probs, log_probs, rtol=1e-9)
        np.testing.assert_allclose(found.log_pi, log_probs.log_softmax(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.q, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "flan-t5"])
def test_float32_agrees_with_naive_loop(make_policy: Any, naive: Any, architecture: str):
    policy = make_policy(architecture, torch.float32)
    prompts, candidates = _batch(1)
    for prompt, actions, found in zip(
        prompts, candidates, policy.score(prompts, candidates), strict=True
    ):
        with torch.no_grad():
            expected = torch.stack([naive(policy, architecture, prompt, a)[0] for a in actions])
        np.testing.assert_allclose(found.log_probs, expected, rtol=1e-4)


def test_gradients_agree_with_naive_loop(make_policy: Any, make_model: Any, architecture: str):
    policy = make_policy(architecture)
    prompts, candidates = _batch(2)
    forest = policy._pack_texts(prompts, candidates, leaves=True)
    scores = policy.forward(forest)
    noise = np.random.default_rng(0).normal(size=scores.log_prob.shape)
    weight = torch.from_numpy(noise) * scores.mask
    (scores.log_prob * weight).sum().backward()

    model, _ = make_model(architecture)
    model.load_state_dict(policy.model.state_dict())
    model.set_attn_implementation("sdpa")
    total = torch.zeros((), dtype=torch.float64)
    for b, (prompt, actions) in enumerate(zip(prompts, candidates, strict=True)):
        p = torch.from_numpy(policy.codec.text(prompt).astype(np.int64))
        for k, action in enumerate(actions):
            a = torch.from_numpy(policy.codec.action(action).astype(np.int64))
            if model.config.is_encoder_decoder:
                start = torch.tensor([model.config.decoder_start_token_id])
                inputs = {"decoder_input_ids": torch.cat([start, a[:-1]])[None]}
                rows = model(input_ids=p[None], **inputs).logits[0]
            else:
                rows = model(input_ids=torch.cat([p, a])[None]).logits[0, len(p) - 1 : -1]
            total = total + weight[b, k] * rows.log_softmax(-1)[torch.arange(len(a)), a].sum()
    total.backward()
    own = dict(policy.model.named_parameters())
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = own[name].grad
        found = torch.zeros_like(parameter) if found is None else found
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def _damage_mask(forest: Any) -> None:
    forest.layout.trie_mask[:, :, :1] = False


def _damage_depth(forest: Any) -> None:
    forest.pos[-1] += 1


def _damage_edges(forest: Any) -> None:
    forest.edge_token[0] = (forest.edge_token[0] + 1) % 8


@pytest.mark.parametrize("damage", [_damage_mask, _damage_depth, _damage_edges])
def test_a_wrong_layout_is_noticed(make_policy: Any, damage: Any):
    """Negative control: each part of the layout changes the scores, so agreement means something."""
    policy = make_policy("llama")
    prompts, candidates = _batch(3)
    forest = policy._pack_texts(prompts, candidates, leaves=True)
    with torch.no_grad():
        right = policy.forward(forest)
        damage(forest)
        wrong = policy.forward(forest)
    assert right.q is not None
    assert wrong.q is not None
    change = (right.log_prob - wrong.log_prob).abs().max() + (right.q - wrong.q).abs().max()
    assert change > 1e-6

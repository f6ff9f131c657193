"""Packed scoring against a loop over (prompt, candidate) pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sacglam.kernels import plan_forest, plan_segments

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


def test_float32_agrees_with_naive_loop(make_policy: Any, naive: Any, architecture: str):
    """The native kernels, which serve float32 alone."""
    policy = make_policy(architecture, torch.float32)
    prompts, candidates = _batch(1)
    for prompt, actions, found in zip(
        prompts, candidates, policy.score(prompts, candidates), strict=True
    ):
        with torch.no_grad():
            pairs = [naive(policy, architecture, prompt, a) for a in actions]
            q = policy.heads(torch.stack([h for _, h in pairs])).min(0).values
        np.testing.assert_allclose(found.log_probs, torch.stack([p for p, _ in pairs]), rtol=1e-4)
        np.testing.assert_allclose(found.q, q, rtol=1e-4, atol=1e-5)


def test_float32_gradients_agree_with_the_reference(make_policy: Any, architecture: str):
    """The native kernels' backward passes, through scores and Q, against dense float64 attention
    under the library's own layers."""
    prompts, candidates = _batch(4)
    gradients = []
    native = make_policy(architecture, torch.float32)
    exact = make_policy(architecture, torch.float64, attn="reference")
    # The same weights: the same seed gives others in another precision.
    exact.model.load_state_dict(native.model.state_dict())
    exact.heads.load_state_dict(native.heads.state_dict())
    for policy, dtype in ((native, torch.float32), (exact, torch.float64)):
        scores = policy.forward(policy.pack_texts(prompts, candidates, leaves=True))
        noise = torch.from_numpy(np.random.default_rng(0).normal(size=scores.log_prob.shape))
        weight = (noise * scores.mask).to(dtype)
        ((scores.log_prob + scores.q.min(0).values) * weight).sum().backward()
        gradients.append({n: p.grad for n, p in policy.trainable_parameters().items()})
    for name, expected in gradients[1].items():
        found = gradients[0][name]
        if expected is None:
            assert found is None or not found.any(), name
            continue
        error = (found.double() - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 1e-4, (name, float(error))


def test_the_last_layer_computes_only_what_is_read(make_policy: Any):
    policy = make_policy("llama", torch.float32)
    prompts, candidates = _batch(5)
    forest = policy.pack_texts(prompts, candidates, leaves=True)
    seen = []
    layer = policy.model.base_model.layers[-1]
    layer.mlp.register_forward_hook(lambda *_: pytest.fail("the layer's own code ran"))
    layer.mlp.down_proj.register_forward_hook(lambda _, x, y: seen.append(len(x[0])))
    policy.forward(forest)
    assert seen == [len(forest.read)]
    assert len(forest.read) < len(forest.ids)


def test_gradients_agree_with_naive_loop(make_policy: Any, make_model: Any, architecture: str):
    policy = make_policy(architecture)
    prompts, candidates = _batch(2)
    forest = policy.pack_texts(prompts, candidates, leaves=True)
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
        torch.testing.assert_close(
            found, expected, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


def _with_plan(forest: Any, **changes: Any) -> Any:
    """The forest with another plan for its nodes; a plan keeps masks, so it is made anew."""
    old = forest.plan
    fields = {"end": old.end, "tree_start": old.q_start, "pos": old.q_pos, **changes}
    return replace(forest, plan=plan_forest(**fields))


def _damage_mask(forest: Any) -> Any:
    """A tree's first token is seen by itself alone."""
    end, roots = forest.plan.end.clone(), forest.plan.q_start[:-1].long()
    end[roots] = (roots + 1).int()
    return _with_plan(forest, end=end)


def _damage_branches(forest: Any) -> Any:
    """Every earlier token of the tree is seen, other branches included."""
    start = forest.plan.q_start
    return _with_plan(forest, end=start[1:].repeat_interleave(start.diff().long()))


def _damage_depth(forest: Any) -> Any:
    pos = forest.pos.clone()
    pos[-1] += 1
    return replace(forest, pos=pos)


def _damage_bias_depth(forest: Any) -> Any:
    pos = forest.plan.q_pos.clone()
    pos[-1] += 1
    return _with_plan(forest, pos=pos)


def _damage_edges(forest: Any) -> Any:
    token = forest.edge_token.clone()
    token[0] = (token[0] + 1) % 8
    return replace(forest, edge_token=token)


def _damage_prompt(forest: Any) -> Any:
    """Each tree reads a prompt that ends one token early."""
    start = forest.cross_plan.k_start.clone()
    start[1:-1] -= 1
    cross = plan_segments(forest.plan.q_start, len(forest.ids), start, len(forest.encoder_ids))
    return replace(forest, cross_plan=cross)


@pytest.mark.parametrize(
    ("architecture", "damage"),
    [
        ("llama", _damage_mask),
        ("llama", _damage_branches),
        ("llama", _damage_depth),
        ("llama", _damage_edges),
        ("t5", _damage_bias_depth),
        ("t5", _damage_prompt),
    ],
)
def test_a_wrong_layout_is_noticed(make_policy: Any, architecture: str, damage: Any):
    """Negative control: each part of the layout changes the scores."""
    policy = make_policy(architecture)
    prompts, candidates = _batch(3)
    forest = policy.pack_texts(prompts, candidates, leaves=True)
    with torch.no_grad():
        right = policy.forward(forest)
        wrong = policy.forward(damage(forest))
    assert right.q is not None
    assert wrong.q is not None
    change = (right.log_prob - wrong.log_prob).abs().max() + (right.q - wrong.q).abs().max()
    assert change > 1e-6


def test_attention_outside_a_forest_is_refused(make_policy: Any):
    """The model's attention was replaced: a plain call must not run with some other mask."""
    policy = make_policy("llama")
    with pytest.raises(TypeError, match="Policy.forward"):
        policy.model(input_ids=torch.tensor([[1, 2]]))

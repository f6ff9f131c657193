"""Types of models that are run by their own layers: against one stock pass for every pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sacglam.errors import PromptTooLongError
from sacglam.models.loading import LoraOptions, add_lora
from sacglam.models.policy import Policy, PolicyOptions
from sacglam.models.self_check import has_own_forward
from sacglam.models.tiny import build_tokenizer
from sacglam.models.trunk import CAUSAL
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    Glm4Config,
    GlmConfig,
    GPTNeoXConfig,
    GraniteConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    Starcoder2Config,
)

WORDS = "a b c d e f g go to red blue lion water grasp release you see".split()
PROMPTS = ["a b c", "you see red lion a b c d e f g", "c"]
CANDIDATES = [["go", "go to", "grasp red lion"], ["release", "go to blue", "b"], ["water", "a b"]]

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
TYPES: dict[str, tuple[type, dict[str, Any]]] = {
    "gpt_neox": (GPTNeoXConfig, {**SIZES, "rotary_pct": 0.5}),
    "opt": (OPTConfig, {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "phi3": (Phi3Config, {**GROUPED, "sliding_window": 64}),
    "olmo": (OlmoConfig, {**GROUPED, "clip_qkv": 2.0}),
    "olmo2": (Olmo2Config, GROUPED),
    "olmo3": (Olmo3Config, {**GROUPED, "sliding_window": 64}),
    "granite": (GraniteConfig, {**GROUPED, "logits_scaling": 4.0, "embedding_multiplier": 3.0,
                                "residual_multiplier": 0.5, "attention_multiplier": 0.2}),
    "cohere": (CohereConfig, {**GROUPED, "logit_scale": 0.25, "use_qk_norm": True}),
    "starcoder2": (Starcoder2Config, {**GROUPED, "sliding_window": 64}),
    "glm": (GlmConfig, {**GROUPED, "head_dim": 8}),
    "glm4": (Glm4Config, {**GROUPED, "head_dim": 8}),
    "gemma3_text": (Gemma3TextConfig, {**GROUPED, "head_dim": 8, "sliding_window": 64,
                                       "query_pre_attn_scalar": 16,
                                       "layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip


def build(kind: str, dtype: torch.dtype, **changes: Any) -> tuple[Any, Any]:
    """(model, tokenizer), random weights that matter."""
    tokenizer = build_tokenizer(WORDS)
    config, options = {**TYPES, "mistral": (MistralConfig, GROUPED)}[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config(vocab_size=len(tokenizer), **{**options, **changes})
    ).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval(), tokenizer


def stock(model: Any, policy: Policy) -> tuple[Tensor, Tensor]:
    """(sums of log-probabilities, last hidden states) of all pairs, one pass a pair."""
    sums, states = [], []
    for prompt, actions in zip(PROMPTS, CANDIDATES, strict=True):
        begin = policy.codec.text(prompt).tolist()
        for action in actions:
            ids = policy.codec.action(action).tolist()
            out = model(
                input_ids=torch.tensor([[*begin, *ids]]), output_hidden_states=True, use_cache=False
            )
            log_p = out.logits[0, len(begin) - 1 : -1].log_softmax(-1)
            sums.append(log_p.gather(-1, torch.tensor(ids)[:, None]).sum())
            states.append(out.hidden_states[-1][0, -1])
    return torch.stack(sums), torch.stack(states)


@pytest.mark.parametrize("kind", sorted(TYPES))
@pytest.mark.parametrize("attn", ["fast", "reference"])
def test_scores_values_and_gradients_are_those_of_stock_passes(kind: str, attn: str):
    model, tokenizer = build(kind, torch.float32)
    assert not has_own_forward(model)
    policy = Policy(model, tokenizer, options=PolicyOptions(attn=attn))
    forest = policy.pack_texts(PROMPTS, CANDIDATES, leaves=True)
    scores = policy.forward(forest)
    weights = torch.randn(int(scores.mask.sum()), generator=torch.Generator().manual_seed(1))
    log_p, q = scores.log_prob[scores.mask], scores.q[:, scores.mask]
    (log_p @ weights + (q @ weights).sum()).backward()
    found = {name: p.grad for name, p in policy.trainable_parameters().items()}

    fresh, _ = build(kind, torch.float32)
    fresh.load_state_dict(model.state_dict())
    policy.heads.zero_grad()
    want, states = stock(fresh, policy)
    want_q = policy.heads(states)
    (want @ weights + (want_q @ weights).sum()).backward()
    torch.testing.assert_close(log_p, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(q, want_q, rtol=1e-4, atol=1e-4)
    for name, parameter in fresh.named_parameters():
        grad = found[f"model.{name}"]
        assert (grad is None) == (parameter.grad is None), name
        if grad is not None:
            scale = float(parameter.grad.abs().max()) + 1e-2
            torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=2e-4 * scale, msg=name)


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_bfloat16_is_near(kind: str):
    model, tokenizer = build(kind, torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    exact, _ = build(kind, torch.float32)
    exact.load_state_dict(model.state_dict())
    narrow = Policy(model, tokenizer).score(PROMPTS, CANDIDATES)
    wide = Policy(exact, tokenizer).score(PROMPTS, CANDIDATES)
    for a, b in zip(narrow, wide, strict=True):
        assert a.log_probs.tolist() == pytest.approx(b.log_probs.tolist(), abs=0.15)


def test_every_type_is_tested():
    fused = {"llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "smollm3"}  # see conftest.py
    assert set(CAUSAL) == set(TYPES) | fused


@pytest.mark.parametrize("kind", ["gemma3_text", "phi3", "olmo3", "mistral"])
def test_prompts_longer_than_a_sliding_window_are_refused(kind: str):
    """Within it everything is seen; beyond it a packed forest would see too much."""
    model, tokenizer = build(kind, torch.float32, sliding_window=16)
    fresh, _ = build(kind, torch.float32, sliding_window=16)
    policy = Policy(model, tokenizer)
    assert policy.trunk.max_length == 16
    fits = "a " * 11
    [ours] = policy.score([fits], [["go", "go to"]])
    ids = [*policy.codec.text(fits).tolist(), *policy.codec.action("go to").tolist()]
    with torch.no_grad():
        log_p = fresh(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    want = sum(float(log_p[len(ids) - 3 + k, ids[len(ids) - 2 + k]]) for k in range(2))
    assert float(ours.log_probs[1]) == pytest.approx(want, rel=1e-5)
    with pytest.raises(PromptTooLongError, match="accepts 16"):
        policy.score(["a " * 20], [["go"]])


@pytest.mark.parametrize("kind", sorted(TYPES))
@pytest.mark.parametrize("targets", [None, ["all-linear"]], ids=["default", "all"])
def test_adapters_are_added_without_naming_modules(kind: str, targets: Any):
    model, tokenizer = build(kind, torch.float32)
    wrapped = add_lora(model, LoraOptions(r=2, target_modules=targets), critic_adapter=False)
    policy = Policy(wrapped.eval(), tokenizer)
    scores = policy.forward(policy.pack_texts(PROMPTS, CANDIDATES, leaves=True))
    (scores.log_prob[scores.mask].sum() + scores.q[:, scores.mask].sum()).backward()
    adapters = {n: p for n, p in wrapped.named_parameters() if "lora_B" in n}
    assert len(adapters) >= 2
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapters.values())
    assert not any("lm_head" in name for name in adapters)

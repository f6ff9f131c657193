"""Small random models of every supported type, and an independent way to score candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sacglam.models.policy import Policy, PolicyOptions
from sacglam.models.tiny import build_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    T5Config,
)

WORDS = (
    "a b c d e f g h i j k go to red blue green lion water grasp release all any you see Goal "
    "Action standing on , . :"
).split()

_GQA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
CONFIGS: dict[str, Callable[[int], Any]] = {
    "llama": lambda v: LlamaConfig(vocab_size=v, **_GQA),
    "qwen2": lambda v: Qwen2Config(vocab_size=v, **_GQA),
    "qwen3": lambda v: Qwen3Config(vocab_size=v, head_dim=16, **_GQA),
    "mistral": lambda v: MistralConfig(vocab_size=v, sliding_window=None, **_GQA),
    "gemma": lambda v: GemmaConfig(vocab_size=v, head_dim=8, **_GQA),
    "smollm3": lambda v: SmolLM3Config(vocab_size=v, **_GQA),
    "gpt2": lambda v: GPT2Config(
        vocab_size=v,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "t5": lambda v: T5Config(vocab_size=v, **_T5),
    "flan-t5": lambda v: T5Config(
        vocab_size=v, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **_T5
    ),
}


def _double_norms(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """RMS norms of transformers compute in float32 whatever the dtype; in float64 tests they would
    round differently for inputs that differ in the 16th digit. It is the classes that are changed:
    a module with a forward method of its own would be left alone by the fused layers."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float64:
            return originals[type(self)](self, x)
        eps = getattr(self, "variance_epsilon", getattr(self, "eps", None))
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        weight = 1.0 + self.weight if "Gemma" in type(self).__name__ else self.weight
        return weight * scaled

    originals = {
        type(module): type(module).forward
        for module in model.modules()
        if "RMSNorm" in type(module).__name__ or type(module).__name__ == "T5LayerNorm"
    }
    for norm in originals:
        monkeypatch.setattr(norm, "forward", forward)


@pytest.fixture(params=sorted(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """make_model(architecture, dtype) -> (model, tokenizer), random weights that matter."""

    def make(architecture: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        tokenizer = build_tokenizer(WORDS)
        config = CONFIGS[architecture](len(tokenizer))
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        torch.manual_seed(seed)
        model = kind.from_config(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.eval()
        if dtype == torch.float64:
            _double_norms(model, monkeypatch)
        return model, tokenizer

    return make


@pytest.fixture
def make_policy(make_model: Any) -> Callable[..., Policy]:
    def make(architecture: str, dtype: torch.dtype = torch.float64, **options: Any) -> Policy:
        model, tokenizer = make_model(architecture, dtype)
        torch.manual_seed(1)
        return Policy(model, tokenizer, options=PolicyOptions(**options))

    return make


@pytest.fixture
def naive(make_model: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """naive(policy, architecture, prompt, action) -> (sum of log-probs, last hidden state).

    One pair at a time through a fresh model with the same weights, the library's own
    fused attention and its own language-model head.
    """
    fresh: dict[int, Any] = {}

    def score(policy: Policy, architecture: str, prompt: str, action: str) -> Any:
        if id(policy) not in fresh:
            model, _ = make_model(architecture, policy.dtype)
            model.load_state_dict(policy.model.state_dict())
            model.set_attn_implementation("sdpa")
            fresh[id(policy)] = model
        model = fresh[id(policy)]
        p = torch.from_numpy(policy.codec.text(prompt).astype(np.int64))
        a = torch.from_numpy(policy.codec.action(action).astype(np.int64))
        if model.config.is_encoder_decoder:
            start = torch.tensor([model.config.decoder_start_token_id])
            out = model(
                input_ids=p[None],
                decoder_input_ids=torch.cat([start, a])[None],
                output_hidden_states=True,
            )
            rows, hidden = out.logits[0, : len(a)], out.decoder_hidden_states[-1][0, -1]
        else:
            out = model(input_ids=torch.cat([p, a])[None], output_hidden_states=True)
            rows, hidden = out.logits[0, len(p) - 1 : -1], out.hidden_states[-1][0, -1]
        return rows.log_softmax(-1)[torch.arange(len(a)), a].sum(), hidden

    return score

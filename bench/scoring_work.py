"""The batch that the scoring and training suites share: models with random weights, built from
configurations, and random prompts with candidates of which most share their first tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sacglam import Policy
from sacglam._C import CandidateSet
from sacglam.models.tiny import build_tokenizer
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

CANDIDATES = 12
PAD = 0
LORA_TARGETS = {"T5": ["q", "v"], "Llama": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Sizes:
    vocab: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    head_dim: int
    prompts: int
    prompt_tokens: tuple[int, int]


FULL = {
    "T5": Sizes(32_128, 512, 1024, 8, 6, 64, 16, (110, 131)),  # Flan-T5-small's
    "Llama": Sizes(32_000, 512, 1408, 8, 8, 64, 16, (110, 131)),
}
SMALL = {name: Sizes(2_000, 128, 256, 2, 4, 32, 4, (40, 49)) for name in FULL}


def sizes_of(kind: str, quick: bool, prompts: int) -> Sizes:
    return replace((SMALL if quick else FULL)[kind], prompts=prompts)


def name_of(kind: str, sizes: Sizes) -> str:
    """What a case is called that has these sizes."""
    low, high = sizes.prompt_tokens
    return (
        f"{kind} d {sizes.hidden} x {sizes.layers}: {sizes.prompts} prompts of {low}-{high - 1} "
        f"tokens x {CANDIDATES} candidates"
    )


def build_model(kind: str, sizes: Sizes) -> Any:
    torch.manual_seed(0)
    if kind == "T5":
        config = T5Config(
            vocab_size=sizes.vocab, d_model=sizes.hidden, d_kv=sizes.head_dim,
            d_ff=sizes.feed_forward, num_layers=sizes.layers, num_heads=sizes.heads,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
            decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=2,
        )  # fmt: skip
        model: Any = T5ForConditionalGeneration(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=sizes.vocab, hidden_size=sizes.hidden, num_hidden_layers=sizes.layers,
            intermediate_size=sizes.feed_forward, num_attention_heads=sizes.heads,
            max_position_embeddings=512, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
        ))  # fmt: skip
    return model.eval()


def add_lora(kind: str, model: Any) -> Any:
    """The model wrapped by peft, with adapters that are not zero (as fresh ones would be)."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    wrapped = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules=LORA_TARGETS[kind])
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return wrapped.eval()


@dataclass(frozen=True)
class Work:
    """The batch as texts for us and as lists of ids for the rivals. B prompts, A candidates."""

    policy: Policy
    stock: Any  # same weights, attention by torch's own fused kernel
    texts: list[list[str]]  # the candidates
    prompts: list[list[int]]
    candidates: list[list[list[int]]]
    sets: list[CandidateSet]
    ids: np.ndarray
    offsets: np.ndarray


def build_work(
    kind: str, sizes: Sizes, *, dtype: torch.dtype = torch.float32, lora: bool = False
) -> Work:
    model, stock = build_model(kind, sizes).to(dtype), build_model(kind, sizes).to(dtype)
    if lora:
        model, stock = add_lora(kind, model), add_lora(kind, stock)
    stock.load_state_dict(model.state_dict())
    words = [f"w{k}" for k in range(sizes.vocab - 4)]  # and four special tokens
    policy = Policy(model, build_tokenizer([" ".join(words)]))
    rng = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(words[k] for k in rng.integers(len(words), size=length))

    def actions() -> list[str]:
        go, release = text(2), text(1)
        goes = [f"{go} {text(n)}" for n in (1, 2, 2, 2, 3, 3, 4, 4)]
        return [*goes, text(1), f"{release} {text(2)}", f"{release} {text(3)}", text(2)]

    prompts = [text(n) for n in rng.integers(*sizes.prompt_tokens, size=sizes.prompts)]
    ids = [policy.codec.text(prompt) for prompt in prompts]
    bare = Work(
        policy,
        stock.get_base_model() if lora else stock,
        [],
        [x.tolist() for x in ids],
        [],
        np.zeros(0, dtype=np.int32),
        np.concatenate(ids),
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
    )
    return with_candidates(bare, [actions() for _ in prompts])


def with_candidates(work: Work, texts: list[list[str]]) -> Work:
    """The same prompts with these candidates."""
    codec = work.policy.codec
    return replace(
        work,
        texts=texts,
        candidates=[[codec.action(a).tolist() for a in each] for each in texts],
        sets=[work.policy.candidate_set(each) for each in texts],
    )


def with_another_candidate(work: Work) -> Work:
    """One candidate more for each prompt: the longest with another last token."""

    def another(actions: list[str]) -> str:
        *first, last = max(actions, key=lambda action: len(action.split())).split()
        return " ".join([*first, "w1" if last == "w0" else "w0"])

    return with_candidates(work, [[*actions, another(actions)] for actions in work.texts])


def ours(work: Work) -> Tensor:
    """The candidates' log-probabilities [B, A]."""
    forest = work.policy.pack(work.ids, work.offsets, work.sets, leaves=False)
    return work.policy.forward(forest, with_q=False).log_prob


def ours_with_q(work: Work) -> Tensor:
    """The candidates' values [heads, B, A], from a pass that gives the log-probabilities too."""
    q = work.policy.forward(work.policy.pack(work.ids, work.offsets, work.sets)).q
    assert q is not None
    return q

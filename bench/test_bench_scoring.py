"""Scoring a batch of prompts x candidates on one CPU thread: ours beside what people run.

Random weights, models built from configurations (Flan-T5-small's dims; a Llama of width 512 with
8 layers), random tokens: 16 ragged prompts of 110 to 130 tokens with 12 candidates each, of which
most share their first tokens ("Go to ...", "Release ..."). Every rival is independent code over a
stock model with the same weights, and must give the same log-probabilities before it is timed.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sacglam import Policy
from sacglam.models.tiny import build_tokenizer
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

CANDIDATES = 12
PAD = 0


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
    "T5": Sizes(32_128, 512, 1024, 8, 6, 64, 16, (110, 131)),
    "Llama": Sizes(32_000, 512, 1408, 8, 8, 64, 16, (110, 131)),
}
SMALL = {name: Sizes(2_000, 128, 256, 2, 4, 32, 4, (40, 49)) for name in FULL}


def build_model(kind: str, sizes: Sizes) -> nn.Module:
    torch.manual_seed(0)
    if kind == "T5":
        config = T5Config(
            vocab_size=sizes.vocab, d_model=sizes.hidden, d_kv=sizes.head_dim,
            d_ff=sizes.feed_forward, num_layers=sizes.layers, num_heads=sizes.heads,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
            decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=2,
        )  # fmt: skip
        model: nn.Module = T5ForConditionalGeneration(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=sizes.vocab, hidden_size=sizes.hidden, num_hidden_layers=sizes.layers,
            intermediate_size=sizes.feed_forward, num_attention_heads=sizes.heads,
            max_position_embeddings=512, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
        ))  # fmt: skip
    return model.eval()


@dataclass
class Work:
    """The batch as texts for us and as lists of ids for the rivals. B prompts, A candidates."""

    policy: Policy
    stock: nn.Module  # same weights, attention by torch's own fused kernel
    prompts: list[list[int]]
    candidates: list[list[list[int]]]
    sets: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray


def build_work(kind: str, sizes: Sizes) -> Work:
    model, stock = build_model(kind, sizes), build_model(kind, sizes)
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
    candidates = [actions() for _ in prompts]
    codec = policy.codec
    ids = [codec.text(prompt) for prompt in prompts]
    return Work(
        policy,
        stock,
        [x.tolist() for x in ids],
        [[codec.action(a).tolist() for a in each] for each in candidates],
        np.array([policy.candidate_set(each) for each in candidates], dtype=np.int32),
        np.concatenate(ids),
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
    )


def pad(rows: list[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of ids as [N, L] and their mask, 1 where there is a token."""
    length = max(map(len, rows))
    gap = [[PAD] * (length - len(row)) for row in rows]
    none = [[0] * len(g) for g in gap]
    ones = [[1] * len(row) for row in rows]
    ids = [g + r if left else r + g for g, r in zip(gap, rows, strict=True)]
    mask = [g + r if left else r + g for g, r in zip(none, ones, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def token_log_probs(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Logits [N, L, V] of the tokens [N, L] -> log-prob of each row [N], padding left out."""
    found = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return (found * mask).sum(-1)


def flat(work: Work) -> list[list[int]]:
    return [a for each in work.candidates for a in each]


def ours(work: Work) -> Tensor:
    forest = work.policy.pack(work.ids, work.offsets, work.sets, leaves=False)
    return work.policy.forward(forest, with_q=False).log_prob


def naive_causal(work: Work, minibatch: int = 48) -> Tensor:
    """The prompt repeated for every candidate; the head only where a candidate's token is."""
    pairs = [(p, a) for p, each in zip(work.prompts, work.candidates, strict=True) for a in each]
    found = []
    for at in range(0, len(pairs), minibatch):
        part = pairs[at : at + minibatch]
        ids, mask = pad([p + a for p, a in part])
        tokens, used = pad([a for _, a in part])
        hidden = work.stock.model(input_ids=ids, attention_mask=mask, use_cache=False)
        first = torch.tensor([len(p) - 1 for p, _ in part])
        where = (first[:, None] + torch.arange(tokens.shape[1])).clamp(max=ids.shape[1] - 1)
        rows = hidden.last_hidden_state[torch.arange(len(part))[:, None], where]
        found.append(token_log_probs(work.stock.lm_head(rows), tokens, used))
    return torch.cat(found).view(len(work.prompts), -1)


def naive_t5(work: Work, minibatch: int = 48) -> Tensor:
    """The prompt encoded again for every candidate."""
    pairs = [(p, a) for p, each in zip(work.prompts, work.candidates, strict=True) for a in each]
    found = []
    for at in range(0, len(pairs), minibatch):
        ids, mask = pad([p for p, _ in pairs[at : at + minibatch]])
        tokens, used = pad([a for _, a in pairs[at : at + minibatch]])
        start = torch.full((len(tokens), 1), PAD)
        logits = work.stock(
            input_ids=ids,
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1),
            use_cache=False,
        ).logits
        found.append(token_log_probs(logits, tokens, used))
    return torch.cat(found).view(len(work.prompts), -1)


def cached_causal(work: Work) -> Tensor:
    """The prompt once, then padded candidates without their last token on the expanded cache."""
    ids, mask = pad(work.prompts, left=True)
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    out = work.stock.model(input_ids=ids, attention_mask=mask, position_ids=place, use_cache=True)
    tokens, used = pad(flat(work))
    first = work.stock.lm_head(out.last_hidden_state[:, -1]).log_softmax(-1)
    first = first.repeat_interleave(CANDIDATES, 0).gather(-1, tokens[:, :1]).squeeze(-1)
    cache = out.past_key_values
    cache.batch_repeat_interleave(CANDIDATES)
    seen = torch.cat([mask.repeat_interleave(CANDIDATES, 0), used[:, :-1]], 1)
    start = mask.sum(-1).repeat_interleave(CANDIDATES)
    hidden = work.stock.model(
        input_ids=tokens[:, :-1],
        attention_mask=seen,
        position_ids=start[:, None] + torch.arange(tokens.shape[1] - 1),
        past_key_values=cache,
    ).last_hidden_state
    rest = token_log_probs(work.stock.lm_head(hidden), tokens[:, 1:], used[:, 1:])
    return (first + rest).view(len(work.prompts), -1)


def cached_t5(work: Work) -> Tensor:
    """The encoder and its keys for cross-attention once, then padded candidates without their last
    token on the expanded cache."""
    ids, mask = pad(work.prompts)
    encoded = work.stock.encoder(input_ids=ids, attention_mask=mask)
    start = torch.full((len(ids), 1), PAD)
    out = work.stock(
        decoder_input_ids=start, encoder_outputs=encoded, attention_mask=mask, use_cache=True
    )
    tokens, used = pad(flat(work))
    first = out.logits[:, 0].log_softmax(-1).repeat_interleave(CANDIDATES, 0)
    first = first.gather(-1, tokens[:, :1]).squeeze(-1)
    cache = out.past_key_values
    cache.batch_repeat_interleave(CANDIDATES)
    states = encoded.last_hidden_state  # only its shape is read: the keys are in the cache
    logits = work.stock(
        decoder_input_ids=tokens[:, :-1],
        encoder_outputs=(states[:1].expand(len(tokens), -1, -1),),
        attention_mask=mask.repeat_interleave(CANDIDATES, 0),
        past_key_values=cache,
        use_cache=True,
    ).logits
    return (first + token_log_probs(logits, tokens[:, 1:], used[:, 1:])).view(len(work.prompts), -1)


# lamorel (github.com/flowersteam/lamorel, server/llms/handlers/hf_llm.py with `pre_encode_inputs`,
# its best mode), written anew from what that code does; its own does not run on transformers 5.
# Kept: contexts padded to the longest; the context's representation repeated for every candidate
# (T5: encoder states, so cross-attention keys are computed per candidate; causal: keys and values
# of all tokens but the last, stacked into one tensor, repeated and sliced again per layer); causal
# candidates begin with the context's last token, T5's with the start token and run to their end;
# the model's head at every position, also of the contexts; softmax over the vocabulary.
# Assumed, in its favour: token ids are at hand (it tokenises at every call); one minibatch for all
# (its examples' 192); padding is masked by length and not by a loop over tokens in Python; sums of
# log-probabilities (its score function multiplies probabilities; newer users sum raw logits).


def lamorel_causal(work: Work) -> Tensor:
    context, mask = pad([p[:-1] for p in work.prompts], left=True)
    kept = work.stock(input_ids=context, attention_mask=mask).past_key_values
    stacked = torch.stack([torch.stack([x.keys, x.values], 1) for x in kept.layers], 1)
    stacked = torch.repeat_interleave(stacked, CANDIDATES, 0)  # [B * A, layers, 2, H, L, D]
    cache = DynamicCache([(stacked[:, n, 0], stacked[:, n, 1]) for n in range(stacked.shape[1])])
    last = [p[-1] for p in work.prompts for _ in range(CANDIDATES)]
    tokens, used = pad([[end, *a] for end, a in zip(last, flat(work), strict=True)])
    seen = torch.cat([mask.repeat_interleave(CANDIDATES, 0), used], 1)
    logits = work.stock(input_ids=tokens, attention_mask=seen, past_key_values=cache).logits
    found = token_log_probs(logits[:, :-1], tokens[:, 1:], used[:, 1:])
    return found.view(len(work.prompts), -1)


def lamorel_t5(work: Work) -> Tensor:
    context, mask = pad(work.prompts)
    encoded = work.stock.encoder(input_ids=context, attention_mask=mask, return_dict=False)[0]
    repeated = torch.repeat_interleave(encoded, CANDIDATES, 0)
    tokens, used = pad([[PAD, *a] for a in flat(work)])
    logits = work.stock(
        encoder_outputs=(repeated,),
        attention_mask=mask.repeat_interleave(CANDIDATES, 0),
        decoder_input_ids=tokens,
        decoder_attention_mask=used,
    ).logits
    found = token_log_probs(logits[:, :-1], tokens[:, 1:], used[:, 1:])
    return found.view(len(work.prompts), -1)


RIVALS: dict[str, dict[str, Callable[[Work], Tensor]]] = {
    "T5": {
        "lamorel's best mode": lamorel_t5,
        "encode once, expanded cache": cached_t5,
        "naive, prompt repeated": naive_t5,
    },
    "Llama": {
        "lamorel's best mode": lamorel_causal,
        "prompt once, expanded cache": cached_causal,
        "naive, prompt repeated": naive_causal,
    },
}


def products(work: Work) -> Callable[[], None]:
    """The floor: the linear layers of the model on the packed tokens, each as one matrix product.
    Attention, norms and the softmax over the vocabulary are left out."""
    forest = work.policy.pack(work.ids, work.offsets, work.sets, leaves=False)
    model = work.stock
    pairs: list[tuple[Tensor, Tensor]] = []
    inputs: dict[tuple[int, int], Tensor] = {}
    encoder = {m for m in model.get_encoder().modules()} if forest.encoder_rows else set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            tokens = len(forest.ids)
            if module in encoder or name.endswith(("EncDecAttention.k", "EncDecAttention.v")):
                tokens = forest.encoder_ids.numel()
            if name == "lm_head":
                tokens = len(forest.head_rows)
            size = (tokens, module.in_features)
            x = inputs.setdefault(size, torch.randn(size))
            pairs.append((x, module.weight.detach()))

    def run() -> None:
        for x, weight in pairs:
            nn.functional.linear(x, weight)

    return run


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def _give_back_memory() -> None:
    """Return freed memory to the system, so that the next peak does not hide in it (glibc)."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _compare(compare, peak_bytes, quick, kind: str, *, prompts: int, naive: bool) -> None:
    sizes = (SMALL if quick else FULL)[kind]
    work = build_work(kind, Sizes(**{**vars(sizes), "prompts": prompts}))
    methods = {"sacglam": ours, **RIVALS[kind]}
    if not naive:
        del methods["naive, prompt repeated"]
    peaks, scores = {}, {}
    for name, method in methods.items():
        found: list[Tensor] = []
        _give_back_memory()
        peaks[name] = peak_bytes(lambda method=method, found=found: found.append(method(work)))
        scores[name] = found[0]
        # Agreement before speed: a method that computes something else is not a rival.
        torch.testing.assert_close(
            found[0], scores["sacglam"], rtol=1e-4, atol=1e-4,
            msg=lambda text, name=name: f"{name} disagrees with sacglam: {text}",
        )  # fmt: skip
    low, high = sizes.prompt_tokens
    compare(
        f"{kind} d {sizes.hidden} x {sizes.layers}: {prompts} prompts of {low}-{high - 1} tokens "
        f"x {CANDIDATES} candidates",
        {name: lambda method=method: method(work) for name, method in methods.items()},
        floor=products(work),
        peak_bytes=peaks,
        rounds=None if quick else 3,  # the slow rivals take seconds a call
    )


@pytest.mark.parametrize("kind", ["T5", "Llama"])
def test_batch(compare, peak_bytes, quick, kind):
    """The workload of 16 prompts; naive would take half a minute a call (see few prompts)."""
    _compare(compare, peak_bytes, quick, kind, prompts=8 if quick else 16, naive=False)


@pytest.mark.parametrize("kind", ["T5", "Llama"])
def test_few_prompts(compare, peak_bytes, quick, kind):
    _compare(compare, peak_bytes, quick, kind, prompts=2, naive=True)

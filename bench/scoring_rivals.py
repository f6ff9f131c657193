"""Other ways to score the same batch, each independent code over a stock model of equal weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from scoring_work import CANDIDATES, PAD, Work
from torch import Tensor, nn
from transformers import DynamicCache

Score = Callable[[Work], Tensor]


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


def trie_padded(work: Work) -> Tensor:
    """The tries of the packed batch as one padded row a prompt, stock attention under a dense mask,
    and the logits of the rows that are read, materialised. It runs each token once as ours does,
    and padding besides."""
    forest = work.policy.pack(work.ids, work.offsets, work.sets, leaves=False)
    starts, end = forest.plan.q_start.long(), forest.plan.end
    assert end is not None
    lengths = starts.diff()
    slot = torch.arange(int(lengths.max()))
    inside = slot < lengths[:, None]  # [B, L]
    node = starts[:-1, None] + slot * inside
    seen = (node[:, None, :] <= node[:, :, None]) & (
        node[:, :, None] < end.long()[node][:, None, :]
    )
    seen &= inside[:, None, :]
    mask = torch.zeros(seen.shape, dtype=work.policy.dtype).masked_fill_(~seen, -torch.inf)[:, None]
    depth = forest.pos[node]
    if work.stock.config.is_encoder_decoder:
        ids, present = pad(work.prompts)
        encoded = work.stock.encoder(input_ids=ids, attention_mask=present).last_hidden_state
        with _biases_by(work.stock, depth):
            hidden = work.stock.decoder(
                input_ids=forest.ids[node],
                attention_mask=mask,
                encoder_hidden_states=encoded,
                encoder_attention_mask=present,
                use_cache=False,
            ).last_hidden_state
    else:
        hidden = work.stock.model(
            input_ids=forest.ids[node], attention_mask=mask, position_ids=depth, use_cache=False
        ).last_hidden_state
    rows = hidden[inside][forest.read[forest.head_rows]]
    found = work.stock.lm_head(rows).log_softmax(-1)[forest.edge_row, forest.edge_token]
    candidate = torch.arange(forest.num_candidates).repeat_interleave(forest.path_offsets.diff())
    scores = found.new_zeros(forest.num_candidates)
    return scores.index_add(0, candidate, found[forest.path_edges])[forest.table]


@contextmanager
def _biases_by(model: nn.Module, depth: Tensor) -> Iterator[None]:
    """T5 computes its biases from places in the row; let the decoder do so from depths [B, L]."""
    own = model.decoder.block[0].layer[0].SelfAttention

    def compute_bias(*_: object, **__: object) -> Tensor:
        bucket = own._relative_position_bucket(
            depth[:, None, :] - depth[:, :, None],
            bidirectional=False,
            num_buckets=own.relative_attention_num_buckets,
            max_distance=own.relative_attention_max_distance,
        )
        return own.relative_attention_bias(bucket).permute(0, 3, 1, 2)

    own.compute_bias = compute_bias
    try:
        yield
    finally:
        del own.compute_bias


LAMOREL: dict[str, Score] = {"T5": lamorel_t5, "Llama": lamorel_causal}
RIVALS: dict[str, dict[str, Score]] = {
    "T5": {
        "lamorel's best mode": lamorel_t5,
        "encode once, expanded cache": cached_t5,
        "same trie, padded rows, stock SDPA": trie_padded,
    },
    "Llama": {
        "lamorel's best mode": lamorel_causal,
        "prompt once, expanded cache": cached_causal,
        "same trie, padded rows, stock SDPA": trie_padded,
    },
}
NAIVE: dict[str, Score] = {"T5": naive_t5, "Llama": naive_causal}

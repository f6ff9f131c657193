"""The least work that scores a batch: every distinct token through every layer once.

Only matrix products are counted, 2 R I O operations for R rows through a layer of I inputs and O
outputs. Attention between tokens, norms, activations and the softmax over the vocabulary are left
out on both sides: of the floor, and of what is counted of a method that runs. Leaves are no rows of
the floor where only log-probabilities are wanted, since a token's probability needs its parent's
state alone. Tokens are those of distinct prompts: a beginning that two prompts share counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Ids = Sequence[int]
Product = tuple[int, int, int]  # rows, inputs, outputs


@dataclass(frozen=True)
class Tokens:
    """Numbers of rows that no method can do without, over the whole batch."""

    encoder: int  # tokens of the prompts, 0 for a causal model
    nodes: int  # of the tries, and for a causal model of the prompts
    read: int  # whose last hidden state is needed
    head: int  # whose next-token law is needed


def count_tokens(
    prompts: Sequence[Ids],
    candidates: Sequence[Sequence[Ids]],
    *,
    encoder_decoder: bool,
    leaves: bool = False,
) -> Tokens:
    """Count by sets of prefixes: independent of the packer. leaves: run last tokens too (Q)."""
    encoder = nodes = read = head = 0
    distinct = {
        (tuple(p), tuple(map(tuple, each))) for p, each in zip(prompts, candidates, strict=True)
    }
    for prompt, each in distinct:
        inner = {candidate[:k] for candidate in each for k in range(len(candidate))}
        whole = set(each) if leaves else set()
        encoder += len(prompt) if encoder_decoder else 0
        # The empty prefix is the decoder's start token, or the prompt's last token.
        nodes += len(inner | whole) + (0 if encoder_decoder else len(prompt) - 1)
        read += len(inner | whole)
        head += len(inner)
    return Tokens(encoder, nodes, read, head)


def products(config: Any, tokens: Tokens) -> list[Product]:
    """The matrix products of a T5 or Llama type model over these tokens, from its dims."""
    if config.is_encoder_decoder:
        return _t5_products(config, tokens)
    width, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    made: list[Product] = []
    for layer in range(config.num_hidden_layers):
        last = layer == config.num_hidden_layers - 1
        rows = tokens.read if last else tokens.nodes  # others serve the last layer as keys alone
        made += [(tokens.nodes, width, key)] * 2
        made += [(rows, width, query), (rows, query, width)]
        made += [(rows, width, inner)] * 2 + [(rows, inner, width)]
    return [*made, (tokens.head, width, config.vocab_size)]


def _t5_products(config: Any, tokens: Tokens) -> list[Product]:
    width, attended = config.d_model, config.num_heads * config.d_kv

    def attention(queries: int, keys: int) -> list[Product]:
        own = [(queries, width, attended), (queries, attended, width)]
        return own + [(keys, width, attended)] * 2

    def feed_forward(rows: int) -> list[Product]:
        first = 2 if config.is_gated_act else 1
        return [(rows, width, config.d_ff)] * first + [(rows, config.d_ff, width)]

    encoder = attention(tokens.encoder, tokens.encoder) + feed_forward(tokens.encoder)
    decoder = attention(tokens.nodes, tokens.nodes) + attention(tokens.nodes, tokens.encoder)
    decoder += feed_forward(tokens.nodes)
    head = (tokens.head, width, config.vocab_size)
    return encoder * config.num_layers + decoder * config.num_decoder_layers + [head]


def flops_of(made: Sequence[Product]) -> int:
    return sum(2 * rows * inputs * outputs for rows, inputs, outputs in made)


def run_of(made: Sequence[Product], dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """A call that computes products of these sizes and nothing else, each from its own weight."""
    inputs = {(rows, width): torch.randn(rows, width, dtype=dtype) for rows, width, _ in made}
    # Transposed views, as linear layers use their weights.
    weights = [torch.randn(out, width, dtype=dtype) for _, width, out in made]

    def run() -> None:
        for (rows, width, _), weight in zip(made, weights, strict=True):
            torch.mm(inputs[rows, width], weight.T)

    return run


def executed_flops(method: Callable[[], object]) -> int:
    """Operations of the matrix products that a call really runs, as torch dispatches them.

    Attention by torch's fused kernel, or by ours, is none of these.
    """
    aten = torch.ops.aten
    with FlopCounterMode(display=False) as counter:
        method()
    found = counter.get_flop_counts().get("Global", {})
    return sum(int(found.get(op, 0)) for op in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm))

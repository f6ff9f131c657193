"""The workloads of the GPU benchmark: prompts with candidate tries, packed, and their floors.

Every prompt has `prompt` tokens and `candidates` continuations of `length` tokens that share no
first token (the worst case for a trie). Leaves are not run: an edge needs its parent alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Model:
    """Sizes of a headline model; `trunk` is its parameters in matrix products, per token."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    layers: int


QWEN = Model("Qwen2.5-0.5B", 14, 2, 64, 896, 151_936, 24)
T5 = Model("Flan-T5-base", 12, 12, 64, 768, 32_128, 12)


@dataclass(frozen=True)
class Pack:
    """A packed batch on the device. T tokens, R head rows, E edges, C candidates, B prompts."""

    end: torch.Tensor  # int32 [T]
    tree_start: torch.Tensor  # int32 [B + 1]
    pos: torch.Tensor  # int32 [T]
    prefix: int
    pairs: int  # visible (query, key) pairs
    head_rows: torch.Tensor  # int64 [R]
    edge_row: torch.Tensor  # int32 [E], index into head_rows
    cand_edge_offsets: torch.Tensor  # int32 [C + 1]
    cand_edges: torch.Tensor  # int32 [C * length]
    prompt_offsets: torch.Tensor  # int32 [B + 1]

    @property
    def tokens(self) -> int:
        return self.end.shape[0]

    @property
    def edges(self) -> int:
        return self.edge_row.shape[0]


DEVICE = "cuda"


def pack(
    prompts: int,
    prompt: int = 150,
    candidates: int = 12,
    length: int = 5,
    prefix: int = 0,
    device: str | None = None,
) -> Pack:
    """`prompts` equal trees: a chain of `prompt` tokens (of which `prefix` are shared by all, and
    lie once in front), then `candidates` branches of `length - 1` tokens."""
    chain, branch = prompt - prefix, length - 1
    size = chain + candidates * branch
    total = prefix + prompts * size
    base = prefix + torch.arange(prompts)[:, None] * size  # [B, 1]
    chain_end = (base + size).expand(-1, chain)
    first = chain + torch.arange(candidates)[:, None] * branch  # [A, 1]
    branch_end = (first + branch).expand(-1, branch).reshape(1, -1) + base
    end = torch.cat([torch.full((prefix,), total), torch.cat([chain_end, branch_end], 1).flatten()])
    depth = torch.cat(
        [torch.arange(prefix, prompt), prompt + torch.arange(branch).repeat(candidates)]
    )
    pos = torch.cat([torch.arange(prefix), depth.repeat(prompts)])
    rows_per_prompt = 1 + candidates * branch
    head_rows = (base + torch.arange(chain - 1, size)[None]).flatten()
    inner = 1 + first - chain + torch.arange(branch)
    row = torch.cat([torch.zeros(candidates, 1).long(), inner], 1)
    edge_row = (row.flatten()[None] + torch.arange(prompts)[:, None] * rows_per_prompt).flatten()
    edges = prompts * candidates * length

    def put(x: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return x.to(dtype).to(device or DEVICE)

    own = chain * (chain + 1) // 2 + candidates * (branch * (branch + 1) // 2 + branch * chain)
    return Pack(
        end=put(end),
        tree_start=put(prefix + torch.arange(prompts + 1) * size),
        pos=put(pos),
        prefix=prefix,
        pairs=prefix * (prefix + 1) // 2 + prompts * (own + size * prefix),
        head_rows=put(head_rows, torch.int64),
        edge_row=put(edge_row),
        cand_edge_offsets=put(torch.arange(prompts * candidates + 1) * length),
        cand_edges=put(torch.arange(edges)),
        prompt_offsets=put(torch.arange(prompts + 1) * candidates),
    )


@dataclass
class Ceilings:
    """Measured on this machine: what no kernel can beat."""

    bytes_per_s: float = 4.3e12
    flops_per_s: float = 790e12

    def floor_s(self, flops: float, moved: float) -> float:
        """The larger of arithmetic and memory time."""
        return max(flops / self.flops_per_s, moved / self.bytes_per_s)


def attention_floor(
    model: Model, pairs: int, q_tokens: int, k_tokens: int, ceilings: Ceilings, *, train: bool
) -> float:
    """Seconds: 2 products forward and 5 backward per visible pair; each tensor moved once."""
    flops = 4.0 * pairs * model.heads * model.head_dim
    q_bytes = 2.0 * q_tokens * model.heads * model.head_dim
    kv_bytes = 2.0 * k_tokens * model.kv_heads * model.head_dim * 2
    if not train:
        return ceilings.floor_s(flops, 2 * q_bytes + kv_bytes)
    return ceilings.floor_s(3.5 * flops, 6 * q_bytes + 3 * kv_bytes)


def head_floor(model: Model, rows: int, ceilings: Ceilings, *, train: bool) -> float:
    """Seconds: one product forward; its mean embedding on top for the gradient to h."""
    product = 2.0 * rows * model.vocab * model.hidden
    moved = 2.0 * (model.vocab + rows) * model.hidden
    return ceilings.floor_s(product * (2 if train else 1), moved * (2 if train else 1))

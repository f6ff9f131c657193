"""Attention over a packed prefix forest, as a Hugging Face attention function.

Registered as "sacglam" (rows padded per tree, torch's fused attention) and "sacglam_reference" (one
dense mask, the simplest code that is right). No mask function is registered: transformers then
builds no mask of its own, and the layout arrives as an extra keyword of the trunk's forward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .forest import PaddedRows, TreeLayout

FAST = "sacglam"
REFERENCE = "sacglam_reference"


class _Pad(torch.autograd.Function):
    """x [T, F] -> [P * L, F]; every row occurs once, so the gradient is a gather too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: Tensor, unpad: Tensor) -> Tensor:
        ctx.save_for_backward(unpad)
        return x.index_select(0, pad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (unpad,) = ctx.saved_tensors
        return grads[0].index_select(0, unpad), None, None


class _Unpad(torch.autograd.Function):
    """x [P * L, F] -> [T, F]; empty slots get a zero gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unpad: Tensor) -> Tensor:
        ctx.save_for_backward(unpad)
        ctx.slots = x.shape[0]
        return x.index_select(0, unpad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (unpad,) = ctx.saved_tensors
        out = grads[0].new_zeros(ctx.slots, grads[0].shape[1])
        return out.index_copy_(0, unpad, grads[0]), None


def pad_heads(x: Tensor, rows: PaddedRows) -> Tensor:
    """[1, H, T, D] -> [P, H, L, D]."""
    _, heads, total, dim = x.shape
    trees, length = rows.shape
    flat = x.transpose(1, 2).reshape(total, heads * dim)
    padded = _Pad.apply(flat, rows.pad, rows.unpad)
    return padded.view(trees, length, heads, dim).transpose(1, 2)


def unpad_heads(x: Tensor, rows: PaddedRows) -> Tensor:
    """[P, H, L, D] -> [1, T, H, D]."""
    trees, heads, length, dim = x.shape
    flat = x.transpose(1, 2).reshape(trees * length, heads * dim)
    return _Unpad.apply(flat, rows.unpad).view(1, -1, heads, dim)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, causal: bool = False
) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
    )


def _additive(mask: Tensor, bias: Tensor) -> Tensor:
    """Boolean mask and float bias as one additive mask."""
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)


def _depth_bias(bias: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """bias [H, 2R + 1] by (key depth - query depth); queries [P, N], keys [P, L] -> [P, H, N, L]."""
    radius = bias.shape[1] // 2
    distance = (keys[:, None, :] - queries[:, :, None]).clamp(-radius, radius) + radius
    return bias[:, distance].transpose(0, 1)


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: TreeLayout | None = None,
    encoder_rows: PaddedRows | None = None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for query [1, H, T, D] and key, value [1, Hkv, T', D] -> [1, T, H, D].

    layout alone: causal self-attention in the forest. encoder_rows alone: bidirectional self-attention
    inside each prompt. Both, in a module marked `sacglam_cross`: trie nodes attend to their prompt.
    position_bias: a table [H, 2R + 1] by distance (T5), or empty.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = position_bias if position_bias is not None and position_bias.numel() else None
    if layout is None or getattr(module, "sacglam_cross", False):
        assert encoder_rows is not None
        query_rows = encoder_rows if layout is None else layout.rows
        q = pad_heads(query, query_rows)
        k, v = pad_heads(key, encoder_rows), pad_heads(value, encoder_rows)
        mask = encoder_rows.used[:, None, None, :]
        if bias is not None:
            slots = torch.arange(q.shape[2], device=q.device)[None]
            mask = _additive(mask, _depth_bias(bias, slots, slots))
        return unpad_heads(_attend(q, k, v, scale, mask), query_rows), None

    q, k, v = (pad_heads(x, layout.rows) for x in (query, key, value))
    c = layout.chain
    mask = layout.trie_mask[:, None]
    chain_mask = None
    if bias is not None:
        mask = _additive(mask, _depth_bias(bias, layout.depth[:, c:], layout.depth))
        if c > 1:
            slots = torch.arange(c, device=q.device)[None]
            causal = torch.ones(c, c, dtype=torch.bool, device=q.device).tril()
            chain_mask = _additive(causal, _depth_bias(bias, slots, slots))
    chain = _attend(
        q[:, :, :c], k[:, :, :c], v[:, :, :c], scale, chain_mask, causal=chain_mask is None
    )
    if q.shape[2] == c:
        return unpad_heads(chain, layout.rows), None
    trie = _attend(q[:, :, c:], k, v, scale, mask)
    return unpad_heads(torch.cat([chain, trie], dim=2), layout.rows), None


def reference_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: TreeLayout | None = None,
    encoder_rows: PaddedRows | None = None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The same as `forest_attention`, by one dense mask and a plain softmax."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    def tree_of(rows: PaddedRows) -> tuple[Tensor, Tensor]:
        return rows.unpad // rows.shape[1], rows.unpad % rows.shape[1]

    if layout is None or getattr(module, "sacglam_cross", False):
        assert encoder_rows is not None
        key_tree, key_pos = tree_of(encoder_rows)
        query_tree, query_pos = tree_of(encoder_rows if layout is None else layout.rows)
        visible = query_tree[:, None] == key_tree[None, :]
    else:
        index = torch.arange(len(layout.end), device=query.device)
        visible = (index[None, :] <= index[:, None]) & (index[:, None] < layout.end[None, :])
        query_pos = key_pos = layout.pos
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * scale
    if position_bias is not None and position_bias.numel():
        radius = position_bias.shape[1] // 2
        distance = (key_pos[None, :] - query_pos[:, None]).clamp(-radius, radius) + radius
        scores = scores + position_bias[:, distance]
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2), None


def register() -> None:
    """Make both functions known to transformers; safe to call more than once."""
    from transformers import AttentionInterface

    AttentionInterface.register(FAST, forest_attention)
    AttentionInterface.register(REFERENCE, reference_attention)

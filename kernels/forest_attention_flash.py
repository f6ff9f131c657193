"""Attention of whole segments by FlashAttention, from the package flash-attn.

It knows no interval test and no bias: what it can do is T5's cross-attention. Source: Dao,
"FlashAttention-2" (2023).
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache

import torch

from .attention_plan import AttentionPlan
from .backend import before_ampere

_MAX_HEAD_DIM = 256


@lru_cache(maxsize=1)
def flash_available() -> bool:
    """Whether the package flash-attn is installed, and has what is called here: built for another
    torch it does not load, and flash-attn-4 is a package of the same name with other functions."""
    if importlib.util.find_spec("flash_attn") is None:
        return False
    try:
        return hasattr(importlib.import_module("flash_attn"), "flash_attn_varlen_func")
    except Exception:  # a package may fail in any way when imported
        return False


def refusal(q: torch.Tensor, plan: AttentionPlan, bias: torch.Tensor | None) -> str | None:
    """Why FlashAttention cannot compute this; None if it can."""
    if plan.end is not None:
        return "a forest's interval test is unknown to it: it serves segments"
    if bias is not None:
        return "it adds no bias"
    if plan.longest is None:
        return "it must be told the longest segments: plan_segments(..., longest=)"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"it takes 16-bit tensors, got {q.dtype}"
    if before_ampere(q.device):
        return "it needs a GPU of compute capability 8.0 or more"
    if q.shape[-1] > _MAX_HEAD_DIM or q.shape[-1] % 8:
        return f"it takes up to {_MAX_HEAD_DIM} columns a head, a multiple of 8; got {q.shape[-1]}"
    return None


def flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, scale: float
) -> torch.Tensor:
    """q [H, Tq, D]; k, v [Hkv, Tk, D] -> [H, Tq, D], laid out [Tq, H, D] in memory."""
    from flash_attn import flash_attn_varlen_func

    assert plan.longest is not None
    rows = (x.transpose(0, 1) for x in (q, k, v))
    out = flash_attn_varlen_func(
        *rows, plan.q_start, plan.k_start, *plan.longest, softmax_scale=scale
    )
    return out.transpose(0, 1)

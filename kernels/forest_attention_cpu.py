"""Attention by the native CPU kernels; formulas in `forest_attention`, code in csrc/cpu.

They work tree by tree on the visible pairs alone: no padding, no mask, no table of biases at every
pair, and rotary embedding where rows are loaded anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from sacglam import _C

from . import cpu
from .attention_plan import AttentionPlan
from .backend import last_dim_contiguous


def serves(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    bias: torch.Tensor | None,
) -> bool:
    """Whether the native kernels can do this call."""
    return plan.prefix == 0 and cpu.serves_attention(q.shape[-1], q, k, v, bias)


def _native_plan(plan: AttentionPlan) -> Any:
    if "native" not in plan._cache:
        plan._cache["native"] = _C.CpuPlan(
            *(cpu.array(x.int()) for x in (plan.q_start, plan.k_start)),
            plan.q_total,
            plan.k_total,
            *(
                cpu.array(None if x is None else x.int())
                for x in (plan.end, plan.q_node, plan.q_pos, plan.k_pos)
            ),
        )
    return plan._cache["native"]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[H, T, D] as [T, H, D] with a dense last dimension; a view where the memory allows."""
    return last_dim_contiguous(x.detach().transpose(0, 1))


class NativeAttention(torch.autograd.Function):
    """q [H, Tq, D], k and v [Hkv, Tk, D] -> [H, Tq, D], laid out [Tq, H, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
        plan: AttentionPlan,
        scale: float,
    ) -> torch.Tensor:
        cos, sin = (None, None) if rotary is None else (x.contiguous() for x in rotary)
        table = None if bias is None else bias.detach().contiguous()
        query = _rows(q)
        out = query.new_empty(query.shape)
        lse = query.new_empty(query.shape[:2])
        _C.attention_forward(
            _native_plan(plan), *(cpu.array(x) for x in (query, _rows(k), _rows(v))),
            *(cpu.array(x) for x in (table, cos, sin)), scale, cpu.array(out), cpu.array(lse),
            cpu.threads(),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, bias, cos, sin, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out.transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, bias, cos, sin, out, lse = ctx.saved_tensors
        table = None if bias is None else bias.detach().contiguous()
        query, key, value = _rows(q), _rows(k), _rows(v)
        dq, dk, dv = (x.new_empty(x.shape) for x in (query, key, value))
        parts = None
        if bias is not None and ctx.needs_input_grad[3]:
            parts = bias.new_zeros(ctx.plan.trees, *bias.shape)
        _C.attention_backward(
            _native_plan(ctx.plan), *(cpu.array(x) for x in (query, key, value, table, cos, sin)),
            ctx.scale, *(cpu.array(x) for x in (out, lse, _rows(grad), dq, dk, dv, parts)),
            cpu.threads(),
        )  # fmt: skip
        dbias = None if parts is None else parts.sum(0)
        return (*(x.transpose(0, 1) for x in (dq, dk, dv)), dbias, None, None, None)

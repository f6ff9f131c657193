"""Attention over a packed prefix forest, forward and backward.

    S[h, i, j] = scale * q[h, i] . k[h // G, j]  (+ bias[h, clamp(pos[i] - pos[j] + R, 0, 2R)])
    visible(i, j)  <=>  j <= i < end[j]          (a forest)     same segment pair   (segments)
    P = softmax over the visible j of S,         O[h, i] = sum_j P[h, i, j] v[h // G, j]
    L[h, i] = log sum_j exp S[h, i, j]           (kept for the backward pass)

Backward, with dO given and delta[h, i] = dO[h, i] . O[h, i] = sum_j P dP:

    dP = dO v^T      dS = P * (dP - delta)      dV = P^T dO
    dQ = scale dS k  dK = scale dS^T q          dbias[h, r] = sum over (i, j) of offset r of dS

G = H // Hkv query heads share a key head. The interval test alone covers ragged prompts, a prefix
shared by all trees, and the branches of candidate tries. Source of the recurrences: Dao,
FlashAttention-2 (2023), algorithms 1 and 2; of the interval test: any depth-first preorder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from . import cpu
from . import forest_attention_cpu as native_attention
from . import forest_attention_flash as flash
from .attention_plan import AttentionPlan, plan_forest, plan_segments
from .backend import Backend, use_triton
from .rotary_embedding import rotary_embedding


def forest_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    end: torch.Tensor,
    tree_start: torch.Tensor,
    *,
    prefix: int = 0,
    pos: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Self-attention over a packed forest; see the module's formula.

    Args: q [H, T, D]; k, v [Hkv, T, D] with H a multiple of Hkv; end int32 [T]; tree_start
    int32 [P + 1] (from `prefix` to T); prefix: length of the chain [0, prefix) that all trees
    continue; pos int32 [T] and bias [H, 2R + 1]: T5's additive bias by depth difference, either
    both or neither; scale: default D ** -0.5.
    Returns [H, T, D] in q's dtype, laid out [T, H, D] in memory. Differentiable in q, k, v, bias.
    Many layers over one pack: make the plan once (`plan_forest`) and call `attention`.
    """
    plan = plan_forest(end, tree_start, prefix=prefix, pos=pos)
    return attention(q, k, v, plan, bias=bias, scale=scale, backend=backend)


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_start: torch.Tensor,
    k_start: torch.Tensor | None = None,
    *,
    q_pos: torch.Tensor | None = None,
    k_pos: torch.Tensor | None = None,
    longest: tuple[int, int] | None = None,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Full attention of each query segment to its key segment (T5's encoder, cross-attention).

    Args: q [H, Tq, D]; k, v [Hkv, Tk, D]; q_start, k_start int32 [P + 1], k_start defaulting to
    q_start; longest as in `plan_segments`; the rest as in `forest_attention`.
    """
    plan = plan_segments(
        q_start, q.shape[1], k_start, k.shape[1], q_pos=q_pos, k_pos=k_pos, longest=longest
    )
    return attention(q, k, v, plan, bias=bias, scale=scale, backend=backend)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Attention under a plan made once a batch; arguments and result as in `forest_attention`.

    rotary: (cos, sin), each [T, D] by token, rotates queries and keys first: x cos +
    rotate_half(x) sin (Su et al. 2021, halves as in Llama). backend: "auto" takes Triton on CUDA
    (FlashAttention where flash-attn is installed and can do it) and the native kernels on the CPU
    where they serve (float32), else torch.
    """
    _check(q, k, v, plan, bias)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if q.numel() == 0:
        return q.clone()
    if backend == "flash" or (backend == "auto" and q.is_cuda):
        refusal = flash.refusal(q, plan, bias) or ("it rotates nothing" if rotary else None)
        if backend == "flash" and refusal:
            raise ValueError(f"backend='flash': {refusal}")
        if not refusal and (backend == "flash" or flash.flash_available()):
            return flash.flash_attention(q, k, v, plan, scale)
    native = backend in ("auto", "native") and native_attention.serves(q, k, v, plan, bias)
    if backend == "native" and not native:
        raise ValueError(
            "backend='native' needs float32 tensors on the CPU, at most "
            f"{cpu.max_head_dim()} columns a head and no shared prefix, got {q.dtype} "
            f"on {q.device}, {q.shape[-1]} columns and a prefix of {plan.prefix}"
        )
    if native:
        return native_attention.NativeAttention.apply(q, k, v, bias, rotary, plan, scale)
    on_gpu = use_triton(backend, q)
    if rotary is not None:
        cos, sin = rotary
        own = rotary
        if plan.q_node is not None:
            own = (cos[plan.q_node.long()], sin[plan.q_node.long()])
        q, k = rotary_embedding(q, k, own, rotary, backend=backend)
    if not on_gpu:
        if plan.q_node is not None:
            return _with_all_queries(q, k, v, plan, bias, scale)
        return padded_attention(q, k, v, plan, bias=bias, scale=scale)
    return _TritonAttention.apply(q, k, v, bias, plan, scale)


def _with_all_queries(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan,
    bias: torch.Tensor | None, scale: float,
) -> torch.Tensor:  # fmt: skip
    """A plan that leaves queries out, by padded rows, which know only whole forests."""
    assert plan.end is not None
    assert plan.q_node is not None
    tokens = plan.q_node.long()
    whole = plan_forest(plan.end, plan.k_start, prefix=plan.prefix, pos=plan.k_pos)
    every = q.new_zeros(q.shape[0], plan.k_total, q.shape[2]).index_copy(1, tokens, q)
    return padded_attention(every, k, v, whole, bias=bias, scale=scale)[:, tokens]


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    bias: torch.Tensor | None,
) -> None:
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: need [H, Tq, D] and "
            "twice [Hkv, Tk, D] (without a batch dimension)"
        )
    if k.shape[0] == 0 or q.shape[0] % k.shape[0]:
        raise ValueError(f"{q.shape[0]} query heads are not a multiple of {k.shape[0]} key heads")
    if q.shape[1] != plan.q_total or k.shape[1] != plan.k_total:
        raise ValueError(
            f"q has {q.shape[1]} tokens and k {k.shape[1]}, the plan is for {plan.q_total} and "
            f"{plan.k_total}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: need one dtype")
    if bias is not None:
        if bias.ndim != 2 or bias.shape[0] != q.shape[0] or bias.shape[1] % 2 == 0:
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}: need [{q.shape[0]}, 2R + 1], a column per "
                "depth difference from -R to R"
            )
        if plan.q_pos is None or plan.k_pos is None:
            raise ValueError("a bias needs the tokens' depths: pass pos to the plan")


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """The formula over one dense [Tq, Tk] mask in float64: the simplest code that is right.

    For tests: it shares nothing with the fast paths but the plan's input arrays.
    """
    group = q.shape[0] // k.shape[0]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    keys = k.double().repeat_interleave(group, 0)
    values = v.double().repeat_interleave(group, 0)
    i = torch.arange(plan.q_total, device=q.device)[:, None]
    if plan.q_node is not None:
        i = plan.q_node.long()[:, None]
    j = torch.arange(plan.k_total, device=q.device)[None, :]
    if plan.end is not None:
        visible = (j <= i) & (i < plan.end[None, :])
    else:
        q_tree = torch.searchsorted(plan.q_start.long()[1:].contiguous(), i.flatten(), right=True)
        k_tree = torch.searchsorted(plan.k_start.long()[1:].contiguous(), j.flatten(), right=True)
        visible = q_tree[:, None] == k_tree[None, :]
    scores = scale * (q.double() @ keys.transpose(1, 2))
    if bias is not None and plan.q_pos is not None and plan.k_pos is not None:
        radius = (bias.shape[1] - 1) // 2
        offset = plan.q_pos.long()[:, None] - plan.k_pos.long()[None, :] + radius
        scores = scores + bias.double()[:, offset.clamp(0, 2 * radius)]
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.softmax(scores, -1).masked_fill(~visible.any(1)[:, None], 0.0)
    return weights @ values


def padded_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    *,
    bias: torch.Tensor | None = None,
    scale: float,
) -> torch.Tensor:
    """Stock scaled-dot-product attention, tree by tree: slices alone, or short trees as padded
    rows [N, H, Lmax, D]. The CPU's path, and what runs on a GPU without Triton.
    """
    dtype = q.dtype
    if q.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and _needs_grad(q, k, v):
        # The CPU's 16-bit attention backward is 1.5x slower than float32's, conversions included.
        q, k, v = q.float(), k.float(), v.float()
    group = q.shape[0] // k.shape[0]
    queries = _Split.apply(q, plan, "q")
    keys = _Split.apply(k, plan, "k")
    values = _Split.apply(v, plan, "k")
    if plan.prefix:
        shared_k, shared_v = keys[0], values[0]
    outs = []
    for b, (q_b, k_b, v_b) in enumerate(zip(queries, keys, values, strict=True)):
        bucket = plan.buckets()[b]
        if bucket.prefix:
            k_b = torch.cat([shared_k.expand(k_b.shape[0], -1, -1, -1), k_b], dim=2)
            v_b = torch.cat([shared_v.expand(v_b.shape[0], -1, -1, -1), v_b], dim=2)
        if group > 1 and q.is_cuda:  # the masked CUDA kernels take no grouped heads
            k_b = k_b.repeat_interleave(group, 1)
            v_b = v_b.repeat_interleave(group, 1)
        call = partial(
            F.scaled_dot_product_attention, scale=scale, enable_gqa=group > 1 and not q.is_cuda
        )
        if bias is None and bucket.trunk:
            outs.append(_trunk_first(q_b, k_b, v_b, bucket.trunk, plan.mask(b, q.dtype), call))
            continue
        mask = plan.mask(b, q.dtype, whole=True)
        if bias is not None:
            added = _bias_of(bias, plan, b).to(q.dtype)
            mask = added if mask is None else mask + added
        outs.append(call(q_b, k_b, v_b, attn_mask=mask))
    return _Join.apply(plan, q.shape[0], q, *outs).to(dtype)


def _trunk_first(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trunk: int, mask: torch.Tensor | None,
    call: Callable[..., torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """One tree, [1, H, L, D]: up to its first branching the mask is a triangle, half of which
    needs no work; the rows after it see all that `mask` [1, 1, L - trunk, L] lets them."""
    length = q.shape[2]
    if trunk == length:
        return call(q, k, v, is_causal=True)
    chain, rest = q.split([trunk, length - trunk], dim=2)
    first = call(chain, k[:, :, :trunk], v[:, :, :trunk], is_causal=True)
    return torch.cat([first, call(rest, k, v, attn_mask=mask)], dim=2)


def _bias_of(bias: torch.Tensor, plan: AttentionPlan, b: int) -> torch.Tensor:
    """[H, 2R + 1] -> [N, H, Lq, Lk]: the table at every pair of one bucket."""
    columns = plan.bias_index(b, (bias.shape[1] - 1) // 2)  # [N, Lq, Lk]
    table = bias.index_select(1, columns.flatten())
    return table.view(-1, *columns.shape).transpose(0, 1)


def _needs_grad(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _take(x: torch.Tensor, plan: AttentionPlan, b: int, side: str) -> torch.Tensor:
    """[H, T, D] -> [N, H, L, D]: the rows of one bucket."""
    bucket = plan.buckets()[b]
    if bucket.alone:
        begin, length = (
            (bucket.q_from[0], bucket.q_lens[0]) if side == "q"
            else (bucket.k_from[0], bucket.k_lens[0])
        )  # fmt: skip
        return x[None, :, begin : begin + length]
    rows = plan.index_rows(b, side)
    taken = _flat(x).index_select(0, rows.view(-1))
    return taken.view(*rows.shape, x.shape[0], x.shape[2]).transpose(1, 2)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """[H, T, D] -> [T, H * D]; no copy where the memory is laid out [T, H, D]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _dense(rows: torch.Tensor) -> torch.Tensor:
    """[N, H, L, D] -> [N * L, H * D]."""
    return rows.transpose(1, 2).reshape(rows.shape[0] * rows.shape[2], -1)


def _heads(flat: torch.Tensor, heads: int) -> torch.Tensor:
    """[T, H * D] -> [H, T, D]."""
    return flat.view(flat.shape[0], heads, -1).transpose(0, 1)


def _put(out: torch.Tensor, rows: torch.Tensor, plan: AttentionPlan, b: int, side: str) -> None:
    """Write [N, H, L, D] rows of one bucket to their tokens in `out` [H, T, D]."""
    bucket = plan.buckets()[b]
    if bucket.alone:
        begin, length = (
            (bucket.q_from[0], bucket.q_lens[0]) if side == "q"
            else (bucket.k_from[0], bucket.k_lens[0])
        )  # fmt: skip
        out[:, begin : begin + length] = rows[0]
        return
    token, flat = plan.index_tokens(b, side)
    target = out.transpose(0, 1).view(out.shape[1], -1)  # outputs are laid out [T, H, D]
    target.index_copy_(0, token, _dense(rows).index_select(0, flat))


class _Split(torch.autograd.Function):
    """[H, T, D] -> one [N, H, L, D] per bucket. Every token lies in one bucket, so that the
    backward pass is a gather as well, never an accumulation."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, plan: AttentionPlan, side: str) -> Any:
        ctx.plan, ctx.side, ctx.shape = plan, side, x.shape
        return tuple(_take(x, plan, b, side) for b in range(len(plan.buckets())))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        like = next(g for g in grads if g is not None)
        slots = ctx.plan.slots(ctx.side)
        if slots is not None:
            return _heads(_dense(like).index_select(0, slots), ctx.shape[0]), None, None
        out = like.new_zeros(ctx.shape[1], ctx.shape[0], ctx.shape[2]).transpose(0, 1)
        for b, grad in enumerate(grads):
            if grad is not None:
                _put(out, grad, ctx.plan, b, ctx.side)
        return out, None, None


class _Join(torch.autograd.Function):
    """The inverse of `_Split` on the query side; its backward drops the padding."""

    @staticmethod
    def forward(
        ctx: Any, plan: AttentionPlan, heads: int, like: torch.Tensor, *rows: torch.Tensor
    ) -> torch.Tensor:
        ctx.plan, ctx.shapes = plan, [r.shape for r in rows]
        slots = plan.slots("q")
        if slots is not None:
            return _heads(_dense(rows[0]).index_select(0, slots), heads)
        make = like.new_empty if plan.covers_all_queries() else like.new_zeros
        out = make(plan.q_total, heads, like.shape[-1]).transpose(0, 1)
        for b, part in enumerate(rows):
            _put(out, part, plan, b, "q")
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        parts = []
        for b, shape in enumerate(ctx.shapes):
            bucket = ctx.plan.buckets()[b]
            if bucket.alone:
                parts.append(_take(grad, ctx.plan, b, "q"))
                continue
            trees, heads, length, dim = shape
            dense = grad.new_zeros(trees * length, heads * dim)
            slots = ctx.plan.slots("q")
            if slots is not None:
                dense.index_copy_(0, slots, _flat(grad))
            else:
                token, flat = ctx.plan.index_tokens(b, "q")
                dense.index_copy_(0, flat, _flat(grad).index_select(0, token))
            parts.append(dense.view(trees, length, heads, dim).transpose(1, 2))
        return None, None, None, *parts


class _TritonAttention(torch.autograd.Function):
    """Kernels K1 (forward), K3 (dQ, delta, dbias) and K4 (dK, dV) of `forest_attention_triton`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        plan: AttentionPlan,
        scale: float,
    ) -> torch.Tensor:
        from . import forest_attention_triton as kernels

        out, lse = kernels.attention_forward(q, k, v, plan, bias, scale)
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        from . import forest_attention_triton as kernels

        q, k, v, bias, out, lse = ctx.saved_tensors
        dq, dk, dv, dbias = kernels.attention_backward(
            grad, q, k, v, out, lse, ctx.plan, bias, ctx.scale,
            need_bias_grad=bias is not None and ctx.needs_input_grad[3],
        )  # fmt: skip
        return dq, dk, dv, dbias, None, None

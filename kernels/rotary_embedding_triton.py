"""Triton kernel of `rotary_embedding` (formula and reference there) and its launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .backend import empty_heads_last, last_dim_contiguous

_TILE = 4096  # elements of a program's tile


@triton.jit
def rotary_kernel(
    x_ptr,  # [H, T, 2 * HALF]
    cos_ptr,  # [T, 2 * HALF]
    sin_ptr,  # [T, 2 * HALF]
    out_ptr,  # [H, T, 2 * HALF]
    stride_xh, stride_xt, stride_oh, stride_ot, stride_cos, stride_sin, tokens,
    TRANSPOSED: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_T tokens of BLOCK_H heads. TRANSPOSED is the backward pass."""
    row = tl.program_id(0) * BLOCK_T * BLOCK_H + tl.arange(0, BLOCK_T * BLOCK_H)
    head = row % BLOCK_H + tl.program_id(1) * BLOCK_H  # heads of a token lie together
    token = (row // BLOCK_H).to(tl.int64)
    col = tl.arange(0, BLOCK_HALF)[None, :]
    ok = ((token < tokens) & (head < HEADS))[:, None] & (col < HALF)
    at = x_ptr + (head.to(tl.int64) * stride_xh + token * stride_xt)[:, None] + col
    low = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=ok, other=0.0).to(tl.float32)
    cos_at = cos_ptr + token[:, None] * stride_cos + col
    sin_at = sin_ptr + token[:, None] * stride_sin + col
    cos_low = tl.load(cos_at, mask=ok, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_at + HALF, mask=ok, other=0.0).to(tl.float32)
    sin_low = tl.load(sin_at, mask=ok, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_at + HALF, mask=ok, other=0.0).to(tl.float32)
    if TRANSPOSED:
        out_low = low * cos_low + high * sin_high
        out_high = high * cos_high - low * sin_low
    else:
        out_low = low * cos_low - high * sin_low
        out_high = high * cos_high + low * sin_high
    to = out_ptr + (head.to(tl.int64) * stride_oh + token * stride_ot)[:, None] + col
    tl.store(to, out_low.to(out_ptr.dtype.element_ty), mask=ok)
    tl.store(to + HALF, out_high.to(out_ptr.dtype.element_ty), mask=ok)


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, transposed: bool = False
) -> torch.Tensor:
    """x [H, T, D] rotated by cos, sin [T, D], or by the transposed rotation; new memory."""
    x, cos, sin = (last_dim_contiguous(t) for t in (x, cos, sin))
    heads, tokens, dim = x.shape
    out = empty_heads_last(heads, tokens, dim, x)
    half = dim // 2
    block_half = triton.next_power_of_2(half)
    block_h = triton.next_power_of_2(heads)
    while block_h * block_half > _TILE:
        block_h //= 2
    block_t = max(1, _TILE // 2 // (block_h * block_half))
    grid = (triton.cdiv(tokens, block_t), triton.cdiv(heads, block_h))
    rotary_kernel[grid](
        x, cos, sin, out, x.stride(0), x.stride(1), out.stride(0), out.stride(1),
        cos.stride(0), sin.stride(0), tokens,
        TRANSPOSED=transposed, HEADS=heads, HALF=half, BLOCK_HALF=block_half,
        BLOCK_H=block_h, BLOCK_T=block_t, num_warps=4,
    )  # fmt: skip
    return out

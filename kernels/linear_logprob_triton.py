"""Triton kernels of `linear_logprob` (formula and reference there): K5, K6 and launchers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .backend import kernel_inputs
from .tiles import head_tiles

# Tokens per chunk of the backward pass: [R, chunk] probabilities exist at a time.
CHUNK = 16384


@triton.jit
def _logits_tile(
    h_ptr, w_ptr, rows, tokens, n_rows, n_tokens, stride_h, stride_w,
    D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_M, BLOCK_N] of h W^T; rows and tokens past the end give arbitrary values."""
    # Clamping instead of masking keeps the loads plain; callers mask the results.
    h_at = h_ptr + tl.minimum(rows, n_rows - 1).to(tl.int64)[:, None] * stride_h
    w_at = w_ptr + tl.minimum(tokens, n_tokens - 1).to(tl.int64)[:, None] * stride_w
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for d in range(0, D, BLOCK_K):
        cols = d + tl.arange(0, BLOCK_K)[None, :]
        if D % BLOCK_K == 0:
            h = tl.load(h_at + cols)
            w = tl.load(w_at + cols)
        else:
            h = tl.load(h_at + cols, mask=cols < D, other=0.0)
            w = tl.load(w_at + cols, mask=cols < D, other=0.0)
        acc = tl.dot(h, tl.trans(w), acc, input_precision=PRECISION)
    return acc


@triton.jit
def logsumexp_kernel(
    h_ptr,  # [R, D]
    w_ptr,  # [V, D]
    top_ptr,  # [tiles of V, R] float32: the tile's maximum
    total_ptr,  # [tiles of V, R] float32: the tile's sum of exp(z - maximum)
    n_rows, n_tokens, stride_h, stride_w,
    D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """K5. One program: one tile of logits, reduced to two numbers a row.

    Rows vary fastest over the grid, so that a tile of W is read from memory once and then stays in
    the L2 cache for all row tiles. On an H200 1.13 times the bare product at the peak rate.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    z = _logits_tile(
        h_ptr, w_ptr, rows, tokens, n_rows, n_tokens, stride_h, stride_w,
        D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    z = tl.where((tokens < n_tokens)[None, :], z * 1.4426950408889634, float("-inf"))
    top = tl.max(z, 1)
    total = tl.sum(tl.exp2(z - top[:, None]), 1)
    at = tl.program_id(1).to(tl.int64) * n_rows + rows
    tl.store(top_ptr + at, top, mask=rows < n_rows)
    tl.store(total_ptr + at, total, mask=rows < n_rows)


@triton.jit
def combine_kernel(
    top_ptr,  # [tiles, R] float32, base 2
    total_ptr,  # [tiles, R] float32
    lse_ptr,  # [R] float32
    n_rows, n_tiles,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Reduce the tiles of K5 to lse. One program: BLOCK_R rows."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_ok = (rows < n_rows)[None, :]
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for t in range(0, n_tiles, BLOCK_T):
        tiles = t + tl.arange(0, BLOCK_T)
        at = tiles.to(tl.int64)[:, None] * n_rows + rows[None, :]
        ok = row_ok & (tiles < n_tiles)[:, None]
        tile_top = tl.load(top_ptr + at, mask=ok, other=float("-inf"))
        tile_total = tl.load(total_ptr + at, mask=ok, other=0.0)
        new_top = tl.maximum(top, tl.max(tile_top, 0))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - shift)
        total += tl.sum(tile_total * tl.exp2(tile_top - shift[None, :]), 0)
        top = new_top
    lse = (top + tl.log2(total)) * 0.6931471805599453
    tl.store(lse_ptr + rows, lse, mask=rows < n_rows)


@triton.jit
def edge_kernel(
    h_ptr,  # [R, D]
    w_ptr,  # [V, D]
    row_ptr,  # [E]
    token_ptr,  # [E]
    lse_ptr,  # [R] float32
    logp_ptr,  # [E] float32
    n_edges, stride_h, stride_w,
    D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """K7's first half: logp[e] = h[row] . W[token] - lse[row]. One program: BLOCK_E edges."""
    edges = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    ok = edges < n_edges
    row = tl.load(row_ptr + edges, mask=ok, other=0).to(tl.int64)
    token = tl.load(token_ptr + edges, mask=ok, other=0).to(tl.int64)
    acc = tl.zeros([BLOCK_E], tl.float32)
    for d in range(0, D, BLOCK_D):
        cols = d + tl.arange(0, BLOCK_D)
        col_ok = ok[:, None] & (cols < D)[None, :]
        h = tl.load(h_ptr + row[:, None] * stride_h + cols[None, :], mask=col_ok, other=0.0)
        w = tl.load(w_ptr + token[:, None] * stride_w + cols[None, :], mask=col_ok, other=0.0)
        acc += tl.sum(h.to(tl.float32) * w.to(tl.float32), 1)
    lse = tl.load(lse_ptr + row, mask=ok, other=0.0)
    tl.store(logp_ptr + edges, acc - lse, mask=ok)


@triton.jit
def probability_kernel(
    h_ptr,  # [R, D]
    w_ptr,  # [V, D]
    lse_ptr,  # [R] float32
    row_grad_ptr,  # [R] float32: G
    out_ptr,  # [R, chunk] in h's dtype: -G[r] p[r, first + t]
    first, last,  # tokens [first, last) of this chunk
    n_rows, stride_h, stride_w, stride_out,
    D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """K6. One tile of -G p, recomputed; dh and dW are then plain matrix products with it."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = first + tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    z = _logits_tile(
        h_ptr, w_ptr, rows, tokens, n_rows, last, stride_h, stride_w,
        D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    lse = tl.load(lse_ptr + rows, mask=rows < n_rows, other=0.0) * 1.4426950408889634
    row_grad = tl.load(row_grad_ptr + rows, mask=rows < n_rows, other=0.0)
    p = tl.exp2(z * 1.4426950408889634 - lse[:, None]) * -row_grad[:, None]
    at = out_ptr + rows.to(tl.int64)[:, None] * stride_out + (tokens - first)[None, :]
    ok = (rows < n_rows)[:, None] & (tokens < last)[None, :]
    tl.store(at, p.to(out_ptr.dtype.element_ty), mask=ok)


def logsumexp_forward(
    h: torch.Tensor, weight: torch.Tensor, config: dict[str, int] | None = None
) -> torch.Tensor:
    """float32 [R]: log sum over the vocabulary of exp(h W^T). `config` overrides the tiles."""
    h, weight = kernel_inputs(h, weight)
    cfg = dict(config or head_tiles(h))
    block_m, block_n, block_k = cfg.pop("block_m"), cfg.pop("block_n"), cfg.pop("block_k")
    rows, tokens = h.shape[0], weight.shape[0]
    n_tiles = triton.cdiv(tokens, block_n)
    top = torch.empty(n_tiles, rows, dtype=torch.float32, device=h.device)
    total = torch.empty_like(top)
    logsumexp_kernel[(triton.cdiv(rows, block_m), n_tiles)](
        h, weight, top, total, rows, tokens, h.stride(0), weight.stride(0),
        D=h.shape[1], PRECISION="tf32x3",
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, **cfg,
    )  # fmt: skip
    lse = torch.empty(rows, dtype=torch.float32, device=h.device)
    combine_kernel[(triton.cdiv(rows, 32),)](
        top, total, lse, rows, n_tiles, BLOCK_T=64, BLOCK_R=32, num_warps=4
    )
    return lse


def edge_forward(
    h: torch.Tensor,
    weight: torch.Tensor,
    edge_row: torch.Tensor,
    edge_token: torch.Tensor,
    lse: torch.Tensor,
) -> torch.Tensor:
    """float32 [E]: h[row] . W[token] - lse[row]."""
    h, weight = kernel_inputs(h, weight)
    edges = edge_row.shape[0]
    logp = torch.empty(edges, dtype=torch.float32, device=h.device)
    edge_kernel[(triton.cdiv(edges, 4),)](
        h, weight, edge_row, edge_token, lse, logp, edges, h.stride(0), weight.stride(0),
        D=h.shape[1], BLOCK_E=4, BLOCK_D=256, num_warps=4,
    )  # fmt: skip
    return logp


def launch_probabilities(
    h: torch.Tensor,
    weight: torch.Tensor,
    lse: torch.Tensor,
    row_grad: torch.Tensor,
    out: torch.Tensor,
    first: int,
    last: int,
    config: dict[str, int] | None = None,
) -> None:
    """out [R, >= last - first] = -G p of tokens [first, last)."""
    cfg = dict(config or head_tiles(h, backward=True))
    block_m, block_n, block_k = cfg.pop("block_m"), cfg.pop("block_n"), cfg.pop("block_k")
    rows = h.shape[0]
    probability_kernel[(triton.cdiv(rows, block_m), triton.cdiv(last - first, block_n))](
        h, weight, lse, row_grad, out, first, last, rows, h.stride(0), weight.stride(0),
        out.stride(0), D=h.shape[1], PRECISION="tf32x3",
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, **cfg,
    )  # fmt: skip


def backward(
    grad: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    edge_row: torch.Tensor,
    edge_token: torch.Tensor,
    lse: torch.Tensor,
    *,
    need_h: bool,
    need_weight: bool,
    config: dict[str, int] | None = None,
    chunk: int = CHUNK,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(dh or None, dW or None), in the dtypes of h and W."""
    dtype = h.dtype
    h, weight = kernel_inputs(h, weight)
    rows, tokens = h.shape[0], weight.shape[0]
    edge_row, edge_token = edge_row.long(), edge_token.long()
    row_grad = grad.new_zeros(rows).index_add_(0, edge_row, grad)
    dh = dw = None
    if need_h:
        dh = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
        dh.index_add_(0, edge_row, grad[:, None] * weight[edge_token])
    if need_weight:
        dw = torch.zeros(weight.shape, dtype=torch.float32, device=h.device)
        dw.index_add_(0, edge_token, grad[:, None] * h[edge_row])
    chunk = min(chunk, triton.cdiv(tokens, 256) * 256)
    buffer = torch.empty(rows, chunk, dtype=h.dtype, device=h.device)
    for first in range(0, tokens, chunk):
        last = min(tokens, first + chunk)
        launch_probabilities(h, weight, lse, row_grad, buffer, first, last, config)
        part = buffer[:, : last - first]
        if dh is not None:
            dh += torch.mm(part, weight[first:last])
        if dw is not None:
            dw[first:last] += torch.mm(part.T, h)
    return (
        None if dh is None else dh.to(dtype),
        None if dw is None else dw.to(dtype),
    )

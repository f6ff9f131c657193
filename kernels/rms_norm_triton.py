"""Triton kernels of `rms_norm` (formula and reference there): forward, backward and launchers.

A program holds whole rows in registers, so that each tensor is read or written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Elements of a program's tile: with 8 a thread, loads are 16 bytes wide and many programs fit on a
# multiprocessor, whose loads hide each other's latency.
_TILE = 1024
# Programs of the backward pass that sum the weight's gradient, each over its rows.
_PARTS = 1024


@triton.jit
def norm_forward_kernel(
    x_ptr,  # [R, D]
    add_ptr,  # [R, D]
    weight_ptr,  # [D]
    sum_ptr,  # [R, D]: x + add
    y_ptr,  # [R, D]
    rstd_ptr,  # [R] float32
    rows, eps,
    HAS_ADD: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_R rows."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    col = tl.arange(0, BLOCK_D)
    at = row.to(tl.int64)[:, None] * D + col[None, :]
    ok = (row < rows)[:, None] & (col < D)[None, :]
    z = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float32)
    if HAS_ADD:
        z += tl.load(add_ptr + at, mask=ok, other=0.0).to(tl.float32)
        stored = z.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, stored, mask=ok)
        z = stored.to(tl.float32)  # the norm is that of the sum as others will read it
    rstd = 1.0 / tl.sqrt(tl.sum(z * z, 1) / D + eps)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    weight = tl.load(weight_ptr + col, mask=col < D, other=0.0).to(tl.float32)
    y = z * rstd[:, None] * weight[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def norm_backward_kernel(
    z_ptr,  # [R, D]
    weight_ptr,  # [D]
    rstd_ptr,  # [R] float32
    dy_ptr,  # [R, D]
    dsum_ptr,  # [R, D]: what reaches x + add from elsewhere
    dx_ptr,  # [R, D]
    parts_ptr,  # [programs, D] float32: dw, summed over each program's rows
    rows, rows_each,
    HAS_SUM: tl.constexpr, HAS_WEIGHT: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: `rows_each` rows, BLOCK_R at a time."""
    col = tl.arange(0, BLOCK_D)
    col_ok = col < D
    weight = tl.load(weight_ptr + col, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    first = tl.program_id(0) * rows_each
    for r in range(first, tl.minimum(first + rows_each, rows), BLOCK_R):
        row = r + tl.arange(0, BLOCK_R)
        row_ok = row < tl.minimum(first + rows_each, rows)
        at = row.to(tl.int64)[:, None] * D + col[None, :]
        ok = row_ok[:, None] & col_ok[None, :]
        z = tl.load(z_ptr + at, mask=ok, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=ok, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row_ok, other=0.0)[:, None]
        normed = z * rstd
        scaled = weight * dy
        dx = rstd * (scaled - normed * (tl.sum(normed * scaled, 1) / D)[:, None])
        if HAS_SUM:
            dx += tl.load(dsum_ptr + at, mask=ok, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=ok)
        if HAS_WEIGHT:
            dweight += dy * normed
    if HAS_WEIGHT:
        tl.store(parts_ptr + tl.program_id(0) * D + col, tl.sum(dweight, 0), mask=col_ok)


def _tile(dim: int) -> tuple[int, int, int]:
    """(BLOCK_D, BLOCK_R, warps) for rows of `dim`."""
    block_d = triton.next_power_of_2(dim)
    block_r = max(1, _TILE // block_d)
    return block_d, block_r, min(16, max(1, block_d * block_r // 256))


def forward(
    x: torch.Tensor, add: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, z, rstd float32 [R]) for dense x, add [R, D]; z is x itself without an addition."""
    rows, dim = x.shape
    y = torch.empty_like(x)
    total = x if add is None else torch.empty_like(x)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    block_d, block_r, warps = _tile(dim)
    norm_forward_kernel[(triton.cdiv(rows, block_r),)](
        x, x if add is None else add, weight, total, y, rstd, rows, eps,
        HAS_ADD=add is not None, D=dim, BLOCK_D=block_d, BLOCK_R=block_r, num_warps=warps,
    )  # fmt: skip
    return y, total, rstd


def backward(
    z: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    grad: torch.Tensor,
    grad_sum: torch.Tensor | None,
    need_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(dz, dweight or None) for dense z, grad, grad_sum [R, D]."""
    rows, dim = z.shape
    dx = torch.empty_like(z)
    block_d, block_r, warps = _tile(dim)
    each = block_r
    if need_weight:
        each = triton.cdiv(triton.cdiv(rows, _PARTS), block_r) * block_r
    programs = triton.cdiv(rows, each)
    parts = torch.empty(
        (programs, dim) if need_weight else (1,), dtype=torch.float32, device=z.device
    )
    norm_backward_kernel[(programs,)](
        z, weight, rstd, grad, z if grad_sum is None else grad_sum, dx, parts, rows, each,
        HAS_SUM=grad_sum is not None, HAS_WEIGHT=need_weight, D=dim,
        BLOCK_D=block_d, BLOCK_R=block_r, num_warps=warps,
    )  # fmt: skip
    return dx, parts.sum(0).to(weight.dtype) if need_weight else None

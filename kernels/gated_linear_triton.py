"""Triton kernel of `gated_linear` (formula and reference there) and its launcher.

On an H200 it is as fast as the two products alone by cuBLAS.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .backend import kernel_inputs
from .gated_activation_triton import activate
from .tiles import gated_linear_tiles

# Row tiles that go through all columns together: their inputs stay in the L2 cache.
_GROUP = 2


@triton.jit
def _tile_of(program, n_rows, n_cols, group, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(row tile, column tile): `group` row tiles sweep the columns together."""
    row_tiles = tl.cdiv(n_rows, BLOCK_M)
    col_tiles = tl.cdiv(n_cols, BLOCK_N)
    first = program // (group * col_tiles) * group
    here = tl.minimum(row_tiles - first, group)
    within = program % (group * col_tiles)
    return first + within % here, within // here


@triton.jit
def gated_linear_kernel(
    x_ptr,  # [R, D]
    gate_weight_ptr,  # [F, D]
    up_weight_ptr,  # [F, D]
    out_ptr,  # [R, F]
    n_rows, n_cols, stride_x, stride_gate, stride_up, group,
    GELU: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of both products, and the gate."""
    tile_m, tile_n = _tile_of(tl.program_id(0), n_rows, n_cols, group, BLOCK_M, BLOCK_N)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Clamping instead of masking keeps the loads plain; the stores are masked.
    x_at = x_ptr + tl.minimum(rows, n_rows - 1).to(tl.int64)[:, None] * stride_x
    col_at = tl.minimum(cols, n_cols - 1).to(tl.int64)[:, None]
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for d in range(0, D, BLOCK_K):
        k = d + tl.arange(0, BLOCK_K)[None, :]
        if D % BLOCK_K == 0:
            x = tl.load(x_at + k)
            wg = tl.load(gate_weight_ptr + col_at * stride_gate + k)
            wu = tl.load(up_weight_ptr + col_at * stride_up + k)
        else:
            x = tl.load(x_at + k, mask=k < D, other=0.0)
            wg = tl.load(gate_weight_ptr + col_at * stride_gate + k, mask=k < D, other=0.0)
            wu = tl.load(up_weight_ptr + col_at * stride_up + k, mask=k < D, other=0.0)
        gate = tl.dot(x, tl.trans(wg), gate, input_precision=PRECISION)
        up = tl.dot(x, tl.trans(wu), up, input_precision=PRECISION)
    value, _ = activate(gate, GELU)
    # One wide offset for the tile's corner: one an element would take more registers.
    corner = out_ptr + (tile_m * BLOCK_M).to(tl.int64) * n_cols + tile_n * BLOCK_N
    at = tl.arange(0, BLOCK_M)[:, None] * n_cols + tl.arange(0, BLOCK_N)[None, :]
    ok = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    tl.store(corner + at, (value * up).to(out_ptr.dtype.element_ty), mask=ok)


def forward(
    x: torch.Tensor,
    gate_weight: torch.Tensor,
    up_weight: torch.Tensor,
    gelu: bool,
    *,
    config: dict[str, int] | None = None,
    group: int | None = None,
) -> torch.Tensor:
    """act(x Wg^T) * (x Wu^T), [R, F] in x's dtype. `config` and `group` override the tiles."""
    dtype = x.dtype
    x, gate_weight, up_weight = kernel_inputs(x, gate_weight, up_weight)
    cfg = dict(config or gated_linear_tiles(x))
    block_m, block_n, block_k = cfg.pop("block_m"), cfg.pop("block_n"), cfg.pop("block_k")
    rows, cols = x.shape[0], gate_weight.shape[0]
    out = x.new_empty(rows, cols)
    gated_linear_kernel[(triton.cdiv(rows, block_m) * triton.cdiv(cols, block_n),)](
        x, gate_weight, up_weight, out, rows, cols, x.stride(0), gate_weight.stride(0),
        up_weight.stride(0), group or _GROUP, GELU=gelu, D=x.shape[1], PRECISION="tf32x3",
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, **cfg,
    )  # fmt: skip
    return out.to(dtype)

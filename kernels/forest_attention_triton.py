"""Triton kernels of `forest_attention` (formula and reference there): K1, K3, K4 and launchers.

Every tile of rows lies in one tree, so that a program visits its own tree's tiles and, for a
forest with a shared prefix, the prefix's. Pointers and masks only: block pointers are gone in
Triton 3.9. Scores are kept in base 2 (`exp2` is one instruction); `lse` is stored in base e.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .attention_plan import AttentionPlan
from .backend import empty_heads_last, kernel_inputs
from .tiles import attention_tiles

_LOG2E = 1.4426950408889634

# Prefix keys are seen by all queries: their gradient is split over this many query ranges, and
# the parts are summed, which keeps the result deterministic.
_PREFIX_SPLITS = 64
# The bias gradient is accumulated with atomics, spread over this many copies of the table.
_BIAS_COPIES = 32
# Trees longer than this on average are mostly branches that do not see each other: their tiles are
# tested and skipped. Shorter trees have nothing to skip, and the test costs the loop's pipelining.
_SKIP_TOKENS = 1024


@triton.jit
def _load_rows(ptr, rows, stride, mask, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] tile; rows outside `mask` and columns beyond D read as 0."""
    cols = tl.arange(0, BLOCK_D)
    at = ptr + rows.to(tl.int64)[:, None] * stride + cols[None, :]
    if D == BLOCK_D:
        return tl.load(at, mask=mask[:, None], other=0.0)
    return tl.load(at, mask=mask[:, None] & (cols < D)[None, :], other=0.0)


@triton.jit
def _store_rows(ptr, rows, stride, mask, value, D: tl.constexpr, BLOCK_D: tl.constexpr):
    cols = tl.arange(0, BLOCK_D)
    at = ptr + rows.to(tl.int64)[:, None] * stride + cols[None, :]
    value = value.to(ptr.dtype.element_ty)
    if D == BLOCK_D:
        tl.store(at, value, mask=mask[:, None])
    else:
        tl.store(at, value, mask=mask[:, None] & (cols < D)[None, :])


@triton.jit
def _nodes(
    q_node_ptr, rows, q_begin, row_ok, SOME: tl.constexpr, BLOCK_M: tl.constexpr
):  # fmt: skip
    """(token of each query, the first, a bound of the last); SOME: not every token is a query."""
    if SOME:
        node = tl.load(q_node_ptr + rows, mask=row_ok, other=0)
        return node, tl.load(q_node_ptr + q_begin), tl.max(node, 0)
    return rows, q_begin, q_begin + BLOCK_M - 1


@triton.jit
def _reaches(end_ptr, n, n_end, first_node, SKIP: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a query at or after first_node sees any key of a tile; always so without SKIP."""
    if not SKIP:
        return True
    cols = n + tl.arange(0, BLOCK_N)
    return tl.max(tl.load(end_ptr + cols, mask=cols < n_end, other=0), 0) > first_node


@triton.jit
def _logits2(
    q,  # [M, D] queries, or keys when TRANSPOSED
    k,  # [N, D] keys, or queries when TRANSPOSED
    i,  # query indices, [M, 1], or [1, N] when TRANSPOSED
    node,  # the queries' tokens, likewise
    j,  # key indices, the other orientation
    i_ok,
    j_ok,
    scale2,
    end_ptr,
    q_pos_ptr,
    k_pos_ptr,
    bias_ptr,  # this head's row of the table
    radius,
    TREE: tl.constexpr,  # the interval test, else everything inside the segments is seen
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Masked scores in base 2 and, with a bias, the table's column of each pair."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    seen = i_ok & j_ok
    if TREE:
        end = tl.load(end_ptr + j, mask=j_ok, other=0)
        seen = seen & (j <= node) & (node < end)
    column = node - j
    if HAS_BIAS:
        q_pos = tl.load(q_pos_ptr + i, mask=i_ok, other=0)
        k_pos = tl.load(k_pos_ptr + j, mask=j_ok, other=0)
        column = tl.minimum(tl.maximum(q_pos - k_pos + radius, 0), 2 * radius)
        s += tl.load(bias_ptr + column, mask=seen, other=0.0).to(tl.float32) * 1.4426950408889634
    return tl.where(seen, s, float("-inf")), column, seen


@triton.jit
def _forward_step(
    acc, top, total, q, rows, node, row_ok, k_ptr, v_ptr, n, n_end, stride_k, stride_v,
    scale2, end_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, radius,
    TREE: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One key tile of the online softmax."""
    cols = n + tl.arange(0, BLOCK_N)
    col_ok = cols < n_end
    k = _load_rows(k_ptr, cols, stride_k, col_ok, D, BLOCK_D)
    v = _load_rows(v_ptr, cols, stride_v, col_ok, D, BLOCK_D)
    s, _, _ = _logits2(
        q, k, rows[:, None], node[:, None], cols[None, :], row_ok[:, None], col_ok[None, :],
        scale2, end_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, radius, TREE, HAS_BIAS, PRECISION,
    )  # fmt: skip
    new_top = tl.maximum(top, tl.max(s, 1))
    # A row that has seen nothing yet has top = -inf; subtracting it would give NaN.
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(s - shift[:, None])
    decay = tl.exp2(top - shift)
    total = total * decay + tl.sum(p, 1)
    acc = acc * decay[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, new_top, total


@triton.jit
def forward_kernel(
    q_ptr,  # [H, Tq, D]
    k_ptr,  # [Hkv, Tk, D]
    v_ptr,  # [Hkv, Tk, D]
    out_ptr,  # [H, Tq, D]
    lse_ptr,  # [H, Tq] float32
    tiles_ptr,  # [N, 4] int32: query begin, query end, key begin, key end
    end_ptr,  # [T] int32
    q_node_ptr,  # [Tq] int32, the queries' tokens where not all are queries (SOME)
    q_pos_ptr,  # [Tq] int32
    k_pos_ptr,  # [Tk] int32
    bias_ptr,  # [H, 2R + 1]
    stride_qh, stride_qt, stride_kh, stride_kt, stride_vh, stride_vt, stride_oh, stride_ot,
    q_total, prefix, radius, scale2,
    GROUP: tl.constexpr, TREE: tl.constexpr, HAS_PREFIX: tl.constexpr, HAS_BIAS: tl.constexpr,
    SKIP: tl.constexpr, SOME: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """K1. One program: one tile of queries of one tree, one head."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    q_begin = tl.load(tiles_ptr + 4 * tile)
    q_end = tl.load(tiles_ptr + 4 * tile + 1)
    k_begin = tl.load(tiles_ptr + 4 * tile + 2)
    k_end = tl.load(tiles_ptr + 4 * tile + 3)
    if q_begin >= q_end:
        return
    rows = q_begin + tl.arange(0, BLOCK_M)
    row_ok = rows < q_end
    node, first_node, last_node = _nodes(q_node_ptr, rows, q_begin, row_ok, SOME, BLOCK_M)
    q = _load_rows(q_ptr + head * stride_qh, rows, stride_qt, row_ok, D, BLOCK_D)
    k_ptr += head // GROUP * stride_kh
    v_ptr += head // GROUP * stride_vh
    bias_ptr += head * (2 * radius + 1)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if HAS_PREFIX:
        if k_begin >= prefix:
            for n in range(0, prefix, BLOCK_N):
                acc, top, total = _forward_step(
                    acc, top, total, q, rows, node, row_ok, k_ptr, v_ptr, n, prefix,
                    stride_kt, stride_vt, scale2, end_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, radius,
                    False, HAS_BIAS, PRECISION, D, BLOCK_D, BLOCK_N,
                )  # fmt: skip
    if TREE:  # preorder: no key after the last query
        k_end = tl.minimum(k_end, last_node + 1)
    for n in range(k_begin, k_end, BLOCK_N):
        if _reaches(end_ptr, n, k_end, first_node, SKIP, BLOCK_N):
            acc, top, total = _forward_step(
                acc, top, total, q, rows, node, row_ok, k_ptr, v_ptr, n, k_end, stride_kt,
                stride_vt, scale2, end_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, radius,
                TREE, HAS_BIAS, PRECISION, D, BLOCK_D, BLOCK_N,
            )  # fmt: skip
    # A query that sees nothing gets output 0, and lse = +inf so that exp(s - lse) = 0 later.
    empty = total == 0.0
    out = acc / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("inf"), (top + tl.log2(total)) * 0.6931471805599453)
    _store_rows(out_ptr + head * stride_oh, rows, stride_ot, row_ok, out, D, BLOCK_D)
    tl.store(lse_ptr + head * q_total + rows, lse, mask=row_ok)


@triton.jit
def _dq_step(
    dq, q, do, lse2, delta, rows, node, row_ok, k_ptr, v_ptr, n, n_end, stride_k, stride_v,
    scale2, end_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, dbias_ptr, radius,
    TREE: tl.constexpr, HAS_BIAS: tl.constexpr, BIAS_GRAD: tl.constexpr,
    PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    cols = n + tl.arange(0, BLOCK_N)
    col_ok = cols < n_end
    k = _load_rows(k_ptr, cols, stride_k, col_ok, D, BLOCK_D)
    v = _load_rows(v_ptr, cols, stride_v, col_ok, D, BLOCK_D)
    s, column, seen = _logits2(
        q, k, rows[:, None], node[:, None], cols[None, :], row_ok[:, None], col_ok[None, :],
        scale2, end_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, radius, TREE, HAS_BIAS, PRECISION,
    )  # fmt: skip
    p = tl.exp2(s - lse2[:, None])
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    ds = p * (dp - delta[:, None])
    if BIAS_GRAD:
        tl.atomic_add(dbias_ptr + column, ds, mask=seen, sem="relaxed")
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def backward_q_kernel(
    q_ptr,  # [H, Tq, D]
    k_ptr,  # [Hkv, Tk, D]
    v_ptr,  # [Hkv, Tk, D]
    out_ptr,  # [H, Tq, D]
    do_ptr,  # [H, Tq, D]
    dq_ptr,  # [H, Tq, D]
    lse_ptr,  # [H, Tq] float32
    delta_ptr,  # [H, Tq] float32, written here for K4
    tiles_ptr,  # [N, 4] int32
    end_ptr, q_node_ptr, q_pos_ptr, k_pos_ptr, bias_ptr,
    dbias_ptr,  # [BIAS_COPIES, H, 2R + 1] float32, zeroed
    stride_qh, stride_qt, stride_kh, stride_kt, stride_vh, stride_vt, stride_oh, stride_ot,
    stride_gh, stride_gt, stride_dh, stride_dt,
    q_total, prefix, radius, scale, scale2,
    GROUP: tl.constexpr, TREE: tl.constexpr, HAS_PREFIX: tl.constexpr, HAS_BIAS: tl.constexpr,
    BIAS_GRAD: tl.constexpr, BIAS_COPIES: tl.constexpr, SKIP: tl.constexpr, SOME: tl.constexpr,
    PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """K2 and K3. delta, dQ and dbias of one tile of queries, one head."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    q_begin = tl.load(tiles_ptr + 4 * tile)
    q_end = tl.load(tiles_ptr + 4 * tile + 1)
    k_begin = tl.load(tiles_ptr + 4 * tile + 2)
    k_end = tl.load(tiles_ptr + 4 * tile + 3)
    if q_begin >= q_end:
        return
    rows = q_begin + tl.arange(0, BLOCK_M)
    row_ok = rows < q_end
    node, first_node, last_node = _nodes(q_node_ptr, rows, q_begin, row_ok, SOME, BLOCK_M)
    q = _load_rows(q_ptr + head * stride_qh, rows, stride_qt, row_ok, D, BLOCK_D)
    do = _load_rows(do_ptr + head * stride_gh, rows, stride_gt, row_ok, D, BLOCK_D)
    out = _load_rows(out_ptr + head * stride_oh, rows, stride_ot, row_ok, D, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + head * q_total + rows, delta, mask=row_ok)
    lse = tl.load(lse_ptr + head * q_total + rows, mask=row_ok, other=float("inf"))
    lse2 = lse * 1.4426950408889634
    k_ptr += head // GROUP * stride_kh
    v_ptr += head // GROUP * stride_vh
    bias_ptr += head * (2 * radius + 1)
    if BIAS_GRAD:
        copy = tile % BIAS_COPIES
        dbias_ptr += (copy * tl.num_programs(1) + head) * (2 * radius + 1)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if HAS_PREFIX:
        if k_begin >= prefix:
            for n in range(0, prefix, BLOCK_N):
                dq = _dq_step(
                    dq, q, do, lse2, delta, rows, node, row_ok, k_ptr, v_ptr, n, prefix,
                    stride_kt, stride_vt, scale2, end_ptr, q_pos_ptr, k_pos_ptr, bias_ptr,
                    dbias_ptr, radius, False, HAS_BIAS, BIAS_GRAD, PRECISION, D, BLOCK_D, BLOCK_N,
                )  # fmt: skip
    if TREE:
        k_end = tl.minimum(k_end, last_node + 1)
    for n in range(k_begin, k_end, BLOCK_N):
        if _reaches(end_ptr, n, k_end, first_node, SKIP, BLOCK_N):
            dq = _dq_step(
                dq, q, do, lse2, delta, rows, node, row_ok, k_ptr, v_ptr, n, k_end, stride_kt,
                stride_vt, scale2, end_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, dbias_ptr, radius,
                TREE, HAS_BIAS, BIAS_GRAD, PRECISION, D, BLOCK_D, BLOCK_N,
            )  # fmt: skip
    dq_ptr += head * stride_dh
    _store_rows(dq_ptr, rows, stride_dt, row_ok, dq * scale, D, BLOCK_D)


@triton.jit
def _dkv_heads(
    dk, dv, k, v, cols, col_ok, m_begin, m_end, kv_head, q_ptr, do_ptr, lse_ptr, delta_ptr,
    stride_qh, stride_qt, stride_gh, stride_gt, q_total, scale2,
    end_ptr, q_node_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, radius,
    GROUP: tl.constexpr, TREE: tl.constexpr, HAS_BIAS: tl.constexpr, SOME: tl.constexpr,
    PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Accumulate dK and dV of one key tile over queries [m_begin, m_end) of all its heads."""
    for g in range(GROUP):
        head = kv_head * GROUP + g
        for m in range(m_begin, m_end, BLOCK_M):
            rows = m + tl.arange(0, BLOCK_M)
            row_ok = rows < m_end
            node = rows
            if SOME:
                node = tl.load(q_node_ptr + rows, mask=row_ok, other=0)
            q = _load_rows(q_ptr + head * stride_qh, rows, stride_qt, row_ok, D, BLOCK_D)
            do = _load_rows(do_ptr + head * stride_gh, rows, stride_gt, row_ok, D, BLOCK_D)
            lse = tl.load(lse_ptr + head * q_total + rows, mask=row_ok, other=float("inf"))
            delta = tl.load(delta_ptr + head * q_total + rows, mask=row_ok, other=0.0)
            s, _, _ = _logits2(
                k, q, rows[None, :], node[None, :], cols[:, None], row_ok[None, :],
                col_ok[:, None], scale2, end_ptr, q_pos_ptr, k_pos_ptr,
                bias_ptr + head * (2 * radius + 1), radius, TREE, HAS_BIAS, PRECISION,
            )  # fmt: skip
            p = tl.exp2(s - lse[None, :] * 1.4426950408889634)  # [N, M]
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def backward_kv_kernel(
    q_ptr,  # [H, Tq, D]
    k_ptr,  # [Hkv, Tk, D]
    v_ptr,  # [Hkv, Tk, D]
    do_ptr,  # [H, Tq, D]
    dk_ptr,  # [Hkv, Tk, D]; PREFIX: [splits, Hkv, prefix, D] float32 parts
    dv_ptr,  # likewise
    lse_ptr,  # [H, Tq] float32
    delta_ptr,  # [H, Tq] float32
    tiles_ptr,  # [N, 4] int32: key begin, key end, query begin, query end
    end_ptr, q_node_ptr, q_pos_ptr, k_pos_ptr, bias_ptr,
    stride_qh, stride_qt, stride_kh, stride_kt, stride_vh, stride_vt, stride_gh, stride_gt,
    stride_dkh, stride_dkt, stride_dvh, stride_dvt, stride_split,
    q_total, prefix, radius, scale, scale2, split_rows,
    GROUP: tl.constexpr, TREE: tl.constexpr, PREFIX: tl.constexpr, HAS_BIAS: tl.constexpr,
    SOME: tl.constexpr, PRECISION: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """K4. dK and dV of one tile of keys, one key head, its GROUP query heads summed in registers.

    PREFIX: the tile lies in the shared prefix, and the program covers one range of all queries.
    """
    tile = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    if PREFIX:
        n_begin = tile * BLOCK_N
        n_end = prefix
        m_begin = tl.program_id(2) * split_rows
        if not SOME:  # preorder: no query before the first key
            m_begin = tl.maximum(n_begin, m_begin)
        m_end = tl.minimum(q_total, (tl.program_id(2) + 1) * split_rows)
        dk_ptr += tl.program_id(2).to(tl.int64) * stride_split
        dv_ptr += tl.program_id(2).to(tl.int64) * stride_split
    else:
        n_begin = tl.load(tiles_ptr + 4 * tile)
        n_end = tl.load(tiles_ptr + 4 * tile + 1)
        m_begin = tl.load(tiles_ptr + 4 * tile + 2)
        m_end = tl.load(tiles_ptr + 4 * tile + 3)
        if n_begin >= n_end:
            return
        if TREE and not SOME:  # preorder: no query before the first key
            m_begin = n_begin
    cols = n_begin + tl.arange(0, BLOCK_N)
    col_ok = cols < n_end
    if (
        TREE and not PREFIX and not SOME
    ):  # no query after the last descendant: short loops among branches
        m_end = tl.max(tl.load(end_ptr + cols, mask=col_ok, other=0), 0)
    k = _load_rows(k_ptr + kv_head * stride_kh, cols, stride_kt, col_ok, D, BLOCK_D)
    v = _load_rows(v_ptr + kv_head * stride_vh, cols, stride_vt, col_ok, D, BLOCK_D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dk, dv = _dkv_heads(
        dk, dv, k, v, cols, col_ok, m_begin, m_end, kv_head, q_ptr, do_ptr, lse_ptr, delta_ptr,
        stride_qh, stride_qt, stride_gh, stride_gt, q_total, scale2,
        end_ptr, q_node_ptr, q_pos_ptr, k_pos_ptr, bias_ptr, radius,
        GROUP, TREE, HAS_BIAS, SOME, PRECISION, D, BLOCK_D, BLOCK_M,
    )  # fmt: skip
    dk_ptr += kv_head * stride_dkh
    dv_ptr += kv_head * stride_dvh
    _store_rows(dk_ptr, cols, stride_dkt, col_ok, dk * scale, D, BLOCK_D)
    _store_rows(dv_ptr, cols, stride_dvt, col_ok, dv, D, BLOCK_D)


def _common(
    q: torch.Tensor, k: torch.Tensor, plan: AttentionPlan, bias: torch.Tensor | None
) -> tuple[dict[str, object], tuple[object, ...]]:
    """Constants of all kernels, and (end, q_node, q_pos, k_pos, bias), stand-ins for the absent."""
    head_dim = q.shape[-1]
    constants: dict[str, object] = dict(
        GROUP=q.shape[0] // k.shape[0],
        TREE=plan.end is not None,
        HAS_BIAS=bias is not None,
        SOME=plan.q_node is not None,
        # float32 inputs only: three tensor-core products, about 1e-6; beyond 128 columns they
        # would spill everything, and plain float32 arithmetic is faster.
        PRECISION="tf32x3" if head_dim <= 128 else "ieee",
        D=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
    )
    unused = plan.q_start
    arrays = (
        unused if plan.end is None else plan.end,
        unused if plan.q_node is None else plan.q_node,
        unused if bias is None else plan.q_pos,
        unused if bias is None else plan.k_pos,
        unused if bias is None else bias.contiguous(),
    )
    return constants, arrays


def _skips(plan: AttentionPlan) -> bool:
    return plan.end is not None and plan.q_total > _SKIP_TOKENS * max(1, plan.trees)


def _radius(bias: torch.Tensor | None) -> int:
    return 0 if bias is None else (bias.shape[1] - 1) // 2


def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    bias: torch.Tensor | None,
    scale: float,
    config: dict[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [H, Tq, D], lse float32 [H, Tq]) of `attention`. `config` overrides the tile table."""
    dtype = q.dtype
    q, k, v = kernel_inputs(q, k, v)
    cfg = dict(config or attention_tiles("forward", q))
    block_m, block_n = cfg.pop("block_m"), cfg.pop("block_n")
    constants, arrays = _common(q, k, plan, bias)
    heads, q_total, head_dim = q.shape
    out = empty_heads_last(heads, q_total, head_dim, q)
    lse = torch.empty(heads, q_total, dtype=torch.float32, device=q.device)
    tiles = plan.tiles("q", block_m)
    forward_kernel[(tiles.shape[0], heads)](
        q, k, v, out, lse, tiles, *arrays,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        out.stride(0), out.stride(1), q_total, plan.prefix, _radius(bias), scale * _LOG2E,
        HAS_PREFIX=plan.prefix > 0, SKIP=_skips(plan), BLOCK_M=block_m, BLOCK_N=block_n,
        **constants, **cfg,
    )  # fmt: skip
    return out.to(dtype), lse


def attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    plan: AttentionPlan,
    bias: torch.Tensor | None,
    scale: float,
    *,
    need_bias_grad: bool,
    config_q: dict[str, int] | None = None,
    config_kv: dict[str, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(dQ, dK, dV, dbias or None) of `attention`, in the dtypes of their inputs."""
    dtype = q.dtype
    q, k, v, out, grad = kernel_inputs(q, k, v, out, grad)
    constants, arrays = _common(q, k, plan, bias)
    heads, q_total, head_dim = q.shape
    kv_heads, k_total, _ = k.shape
    radius = _radius(bias)
    dq = empty_heads_last(heads, q_total, head_dim, q)
    dk = empty_heads_last(kv_heads, k_total, head_dim, q)
    dv = empty_heads_last(kv_heads, k_total, head_dim, q)
    delta = torch.empty_like(lse)
    copies = _BIAS_COPIES if need_bias_grad else 1
    dbias = torch.zeros(
        (copies, heads, 2 * radius + 1) if need_bias_grad else (1,), device=q.device
    )
    cfg = dict(config_q or attention_tiles("backward_q", q))
    block_m, block_n = cfg.pop("block_m"), cfg.pop("block_n")
    tiles = plan.tiles("q", block_m)
    backward_q_kernel[(tiles.shape[0], heads)](
        q, k, v, out, grad, dq, lse, delta, tiles, *arrays, dbias,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        out.stride(0), out.stride(1), grad.stride(0), grad.stride(1), dq.stride(0), dq.stride(1),
        q_total, plan.prefix, radius, scale, scale * _LOG2E,
        HAS_PREFIX=plan.prefix > 0, BIAS_GRAD=need_bias_grad, BIAS_COPIES=copies,
        SKIP=_skips(plan), BLOCK_M=block_m, BLOCK_N=block_n, **constants, **cfg,
    )  # fmt: skip

    cfg = dict(config_kv or attention_tiles("backward_kv", q))
    block_m, block_n = cfg.pop("block_m"), cfg.pop("block_n")

    def launch_kv(
        grid: tuple[int, ...], tiles: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor,
        stride_split: int, split_rows: int, shared: bool,
    ) -> None:  # fmt: skip
        backward_kv_kernel[grid](
            q, k, v, grad, dk, dv, lse, delta, tiles, *arrays,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            grad.stride(0), grad.stride(1), dk.stride(-3), dk.stride(-2), dv.stride(-3),
            dv.stride(-2), stride_split, q_total, plan.prefix, radius, scale, scale * _LOG2E,
            split_rows, PREFIX=shared, BLOCK_M=block_m, BLOCK_N=block_n, **constants, **cfg,
        )  # fmt: skip

    tiles = plan.tiles("k", block_n)
    launch_kv((tiles.shape[0], kv_heads), tiles, dk, dv, 0, 0, False)
    if plan.prefix:
        splits = min(_PREFIX_SPLITS, triton.cdiv(q_total, block_m))
        split_rows = triton.cdiv(triton.cdiv(q_total, splits), block_m) * block_m
        parts = torch.empty(
            2, splits, kv_heads, plan.prefix, head_dim, dtype=torch.float32, device=q.device
        )
        grid = (triton.cdiv(plan.prefix, block_n), kv_heads, splits)
        launch_kv(grid, tiles, parts[0], parts[1], parts.stride(1), split_rows, True)
        dk[:, : plan.prefix], dv[:, : plan.prefix] = parts.sum(1).to(dk.dtype).unbind(0)
    bias_grad = dbias.sum(0).to(bias.dtype) if need_bias_grad and bias is not None else None
    return dq.to(dtype), dk.to(dtype), dv.to(dtype), bias_grad

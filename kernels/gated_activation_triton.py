"""Triton kernels of `gated_activation` (formula and reference there) and launchers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024  # elements a program: eight a thread, so that loads are 16 bytes wide


@triton.jit
def activate(g, GELU: tl.constexpr):
    """act(g) and its derivative, in float32."""
    if GELU:  # 0.5 (1 + tanh u) = sigmoid(2 u)
        s = _sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
        slope = s + g * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * g * g)
    else:
        s = _sigmoid(g)
        slope = s * (1.0 + g * (1.0 - s))
    return g * s, slope


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * x))


@triton.jit
def gate_forward_kernel(gate_ptr, up_ptr, out_ptr, total, GELU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < total
    gate = tl.load(gate_ptr + at, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=ok, other=0.0).to(tl.float32)
    value, _ = activate(gate, GELU)
    tl.store(out_ptr + at, (value * up).to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit
def gate_backward_kernel(
    gate_ptr, up_ptr, grad_ptr, dgate_ptr, dup_ptr, total, GELU: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < total
    gate = tl.load(gate_ptr + at, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=ok, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=ok, other=0.0).to(tl.float32)
    value, slope = activate(gate, GELU)
    tl.store(dgate_ptr + at, (grad * up * slope).to(dgate_ptr.dtype.element_ty), mask=ok)
    tl.store(dup_ptr + at, (grad * value).to(dup_ptr.dtype.element_ty), mask=ok)


def forward(gate: torch.Tensor, up: torch.Tensor, gelu: bool) -> torch.Tensor:
    """act(gate) * up for dense tensors of one shape and dtype."""
    out = torch.empty_like(gate)
    gate_forward_kernel[(triton.cdiv(gate.numel(), _BLOCK),)](
        gate, up, out, gate.numel(), GELU=gelu, BLOCK=_BLOCK, num_warps=4
    )
    return out


def backward(
    gate: torch.Tensor, up: torch.Tensor, grad: torch.Tensor, gelu: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dgate, dup) for dense tensors of one shape and dtype."""
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    gate_backward_kernel[(triton.cdiv(gate.numel(), _BLOCK),)](
        gate, up, grad, dgate, dup, gate.numel(), GELU=gelu, BLOCK=_BLOCK, num_warps=4
    )
    return dgate, dup

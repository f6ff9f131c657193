"""Root-mean-square norm, with the residual addition before it in the same pass.

    z = x + add (or x),  r = 1 / sqrt(mean(z^2) + eps),  y = w z r
    dz = r (w dy - z r^2 mean(z w dy)) + dsum,           dw = sum over rows of dy z r

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); T5 and Llama use it.
"""

from __future__ import annotations

from typing import Any

import torch
from sacglam import _C

from . import cpu
from .backend import Backend, use_triton


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, add: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula in plain torch; returns (y, z)."""
    z = x if add is None else x + add
    return weight * (z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)), z


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    add: torch.Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of x [..., D], or of x + add, by weight [D]: returns (y, x + add), both [..., D].

    Use the second result, not x, for a residual connection: the gradients of both then arrive
    together, and are summed in the same pass. backend: "auto" takes Triton on CUDA and the native
    kernel on the CPU (float32), else the formula. Differentiable in x, weight and add.
    """
    if x.numel() and _triton_serves(backend, x, add):
        return _RmsNorm.apply(x, add, weight, eps, True)
    if x.numel() and backend in ("auto", "native") and cpu.serves(x, weight, add):
        return _RmsNorm.apply(x, add, weight, eps, False)
    return rms_norm_reference(x, weight, eps, add)


def _triton_serves(backend: Backend, x: torch.Tensor, add: torch.Tensor | None) -> bool:
    known = x.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return known and (add is None or add.dtype == x.dtype) and use_triton(backend, x)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def _native_forward(
    x: torch.Tensor, add: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, z, r) with z and y [T, D], r [T]."""
    y = torch.empty_like(x)
    total = None if add is None else torch.empty_like(x)
    rstd = x.new_empty(x.shape[0])
    _C.rms_norm_forward(
        cpu.array(x), cpu.array(add), cpu.array(weight), eps, cpu.array(total), cpu.array(y),
        cpu.array(rstd), cpu.threads(),
    )  # fmt: skip
    return y, x if total is None else total, rstd


def _native_backward(
    z: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    grad: torch.Tensor,
    grad_sum: torch.Tensor | None,
    need_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    dx = torch.empty_like(z)
    parts = z.new_zeros(-(-z.shape[0] // 64), z.shape[1]) if need_weight else None
    _C.rms_norm_backward(
        cpu.array(z), cpu.array(weight), cpu.array(rstd), cpu.array(grad), cpu.array(grad_sum),
        cpu.array(dx), cpu.array(parts), cpu.threads(),
    )  # fmt: skip
    return dx, None if parts is None else parts.sum(0)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        add: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        on_gpu: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.on_gpu = on_gpu
        flat, flat_add = _flat(x), None if add is None else _flat(add)
        weight = weight.contiguous()
        if on_gpu:
            from . import rms_norm_triton as kernels

            y, z, rstd = kernels.forward(flat, flat_add, weight, eps)
        else:
            y, z, rstd = _native_forward(flat, flat_add, weight, eps)
        ctx.save_for_backward(z, weight, rstd)
        return y.view(x.shape), x if add is None else z.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor | None, grad_sum: torch.Tensor | None) -> Any:
        z, weight, rstd = ctx.saved_tensors
        need_add, need_weight = ctx.needs_input_grad[1:3]
        if grad is None:
            return grad_sum, grad_sum if need_add else None, None, None, None
        flat_sum = None if grad_sum is None else _flat(grad_sum)
        if ctx.on_gpu:
            from . import rms_norm_triton as kernels

            dz, dweight = kernels.backward(z, weight, rstd, _flat(grad), flat_sum, need_weight)
        else:
            dz, dweight = _native_backward(z, weight, rstd, _flat(grad), flat_sum, need_weight)
        dz = dz.view(grad.shape)
        return dz, dz if need_add else None, dweight, None, None

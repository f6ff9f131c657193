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


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, add: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula in plain torch; returns (y, z)."""
    z = x if add is None else x + add
    return weight * (z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)), z


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, add: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm of x [..., D], or of x + add, by weight [D]: returns (y, x + add), both [..., D].

    Native on the CPU in float32, plain torch elsewhere. Differentiable in x, weight and add.
    """
    if not cpu.serves(x, weight, add) or x.numel() == 0:
        return rms_norm_reference(x, weight, eps, add)
    if add is None:
        return _RmsNorm.apply(x, weight, eps), x
    return _AddRmsNorm.apply(x, add, weight, eps)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def _forward(
    x: torch.Tensor, add: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, z, r) with z and y [T, D], r [T]."""
    flat = _flat(x)
    y = torch.empty_like(flat)
    total = None if add is None else torch.empty_like(flat)
    rstd = flat.new_empty(flat.shape[0])
    _C.rms_norm_forward(
        cpu.array(flat), cpu.array(None if add is None else _flat(add)),
        cpu.array(weight.contiguous()), eps, cpu.array(total), cpu.array(y), cpu.array(rstd),
        cpu.threads(),
    )  # fmt: skip
    return y, flat if total is None else total, rstd


def _backward(
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
        cpu.array(z), cpu.array(weight.contiguous()), cpu.array(rstd), cpu.array(_flat(grad)),
        cpu.array(None if grad_sum is None else _flat(grad_sum)), cpu.array(dx), cpu.array(parts),
        cpu.threads(),
    )  # fmt: skip
    return dx, None if parts is None else parts.sum(0)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        y, z, rstd = _forward(x, None, weight, eps)
        ctx.save_for_backward(z, weight, rstd)
        return y.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        z, weight, rstd = ctx.saved_tensors
        dx, dweight = _backward(z, weight, rstd, grad, None, ctx.needs_input_grad[1])
        return dx.view(grad.shape), dweight, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, add: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, z, rstd = _forward(x, add, weight, eps)
        ctx.save_for_backward(z, weight, rstd)
        return y.view(x.shape), z.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, grad_sum: torch.Tensor) -> Any:
        z, weight, rstd = ctx.saved_tensors
        dz, dweight = _backward(z, weight, rstd, grad, grad_sum, ctx.needs_input_grad[2])
        dz = dz.view(grad.shape)
        return dz, dz, dweight, None

"""Rotary position embedding of queries and keys, in one pass.

    y = x cos + rotate_half(x) sin,   rotate_half([a, b]) = [-b, a]
    dx = dy cos - rotate_half(dy sin)

Source: Su et al., "RoFormer" (2021); halves as in Llama.
"""

from __future__ import annotations

from typing import Any

import torch

from .backend import Backend, use_triton

Rotary = tuple[torch.Tensor, torch.Tensor]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The formula in plain torch: x [H, T, D] by cos, sin [T, D]."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def rotary_embedding(
    q: torch.Tensor,
    k: torch.Tensor,
    q_rotary: Rotary,
    k_rotary: Rotary,
    *,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated q [H, Tq, D] and k [Hkv, Tk, D] by (cos, sin), each [Tq, D] and [Tk, D].

    On CUDA one Triton kernel, laid out [T, H, D] in memory; else the formula. Differentiable in q
    and k.
    """
    served = q.shape[-1] % 2 == 0 and q.dtype in (torch.bfloat16, torch.float16, torch.float32)
    if q.numel() and k.numel() and served and use_triton(backend, q):
        return _Rotary.apply(q, k, *q_rotary, *k_rotary)
    return rotate(q, *q_rotary), rotate(k, *k_rotary)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, *tables: torch.Tensor) -> Any:
        from . import rotary_embedding_triton as kernels

        ctx.save_for_backward(*tables)
        return kernels.rotate(q, *tables[:2]), kernels.rotate(k, *tables[2:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor) -> Any:
        from . import rotary_embedding_triton as kernels

        q_cos, q_sin, k_cos, k_sin = ctx.saved_tensors
        return (
            kernels.rotate(dq, q_cos, q_sin, transposed=True),
            kernels.rotate(dk, k_cos, k_sin, transposed=True),
            None, None, None, None,
        )  # fmt: skip

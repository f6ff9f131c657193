"""The gate of a feed-forward layer: y = act(gate) * up, in one pass forward and one backward.

    silu(x) = x s(x)          gelu_tanh(x) = x s(2 u),  u = sqrt(2 / pi) (x + 0.044715 x^3)

with s the logistic function. Source: Shazeer, "GLU Variants Improve Transformer" (2020).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from sacglam import _C

from . import cpu
from .backend import Backend, use_triton

Activation = Literal["silu", "gelu_tanh"]


def check_activation(activation: str) -> None:
    """Raise ValueError for an unknown activation."""
    if activation not in ("silu", "gelu_tanh"):
        raise ValueError(f"activation={activation!r}: need 'silu' or 'gelu_tanh'")


def gated_activation_reference(
    gate: torch.Tensor, up: torch.Tensor, activation: Activation
) -> torch.Tensor:
    """The formula in plain torch."""
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def gated_activation(
    gate: torch.Tensor, up: torch.Tensor, activation: Activation, *, backend: Backend = "auto"
) -> torch.Tensor:
    """act(gate) * up for tensors of one shape.

    backend: "auto" takes Triton on CUDA and the native kernel on the CPU (float32), else plain
    torch. Raises ValueError for an unknown activation. Differentiable in gate and up.
    """
    check_activation(activation)
    if gate.shape == up.shape and gate.numel():
        known = gate.dtype == up.dtype and gate.dtype != torch.float64
        if known and use_triton(backend, gate):
            return _GatedActivation.apply(gate, up, activation, True)
        if backend in ("auto", "native") and cpu.serves(gate, up):
            return _GatedActivation.apply(gate, up, activation, False)
    return gated_activation_reference(gate, up, activation)


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: Activation, on_gpu: bool
    ) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.on_gpu = activation, on_gpu
        if on_gpu:
            from . import gated_activation_triton as kernels

            return kernels.forward(gate, up, activation == "gelu_tanh")
        y = torch.empty_like(gate)
        _C.gated_forward(cpu.array(gate), cpu.array(up), activation, cpu.array(y), cpu.threads())
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        grad = grad.contiguous()
        if ctx.on_gpu:
            from . import gated_activation_triton as kernels

            return *kernels.backward(gate, up, grad, ctx.activation == "gelu_tanh"), None, None
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _C.gated_backward(
            cpu.array(gate), cpu.array(up), ctx.activation, cpu.array(grad), cpu.array(dgate),
            cpu.array(dup), cpu.threads(),
        )  # fmt: skip
        return dgate, dup, None, None

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

Activation = Literal["silu", "gelu_tanh"]


def gated_activation_reference(
    gate: torch.Tensor, up: torch.Tensor, activation: Activation
) -> torch.Tensor:
    """The formula in plain torch."""
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def gated_activation(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """act(gate) * up for tensors of one shape; native on the CPU in float32, else plain torch.

    Raises ValueError for an unknown activation. Differentiable in gate and up.
    """
    if activation not in ("silu", "gelu_tanh"):
        raise ValueError(f"activation={activation!r}: need 'silu' or 'gelu_tanh'")
    if not cpu.serves(gate, up) or gate.shape != up.shape:
        return gated_activation_reference(gate, up, activation)
    return _GatedActivation.apply(gate, up, activation)


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: Activation
    ) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        _C.gated_forward(cpu.array(gate), cpu.array(up), activation, cpu.array(y), cpu.threads())
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _C.gated_backward(
            cpu.array(gate), cpu.array(up), ctx.activation, cpu.array(grad.contiguous()),
            cpu.array(dgate), cpu.array(dup), cpu.threads(),
        )  # fmt: skip
        return dgate, dup, None

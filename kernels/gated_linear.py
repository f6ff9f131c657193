"""The first half of a gated feed-forward layer: y = act(x Wg^T) * (x Wu^T), without gradients.

Its width is several times the model's, and what reads and writes both products costs as much time
as they do: on a GPU one kernel computes them and the gate. Where gradients are needed both products
are kept, and two cuBLAS products with `gated_activation` after them are faster (docs/bench.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .backend import Backend, use_triton
from .gated_activation import (
    Activation,
    check_activation,
    gated_activation,
    gated_activation_reference,
)


def gated_linear_reference(
    x: torch.Tensor, gate_weight: torch.Tensor, up_weight: torch.Tensor, activation: Activation
) -> torch.Tensor:
    """The formula in plain torch."""
    return gated_activation_reference(F.linear(x, gate_weight), F.linear(x, up_weight), activation)


def gated_linear(
    x: torch.Tensor,
    gate_weight: torch.Tensor,
    up_weight: torch.Tensor,
    activation: Activation,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
    """x [R, D], gate_weight and up_weight [F, D] -> [R, F].

    Triton for 16-bit tensors on CUDA where no gradient is needed; else two products and
    `gated_activation`, which is differentiable. Raises ValueError for an unknown activation.
    """
    tensors = (x, gate_weight, up_weight)
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    served = x.dtype.itemsize == 2 or backend == "triton"
    if served and not needs_grad and x.numel() and use_triton(backend, x):
        from . import gated_linear_triton as kernels

        check_activation(activation)
        return kernels.forward(x, gate_weight, up_weight, activation == "gelu_tanh")
    gate, up = F.linear(x, gate_weight), F.linear(x, up_weight)
    return gated_activation(gate, up, activation, backend=backend)

"""Models in bfloat16 on CPUs without instructions for it: weights of two bytes, arithmetic in
float32.

There a product in bfloat16 takes about seven times as long as one in float32. So each layer's
weights become float32 for as long as they are used, and the rows between layers stay float32: the
result is that of a float32 model with these weights, at nearly its speed and with half its memory
for weights.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fused import override


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16 (AVX512-BF16 or AMX); True for
    those that are not known here."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def widen(model: nn.Module) -> None:
    """Have the layers of a model with weights in bfloat16 compute in float32 on such a CPU."""
    from transformers.pytorch_utils import Conv1D

    if multiplies_bfloat16():
        return
    layers: dict[type, Callable[[Any, Tensor], Tensor]] = {
        nn.Linear: _linear,
        Conv1D: _transposed,
        nn.LayerNorm: _layer_norm,
    }
    for module in model.modules():
        compute = layers.get(type(module))
        if isinstance(module, nn.Embedding):
            compute = _embedding
        elif type(module).__name__ == "T5DenseActDense":
            compute = _t5_feed_forward
        weight = next(module.parameters(), None)
        if compute is not None and weight is not None and _is_narrow(weight):
            override(module, _unless_moved(compute))


def _unless_moved(compute: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        moved = not _is_narrow(next(self.parameters()))
        return self.sacglam_original(x) if moved else compute(self, x)

    return forward


def _is_narrow(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype is torch.bfloat16


def _linear(self: Any, x: Tensor) -> Tensor:
    return _Linear.apply(x.float(), self.weight, self.bias)


def _transposed(self: Any, x: Tensor) -> Tensor:
    return _Linear.apply(x.float(), self.weight.T, self.bias)


def _layer_norm(self: Any, x: Tensor) -> Tensor:
    weight, bias = (p if p is None else p.float() for p in (self.weight, self.bias))
    return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


def _embedding(self: Any, x: Tensor) -> Tensor:
    rows = F.embedding(x, self.weight, self.padding_idx).float()
    scale = getattr(self, "embed_scale", None)  # Gemma's
    return rows if scale is None else rows * torch.as_tensor(scale).float()


def _t5_feed_forward(self: Any, x: Tensor) -> Tensor:
    # Its own code would round what comes before the last product.
    return self.wo(self.dropout(self.act(self.wi(x))))


class _Linear(torch.autograd.Function):
    """y = x W^T + b for x [..., D] float32, W [N, D] and b [N] bfloat16. Keeps W, not its copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return F.linear(x, weight.float(), None if bias is None else bias.float())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = grad @ weight.float()
        if ctx.needs_input_grad[1]:
            dw = (rows.T @ x.flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            db = rows.sum(0).to(weight.dtype)
        return dx, dw, db

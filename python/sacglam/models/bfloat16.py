"""Models in bfloat16 on the CPU: weights of two bytes, all else in float32 but the products.

The rows between layers stay float32, so that the native kernels of `sacglam.kernels` serve them,
and attention, norms and gates round nothing. Products are of bfloat16, with sums in float32, where
the CPU has instructions for it: at twice the speed of float32. Where it has none they take seven
times as long as in float32; there each layer's weights become float32 for as long as they are used,
and the result is that of a float32 model with these weights, at nearly its speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UnsupportedModelError
from ..kernels import cpu
from .fused import override
from .projections import forward_was_replaced


def keep_rows_float32(model: nn.Module) -> None:
    """Have the layers of a model with weights in bfloat16 take and give float32 on the CPU.

    Raises:
        UnsupportedModelError: such a layer has a forward method of its own, for rows in bfloat16.
    """
    from transformers.pytorch_utils import Conv1D

    layers: dict[type, Callable[[Any, Tensor], Tensor]] = {
        nn.Linear: _linear,
        Conv1D: _transposed,
        nn.LayerNorm: _layer_norm,
    }
    for name, module in model.named_modules():
        compute = layers.get(type(module))
        plain = type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
        if isinstance(module, nn.Embedding) and plain:  # unlike OPT's of positions
            compute = _embedding
        elif type(module).__name__ == "T5DenseActDense":
            compute = _t5_feed_forward
        weight = next(module.parameters(), None)
        if compute is None or weight is None or not _is_narrow(weight):
            continue
        if forward_was_replaced(module):
            raise UnsupportedModelError(
                f"{name} ({type(module).__name__}) has a forward method of its own, which would "
                "get rows in float32 beside weights in bfloat16: load the model in float32, or "
                "leave the class's method in place"
            )
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
    rows = _Rows.apply(x, self.weight, self.padding_idx)
    scale = getattr(self, "embed_scale", None)  # Gemma's
    return rows if scale is None else rows * torch.as_tensor(scale).float()


def _t5_feed_forward(self: Any, x: Tensor) -> Tensor:
    # Its own code would round what comes before the last product.
    return self.wo(self.dropout(self.act(self.wi(x))))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight for float32 [..., K] and bfloat16 [K, N]: float32 [..., N]."""
    if not cpu.multiplies_bfloat16():
        return x @ weight.float()
    rows = x.reshape(-1, x.shape[-1])
    whole = x.new_empty(*x.shape[:-1], weight.shape[1])  # a view could not be changed in place
    y = whole.view(-1, weight.shape[1])
    for begin in range(0, len(rows), cpu.ROW_BLOCK):
        part = rows[begin : begin + cpu.ROW_BLOCK]
        y[begin : begin + len(part)] = (cpu.narrow_rows(part) @ weight)[: len(part)]
    return whole


class _Rows(torch.autograd.Function):
    """Rows of an embedding in float32, whose gradients are added up in float32: a bfloat16 sum no
    longer grows once it is 256 times what is added, as a frequent token's is."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.padding = (weight.shape, weight.dtype), padding
        return F.embedding(ids, weight, padding).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (ids,) = ctx.saved_tensors
        shape, dtype = ctx.table
        dw = grad.new_zeros(shape).index_add_(0, ids.flatten(), grad.flatten(0, -2))
        if ctx.padding is not None:
            dw[ctx.padding] = 0.0
        return None, dw.to(dtype), None


class _Linear(torch.autograd.Function):
    """y = x W^T + b for x [..., D] float32, W [N, D] and b [N] bfloat16. Keeps W, not its copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        y = _product(x, weight.T)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _product(grad, weight)
        if ctx.needs_input_grad[1]:
            rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
            if cpu.multiplies_bfloat16():
                step = 4 * cpu.ROW_STEP  # sums over all rows: no blocks
                dw = cpu.narrow_rows(rows, step).T @ cpu.narrow_rows(inputs, step)
            else:
                dw = (rows.T @ inputs).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            db = grad.flatten(0, -2).sum(0).to(weight.dtype)
        return dx, dw, db

"""Linear layers of one input, with their LoRA adapters, in as few passes over memory as there are.

    y_i = x W_i^T + b_i + s_i (x A_i^T) B_i^T
    dx  = sum_i dy_i W_i + s_i (dy_i B_i) A_i
    dA_i = s_i (dy_i B_i)^T x,   dB_i = s_i dy_i^T (x A_i^T)

peft computes the adapter's part as tensors of its own, scaled and added, and autograd adds up the
layers' gradients to x: five passes over a tensor of the model's width where products that
accumulate need one. Source: Hu et al., "LoRA" (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Projection(NamedTuple):
    """W [N, D], b [N] or None, and the adapter's A [r, D], B [N, r] and scaling, or None."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None
    scaling: float = 0.0


def projection_of(module: nn.Module) -> Projection | None:
    """What `module` computes, or None where it is more than the formula above: dropout, DoRA,
    several adapters at once, hooks, a method of its own, a layer of another kind."""
    if type(module) is nn.Linear:
        return Projection(module.weight, module.bias) if _is_as_written(module) else None
    lora: Any = module
    base: Any = getattr(lora, "base_layer", None)
    if not hasattr(lora, "lora_A") or not (_is_as_written(lora) and _is_linear(base)):
        return None
    plain = Projection(base.weight, base.bias)
    if lora.merged:
        return None if lora.disable_adapters else plain
    active = [name for name in lora.active_adapters if name in lora.lora_A]
    if lora.disable_adapters or not active:
        return plain
    name = active[0]
    down, up = lora.lora_A[name], lora.lora_B[name]
    known = (
        len(active) == 1
        and name not in getattr(lora, "lora_variant", {})
        and type(lora.lora_dropout[name]) is nn.Identity
        and _is_linear(down)
        and _is_linear(up)
        and up.bias is None
    )
    if not known:
        return None
    return Projection(base.weight, base.bias, down.weight, up.weight, float(lora.scaling[name]))


def _is_linear(module: Any) -> bool:
    return type(module) is nn.Linear and _is_as_written(module)


def _is_as_written(module: nn.Module) -> bool:
    """Whether a call of the module computes what its class says, there and back."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks) and not forward_was_replaced(module)


def forward_was_replaced(module: nn.Module) -> bool:
    """Whether the object has a forward method of its own, ours (fused.override) left aside."""
    own = vars(module).get("sacglam_original", vars(module).get("forward"))
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def project(x: Tensor, modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """What each module makes of x [R, D]: [R, N_i] each."""
    known = [projection_of(module) for module in modules]
    if any(p is None for p in known) or torch.is_autocast_enabled(x.device.type):
        return tuple(module(x) for module in modules)
    return compute(x, [p for p in known if p is not None])


def compute(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """The formula for x [R, D]: [R, N_i] each."""
    flat = [tensor for p in projections for tensor in p[:4]]
    return _Project.apply(x, [p.scaling for p in projections], *flat)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scalings: list[float], *flat: Tensor | None
    ) -> tuple[Tensor, ...]:
        outs, inner = [], []
        for (weight, bias, down, up), scaling in zip(_fours(flat), scalings, strict=True):
            out = torch.nn.functional.linear(x, weight, bias)
            small = None
            if down is not None:
                small = x @ down.to(x.dtype).T  # [R, r]
                out.addmm_(small, up.to(x.dtype).T, alpha=scaling)
            outs.append(out)
            inner.append(small)
        ctx.scalings = scalings
        ctx.set_materialize_grads(False)
        needed = ctx.needs_input_grad
        # Inputs are as wide as the layers: kept only for the gradients of weights, or of A.
        kept = any(needed[2 + 4 * i] or needed[4 + 4 * i] for i in range(len(scalings)))
        ctx.save_for_backward(x if kept else None, *inner, *flat)
        return tuple(outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, *saved = ctx.saved_tensors
        count = len(ctx.scalings)
        inner, flat = saved[:count], saved[count:]
        dx: Tensor | None = None
        found: list[Tensor | None] = []
        for i, (weight, bias, down, up) in enumerate(_fours(flat)):
            need = ctx.needs_input_grad[2 + 4 * i : 6 + 4 * i]
            grad, scaling = grads[i], ctx.scalings[i]
            if grad is None:
                found += [None] * 4
                continue
            small_grad = None
            if down is not None:
                small_grad = (grad @ up.to(grad.dtype)).mul_(scaling)  # [R, r]
            if ctx.needs_input_grad[0]:
                dx = grad @ weight if dx is None else dx.addmm_(grad, weight)
                if small_grad is not None:
                    dx.addmm_(small_grad, down.to(grad.dtype))
            found += [
                grad.T @ x if need[0] else None,
                grad.sum(0) if need[1] and bias is not None else None,
                (small_grad.T @ x).to(down.dtype) if need[2] and small_grad is not None else None,
                (grad.T @ inner[i]).mul_(scaling).to(up.dtype) if need[3] else None,
            ]
        return dx, None, *found


def _fours(flat: Sequence[Any]) -> list[tuple[Any, Any, Any, Any]]:
    return list(zip(flat[0::4], flat[1::4], flat[2::4], flat[3::4], strict=True))

"""Times of what a layer does beside attention and plain products, with what it replaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import torch
import torch.nn.functional as F
from device_kernels import Method, Record, forward_and_training, heads_tensor
from device_workloads import Ceilings, Model
from sacglam.kernels import (
    gated_activation,
    gated_activation_reference,
    gated_linear,
    rms_norm,
    rms_norm_reference,
    rotary_embedding,
)
from sacglam.models.projections import project
from torch import nn


def _random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device=workloads.DEVICE) * scale).bfloat16()


def _mlp_floor(rows: int, dim: int, inner: int, ceilings: Ceilings, *, train: bool) -> float:
    product = 2.0 * rows * 3 * dim * inner
    return product * (2 if train else 1) / ceilings.flops_per_s


def time_layer(
    model: Model, inner: int, activation: Any, rows: int, ceilings: Ceilings, record: Record
) -> None:
    """`rows` tokens of one layer of `model`."""
    dim = model.hidden
    x, add = (_random(rows, dim).requires_grad_() for _ in range(2))
    scale = torch.ones(dim, device=workloads.DEVICE).bfloat16()
    gate, up = (_random(inner, dim, scale=dim**-0.5) for _ in range(2))
    down = _random(dim, inner, scale=inner**-0.5)

    def stock_norm() -> torch.Tensor:
        """As transformers computes it."""
        z = (x + add).float()
        return scale * (z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    def our_mlp() -> torch.Tensor:
        """As `models.fused` computes it."""
        if not torch.is_grad_enabled():
            return F.linear(gated_linear(x, gate, up, activation), down)
        return F.linear(gated_activation(F.linear(x, gate), F.linear(x, up), activation), down)

    def stock_mlp() -> torch.Tensor:
        gated = gated_activation_reference(F.linear(x, gate), F.linear(x, up), activation)
        return F.linear(gated, down)

    cases: dict[str, dict[str, Callable[[], torch.Tensor]]] = {
        "add and norm": {
            "sacglam": lambda: rms_norm(x, scale, 1e-6, add)[0],
            "plain torch": stock_norm,
            "plain torch, compiled": torch.compile(
                lambda: rms_norm_reference(x, scale, 1e-6, add)[0]
            ),
        },
        "gated layer": {
            "sacglam": our_mlp,
            "three cuBLAS products": stock_mlp,
            "three cuBLAS products, compiled": torch.compile(stock_mlp),
        },
    }
    leaves = {"add and norm": [x, add], "gated layer": [x]}
    moved = 2.0 * rows * dim
    for name, methods in cases.items():
        calls = {m: forward_and_training(run, leaves[name]) for m, run in methods.items()}
        for which, kind in enumerate(("forward", "forward+backward")):
            floor = _mlp_floor(rows, dim, inner, ceilings, train=bool(which))
            if name != "gated layer":
                floor = moved * (4 if not which else 7) / ceilings.bytes_per_s
            case = f"{model.name}, {name}, {rows} rows, {kind}"
            record("layer", case, {m: c[which] for m, c in calls.items()}, floor)
    if model.heads != model.kv_heads:
        _time_rotary(model, rows, ceilings, record)
    _time_projections(model, rows, ceilings, record)


def _time_rotary(model: Model, rows: int, ceilings: Ceilings, record: Record) -> None:
    q = heads_tensor(model.heads, rows, model.head_dim)
    k = heads_tensor(model.kv_heads, rows, model.head_dim)
    cos, sin = (_random(rows, model.head_dim) for _ in range(2))

    def run(backend: Any) -> Callable[[], torch.Tensor]:
        return lambda: torch.cat(rotary_embedding(q, k, (cos, sin), (cos, sin), backend=backend))

    methods = {"sacglam": run("triton"), "plain torch": run("torch")}
    calls = {m: forward_and_training(call, [q, k]) for m, call in methods.items()}
    for which, kind in enumerate(("forward", "forward+backward")):
        case = f"{model.name}, rotary embedding and a join, {rows} rows, {kind}"
        record("layer", case, {m: c[which] for m, c in calls.items()}, None)


def _time_projections(model: Model, rows: int, ceilings: Ceilings, record: Record) -> None:
    """Queries, keys and values with peft's adapters on queries and values."""
    from peft import LoraConfig, get_peft_model

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kv = model.kv_heads * model.head_dim
            self.q = nn.Linear(model.hidden, model.heads * model.head_dim)
            self.k, self.v = nn.Linear(model.hidden, kv), nn.Linear(model.hidden, kv)

    with torch.device(workloads.DEVICE):
        wrapped: Any = get_peft_model(
            Attention().bfloat16(), LoraConfig(r=16, target_modules=["q", "v"])
        )
    own = wrapped.base_model.model
    modules = (own.q, own.k, own.v)
    x = _random(rows, model.hidden).requires_grad_()
    leaves = [x, *(p for p in wrapped.parameters() if p.requires_grad)]
    calls: dict[str, tuple[Method, Method]] = {
        "sacglam": forward_and_training(lambda: torch.cat(project(x, modules), 1), leaves),
        "peft": forward_and_training(lambda: torch.cat([m(x) for m in modules], 1), leaves),
    }
    for which, kind in enumerate(("forward", "forward+backward")):
        case = f"{model.name}, q, k, v with LoRA and a join, {rows} rows, {kind}"
        record("layer", case, {m: c[which] for m, c in calls.items()}, None)


# block_m, block_n, block_k, warps, stages; all compile for sm_90 without spills.
TILES = [
    (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 64, 64, 8, 3), (128, 64, 64, 4, 3),
    (256, 64, 64, 8, 3),
]  # fmt: skip


def compile_tile(shape: tuple[int, ...]) -> None:
    """Compile one kernel of `sweep`, in a worker process: it stays in Triton's cache on disk."""
    _gated_methods(256, [shape])[f"{shape}, group 1"]()


def _gated_methods(rows: int, shapes: Sequence[tuple[int, ...]]) -> dict[str, Method]:
    from sacglam.kernels import gated_linear_triton as kernels

    dim, inner = 896, 4864
    x = _random(rows, dim)
    gate, up = (_random(inner, dim, scale=dim**-0.5) for _ in range(2))

    def run(shape: tuple[int, ...], group: int) -> Method:
        names = ("block_m", "block_n", "block_k", "num_warps", "num_stages")
        config = dict(zip(names, shape, strict=True))
        return lambda: kernels.forward(x, gate, up, False, config=config, group=group)

    methods = {
        f"{shape}, group {group}": run(shape, group) for shape in shapes for group in (1, 2, 8)
    }
    methods["cuBLAS, the two products alone"] = lambda: (x @ gate.T, x @ up.T)
    return methods


def sweep(rows: int, record: Record) -> None:
    """Every tile shape of the gated products' kernel, beside the products alone by cuBLAS."""
    record("sweep", f"gated products, {rows} rows", _gated_methods(rows, TILES), None)

"""Projections with adapters in one function against peft's own layers, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from sacglam.models.fused import override
from sacglam.models.projections import project, projection_of
from torch import nn

NAMES = ("query", "key", "value")


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(12, 20)
        self.key = nn.Linear(12, 8, bias=False)
        self.value = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.query(x), self.key(x), self.value(x)


def adapted(**options: Any) -> Any:
    """The layers with adapters on two of them, whose B is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["query", "value"], **options)
    model: Any = get_peft_model(Layers().double(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    return model


def modules_of(model: Any) -> list[nn.Module]:
    base = model.base_model.model if hasattr(model, "base_model") else model
    return [getattr(base, name) for name in NAMES]


def compare(model: nn.Module, needs_x: bool = True, only: int | None = None) -> None:
    x = torch.randn(7, 12, dtype=torch.float64, requires_grad=needs_x)
    leaves = [p for p in model.parameters() if p.requires_grad] + ([x] if needs_x else [])
    weights = [torch.randn(7, n, dtype=torch.float64) for n in (20, 8, 8)]
    results = []
    for outs in (project(x, modules_of(model)), model(x)):
        terms = [(a * w).sum() for a, w in zip(outs, weights, strict=True)]
        loss = terms[only] if only is not None else sum(terms)
        results.append((outs, torch.autograd.grad(loss, leaves, allow_unused=True)))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        b = torch.zeros_like(a) if b is None and a is not None else b
        a = torch.zeros_like(b) if a is None and b is not None else a
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needs_x", [True, False])
def test_adapters_match_peft(needs_x: bool):
    model = adapted()
    assert all(projection_of(m) is not None for m in modules_of(model))
    compare(model, needs_x)


def test_full_weights_and_unused_outputs():
    torch.manual_seed(0)
    model = Layers().double()
    compare(model)
    for only in range(3):
        compare(model, only=only)
        compare(adapted(), only=only)


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B", "lora_"])
@pytest.mark.parametrize("rest", [False, True])
def test_gradients_where_some_are_frozen(frozen: str, rest: bool):
    model = adapted()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rest if "lora_" not in name else frozen not in name)
    compare(model)


def test_frozen_layers_keep_nothing_of_their_input():
    model = Layers().double().requires_grad_(False)
    x = torch.randn(7, 12, dtype=torch.float64, requires_grad=True)
    packed: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = project(x, modules_of(model))
    weights = [p.data_ptr() for p in model.parameters()]
    assert all(tensor.data_ptr() in weights for tensor in packed)
    got = torch.autograd.grad(sum(out.square().sum() for out in outs), x)
    want = torch.autograd.grad(sum(out.square().sum() for out in model(x)), x)
    torch.testing.assert_close(got, want)


def test_the_active_adapter_counts():
    model = adapted()
    model.add_adapter("critic", LoraConfig(r=2, target_modules=["query"]))
    for name in ("critic", "default"):
        model.set_adapter(name)
        compare(model)
    query = modules_of(model)[0]
    with model.disable_adapter():
        found = projection_of(query)
        assert found is not None
        assert found.down is None
    model.base_model.set_adapter(["default", "critic"])
    assert projection_of(query) is None  # two at once
    compare(model)


def test_what_is_more_than_the_formula_is_left_to_its_module():
    assert projection_of(modules_of(adapted(lora_dropout=0.1))[0]) is None
    assert projection_of(modules_of(adapted(use_dora=True))[0]) is None
    assert projection_of(nn.LayerNorm(4)) is None
    scaled = get_peft_model(
        Layers().double(), IA3Config(target_modules=["query"], feedforward_modules=[])
    )
    assert projection_of(modules_of(scaled)[0]) is None
    compare(scaled)
    hooked = nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *_: None)
    assert projection_of(hooked) is None
    merged = adapted()
    merged.merge_adapter()
    found = projection_of(modules_of(merged)[0])
    assert found is not None
    assert found.down is None
    compare(merged, needs_x=True, only=1)


@pytest.mark.parametrize("part", ["", "base_layer", "lora_A.default", "lora_B.default"])
@pytest.mark.parametrize("how", ["hook", "pre-hook", "backward hook", "method"])
def test_parts_that_were_changed_are_called(part: str, how: str):
    """A GPU leaves the modules out, the CPU calls them: both must compute the same."""
    model = adapted()
    query, key, _ = modules_of(model)
    changed = [query.get_submodule(part), *([] if part else [key])]
    for module in changed:
        if how == "hook":
            module.register_forward_hook(lambda module, args, out: 0.5 * out)
        elif how == "pre-hook":
            module.register_forward_pre_hook(lambda module, args: (0.5 * args[0],))
        elif how == "backward hook":
            module.register_full_backward_hook(lambda module, into, out: (0.5 * into[0],))
        else:
            own = module.forward
            module.forward = lambda x, own=own: 0.5 * own(x)
    assert all(projection_of(module) is None for module in (query, *changed))
    compare(model)


def test_ours_around_a_module_is_not_its_own():
    for module in (modules_of(adapted())[0], nn.Linear(3, 3)):
        override(module, lambda self, x: self.sacglam_original(x))
        assert projection_of(module) is not None


def test_an_adapter_in_float32_under_a_bfloat16_base():
    model = adapted().to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    x = torch.randn(7, 12).bfloat16().requires_grad_()
    outs = project(x, modules_of(model))
    want = model(x)
    for a, b in zip(outs, want, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)
    sum(out.float().square().sum() for out in outs).backward()
    lora = [p for n, p in model.named_parameters() if "lora_" in n]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lora)


def test_autocast_takes_the_modules_own_way():
    model = adapted().float()
    x = torch.randn(7, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outs = project(x, modules_of(model))
        want = model(x)
    for a, b in zip(outs, want, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    sum(a.float().sum() for a in outs).backward()
    assert x.grad is not None

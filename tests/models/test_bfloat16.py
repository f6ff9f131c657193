"""Models in bfloat16 on the CPU, against float64 with the same weights."""

from __future__ import annotations

import platform
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sacglam.errors import UnsupportedModelError
from sacglam.kernels import cpu, linear_logprob, linear_logprob_reference
from sacglam.models import bfloat16
from sacglam.models.policy import Policy, PolicyOptions
from torch.utils._python_dispatch import TorchDispatchMode

PROMPTS = ["Goal : grasp the red lion . you see water", "Goal : go to blue", "you see a b c d e"]
CANDIDATES = [["grasp", "grasp red", "go to"], ["go", "go to", "go to blue", "release"], ["a"]]


@pytest.fixture
def build(make_model: Any):
    """build(architecture, lora=) -> (policy in bfloat16, the same in float64, by the reference)."""

    def policy_of(architecture: str, dtype: torch.dtype, attn: str, lora: bool) -> Policy:
        # Of a bfloat16 model the buffers stay as they are loaded: in float32.
        built = torch.float32 if dtype is torch.bfloat16 else dtype
        model, tokenizer = make_model(architecture, built)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        if lora:
            targets = ["q", "v"] if model.config.is_encoder_decoder else ["q_proj", "v_proj"]
            torch.manual_seed(2)
            model = get_peft_model(
                model, LoraConfig(r=3, target_modules=targets, init_lora_weights=False)
            )
        torch.manual_seed(1)
        return Policy(model, tokenizer, options=PolicyOptions(attn=attn))

    def both(architecture: str, lora: bool = False) -> tuple[Policy, Policy]:
        half = policy_of(architecture, torch.bfloat16, "fast", lora)
        exact = policy_of(architecture, torch.float64, "reference", lora)
        exact.model.load_state_dict(half.model.state_dict())
        exact.heads.load_state_dict(half.heads.state_dict())
        return half, exact

    return both


def _scores_and_gradients(policy: Policy) -> tuple[list[Any], dict[str, torch.Tensor]]:
    scores = policy.forward(policy.pack_texts(PROMPTS, CANDIDATES, leaves=True))
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=scores.log_prob.shape))
    weight = noise * scores.mask
    ((scores.log_prob + scores.q.min(0).values) * weight).sum().backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in policy.trainable_parameters().items()
    }
    found = [x.detach().double() for x in (scores.log_prob, scores.log_pi, scores.q)]
    return found, gradients


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-6))


@pytest.mark.parametrize("count", [100, 10_000])
def test_an_embeddings_gradient_is_added_up_in_float32(count: int):
    """256 + 1 is 256 in bfloat16."""
    table = torch.nn.Embedding(3, 4, padding_idx=2, dtype=torch.bfloat16)
    ids = torch.tensor([[1] * count + [0, 2]])
    rows = bfloat16._embedding(table, ids)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[0, 0], table.weight[1].float())
    rows.sum().backward()
    want = torch.tensor([1.0, float(count), 0.0])[:, None].expand(3, 4)
    assert torch.equal(table.weight.grad, want.bfloat16())


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: False)


@pytest.fixture
def with_instructions(monkeypatch: pytest.MonkeyPatch):
    """As on a CPU that has them; where it has none torch's products are slow, and as exact."""
    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: True)


def test_without_instructions_only_the_weights_are_rounded(
    build: Any, architecture: str, without_instructions: None
):
    half, exact = build(architecture)
    assert half.dtype is torch.bfloat16
    (found, gradients), (expected, exact_gradients) = map(_scores_and_gradients, (half, exact))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for name, gradient in exact_gradients.items():
        # A weight's gradient has its weight's type, and so eight bits.
        limit = 1e-4 if gradients[name].dtype is torch.float32 else 1e-2
        assert _error(gradients[name], gradient) < limit, name


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "flan-t5"])
def test_adapters_have_float32_gradients(build: Any, architecture: str, without_instructions: None):
    half, exact = build(architecture, lora=True)
    (found, gradients), (expected, exact_gradients) = map(_scores_and_gradients, (half, exact))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert sum("lora_" in name for name in gradients) >= 8
    for name, gradient in exact_gradients.items():
        assert gradients[name].dtype is torch.float32
        assert _error(gradients[name], gradient) < 1e-4, name


def test_with_instructions_products_alone_are_rounded(
    build: Any, architecture: str, with_instructions: None
):
    half, double = build(architecture)
    embed = half.model.get_input_embeddings()
    assert embed(torch.zeros(1, dtype=torch.long)).dtype is torch.float32
    (found, gradients), (expected, exact_gradients) = map(_scores_and_gradients, (half, double))
    # Two to three digits; of a model whose rows are rounded too the errors are 0.6 to 3 x these.
    assert 1e-5 < _error(found[0], expected[0]) < 1e-2
    assert _error(found[1].exp(), expected[1].exp()) < 5e-3
    ours, exact = (torch.cat([g[name].double().flatten() for name in gradients])
                   for g in (gradients, exact_gradients))  # fmt: skip
    # T5 does not scale its attention scores: these weights make it nearly hard.
    assert _error(ours, exact) < (0.2 if "t5" in architecture else 0.03)


@pytest.mark.parametrize("instructions", [False, True])
def test_a_head_of_two_bytes_under_rows_of_four(
    monkeypatch: pytest.MonkeyPatch, instructions: bool
):
    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: instructions)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(70, 24, generator=generator, requires_grad=True)
    weight = torch.randn(4500, 24, generator=generator).bfloat16().requires_grad_()
    row = torch.randint(70, (90,), generator=generator)
    token = torch.randint(4500, (90,), generator=generator)
    grad = torch.randn(90, generator=generator)

    def gradients(logp: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((logp * grad).sum(), (h, weight))

    found = linear_logprob(h, weight, row, token)
    assert found.dtype is torch.float32
    ours = gradients(found)
    assert ours[0].dtype is torch.float32
    # With instructions the rows are rounded first, and the logits near their maximum.
    rows = h.bfloat16() if instructions else h
    expected = linear_logprob_reference(rows, weight, row, token)
    near, limits = (3e-3, (4e-3, 4e-3)) if instructions else (1e-5, (1e-5, 4e-3))
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)
    for a, b, limit in zip(ours, gradients(expected), limits, strict=True):
        assert _error(a, b.double()) < limit
    with pytest.raises(ValueError, match="one dtype"):
        linear_logprob(h.bfloat16(), weight.float(), row, token)


@pytest.mark.parametrize("instructions", [False, True])
def test_a_layer_is_its_product_and_float32_else(
    monkeypatch: pytest.MonkeyPatch, instructions: bool
):
    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: instructions)
    layer = torch.nn.Linear(40, 30).bfloat16()
    bfloat16.keep_rows_float32(layer)
    x = torch.randn(5, 40, requires_grad=True)
    product = x.bfloat16() @ layer.weight.T if instructions else x @ layer.weight.float().T
    y = layer(x)
    assert torch.equal(y, product.float() + layer.bias)
    grad = torch.randn_like(y)
    y.backward(grad)
    exact = (grad @ layer.weight.float(), grad.T @ x.detach(), grad.sum(0))
    for a, b in zip((x, layer.weight, layer.bias), exact, strict=True):
        assert a.grad is not None
        assert _error(a.grad, b.detach().double()) < 5e-3


def test_weights_that_move_are_not_widened(without_instructions: None):
    """A module that is in another type by now computes in it."""
    layer = torch.nn.Linear(4, 3).bfloat16()
    bfloat16.keep_rows_float32(layer)
    x = torch.randn(2, 4)
    assert layer(x.bfloat16()).dtype is torch.float32
    layer.double()
    assert layer(x.double()).dtype is torch.float64


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "Linear"), ("gpt2", "Conv1D"), ("gpt2", "LayerNorm"), ("t5", "Embedding"),
     ("t5", "Linear")],
)  # fmt: skip
def test_a_layer_with_a_method_of_its_own_is_refused_by_name(
    make_model: Any, architecture: str, kind: str
):
    """Before, it was left out in silence."""
    model, tokenizer = make_model(architecture, torch.bfloat16)
    modules = ((n, m) for n, m in model.named_modules() if type(m).__name__ == kind)
    name, module = next(modules)
    module.forward = types.MethodType(lambda self, x: type(self).forward(self, x) * 2, module)
    with pytest.raises(UnsupportedModelError, match=rf"^{name} \({kind}\) has a forward method"):
        Policy(model, tokenizer)
    del module.forward
    Policy(model, tokenizer)
    Policy(model, tokenizer)  # our own methods are none of these


# Elsewhere the system tells of instructions in another way, or has other names for them.
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86 alone")
def test_the_instructions_are_those_that_the_kernel_tells_of():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert cpu.multiplies_bfloat16() == bool({"avx512_bf16", "amx_bf16"} & flags)


class _Products(TorchDispatchMode):
    """Notes the shapes [M, K] x [K, N] of the products in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, int, int]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            a, b = args[-2:]
            if a.dtype is torch.bfloat16:
                self.shapes.add((*a.shape, b.shape[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_batches_of_all_sizes_have_few_different_products(
    build: Any, architecture: str, lora: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: True)
    half, _ = build(architecture, lora=lora)
    for parameter in half.model.parameters():
        parameter.requires_grad_(parameter.requires_grad or not lora)
    rng = np.random.default_rng(0)
    words = "a b c d e go to blue red lion water".split()
    with _Products() as seen:
        for prompts in (1, 2, 3, 5, 9, 40):
            texts = [" ".join(rng.choice(words, rng.integers(1, 30))) for _ in range(prompts)]
            sets = [CANDIDATES[rng.integers(3)] for _ in texts]
            scores = half.forward(half.pack_texts(texts, sets, leaves=True))
            (scores.log_prob * scores.mask).sum().backward()
    assert len(seen.shapes) > 10
    sizes = {n for p in half.model.parameters() for n in p.shape}
    for m, k, n in seen.shapes:
        of_rows = m % 16 == 0 and m <= 512
        of_a_gradient = {m, n} <= sizes and k % 16 == 0  # a weight's
        assert of_rows or of_a_gradient, (m, k, n)


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 511, 512, 513, 1300])
def test_a_product_of_any_number_of_rows(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda: True)
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40).bfloat16()
    plain = torch.nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    bfloat16.keep_rows_float32(layer)
    inputs = [torch.randn(2, rows, 24).bfloat16().float().requires_grad_() for _ in range(2)]
    with torch.no_grad():
        inputs[1].copy_(inputs[0])
    outs = [layer(inputs[0]), plain(inputs[1])]
    grad = torch.randn(2, rows, 40).bfloat16().float()
    for out in outs:
        out.backward(grad)
    pairs = [outs, [x.grad for x in inputs]]
    pairs += [[layer.weight.grad.float(), plain.weight.grad], [layer.bias.grad, plain.bias.grad]]
    for found, want in pairs:
        assert found.shape == want.shape
        scale = max(float(want.abs().max()), 1.0) if want.numel() else 1.0
        torch.testing.assert_close(found.float(), want, rtol=0, atol=2**-8 * scale)

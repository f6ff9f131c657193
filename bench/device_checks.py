"""The kernels on the GPU against their float64 references: outputs and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import torch
from sacglam.kernels import (
    AttentionPlan,
    attention,
    attention_reference,
    candidate_softmax,
    candidate_softmax_reference,
    gated_activation,
    gated_activation_reference,
    gated_linear,
    gated_linear_reference,
    linear_logprob,
    linear_logprob_reference,
    plan_forest,
    plan_segments,
    rms_norm,
    rms_norm_reference,
    rotary_embedding,
)
from sacglam.kernels.rotary_embedding import rotate

# Largest |error| / |reference| by dtype: bfloat16 operands, float32 arithmetic.
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b| in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def random_forest(sizes: Sequence[int], prefix: int, seed: int) -> AttentionPlan:
    """Trees in preorder: a chain for two thirds, then random branches."""
    rng = torch.Generator().manual_seed(seed)
    total = prefix + sum(sizes)
    end, pos, start = [total] * prefix, list(range(prefix)), [prefix]
    for size in sizes:
        parent, path = [-1], [0]
        for i in range(1, size):
            if i >= 2 * size // 3:
                path = path[: int(torch.randint(1, len(path) + 1, (1,), generator=rng))]
            parent.append(path[-1])
            path.append(i)
        last = [i + 1 for i in range(size)]
        depth = [0] * size
        for i in range(size - 1, 0, -1):
            last[parent[i]] = max(last[parent[i]], last[i])
        for i in range(1, size):
            depth[i] = depth[parent[i]] + 1
        end += [start[-1] + x for x in last]
        pos += [prefix + d for d in depth]
        start.append(start[-1] + size)
    made = [torch.tensor(x, dtype=torch.int32, device=workloads.DEVICE) for x in (end, start, pos)]
    return plan_forest(made[0], made[1], prefix=prefix, pos=made[2])


def some_queries(sizes: Sequence[int], seed: int) -> AttentionPlan:
    """A forest of which two tokens in five are queries."""
    plan = random_forest(sizes, 0, seed)
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.rand(plan.q_total, generator=rng) < 0.4
    return plan.only(chosen.nonzero().squeeze(1).to(workloads.DEVICE))


def random_segments(q_sizes: Sequence[int], k_sizes: Sequence[int]) -> AttentionPlan:
    def starts(sizes: Sequence[int]) -> torch.Tensor:
        return torch.tensor([0, *sizes], device=workloads.DEVICE).cumsum(0).int()

    def positions(sizes: Sequence[int]) -> torch.Tensor:
        return torch.cat([torch.arange(n, device=workloads.DEVICE) for n in sizes]).int()

    return plan_segments(
        starts(q_sizes), sum(q_sizes), starts(k_sizes), sum(k_sizes),
        q_pos=positions(q_sizes), k_pos=positions(k_sizes),
    )  # fmt: skip


RAGGED = (150, 3, 64, 65, 1, 200, 127, 31, 90)
TRIES = (49, 1, 13, 61, 7, 20, 33, 5, 80)

# name -> (plan, heads, key heads, head dimension, bias)
ATTENTION: dict[str, tuple[Callable[[], AttentionPlan], int, int, int, bool]] = {
    "forest ragged, 14/2 heads": (lambda: random_forest(RAGGED, 0, 1), 14, 2, 64, False),
    "forest prefix 100, 14/2 heads": (lambda: random_forest(RAGGED, 100, 2), 14, 2, 64, False),
    "forest bias, 12 heads": (lambda: random_forest(TRIES, 0, 3), 12, 12, 64, True),
    "forest prefix 33, bias": (lambda: random_forest(RAGGED, 33, 4), 4, 4, 64, True),
    "long tries, tiles skipped": (lambda: random_forest([2500, 900], 0, 10), 4, 2, 64, False),
    "one chain of 700": (lambda: random_forest([700], 0, 5), 2, 1, 64, False),
    "head dimension 128": (lambda: random_forest(RAGGED, 17, 6), 8, 4, 128, False),
    "head dimension 80": (lambda: random_forest(RAGGED, 0, 7), 4, 4, 80, True),
    "head dimension 256": (lambda: random_forest(RAGGED, 40, 8), 4, 1, 256, False),
    "head dimension 16": (lambda: random_forest([9, 40], 3, 9), 2, 2, 16, False),
    "encoder, bias": (lambda: random_segments(RAGGED, RAGGED), 12, 12, 64, True),
    "cross-attention": (lambda: random_segments(TRIES, RAGGED), 12, 12, 64, False),
    "some queries, 14/2 heads": (lambda: some_queries(RAGGED, 11), 14, 2, 64, False),
    "some queries, bias": (lambda: some_queries(TRIES, 12), 4, 4, 64, True),
}
# rows, hidden, vocabulary, edges
HEAD = [(1, 64, 17, 1), (130, 896, 5003, 300), (700, 768, 32_128, 900), (65, 100, 40_000, 80)]
# rows, model width, inner width
LAYERS = [(1, 64, 128), (1000, 896, 4864), (777, 768, 2048), (300, 100, 260)]
# name -> (prompts, candidates, tokens per candidate)
POLICY = {
    "256 prompts": (256, 12, 5),
    "400 candidates of 60 tokens": (3, 400, 60),
    "one prompt, one candidate": (1, 1, 1),
}
Result = tuple[str, str, dict[str, float], float]  # suite, case, relative errors, tolerance


def tasks() -> list[tuple[str, Any, Any]]:
    """Arguments of `run_task`, the slow ones first."""
    both = (torch.bfloat16, torch.float32)
    return [
        *(("attention", name, dtype) for name in ATTENTION for dtype in both),
        *(("head", shape, dtype) for shape in HEAD for dtype in both),
        *((kind, shape, dtype) for kind in ("norm", "gate") for shape in LAYERS for dtype in both),
        *(("rotary", heads, dtype) for heads in ((14, 2, 64), (3, 1, 80)) for dtype in both),
        *(("policy", name, reduction) for name in POLICY for reduction in ("sum", "mean")),
    ]


def run_task(kind: str, what: Any, how: Any) -> Result:
    """One check; runs in a worker process, so that kernels are compiled in parallel."""
    checks: dict[str, Callable[..., Result]] = {
        "attention": check_attention, "head": check_head, "policy": check_policy,
        "norm": check_norm, "gate": check_gate, "rotary": check_rotary,
    }  # fmt: skip
    return checks[kind](what, how)


def check_attention(name: str, dtype: torch.dtype) -> Result:
    make, heads, kv_heads, dim, with_bias = ATTENTION[name]
    plan = make()
    torch.manual_seed(0)
    shapes = [(plan.q_total, heads, dim), *[(plan.k_total, kv_heads, dim)] * 2]
    random = [torch.randn(*shape, device=workloads.DEVICE).to(dtype) for shape in shapes]
    leaves = [x.transpose(0, 1).requires_grad_() for x in random]
    bias = None
    if with_bias:
        bias = torch.randn(heads, 65, device=workloads.DEVICE).to(dtype).requires_grad_()
    inputs = [*leaves, *([] if bias is None else [bias])]
    out = attention(*leaves, plan, bias=bias, backend="triton")
    want = attention_reference(*leaves, plan, bias=bias)
    weight = torch.randn_like(want)
    got_grads = torch.autograd.grad((out.double() * weight).sum(), inputs)
    want_grads = torch.autograd.grad((want * weight).sum(), inputs)
    errors = {"out": relative(out, want)}
    for which, a, b in zip(("dq", "dk", "dv", "dbias"), got_grads, want_grads, strict=False):
        errors[which] = relative(a, b)
    return "attention", f"{name}, {dtype}".replace("torch.", ""), errors, TOLERANCE[dtype]


def check_head(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Result:
    rows, hidden, vocab, edges = shape
    torch.manual_seed(1)
    h, weight = (
        (torch.randn(n, hidden, device=workloads.DEVICE) * 0.3).to(dtype).requires_grad_()
        for n in (rows, vocab)
    )
    row = torch.randint(rows, (edges,), device=workloads.DEVICE, dtype=torch.int32)
    token = torch.randint(vocab, (edges,), device=workloads.DEVICE, dtype=torch.int32)
    out = linear_logprob(h, weight, row, token, backend="triton")
    want = linear_logprob_reference(h, weight, row, token)
    grad = torch.randn_like(want)
    got_grads = torch.autograd.grad((out.double() * grad).sum(), (h, weight))
    want_grads = torch.autograd.grad((want * grad).sum(), (h, weight))
    errors = {"out": relative(out, want)}
    for which, a, b in zip(("dh", "dW"), got_grads, want_grads, strict=True):
        errors[which] = relative(a, b)
    case = f"rows {rows}, hidden {hidden}, vocabulary {vocab}, {dtype}"
    return "head", case.replace("torch.", ""), errors, TOLERANCE[dtype]


def check_policy(name: str, reduction: Any) -> Result:
    prompts, candidates, length = POLICY[name]
    pack = workloads.pack(prompts, candidates=candidates, length=length)
    torch.manual_seed(2)
    logp = (-torch.rand(pack.edges, device=workloads.DEVICE) * 3).requires_grad_()
    index = (pack.cand_edge_offsets, pack.cand_edges, pack.prompt_offsets)
    got = candidate_softmax(logp, *index, tau=0.7, reduction=reduction, backend="triton")
    want = candidate_softmax_reference(logp, *index, tau=0.7, reduction=reduction)
    weights = [torch.randn_like(x) for x in want]
    grads = []
    for result in (got, want):
        terms = [(x.double() * w).sum() for x, w in zip(result, weights, strict=True)]
        grads.append(torch.autograd.grad(torch.stack(terms).sum(), logp)[0])
    errors = {f: relative(a, b) for f, a, b in zip(got._fields, got, want, strict=True)}
    errors["dlogp"] = relative(*grads)
    if candidates == 1:  # log_pi and entropy are exactly 0: an absolute error
        errors["log_pi"], errors["entropy"] = (float(x.abs().max()) for x in got[:2])
    return "policy", f"{name}, {reduction}", errors, 1e-4


def _random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device=workloads.DEVICE) * scale).to(dtype).requires_grad_()


def _errors(
    names: Sequence[str], got: Sequence[torch.Tensor], want: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor], exact: Sequence[torch.Tensor],
) -> dict[str, float]:  # fmt: skip
    """Relative errors of results and of the gradients to all inputs."""
    weights = [torch.randn_like(x) for x in want]
    grads = [
        torch.autograd.grad(
            torch.stack([(x.double() * w).sum() for x, w in zip(xs, weights, strict=True)]).sum(),
            to,
        )
        for xs, to in ((got, leaves), (want, exact))
    ]
    pairs = zip((*got, *grads[0]), (*want, *grads[1]), strict=True)
    return {name: relative(a, b) for name, (a, b) in zip(names, pairs, strict=True)}


def _doubles(leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.detach().double().requires_grad_() for x in leaves]


def check_norm(shape: tuple[int, int, int], dtype: torch.dtype) -> Result:
    rows, dim, _ = shape
    torch.manual_seed(3)
    leaves = [_random(rows, dim, dtype=dtype), _random(dim, dtype=dtype),
              _random(rows, dim, dtype=dtype)]  # fmt: skip
    exact = _doubles(leaves)
    got = rms_norm(leaves[0], leaves[1], 1e-6, leaves[2], backend="triton")
    want = rms_norm_reference(exact[0], exact[1], 1e-6, exact[2])
    errors = _errors(("y", "z", "dx", "dw", "dadd"), got, want, leaves, exact)
    return "norm", f"{rows} x {dim}, {dtype}".replace("torch.", ""), errors, TOLERANCE[dtype]


def check_gate(shape: tuple[int, int, int], dtype: torch.dtype) -> Result:
    """The kernel without gradients, and the one that has them."""
    rows, dim, inner = shape
    activation: Any = "gelu_tanh" if dim == 768 else "silu"
    torch.manual_seed(4)
    x = _random(rows, dim, dtype=dtype)
    weights = [_random(inner, dim, dtype=dtype, scale=dim**-0.5) for _ in range(2)]
    with torch.no_grad():
        got = gated_linear(x, *weights, activation, backend="triton")
    want = gated_linear_reference(*(t.double() for t in (x, *weights)), activation)
    errors = {"products": relative(got, want)}
    leaves = [_random(rows, inner, dtype=dtype) for _ in range(2)]
    exact = _doubles(leaves)
    gated = gated_activation(*leaves, activation, backend="triton")
    exact_gated = gated_activation_reference(*exact, activation)
    errors |= _errors(("y", "dgate", "dup"), [gated], [exact_gated], leaves, exact)
    case = f"{rows} x {dim} x {inner}, {activation}, {dtype}"
    return "gate", case.replace("torch.", ""), errors, TOLERANCE[dtype]


def check_rotary(heads: tuple[int, int, int], dtype: torch.dtype) -> Result:
    h, kv, dim = heads
    torch.manual_seed(5)
    leaves = [_random(333, n, dim, dtype=dtype) for n in (h, kv)]
    tables = [_random(333, dim, dtype=dtype).detach() for _ in range(2)]
    exact = _doubles(leaves)
    rotary = (tables[0], tables[1])
    q, k = (x.transpose(0, 1) for x in leaves)
    got = rotary_embedding(q, k, rotary, rotary, backend="triton")
    double = [t.double() for t in tables]
    want = [rotate(x.transpose(0, 1), double[0], double[1]) for x in exact]
    errors = _errors(("q", "k", "dq", "dk"), got, want, leaves, exact)
    case = f"{h}/{kv} heads of {dim}, {dtype}"
    return "rotary", case.replace("torch.", ""), errors, TOLERANCE[dtype]

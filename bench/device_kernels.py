"""Times of the kernels on the GPU beside stock methods, at the headline workloads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import torch
import torch.nn.functional as F
from device_workloads import Ceilings, Model, Pack
from sacglam.kernels import (
    AttentionPlan,
    attention,
    candidate_softmax,
    linear_logprob,
    plan_forest,
    plan_segments,
)
from torch.nn.attention.varlen import varlen_attn

Method = Callable[[], Any]
Record = Callable[..., None]  # (suite, case, {method: callable}, floor_s)


def heads_tensor(heads: int, tokens: int, dim: int) -> torch.Tensor:
    """Random bf16 [H, T, D] on memory [T, H, D], as a projection leaves it; requires grad."""
    x = torch.randn(tokens, heads, dim, device=workloads.DEVICE, dtype=torch.bfloat16)
    return x.transpose(0, 1).requires_grad_()


class Prepare:
    """A method that must be built before it can be timed; a failure costs its own row alone."""

    def __init__(self, build: Callable[[], Method]) -> None:
        self.build = build


def batch_heads(batch: int, heads: int, tokens: int, dim: int) -> torch.Tensor:
    """The same with a batch dimension: [N, H, T, D] on memory [N, T, H, D]."""
    x = torch.randn(batch, tokens, heads, dim, device=workloads.DEVICE, dtype=torch.bfloat16)
    return x.transpose(1, 2).requires_grad_()


def forward_and_training(
    run: Callable[[], torch.Tensor], leaves: list[torch.Tensor]
) -> tuple[Method, Method]:
    """The call without gradients, and with its gradients to `leaves`."""
    grad = torch.randn_like(run())

    def forward() -> None:
        with torch.no_grad():
            run()

    def train() -> None:
        torch.autograd.grad(run(), leaves, grad)

    return forward, train


def flex_attention_of(pack: Pack, model: Model) -> Callable[..., torch.Tensor]:
    """FlexAttention with a block mask made from `end` (`create_block_mask` would be O(T^2))."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    size = 128
    end, tokens = pack.end, pack.tokens
    blocks = -(-tokens // size)
    last = F.pad(end, (0, blocks * size - tokens)).view(blocks, size).amax(1)
    index = torch.arange(blocks, device=end.device)
    seen = (index[None, :] <= index[:, None]) & (last[None, :] > index[:, None] * size)
    order = seen.int().argsort(dim=1, descending=True, stable=True).int()
    mask = BlockMask.from_kv_blocks(
        seen.sum(1).int()[None, None],
        order[None, None],
        BLOCK_SIZE=size,
        mask_mod=lambda b, h, i, j: (j <= i) & (i < end[j]),
        seq_lengths=(tokens, tokens),
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    gqa = model.heads != model.kv_heads
    return lambda q, k, v: compiled(q[None], k[None], v[None], block_mask=mask, enable_gqa=gqa)[0]


def time_forest(
    model: Model, prompts: int, ceilings: Ceilings, record: Record, *,
    prefix: int, flex: bool, candidates: int = 12, length: int = 5,
) -> None:  # fmt: skip
    """One layer's self-attention of a causal model: packed kernels and what they replace."""
    pack = workloads.pack(prompts, candidates=candidates, length=length, prefix=prefix)
    long_tries = candidates * length > 1000  # one dense mask a tree would be gigabytes
    plan = plan_forest(pack.end, pack.tree_start, prefix=prefix, pos=pack.pos)
    q = heads_tensor(model.heads, pack.tokens, model.head_dim)
    k, v = (heads_tensor(model.kv_heads, pack.tokens, model.head_dim) for _ in range(2))
    calls: dict[str, tuple[Method, Method]] = {}
    ours = lambda: attention(q, k, v, plan, backend="triton")  # noqa: E731
    calls["sacglam"] = forward_and_training(ours, [q, k, v])
    padded = lambda: attention(q, k, v, plan, backend="torch")  # noqa: E731
    if not long_tries:
        calls["trie in padded rows, stock SDPA"] = forward_and_training(padded, [q, k, v])
    if not prefix and not long_tries:
        # The same rows as a model in padded layout holds them: no gather, no scatter.
        rows = pack.tokens // prompts
        width = -(-rows // 8) * 8  # the masked kernel wants aligned rows
        mask = torch.full(
            (rows, width), float("-inf"), device=workloads.DEVICE, dtype=torch.bfloat16
        )
        local = torch.arange(rows, device=workloads.DEVICE)
        seen = (local[None] <= local[:, None]) & (local[:, None] < pack.end[:rows][None])
        mask[:, :rows][seen] = 0
        mask = mask[:, :rows].expand(prompts, 1, -1, -1)
        pq, pk, pv = (batch_heads(prompts, model.heads, rows, model.head_dim) for _ in range(3))
        ready = lambda: F.scaled_dot_product_attention(pq, pk, pv, attn_mask=mask)  # noqa: E731
        calls["padded layout, heads repeated, no gathers"] = forward_and_training(
            ready, [pq, pk, pv]
        )
    nq, nk, nv = (
        batch_heads(prompts * candidates, h, 150 + length - 1, model.head_dim)
        for h in (model.heads, model.kv_heads, model.kv_heads)
    )
    naive = lambda: F.scaled_dot_product_attention(  # noqa: E731
        nq, nk, nv, is_causal=True, enable_gqa=model.heads != model.kv_heads
    )
    calls["naive, prompt repeated"] = forward_and_training(naive, [nq, nk, nv])

    @lru_cache(maxsize=1)
    def flex_methods() -> tuple[Method, Method]:
        run = flex_attention_of(pack, model)
        return forward_and_training(lambda: run(q, k, v), [q, k, v])

    def build_flex(which: int) -> Method:
        return flex_methods()[which]

    case = f"{model.name}, {prompts} prompts" + (f", {prefix} shared" if prefix else "")
    if (candidates, length) != (12, 5):
        case += f", {candidates} candidates of {length}"
    for which, name in enumerate(("forward", "forward+backward")):
        floor = workloads.attention_floor(
            model, pack.pairs, pack.tokens, pack.tokens, ceilings, train=bool(which)
        )
        methods: dict[str, Any] = {m: c[which] for m, c in calls.items()}
        if flex:
            methods["FlexAttention from end"] = Prepare(partial(build_flex, which))
        record("attention", f"{case}, {name}", methods, floor)


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: tuple[Any, Any], most: tuple[int, int]
) -> torch.Tensor:
    rows = [x.transpose(0, 1) for x in (q, k, v)]
    out: Any = varlen_attn(
        rows[0], rows[1], rows[2], spans[0], spans[1], most[0], most[1], scale=1.0
    )
    return out.transpose(0, 1)


def time_t5(model: Model, prompts: int, ceilings: Ceilings, record: Record) -> None:
    """One layer of each attention of an encoder-decoder model."""
    pack = workloads.pack(prompts, prompt=1)  # the decoder's tries: a start token and branches
    source = 150
    enc_start = torch.arange(prompts + 1, device=workloads.DEVICE).int() * source
    enc_pos = torch.arange(source, device=workloads.DEVICE).int().repeat(prompts)
    enc_tokens = prompts * source
    plans: dict[str, tuple[AttentionPlan, bool, int]] = {
        "encoder": (plan_segments(enc_start, enc_tokens, q_pos=enc_pos), True,
                    prompts * source * source),
        "decoder": (plan_forest(pack.end, pack.tree_start, pos=pack.pos), True, pack.pairs),
        "cross": (plan_segments(pack.tree_start, pack.tokens, enc_start, enc_tokens), False,
                  pack.tokens * source),
    }  # fmt: skip
    for name, (plan, with_bias, pairs) in plans.items():
        q = heads_tensor(model.heads, plan.q_total, model.head_dim)
        k, v = (heads_tensor(model.heads, plan.k_total, model.head_dim) for _ in range(2))
        bias = (
            torch.randn(model.heads, 257, device=workloads.DEVICE).bfloat16() if with_bias else None
        )

        def run(
            backend: str,
            q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v,
            plan: AttentionPlan = plan, bias: torch.Tensor | None = bias,
        ) -> torch.Tensor:  # fmt: skip
            return attention(q, k, v, plan, bias=bias, scale=1.0, backend=backend)

        calls = {
            "sacglam": forward_and_training(lambda run=run: run("triton"), [q, k, v]),
            "padded rows, stock SDPA": forward_and_training(
                lambda run=run: run("torch"), [q, k, v]
            ),
        }
        if name == "cross":
            spans = (plan.q_start, plan.k_start)
            longest = int(plan.q_start.diff().max()), source
            for label, most in (
                ("FlashAttention", longest),
                ("FlashAttention, lengths unknown", (plan.q_total, plan.k_total)),
            ):
                flash = partial(_flash, q, k, v, spans, most)
                calls[label] = forward_and_training(flash, [q, k, v])
        for which, pass_name in enumerate(("forward", "forward+backward")):
            floor = workloads.attention_floor(
                model, pairs, plan.q_total, plan.k_total, ceilings, train=bool(which)
            )
            case = f"{model.name} {name}, {prompts} prompts, {pass_name}"
            record("attention", case, {m: c[which] for m, c in calls.items()}, floor)


def time_head(model: Model, prompts: int, ceilings: Ceilings, record: Record) -> None:
    pack = workloads.pack(prompts)
    rows = pack.head_rows.shape[0]
    h = torch.randn(rows, model.hidden, device=workloads.DEVICE).bfloat16().requires_grad_()
    weight = (torch.randn(model.vocab, model.hidden, device=workloads.DEVICE) * 0.02).bfloat16()
    token = torch.randint(model.vocab, (pack.edges,), device=workloads.DEVICE, dtype=torch.int32)
    row = pack.edge_row

    def materialised() -> torch.Tensor:
        logits = (h @ weight.T).float()
        return torch.log_softmax(logits, -1)[row.long(), token.long()]

    def lean() -> torch.Tensor:  # less precise: bfloat16 throughout
        logits = h @ weight.T
        chosen = logits[row.long(), token.long()].float()
        return chosen - torch.logsumexp(logits, -1).float()[row.long()]

    calls = {"sacglam": forward_and_training(
        lambda: linear_logprob(h, weight, row, token, backend="triton"), [h]
    ), "logits materialised, float32": forward_and_training(materialised, [h]),
        "logits materialised, bf16": forward_and_training(lean, [h])}  # fmt: skip
    for which, name in enumerate(("forward", "forward+backward")):
        floor = workloads.head_floor(model, rows, ceilings, train=bool(which))
        case = f"{model.name}, {prompts} prompts ({rows} rows), {name}"
        record("head", case, {m: c[which] for m, c in calls.items()}, floor)


def time_policy(prompts: int, ceilings: Ceilings, record: Record) -> None:
    pack = workloads.pack(prompts)
    logp = (-torch.rand(pack.edges, device=workloads.DEVICE)).requires_grad_()
    index = (pack.cand_edge_offsets, pack.cand_edges, pack.prompt_offsets)
    calls = {
        name: forward_and_training(
            lambda backend=backend: candidate_softmax(logp, *index, backend=backend).log_pi, [logp]
        )
        for name, backend in (("sacglam", "triton"), ("torch scatter", "torch"))
    }
    for which, name in enumerate(("forward", "forward+backward")):
        floor = ceilings.floor_s(0, 4.0 * (2 * pack.edges + 3 * 12 * prompts) * (1 + 2 * which))
        chosen = {m: c[which] for m, c in calls.items()}
        record("policy", f"{prompts} prompts, {name}", chosen, floor)


# Tile shapes worth trying; all compile for sm_90 without spills at head dimension 64.
SWEEPS: Mapping[str, list[tuple[int, int, int, int]]] = {  # block_m, block_n, warps, stages
    "attention forward": [
        (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (64, 128, 4, 2), (128, 64, 4, 2),
        (128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 4, 3),
    ],
    "attention dQ": [
        (64, 64, 4, 1), (64, 64, 4, 2), (64, 32, 4, 1), (64, 32, 4, 2), (64, 32, 4, 3),
        (128, 32, 4, 2),
    ],
    "attention dK dV": [
        (16, 64, 4, 1), (16, 64, 4, 2), (32, 64, 4, 1), (32, 64, 4, 2), (32, 64, 8, 1),
        (64, 64, 4, 1), (32, 128, 4, 1), (32, 128, 8, 1),
    ],
}  # fmt: skip
HEAD_SWEEP = [  # block_m, block_n, block_k, warps, stages
    (128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 256, 64, 8, 3), (256, 128, 64, 8, 3),
    (128, 256, 32, 8, 4), (128, 128, 32, 4, 4),
]  # fmt: skip


def sweep(prompts: int, record: Record) -> None:
    """Every tile shape of each kernel; the method's name is the shape."""
    from sacglam.kernels import forest_attention_triton as kernels
    from sacglam.kernels import linear_logprob_triton as head

    model, pack = workloads.QWEN, workloads.pack(prompts)
    plan = plan_forest(pack.end, pack.tree_start)
    q = heads_tensor(model.heads, pack.tokens, model.head_dim).detach()
    k, v = (heads_tensor(model.kv_heads, pack.tokens, 64).detach() for _ in range(2))
    out, lse = kernels.attention_forward(q, k, v, plan, None, 0.125)
    grad = torch.randn_like(out)

    def shape(m: int, n: int, warps: int, stages: int) -> dict[str, int]:
        return dict(block_m=m, block_n=n, num_warps=warps, num_stages=stages)

    def run(kernel: str, config: dict[str, int]) -> Method:
        if kernel == "attention forward":
            return lambda: kernels.attention_forward(q, k, v, plan, None, 0.125, config)
        which = "config_q" if kernel == "attention dQ" else "config_kv"
        return lambda: kernels.attention_backward(
            grad, q, k, v, out, lse, plan, None, 0.125, need_bias_grad=False, **{which: config}
        )

    for kernel, shapes in SWEEPS.items():
        methods = {str(s): run(kernel, shape(*s)) for s in shapes}
        record("sweep", f"{kernel}, {prompts} prompts", methods, None)

    for m, name in itertools.product((workloads.QWEN,), ("logsumexp", "probabilities")):
        rows = pack.head_rows.shape[0]
        h = torch.randn(rows, m.hidden, device=workloads.DEVICE).bfloat16()
        weight = (torch.randn(m.vocab, m.hidden, device=workloads.DEVICE) * 0.02).bfloat16()
        lse = head.logsumexp_forward(h, weight)
        row_grad = torch.randn_like(lse)
        chunk = min(16_384, m.vocab)
        buffer = torch.empty(rows, chunk, device=workloads.DEVICE, dtype=h.dtype)

        def run_head(
            config: dict[str, int], name: str = name, h: torch.Tensor = h,
            weight: torch.Tensor = weight, lse: torch.Tensor = lse,
            row_grad: torch.Tensor = row_grad, buffer: torch.Tensor = buffer, chunk: int = chunk,
        ) -> Method:  # fmt: skip
            if name == "logsumexp":
                return lambda: head.logsumexp_forward(h, weight, config)
            return lambda: head.launch_probabilities(
                h, weight, lse, row_grad, buffer, 0, chunk, config
            )

        methods = {}
        for bm, bn, bk, warps, stages in HEAD_SWEEP:
            config = dict(block_m=bm, block_n=bn, block_k=bk, num_warps=warps, num_stages=stages)
            methods[str((bm, bn, bk, warps, stages))] = run_head(config)
        if name == "logsumexp":
            methods["cuBLAS product alone, one chunk of 16384"] = (
                lambda h=h, weight=weight, chunk=chunk: h @ weight[:chunk].T
            )
        record("sweep", f"head {name}, {rows} rows", methods, None)

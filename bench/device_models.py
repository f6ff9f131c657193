"""End to end on the GPU: unmodified Hugging Face trunks of the headline sizes, random weights, LoRA
of rank 16 on q and v, from token ids to the policy's log-probabilities (and back)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import torch
from device_kernels import Method, Prepare, Record
from device_workloads import Ceilings, Model, Pack
from sacglam.kernels import (
    AttentionPlan,
    attention,
    candidate_softmax,
    linear_logprob,
    plan_forest,
    plan_segments,
)
from torch import nn

CANDIDATES, LENGTH, PROMPT = 12, 5, 150


class Lora(nn.Module):
    """x W^T + 2 (x A^T) B^T with W frozen."""

    def __init__(self, base: nn.Linear, rank: int = 16) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(base.weight.new_empty(rank, base.in_features).normal_(std=0.02))
        self.up = nn.Parameter(base.weight.new_empty(base.out_features, rank).normal_(std=0.02))

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight  # models look at their layers' dtype and device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 2.0 * (x @ self.down.T @ self.up.T)


def add_lora(model: nn.Module, names: tuple[str, ...]) -> list[nn.Parameter]:
    """Freeze `model`, wrap its linear layers called `names`; the new parameters."""
    model.requires_grad_(False)
    found: list[nn.Parameter] = []
    for module in list(model.modules()):
        for name in names:
            child = getattr(module, name, None)
            if isinstance(child, nn.Linear):
                wrapped = Lora(child)
                setattr(module, name, wrapped)
                found += [wrapped.down, wrapped.up]
    return found


def packed_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, *, plan: AttentionPlan, scaling: float,
    cross_plan: AttentionPlan | None = None, position_bias: torch.Tensor | None = None,
    backend: Any = "triton", **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """`sacglam.kernels.attention` as a Hugging Face attention function, [1, H, T, D] each."""
    if cross_plan is not None and getattr(module, "sacglam_cross", False):
        plan = cross_plan
    bias = None
    if position_bias is not None and position_bias.numel():
        bias = position_bias
    out = attention(query[0], key[0], value[0], plan, bias=bias, scale=scaling, backend=backend)
    return out.transpose(0, 1)[None], None


def use_packed_attention(*models: Any) -> None:
    """Each stack of an encoder-decoder model is named on its own: before transformers 5.23 or so,
    setting the whole model leaves stacks with a copy of its configuration as they were."""
    from transformers import AttentionInterface

    AttentionInterface.register("device_bench", packed_attention)
    for model in models:
        model.set_attn_implementation("device_bench")


def policy_loss(
    hidden: torch.Tensor, weight: torch.Tensor, pack: Pack, token: torch.Tensor
) -> torch.Tensor:
    """A scalar that reaches every candidate's log pi: the policy's negative entropy."""
    logp = linear_logprob(hidden[pack.head_rows], weight, pack.edge_row, token)
    policy = candidate_softmax(
        logp, pack.cand_edge_offsets, pack.cand_edges, pack.prompt_offsets, tau=5.0
    )
    return -policy.entropy.mean()


def repeated_loss(rows: torch.Tensor, weight: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """The same from a hidden state per candidate token: rows [B * A, LENGTH, D], stock head."""
    logits = (rows.flatten(0, 1) @ weight.T).float()
    logp = torch.log_softmax(logits, -1).gather(1, token.flatten()[:, None])
    log_pi = torch.log_softmax(logp.view(-1, CANDIDATES, LENGTH).sum(-1) / 5.0, -1)
    return (log_pi.exp() * log_pi).sum(-1).mean()


def passes(
    loss: Callable[[int], torch.Tensor], prompts: int, micro: int, parameters: list[nn.Parameter]
) -> tuple[Method, Method]:
    """(forward, forward+backward) over `prompts` in micro-batches of `micro`."""

    def forward() -> None:
        with torch.no_grad():
            for _ in range(0, prompts, micro):
                loss(micro)

    def train() -> None:
        for _ in range(0, prompts, micro):
            loss(micro).backward()
        for parameter in parameters:
            parameter.grad = None

    return forward, train


def graphed(forward: Method) -> Method:
    """The forward pass as one CUDA graph: what acting costs where launches dominate."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph.replay


def trunk_floor(
    model: Model, per_token: float, tokens: int, rows: int, ceilings: Ceilings, *, train: bool
) -> float:
    """Seconds of the matrix products alone: 2 operations per weight and token, twice with the
    gradient to activations (LoRA: none to weights)."""
    product = per_token * tokens
    head = workloads.head_floor(model, rows, ceilings, train=train)
    return product * (2 if train else 1) / ceilings.flops_per_s + head


def time_qwen(prompts: int, ceilings: Ceilings, record: Record, *, prefix: int = 0) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    spec = workloads.QWEN
    config = Qwen2Config(
        vocab_size=spec.vocab, hidden_size=spec.hidden, intermediate_size=4864,
        num_hidden_layers=spec.layers, num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(workloads.DEVICE):
        model = Qwen2ForCausalLM(config).bfloat16().eval()
    parameters = add_lora(model, ("q_proj", "v_proj"))
    weight = model.lm_head.weight
    cache: dict[int, tuple[Any, ...]] = {}

    def batch(micro: int) -> tuple[Any, ...]:
        if micro not in cache:
            pack = workloads.pack(micro, prefix=prefix)
            plan = plan_forest(pack.end, pack.tree_start, prefix=prefix, pos=pack.pos)
            ids = torch.randint(spec.vocab, (1, pack.tokens), device=workloads.DEVICE)
            token = torch.randint(spec.vocab, (pack.edges,), device=workloads.DEVICE).int()
            cache[micro] = pack, plan, ids, pack.pos[None].long(), token
        return cache[micro]

    def packed(micro: int, backend: str = "triton") -> torch.Tensor:
        pack, plan, ids, pos, token = batch(micro)
        if model.config._attn_implementation != "device_bench":
            use_packed_attention(model)
        out = model.model(
            input_ids=ids, position_ids=pos, use_cache=False, plan=plan, backend=backend
        )
        return policy_loss(out.last_hidden_state[0], weight, pack, token)

    length = PROMPT + LENGTH - 1
    naive_ids = torch.randint(spec.vocab, (prompts * CANDIDATES, length), device=workloads.DEVICE)
    naive_token = torch.randint(spec.vocab, (prompts * CANDIDATES, LENGTH), device=workloads.DEVICE)

    def naive(micro: int) -> torch.Tensor:
        if model.config._attn_implementation != "sdpa":
            model.set_attn_implementation("sdpa")
        rows = micro * CANDIDATES
        out = model.model(input_ids=naive_ids[:rows], use_cache=False)
        return repeated_loss(out.last_hidden_state[:, -LENGTH:], weight, naive_token[:rows])

    # Micro-batches bound the activations that training keeps.
    calls = {"sacglam": passes(packed, prompts, min(prompts, 128), parameters)}
    calls["trie in padded rows, stock SDPA"] = passes(
        lambda micro: packed(micro, "torch"), prompts, min(prompts, 128), parameters
    )
    if not prefix:
        calls["naive, prompt repeated"] = passes(naive, prompts, min(prompts, 16), parameters)
    forwards: dict[str, Any] = {m: c[0] for m, c in calls.items()}
    forwards["sacglam, CUDA graph"] = Prepare(lambda: graphed(calls["sacglam"][0]))
    trains: dict[str, Any] = {m: c[1] for m, c in calls.items()}
    case = f"{spec.name}, {prompts} prompts" + (f", {prefix} shared" if prefix else "")
    tokens, rows = batch(prompts)[0].tokens, batch(prompts)[0].head_rows.shape[0]
    h, kv = spec.hidden, spec.kv_heads * spec.head_dim
    per_token = 2.0 * spec.layers * (2 * h * h + 2 * h * kv + 3 * h * 4864)
    for which, (name, methods) in enumerate((("forward", forwards), ("forward+backward", trains))):
        floor = trunk_floor(spec, per_token, tokens, rows, ceilings, train=bool(which))
        record("model", f"{case}, {name}", methods, floor, slow=True)
    for layer in model.model.layers:  # elementwise work fused, products and attention as they are
        for module in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            module.compile()
    fused = passes(packed, prompts, min(prompts, 128), parameters)
    for which, pass_name in enumerate(("forward", "forward+backward")):
        floor = trunk_floor(spec, per_token, tokens, rows, ceilings, train=bool(which))
        methods = {"sacglam": fused[which]}
        if not which:
            methods["sacglam, CUDA graph"] = Prepare(lambda: graphed(fused[0]))
        described = f"{case}, {pass_name}, MLP and norms compiled"
        record("model", described, methods, floor, slow=True)


def time_t5(prompts: int, ceilings: Ceilings, record: Record) -> None:
    from sacglam.models.trunk import make_trunk
    from transformers import T5Config, T5ForConditionalGeneration

    spec = workloads.T5
    config = T5Config(
        vocab_size=spec.vocab, d_model=spec.hidden, d_kv=64, d_ff=2048, num_layers=spec.layers,
        num_decoder_layers=spec.layers, num_heads=spec.heads, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(workloads.DEVICE):
        stock = T5ForConditionalGeneration(config).bfloat16().eval()
        model = T5ForConditionalGeneration(config).bfloat16().eval()
    model.load_state_dict(stock.state_dict())
    stock_parameters = add_lora(stock, ("q", "v"))
    make_trunk(model)  # packs T5's position biases
    parameters = add_lora(model, ("q", "v"))
    use_packed_attention(model, model.encoder, model.decoder)
    weight = model.lm_head.weight
    cache: dict[int, tuple[Any, ...]] = {}

    def batch(micro: int) -> tuple[Any, ...]:
        if micro not in cache:
            pack = workloads.pack(micro, prompt=1)
            start = torch.arange(micro + 1, device=workloads.DEVICE).int() * PROMPT
            where = torch.arange(PROMPT, device=workloads.DEVICE).int().repeat(micro)
            encoder = plan_segments(start, micro * PROMPT, q_pos=where)
            decoder = plan_forest(pack.end, pack.tree_start, pos=pack.pos)
            cross = plan_segments(pack.tree_start, pack.tokens, start, micro * PROMPT)
            ids = torch.randint(spec.vocab, (1, micro * PROMPT), device=workloads.DEVICE)
            trie = torch.randint(spec.vocab, (1, pack.tokens), device=workloads.DEVICE)
            token = torch.randint(spec.vocab, (pack.edges,), device=workloads.DEVICE).int()
            cache[micro] = pack, encoder, decoder, cross, ids, trie, token
        return cache[micro]

    def packed(micro: int, backend: str = "triton") -> torch.Tensor:
        pack, encoder, decoder, cross, ids, trie, token = batch(micro)
        encoded = model.encoder(input_ids=ids, plan=encoder, backend=backend).last_hidden_state
        out = model.decoder(
            input_ids=trie, encoder_hidden_states=encoded, use_cache=False, plan=decoder,
            cross_plan=cross, backend=backend,
        )  # fmt: skip
        return policy_loss(out.last_hidden_state[0], weight, pack, token)

    prompt_ids = torch.randint(spec.vocab, (prompts, PROMPT), device=workloads.DEVICE)
    answer = torch.randint(spec.vocab, (prompts * CANDIDATES, LENGTH), device=workloads.DEVICE)

    def repeated(micro: int, once: bool) -> torch.Tensor:
        ids = prompt_ids[:micro]
        if not once:
            ids = ids.repeat_interleave(CANDIDATES, 0)
        encoded = stock.encoder(input_ids=ids).last_hidden_state
        if once:
            encoded = encoded.repeat_interleave(CANDIDATES, 0)
        rows = answer[: micro * CANDIDATES]
        out = stock.decoder(input_ids=rows, encoder_hidden_states=encoded, use_cache=False)
        return repeated_loss(out.last_hidden_state, stock.lm_head.weight, rows)

    micro = min(prompts, 128)
    calls = {
        "sacglam": passes(packed, prompts, micro, parameters),
        "padded rows, stock SDPA": passes(lambda m: packed(m, "torch"), prompts, micro, parameters),
        "encode once": passes(
            lambda m: repeated(m, True), prompts, min(prompts, 32), stock_parameters
        ),
        "naive, prompt repeated": passes(
            lambda m: repeated(m, False), prompts, min(prompts, 16), stock_parameters
        ),
    }
    forwards: dict[str, Any] = {m: c[0] for m, c in calls.items()}
    forwards["sacglam, CUDA graph"] = Prepare(lambda: graphed(calls["sacglam"][0]))
    pack = batch(prompts)[0]
    h = spec.hidden
    enc_weights, dec_weights = 4 * h * h + 3 * h * 2048, 6 * h * h + 3 * h * 2048
    products = prompts * PROMPT * (enc_weights + 2 * h * h) + pack.tokens * dec_weights
    for which, (name, methods) in enumerate(
        (("forward", forwards), ("forward+backward", {m: c[1] for m, c in calls.items()}))
    ):
        floor = trunk_floor(
            spec, 2.0 * spec.layers * products, 1, pack.head_rows.shape[0], ceilings,
            train=bool(which),
        )  # fmt: skip
        record("model", f"{spec.name}, {prompts} prompts, {name}", methods, floor, slow=True)

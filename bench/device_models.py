"""End to end on the GPU: Hugging Face trunks of the headline sizes with random weights and LoRA of
rank 16 on q and v, from token ids to the policy's log-probabilities (and back)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import numpy as np
import torch
from device_kernels import Method, Prepare, Record
from device_workloads import Ceilings, Model
from sacglam._C import CandidateSet, ForestPacker
from sacglam.models.forest import Forest, forest_from_packed
from sacglam.models.scoring import candidate_policy
from sacglam.models.trunk import Trunk, make_trunk
from torch import nn

CANDIDATES, LENGTH, PROMPT, TAU = 12, 5, 150, 5.0


def with_lora(model: nn.Module, names: tuple[str, ...]) -> tuple[Any, list[nn.Parameter]]:
    """The model with peft's adapters on its linear layers `names`; what is trained."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=list(names)))
    return wrapped, [p for p in wrapped.parameters() if p.requires_grad]


class Batch:
    """Random prompts and candidates, packed as the trainer packs them, and as plain rows.

    With `shared` tokens, all prompts begin alike.
    """

    def __init__(
        self, vocab: int, prompts: int, decoder_start: int = -1, shared: int = 0,
        length: int = PROMPT,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(prompts)
        self.prompts = rng.integers(3, vocab, (prompts, length), dtype=np.int32)
        self.prompts[:, :shared] = self.prompts[0, :shared]
        shape = (prompts, CANDIDATES, LENGTH)
        self.actions = rng.integers(3, vocab, shape, dtype=np.int32)
        step = 97 * np.arange(CANDIDATES)  # no two candidates share their first token
        first = rng.integers(vocab, size=(prompts, 1)) + step
        self.actions[:, :, 0] = first % (vocab - 3) + 3
        offsets = np.arange(CANDIDATES + 1, dtype=np.int64) * LENGTH
        sets = [CandidateSet(self.actions[b].ravel(), offsets) for b in range(prompts)]
        packed = ForestPacker(decoder_start).pack(
            self.prompts.ravel(), np.arange(prompts + 1, dtype=np.int64) * length, sets, False,
            None, shared,
        )  # fmt: skip
        self.forest = forest_from_packed(packed, workloads.DEVICE)

    def on_device(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(prompts [B, PROMPT], actions [B * A, LENGTH]) as int64 on the GPU."""
        prompts, actions = torch.from_numpy(self.prompts), torch.from_numpy(self.actions)
        return (
            prompts.long().to(workloads.DEVICE),
            actions.view(-1, LENGTH).long().to(workloads.DEVICE),
        )


def packed_loss(trunk: Trunk, forest: Forest) -> torch.Tensor:
    """A scalar that reaches every candidate's log pi: the policy's negative entropy."""
    rows = trunk.hidden(forest)[forest.head_rows] * trunk.head_scale
    scores = candidate_policy(rows, trunk.head_weight, forest, tau=TAU)
    return -scores.entropy.mean()


def repeated_loss(rows: torch.Tensor, weight: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """The same from a hidden state per candidate token: rows [B * A, LENGTH, D], stock head."""
    logits = (rows.flatten(0, 1) @ weight.T).float()
    logp = torch.log_softmax(logits, -1).gather(1, token.flatten()[:, None])
    log_pi = torch.log_softmax(logp.view(-1, CANDIDATES, LENGTH).sum(-1) / TAU, -1)
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


def graphed(call: Method) -> Method:
    """The pass as one CUDA graph, as the trainer acts and learns."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def trunk_floor(
    model: Model, products: float, rows: int, ceilings: Ceilings, *, train: bool
) -> float:
    """Seconds of the matrix products alone: 2 operations per weight and token, twice with the
    gradient to activations (LoRA: none to weights)."""
    head = workloads.head_floor(model, rows, ceilings, train=train)
    return products * (2 if train else 1) / ceilings.flops_per_s + head


class Layers:
    """Switches a fused trunk between our layers and the model's own, packed attention in both."""

    def __init__(self, trunk: Trunk) -> None:
        self.modules = [m for m in trunk.base.modules() if hasattr(m, "sacglam_original")]
        self.ours = [m.forward for m in self.modules]

    def use(self, ours: bool) -> None:
        for module, forward in zip(self.modules, self.ours, strict=True):
            module.forward = forward if ours else module.sacglam_original


def record_model(
    spec: Model, prompts: int, trunk: Trunk, parameters: list[nn.Parameter],
    batches: Callable[[int], Forest], rivals: dict[str, tuple[Method, Method]], products: float,
    ceilings: Ceilings, record: Record, suffix: str = "",
) -> None:  # fmt: skip
    """Rows of one model and number of prompts: ours, the model's own layers, rivals."""
    layers = Layers(trunk)
    micro = min(prompts, 128)  # bounds the activations that training keeps

    def run(ours: bool) -> Callable[[int], torch.Tensor]:
        def loss(size: int) -> torch.Tensor:
            layers.use(ours)
            return packed_loss(trunk, batches(size))

        return loss

    calls = {
        "sacglam": passes(run(True), prompts, micro, parameters),
        "the model's own layers, packed": passes(run(False), prompts, micro, parameters),
        **rivals,
    }
    rows = batches(prompts).head_rows.shape[0]
    for which, name in enumerate(("forward", "forward+backward")):
        methods: dict[str, Any] = {m: c[which] for m, c in calls.items()}
        methods["sacglam, CUDA graph"] = Prepare(partial(graphed, calls["sacglam"][which]))
        floor = trunk_floor(spec, products, rows, ceilings, train=bool(which))
        record(
            "model", f"{spec.name}, {prompts} prompts{suffix}, {name}", methods, floor, slow=True
        )


def qwen_config() -> Any:
    from transformers import Qwen2Config

    spec = workloads.QWEN
    return Qwen2Config(
        vocab_size=spec.vocab, hidden_size=spec.hidden, intermediate_size=4864,
        num_hidden_layers=spec.layers, num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads, tie_word_embeddings=True,
    )  # fmt: skip


def qwen_model(seed: int = 0) -> Any:
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(seed)
    with torch.device(workloads.DEVICE):
        return Qwen2ForCausalLM(qwen_config()).bfloat16().eval()


def time_qwen(prompts: int, ceilings: Ceilings, record: Record, *, shared: int = 0) -> None:
    spec = workloads.QWEN
    model, parameters = with_lora(qwen_model(), ("q_proj", "v_proj"))
    trunk = make_trunk(model)
    made: dict[int, Batch] = {}

    def batch(size: int) -> Forest:
        if size not in made:
            made[size] = Batch(spec.vocab, size, shared=shared)
        return made[size].forest

    rivals: dict[str, tuple[Method, Method]] = {}
    if not shared:
        stock, stock_parameters = with_lora(qwen_model(), ("q_proj", "v_proj"))
        base = stock.get_base_model()
        ids, tokens = Batch(spec.vocab, min(prompts, 16)).on_device()

        def naive(size: int) -> torch.Tensor:
            rows = torch.cat([ids.repeat_interleave(CANDIDATES, 0), tokens[:, :-1]], 1)
            out = base.model(input_ids=rows[: size * CANDIDATES], use_cache=False)
            hidden = out.last_hidden_state[:, -LENGTH:]
            return repeated_loss(hidden, base.lm_head.weight, tokens[: size * CANDIDATES])

        rivals["naive, prompt repeated"] = passes(
            naive, prompts, min(prompts, 16), stock_parameters
        )
    h, kv = spec.hidden, spec.kv_heads * spec.head_dim
    forest = batch(prompts)
    products = 2.0 * spec.layers * (2 * h * h + 2 * h * kv + 3 * h * 4864) * forest.ids.shape[0]
    suffix = f", {shared} tokens shared" if shared else ""
    record_model(
        spec, prompts, trunk, parameters, batch, rivals, products, ceilings, record, suffix
    )


def t5_model(seed: int = 0) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    spec = workloads.T5
    config = T5Config(
        vocab_size=spec.vocab, d_model=spec.hidden, d_kv=64, d_ff=2048, num_layers=spec.layers,
        num_decoder_layers=spec.layers, num_heads=spec.heads, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device(workloads.DEVICE):
        return T5ForConditionalGeneration(config).bfloat16().eval()


def time_t5(prompts: int, ceilings: Ceilings, record: Record) -> None:
    spec = workloads.T5
    stock, stock_parameters = with_lora(t5_model(), ("q", "v"))
    base = stock.get_base_model()
    model, parameters = with_lora(t5_model(), ("q", "v"))
    trunk = make_trunk(model)
    made: dict[int, Batch] = {}

    def batch(size: int) -> Forest:
        if size not in made:
            made[size] = Batch(spec.vocab, size, decoder_start=0)
        return made[size].forest

    ids, answers = Batch(spec.vocab, min(prompts, 32), decoder_start=0).on_device()

    def repeated(size: int, once: bool) -> torch.Tensor:
        rows = ids[:size] if once else ids[:size].repeat_interleave(CANDIDATES, 0)
        encoded = base.encoder(input_ids=rows).last_hidden_state
        if once:
            encoded = encoded.repeat_interleave(CANDIDATES, 0)
        answer = answers[: size * CANDIDATES]
        out = base.decoder(input_ids=answer, encoder_hidden_states=encoded, use_cache=False)
        return repeated_loss(out.last_hidden_state, base.lm_head.weight, answer)

    rivals = {
        name: passes(
            lambda m, o=once: repeated(m, o), prompts, min(prompts, micro), stock_parameters
        )
        for name, once, micro in (
            ("encode once", True, 32),
            ("naive, prompt repeated", False, 16),
        )
    }
    forest = batch(prompts)
    assert forest.encoder_ids is not None
    h = spec.hidden
    encoder = forest.encoder_ids.shape[0] * (4 * h * h + 3 * h * 2048 + 2 * h * h)
    decoder = forest.ids.shape[0] * (6 * h * h + 3 * h * 2048)
    products = 2.0 * spec.layers * (encoder + decoder)
    record_model(spec, prompts, trunk, parameters, batch, rivals, products, ceilings, record)

"""Small Hugging Face models in float32 on the GPU: the packed pass against the prompt repeated for
every candidate through the stock attention: log-probabilities and LoRA gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import torch
from device_checks import relative
from device_models import CANDIDATES, LENGTH, add_lora, use_packed_attention
from sacglam.kernels import candidate_softmax, linear_logprob, plan_forest, plan_segments
from torch import nn

PROMPTS, PROMPT, VOCAB = 5, 70, 1000


def _scores(
    hidden: torch.Tensor, weight: torch.Tensor, pack: workloads.Pack, token: torch.Tensor
) -> torch.Tensor:
    logp = linear_logprob(hidden[pack.head_rows], weight, pack.edge_row, token)
    index = (pack.cand_edge_offsets, pack.cand_edges, pack.prompt_offsets)
    return candidate_softmax(logp, *index).scores


def _repeated_scores(rows: torch.Tensor, weight: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    logp = torch.log_softmax(rows @ weight.T, -1).gather(2, token[..., None])
    return logp.sum((1, 2))


def _texts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(prompts [B, L], the same repeated [B * A, L], candidates [B * A, LENGTH], branches of each
    prompt [B, A * (LENGTH - 1)])."""
    torch.manual_seed(5)
    prompts = torch.randint(VOCAB, (PROMPTS, PROMPT), device=workloads.DEVICE)
    candidates = torch.randint(VOCAB, (PROMPTS * CANDIDATES, LENGTH), device=workloads.DEVICE)
    branches = candidates[:, :-1].reshape(PROMPTS, -1)
    return prompts, prompts.repeat_interleave(CANDIDATES, 0), candidates, branches


def _compare(
    name: str, got: torch.Tensor, want: torch.Tensor, got_from: list[nn.Parameter],
    want_from: list[nn.Parameter], report: Callable[..., None],
) -> None:  # fmt: skip
    """Scores, and the gradients to each LoRA weight, of which the worst is reported."""
    weight = torch.randn_like(want)
    got_grads = torch.autograd.grad((got * weight).sum(), got_from)
    want_grads = torch.autograd.grad((want * weight).sum(), want_from)
    worst = max(map(relative, got_grads, want_grads))
    report("model", name, {"log p": relative(got, want), "LoRA gradients": worst}, 1e-4)


def check_qwen(report: Callable[..., None]) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    with torch.device(workloads.DEVICE):
        model: Any = Qwen2ForCausalLM(config).eval()
    parameters = add_lora(model, ("q_proj", "v_proj"))
    prompts, repeated_prompts, candidates, branches = _texts()
    pack = workloads.pack(PROMPTS, prompt=PROMPT)
    plan = plan_forest(pack.end, pack.tree_start)
    ids = torch.cat([prompts, branches], 1).view(1, -1)
    weight = model.lm_head.weight

    def packed() -> torch.Tensor:
        use_packed_attention(model)
        out = model.model(
            input_ids=ids, position_ids=pack.pos[None].long(), use_cache=False, plan=plan
        )
        return _scores(out.last_hidden_state[0], weight, pack, candidates.flatten())

    def repeated() -> torch.Tensor:
        model.set_attn_implementation("sdpa")
        whole = torch.cat([repeated_prompts, candidates[:, :-1]], 1)
        out = model.model(input_ids=whole, use_cache=False).last_hidden_state
        return _repeated_scores(out[:, -LENGTH:], weight, candidates)

    _compare("Qwen2, 3 layers, float32", packed(), repeated(), parameters, parameters, report)


def check_t5(report: Callable[..., None]) -> None:
    from sacglam.models.trunk import make_trunk
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB, d_model=256, d_kv=64, d_ff=512, num_layers=3, num_decoder_layers=3,
        num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    models: list[Any] = []
    for _ in range(2):  # the same weights twice: one is patched
        torch.manual_seed(0)
        with torch.device(workloads.DEVICE):
            models.append(T5ForConditionalGeneration(config).eval())
    stock, model = models
    make_trunk(model)
    use_packed_attention(model, model.encoder, model.decoder)
    lora = []
    for each in models:
        torch.manual_seed(1)
        lora.append(add_lora(each, ("q", "v")))
    prompts, repeated_prompts, candidates, branches = _texts()
    pack = workloads.pack(PROMPTS, prompt=1)
    start = torch.arange(PROMPTS + 1, device=workloads.DEVICE).int() * PROMPT
    where = torch.arange(PROMPT, device=workloads.DEVICE).int().repeat(PROMPTS)
    encoder = plan_segments(start, PROMPTS * PROMPT, q_pos=where)
    decoder = plan_forest(pack.end, pack.tree_start, pos=pack.pos)
    cross = plan_segments(pack.tree_start, pack.tokens, start, PROMPTS * PROMPT)
    first = torch.zeros(PROMPTS, 1, dtype=torch.long, device=workloads.DEVICE)

    def packed() -> torch.Tensor:
        encoded = model.encoder(input_ids=prompts.view(1, -1), plan=encoder).last_hidden_state
        out = model.decoder(
            input_ids=torch.cat([first, branches], 1).view(1, -1), use_cache=False,
            encoder_hidden_states=encoded, plan=decoder, cross_plan=cross,
        )  # fmt: skip
        return _scores(out.last_hidden_state[0], model.lm_head.weight, pack, candidates.flatten())

    def repeated() -> torch.Tensor:
        encoded = stock.encoder(input_ids=repeated_prompts).last_hidden_state
        rows = torch.cat([first.repeat_interleave(CANDIDATES, 0), candidates[:, :-1]], 1)
        out = stock.decoder(input_ids=rows, encoder_hidden_states=encoded, use_cache=False)
        return _repeated_scores(out.last_hidden_state, stock.lm_head.weight, candidates)

    _compare("T5, 3 + 3 layers, float32", packed(), repeated(), lora[1], lora[0], report)

"""Small Hugging Face models on the GPU: the trunk over a packed forest against the prompt repeated
for every candidate through stock layers and attention: log-probabilities and LoRA gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import torch
from device_checks import relative
from device_models import CANDIDATES, LENGTH, Batch, with_lora
from sacglam.models.scoring import candidate_policy
from sacglam.models.trunk import Trunk, make_trunk
from torch import nn

PROMPTS, PROMPT, VOCAB = 5, 70, 1000
Made = tuple[Any, list[nn.Parameter]]  # a model wrapped by peft; what is trained


def small_qwen() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip


def small_t5() -> Any:
    from transformers import T5Config

    return T5Config(
        vocab_size=VOCAB, d_model=256, d_kv=64, d_ff=512, num_layers=3, num_decoder_layers=3,
        num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip


def _repeated_scores(rows: torch.Tensor, weight: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    logp = torch.log_softmax((rows @ weight.T).double(), -1).gather(2, token[..., None])
    return logp.sum((1, 2))


def _packed_scores(trunk: Trunk, batch: Batch) -> torch.Tensor:
    """[B * A], every prompt's candidates in order."""
    forest = batch.forest
    rows = trunk.hidden(forest)[forest.head_rows] * trunk.head_scale
    return candidate_policy(rows, trunk.head_weight, forest, tau=1.0).log_prob.flatten()


def _pair(build: Callable[[], Any], names: tuple[str, ...], dtype: torch.dtype) -> list[Made]:
    """The same weights twice, adapters too: for ours in `dtype`, for the reference in float64."""
    made = []
    for kind in (dtype, torch.float64):
        torch.manual_seed(0)
        with torch.device(workloads.DEVICE):
            model, parameters = with_lora(build().eval(), names)
        torch.manual_seed(1)
        for parameter in parameters:  # peft's B starts at zero: gradients would miss half
            parameter.data = torch.randn_like(parameter) * 0.05
        model.to(kind)
        for parameter in parameters:
            if kind != torch.float64:
                parameter.data = parameter.data.float()
        made.append((model, parameters))
    # The same values, whatever `dtype` rounded away.
    for a, b in zip(made[0][0].parameters(), made[1][0].parameters(), strict=True):
        b.data.copy_(a.data)
    return made


def _compare(
    name: str, got: torch.Tensor, want: torch.Tensor, got_from: list[nn.Parameter],
    want_from: list[nn.Parameter], report: Callable[..., None], tolerance: float,
) -> None:  # fmt: skip
    """Scores, and the gradients to each LoRA weight, of which the worst is reported."""
    weight = torch.randn_like(want)
    got_grads = torch.autograd.grad((got.double() * weight).sum(), got_from)
    want_grads = torch.autograd.grad((want * weight).sum(), want_from)
    worst = max(map(relative, got_grads, want_grads))
    report("model", name, {"log p": relative(got, want), "LoRA gradients": worst}, tolerance)


def check_qwen(
    report: Callable[..., None], dtype: torch.dtype, tolerance: float, shared: int = 0
) -> None:
    from transformers import Qwen2ForCausalLM

    config = small_qwen()
    ours, stock = _pair(lambda: Qwen2ForCausalLM(config), ("q_proj", "v_proj"), dtype)
    batch = Batch(VOCAB, PROMPTS, shared=shared, length=PROMPT)
    prompts, candidates = batch.on_device()
    base = stock[0].get_base_model()
    whole = torch.cat([prompts.repeat_interleave(CANDIDATES, 0), candidates[:, :-1]], 1)
    out = base.model(input_ids=whole, use_cache=False).last_hidden_state
    want = _repeated_scores(out[:, -LENGTH:], base.lm_head.weight, candidates)
    got = _packed_scores(make_trunk(ours[0]), batch)
    name = f"Qwen2, 3 layers, {dtype}" + (f", {shared} shared" if shared else "")
    _compare(name.replace("torch.", ""), got, want, ours[1], stock[1], report, tolerance)


def check_t5(report: Callable[..., None], dtype: torch.dtype, tolerance: float) -> None:
    from transformers import T5ForConditionalGeneration

    config = small_t5()
    ours, stock = _pair(lambda: T5ForConditionalGeneration(config), ("q", "v"), dtype)
    batch = Batch(VOCAB, PROMPTS, decoder_start=0, length=PROMPT)
    prompts, candidates = batch.on_device()
    base = stock[0].get_base_model()
    encoded = base.encoder(input_ids=prompts.repeat_interleave(CANDIDATES, 0)).last_hidden_state
    first = torch.zeros_like(candidates[:, :1])
    out = base.decoder(
        input_ids=torch.cat([first, candidates[:, :-1]], 1), encoder_hidden_states=encoded,
        use_cache=False,
    ).last_hidden_state  # fmt: skip
    want = _repeated_scores(out, base.lm_head.weight, candidates)
    got = _packed_scores(make_trunk(ours[0]), batch)
    name = f"T5, 3 + 3 layers, {dtype}".replace("torch.", "")
    _compare(name, got, want, ours[1], stock[1], report, tolerance)

"""Folders of `save_pretrained` with LoRA: train, save, resume, and load with peft alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from sacglam import Trainer, load_policy, make_env
from sacglam.models.tiny import build_tokenizer
from sacglam.training.checkpoint import latest_checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)


def _folder(kind: str, folder: Path) -> Path:
    texts = ["Goal: Action:", *make_env("playground/small").vocabulary]
    tokenizer = build_tokenizer(texts)
    torch.manual_seed(0)
    model: Any
    if kind == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            )
        )  # fmt: skip
    else:
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.1,
                decoder_start_token_id=0,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trunk", ["shared", "adapter"])
@pytest.mark.parametrize("kind", ["qwen2", "flan-t5"])
def test_lora_trains_saves_resumes_and_loads_with_peft(
    quick_config: Any, tmp_path: Path, kind: str, trunk: str
):
    base = _folder(kind, tmp_path / "base")
    options = {
        "model.id": str(base),
        "critic.trunk": trunk,
        "lora.r": 4,
        "sac.prior": kind == "qwen2",
        "total_steps": 300,
    }
    result = Trainer(quick_config("lora", **options)).train()
    names = result.policy.trainable_parameters()
    assert all("lora_" in n or n.startswith("heads.") for n in names)
    assert any(p.abs().sum() > 0 for n, p in names.items() if "lora_B" in n)
    if trunk == "adapter":
        assert any(p.abs().sum() > 0 for n, p in names.items() if "lora_B.critic" in n)

    longer = Trainer.resume(result.out, total_steps=500).train()
    assert longer.updates > result.updates

    auto = AutoModelForCausalLM if kind == "qwen2" else AutoModelForSeq2SeqLM
    adapter = latest_checkpoint(result.out) / "policy" / "adapter"
    with_peft = PeftModel.from_pretrained(auto.from_pretrained(base), adapter)
    saved = {n: p for n, p in with_peft.named_parameters() if "lora_" in n}
    trained = dict(longer.policy.model.named_parameters())
    assert saved
    for name, value in saved.items():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=0)

    loaded = load_policy(result.out)
    prompt, actions = "Goal: Grasp red table\nYou see: red table\nAction:", ["Grasp", "Release all"]
    mine, theirs = (p.score([prompt], [actions])[0] for p in (longer.policy, loaded))
    assert mine.log_pi.tolist() == theirs.log_pi.tolist()
    assert mine.q.tolist() == theirs.q.tolist()


def test_only_adapters_and_heads_change(quick_config: Any, tmp_path: Path):
    base = _folder("qwen2", tmp_path / "base")
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    options = {"model.id": str(base), "lora.r": 4, "total_steps": 200}
    policy = Trainer(quick_config("frozen", **options)).train().policy
    after = policy.model.get_base_model().state_dict()
    for name, value in before.items():
        plain = (
            name
            if name in after
            else name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        )
        torch.testing.assert_close(after[plain], value, rtol=0, atol=0)

"""The base under adapters is written as it was without them, and found by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sacglam.models.base import found_name, save_base
from sacglam.models.loading import load_language_model


def test_a_base_is_written_and_found(make_model: Any, tmp_path: Path, architecture: str):
    model, tokenizer = make_model(architecture, torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    modules = {"gpt2": ["c_attn"]}.get(architecture, ["q", "q_proj", "v_proj"])
    head = [] if model.config.tie_word_embeddings else ["lm_head"]
    config = LoraConfig(r=2, target_modules=modules, modules_to_save=head)
    adapted = get_peft_model(model, config)
    folder = tmp_path / "base"
    assert found_name(adapted, str(folder)) == ""
    save_base(adapted, tokenizer, folder)
    loaded, _ = load_language_model(folder)
    after = loaded.state_dict()
    assert set(after) == set(before)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=0)

    assert found_name(adapted, str(folder)) == str(folder)
    adapted.bfloat16()
    assert found_name(adapted, str(folder)) == str(folder)
    with torch.no_grad():
        next(p for n, p in adapted.named_parameters() if "norm" in n or "ln_" in n).add_(0.1)
    assert found_name(adapted, str(folder)) == ""


def test_files_without_the_prefix_or_a_weight(make_model: Any, tmp_path: Path):
    model, tokenizer = make_model("gpt2", torch.float32)
    model.transformer.save_pretrained(tmp_path / "body")  # as GPT-2's own are
    assert found_name(model, str(tmp_path / "body")) == str(tmp_path / "body")
    model, tokenizer = make_model("flan-t5", torch.float32)
    save_base(model.encoder, tokenizer, tmp_path / "part")
    assert found_name(model, str(tmp_path / "part")) == ""

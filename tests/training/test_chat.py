"""Prompts as a user's message in a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sacglam import Trainer, load_policy, make_env
from sacglam.errors import ConfigError
from sacglam.models.tiny import build_tokenizer
from sacglam.text import PromptTemplate, TextCodec, chat_frame
from transformers import LlamaConfig, LlamaForCausalLM

CHATML = (
    "{{ bos_token }}<|system|>\nYou help.<|end|>\n{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is false %}<think></think>\n{% endif %}{% endif %}"
)
WORDS = ["Goal: Action: Possible actions:, You help . user system assistant Do it", "a b c d"]
PAST, ACTIONS = [("a a", "b"), ("c", "d d")], ["a", "a b", "c"]


def chatting(words: list[str] = WORDS, template: str | None = CHATML) -> Any:
    tokenizer = build_tokenizer(words)
    marks = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"]
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "options",
    [{}, {"history": 1, "list_actions": True}, {"instruction": "Do it", "history": 2}],
)
def test_ids_are_those_of_the_whole_conversation(options: dict[str, Any]):
    tokenizer = chatting()
    before, after = chat_frame(tokenizer)
    plain = PromptTemplate(**options)
    said = "".join(plain.segments("a b", "c d", PAST, ACTIONS)).removesuffix("\nAction:")
    want = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    codec = TextCodec(
        tokenizer, PromptTemplate(**options, before=before, after=after), encoder_decoder=False
    )
    text = "".join(codec.template.segments("a b", "c d", PAST, ACTIONS))
    assert text == f"{want}Action:"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert ids.count(tokenizer.bos_token_id) == 1  # the template's alone
    assert codec.prompt("a b", "c d", PAST, ACTIONS).tolist() == ids
    assert codec.text(text).tolist() == ids
    assert codec.check("a b", "c d", ACTIONS)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles differ') }}", "roles differ"),
        ("{{ messages[0]['content'] ", "chat template fails"),
        ("hello", "does not write a user's message once"),
        ("{{ messages[0]['content'] * 2 }} so", "does not write a user's message once"),
        ("{{ messages[0]['content'] }}", "followed by where the answer begins"),
    ],
)
def test_templates_that_cannot_frame_a_message(template: str | None, said: str):
    with pytest.raises(ConfigError, match="prompt.chat") as error:
        chat_frame(chatting(template=template))
    assert said in str(error.value)


def test_tiny_models_do_not_chat(quick_config: Any):
    with pytest.raises(ConfigError, match="prompt.chat"):
        Trainer(quick_config(**{"prompt.chat": True}))


def test_a_run_in_a_chat(quick_config: Any, tmp_path: Path):
    tokenizer = chatting([*WORDS, *make_env("playground/zoo").vocabulary])
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = {
        "model.id": str(tmp_path / "base"),
        "env.id": "playground/zoo",
        "prompt.chat": True,
        "prompt.history": 1,
        "prompt.list_actions": True,
        "total_steps": 150,
        "eval.episodes": 2,
    }
    trainer = Trainer(quick_config(**options))
    seen: set[bytes] = set()
    prompts = trainer.policy.codec.prompts

    def acting(parts: Any) -> Any:
        found = prompts(parts)
        seen.update(ids.tobytes() for ids in found)
        return found

    trainer.policy.codec.prompts = acting
    result = trainer.train()
    assert result.updates > 0

    # What is replayed without a new goal is what was acted on.
    batch = trainer.algorithm.buffer.sample(64)
    rows = np.split(batch.prompt_ids, batch.prompt_offsets[1:-1])
    own = [row for row, new in zip(rows, batch.relabeled, strict=True) if not new]
    assert own
    assert all(row.tobytes() in seen for row in own)

    loaded = load_policy(result.out)
    assert loaded.codec.template == trainer.policy.codec.template
    saved = next(Path(result.out).glob("checkpoints/*/policy/policy.json"))
    assert json.loads(saved.read_text())["template"]["after"].endswith("</think>\n")
    prompt = loaded.prompt("Grasp water", "You see: water", PAST, ACTIONS)
    assert prompt.startswith("<s><|system|>\nYou help.<|end|>\n<|user|>\nGoal: Grasp water\n")
    assert prompt.endswith(
        "Possible actions: a, a b, c<|end|>\n<|assistant|>\n<think></think>\nAction:"
    )
    scores = [p.score([prompt], [ACTIONS])[0].log_pi for p in (trainer.policy, loaded)]
    assert np.allclose(*scores)

"""Bad input to a policy raises typed errors that name the bad value and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam.errors import (
    CandidateError,
    CheckpointError,
    ConfigError,
    PromptTooLongError,
    UnknownModelError,
    UnsupportedModelError,
)
from sacglam.models.loading import load_language_model
from sacglam.models.policy import Policy, PolicyOptions, load_saved_policy
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config


def test_candidate_lists(make_policy: Any):
    policy = make_policy("llama", torch.float32)
    with pytest.raises(CandidateError, match="empty"):
        policy.score(["a b"], [[]])
    with pytest.raises(CandidateError, match=r"duplicate candidates \['go'\]"):
        policy.score(["a b"], [["go", "red", "go"]])
    with pytest.raises(CandidateError, match="no tokens"):
        policy.score(["a b"], [["go", " "]])
    with pytest.raises(CandidateError, match="cannot tell"):
        policy.score(["a b"], [["go  to", "go to"]])
    with pytest.raises(CandidateError, match="2 prompts and 1 candidate lists"):
        policy.score(["a", "b"], [["go"]])
    with pytest.raises(CandidateError, match="at least one prompt"):
        policy.score([], [])
    assert len(policy.score(["a b"], [["go"]])[0].q) == 1  # still works


def test_prompt_too_long(make_policy: Any):
    policy = make_policy("llama", torch.float32)
    with pytest.raises(PromptTooLongError, match=r"accepts 256.*prompt\.history"):
        policy.score(["a " * 300], [["go"]])
    # Acting does not run the last token, and would be followed by an update that does.
    policy.score(["a " * 255], [["go"]])
    policy.act(["a " * 255], [["go"]])
    for call in (policy.score, policy.act):
        with pytest.raises(PromptTooLongError, match=r"has 257 tokens, but this model accepts 256"):
            call(["a " * 256], [["go"]])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Gemma2Config(), "gemma2"),
        (BloomConfig(), "bloom"),
    ],
    ids=["gemma2", "alibi"],
)
def test_models_that_would_be_wrong_are_refused(make_model: Any, config: Any, words: str):
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 60}
    for name, value in small.items():
        setattr(config, name, value)
    for name in ("intermediate_size", "head_dim", "num_key_value_heads"):
        if hasattr(config, name):
            setattr(config, name, {"intermediate_size": 16, "head_dim": 8}.get(name, 2))
    model = AutoModelForCausalLM.from_config(config)
    _, tokenizer = make_model("llama")
    with pytest.raises(UnsupportedModelError, match=words):
        Policy(model, tokenizer)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_dropout_is_switched_off_and_refused_when_it_is_on(make_model: Any, architecture: str):
    model, tokenizer = make_model(architecture, torch.float32)
    policy = Policy(model.train(), tokenizer)
    ask = (["a b"], [["go", "red"]])
    first, again = (policy.score(*ask)[0].log_pi for _ in range(2))
    assert (first == again).all()
    model.train()
    with pytest.raises(UnsupportedModelError, match=r"dropout is on \(p = 0.1 in .*eval\(\)"):
        policy.score(*ask)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert (policy.score(*ask)[0].log_pi == first).all()


def test_unknown_models(tmp_path: Path):
    (tmp_path / "my-model").mkdir()
    with pytest.raises(UnknownModelError, match=r"lacks config\.json"):
        load_language_model(tmp_path / "my-model")
    with pytest.raises(UnknownModelError, match="did you mean .*my-model"):
        load_language_model(tmp_path / "my-modle")
    with pytest.raises(ConfigError, match="dtype"):
        load_language_model(tmp_path, dtype="int8")
    with pytest.raises(CheckpointError, match="not a complete saved policy"):
        load_saved_policy(tmp_path)


def test_options(make_policy: Any):
    with pytest.raises(ConfigError, match="score is 'probs'"):
        PolicyOptions(score="probs")
    with pytest.raises(ConfigError, match="above 0"):
        PolicyOptions(temperature=0)
    with pytest.raises(ConfigError, match="needs LoRA"):
        make_policy("llama", critic_trunk="adapter")


@pytest.mark.parametrize("options", [{}, {"score": "raw_logit"}, {"reduce": "mean"}], ids=str)
def test_policy_is_a_distribution_and_saving_keeps_it(
    make_policy: Any, tmp_path: Path, options: Any
):
    policy = make_policy("t5", torch.float32, temperature=0.5, **options)
    policy.save(tmp_path)
    prompts, candidates = ["a b c", "red lion"], [["go", "go to", "water"], ["release all"]]
    found, loaded = (p.score(prompts, candidates) for p in (policy, load_saved_policy(tmp_path)))
    for a, b in zip(found, loaded, strict=True):
        assert abs(float(torch.tensor(a.log_pi).exp().sum()) - 1) < 1e-6
        assert a.log_probs.tolist() == b.log_probs.tolist()
        assert a.q.tolist() == b.q.tolist()
    generator = torch.Generator().manual_seed(0)
    drawn = [policy.act(prompts, candidates, generator=generator)[0] for _ in range(300)]
    share = drawn.count("go") / 300
    assert abs(share - float(torch.tensor(found[0].log_pi[0]).exp())) < 0.1


@pytest.mark.parametrize("text", [None, 3, b"go", ["go"]], ids=str)
def test_what_is_no_text_is_named(make_policy: Any, text: Any):
    policy = make_policy("llama", torch.float32)
    for ask in (([text], [["go"]]), (["a b"], [["go", text]])):
        for call in (policy.score, policy.act, policy.pack_texts):
            with pytest.raises(CandidateError, match=r"is among the prompts and candidates"):
                call(*ask)


def test_a_prompt_has_tokens(make_policy: Any):
    policy = make_policy("gpt2", torch.float32)
    assert not len(policy.codec.text(" "))
    with pytest.raises(CandidateError, match="a prompt has no tokens"):
        policy.score(["a", " "], [["go"], ["go"]])

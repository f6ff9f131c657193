"""The stock model's scores, candidate by candidate, beside the tests' own loop."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sacglam.models.policy import PolicyOptions
from sacglam.models.stock import stock_scores
from transformers import AutoModelForCausalLM, Gemma2Config

PROMPT = "Goal : grasp any lion , you see red water . Action :"
ACTIONS = ["go", "go to red lion", "go to red", "release all"]


def test_it_is_the_sum_of_the_tokens_log_probabilities(
    make_policy: Any, make_model: Any, naive: Any, architecture: str
):
    policy = make_policy(architecture)
    stock, _ = make_model(architecture)
    ids = [policy.codec.action(a) for a in ACTIONS]
    prompt = policy.codec.text(PROMPT)
    sums = stock_scores(stock, prompt, ids, PolicyOptions())
    expected = torch.stack([naive(policy, architecture, PROMPT, a)[0] for a in ACTIONS])
    torch.testing.assert_close(sums, expected.detach(), rtol=1e-10, atol=1e-10)
    means = stock_scores(stock, prompt, ids, PolicyOptions(reduce="mean"))
    torch.testing.assert_close(means, sums / torch.tensor([len(i) for i in ids]))


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("score", ["logprob", "raw_logit"])
def test_it_follows_the_policys_options(
    make_policy: Any, make_model: Any, architecture: str, score: str, reduce: str
):
    policy = make_policy(architecture, score=score, reduce=reduce)
    stock, _ = make_model(architecture)
    assert dataclasses.asdict(policy.options)["score"] == score
    theirs = stock_scores(
        stock,
        policy.codec.text(PROMPT),
        [policy.codec.action(a) for a in ACTIONS],
        policy.options,
    )
    ours = torch.from_numpy(policy.score([PROMPT], [ACTIONS])[0].log_probs)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)


def test_logits_of_16_bits_are_not_rounded(make_policy: Any, make_model: Any, architecture: str):
    """Against the head's product in float64 from the model's last hidden states."""
    policy = make_policy(architecture)
    model, _ = make_model(architecture)
    model.to(torch.bfloat16)
    ids = [policy.codec.action(a) for a in ACTIONS]
    prompt = policy.codec.text(PROMPT)
    found = stock_scores(model, prompt, ids, PolicyOptions())
    want, rounded = [], []
    for action in ids:
        p, a = (torch.from_numpy(x).long() for x in (prompt, action))
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                start = torch.tensor([model.config.decoder_start_token_id])
                out = model(
                    input_ids=p[None], decoder_input_ids=torch.cat([start, a[:-1]])[None],
                    output_hidden_states=True,
                )  # fmt: skip
                hidden = out.decoder_hidden_states[-1][0] * policy.trunk.head_scale
                own = out.logits[0]
            else:
                out = model(input_ids=torch.cat([p, a])[None], output_hidden_states=True)
                hidden, own = (x[0, len(p) - 1 : -1] for x in (out.hidden_states[-1], out.logits))
        logits = hidden.double() @ model.get_output_embeddings().weight.double().T
        for sums, values in ((want, logits), (rounded, own.double())):
            sums.append(values.log_softmax(-1).gather(-1, a[:, None]).sum())
    error = (found - torch.stack(want)).abs().max()
    assert error < 1e-5
    assert error < 0.01 * (torch.stack(rounded) - torch.stack(want)).abs().max()


def test_what_a_model_does_with_its_heads_output_is_kept(make_model: Any):
    _, tokenizer = make_model("gemma")
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    prompt, action = np.array([5, 6, 7], dtype=np.int32), np.array([8], dtype=np.int32)
    found = stock_scores(model, prompt, [action], PolicyOptions(score="raw_logit"))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
    assert found.item() == logits[0, 2, 8].item()

"""The frozen model's own policy, toward which `sac.prior` pulls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sacglam.models.policy import Policy, PolicyOptions

PROMPTS = ["Goal : grasp red lion", "a b c"]
CANDIDATES = [["go to water", "grasp", "release all"], ["go", "grasp blue lion"]]


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("score", ["logprob", "raw_logit"])
def test_an_untrained_policy_is_its_prior(make_model: Any, score: str, reduce: str):
    model, tokenizer = make_model("qwen2")
    lora = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM"))
    policy = Policy(lora, tokenizer, options=PolicyOptions(score=score, reduce=reduce))
    forest = policy.pack_texts(PROMPTS, CANDIDATES, leaves=False)
    with torch.no_grad():
        prior = policy.prior(forest).log_pi
        torch.testing.assert_close(policy.forward(forest, with_q=False).log_pi, prior)
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.normal_()
        assert not torch.allclose(policy.forward(forest, with_q=False).log_pi, prior)
        torch.testing.assert_close(policy.prior(forest).log_pi, prior)

"""Copies of a policy are policies of their own, in memory and through a pickle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam.models.loading import LoraOptions, add_lora
from sacglam.models.options import PolicyOptions
from sacglam.models.policy import Policy, load_saved_policy
from sacglam.text import PromptTemplate

ASK = (["a b c", "red lion"], [["go", "go to", "water"], ["release all", "go"]])
WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda policy: pickle.loads(pickle.dumps(policy)),
}


def answers(policy: Policy) -> list[list[float]]:
    """Everything that is scored; the critic's gradient path included."""
    return [x.tolist() for found in policy.score(*ASK) for x in found]


@pytest.fixture
def with_adapters(make_model: Any) -> Policy:
    """A policy of two adapters that were trained a little, on a base without a name."""
    model, tokenizer = make_model("llama", torch.float32)
    torch.manual_seed(0)
    model = add_lora(model, LoraOptions(r=2), critic_adapter=True)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    options = PolicyOptions(critic_trunk="adapter")
    return Policy(model, tokenizer, template=PromptTemplate(instruction="Play."), options=options)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_answers_alike_and_is_trained_alone(make_policy: Any, architecture: str, way: str):
    policy = make_policy(architecture, torch.float32, reduce="mean")
    before = answers(policy)
    copied = WAYS[way](policy)
    assert answers(copied) == before
    assert copied.options == policy.options
    names = copied.trainable_parameters()
    assert list(names) == list(policy.trainable_parameters())
    optimiser = torch.optim.SGD(names.values(), lr=0.1)
    scores = copied.forward(copied.pack_texts(*ASK))
    (scores.log_pi[:, 0].sum() + scores.q.sum()).backward()
    assert all(p.grad is None for p in policy.trainable_parameters().values())
    optimiser.step()
    assert answers(copied) != before
    assert answers(policy) == before


@pytest.mark.parametrize("way", WAYS)
def test_adapters_are_copied_with_their_base(with_adapters: Policy, way: str, tmp_path: Path):
    policy = with_adapters
    named = [c.base_model_name_or_path for c in policy.model.peft_config.values()]
    copied = WAYS[way](policy)
    assert answers(copied) == answers(policy)
    assert copied.prompt("g", "o") == policy.prompt("g", "o")
    assert "Play." in copied.prompt("g", "o")
    assert list(copied.trainable_parameters()) == list(policy.trainable_parameters())
    assert [c.base_model_name_or_path for c in policy.model.peft_config.values()] == named
    copied.save(tmp_path)  # from a pickle its base's folder is gone
    assert answers(load_saved_policy(tmp_path)) == answers(policy)


def test_a_frozen_reference_stays_frozen_and_narrow_weights_narrow(make_policy: Any):
    policy = make_policy("llama", torch.bfloat16)
    policy.model.requires_grad_(False)
    copied = copy.deepcopy(policy)
    assert copied.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in copied.model.parameters())
    assert answers(copied) == answers(policy)


def test_an_optimiser_is_copied_with_its_policy(make_policy: Any):
    policy = make_policy("llama", torch.float32)
    optimiser = torch.optim.Adam(policy.trainable_parameters().values())
    copied, its = copy.deepcopy((policy, optimiser))
    own = {id(p) for p in copied.trainable_parameters().values()}
    assert {id(p) for group in its.param_groups for p in group["params"]} == own


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_drawn_from_the_global_generator(with_adapters: Policy, way: str):
    state = torch.get_rng_state()
    WAYS[way](with_adapters)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_shown_of_a_policy(make_policy: Any, with_adapters: Policy):
    shown = repr(make_policy("llama", torch.float32))
    assert shown.startswith("Policy(llama, ")
    assert shown.endswith(" of them trained, float32, cpu)")
    counts = [
        int(word.replace(",", "")) for word in repr(with_adapters).split() if word[0] in "123456789"
    ]
    assert counts[1] < counts[0]

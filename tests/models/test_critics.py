"""What each kind of critic reads, against the model run on one prompt (and action) at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sacglam._C import CandidateSet
from sacglam.errors import CandidateError
from sacglam.models.critics import prompts_with_actions
from sacglam.models.loading import LoraOptions, add_lora
from sacglam.models.policy import Policy, PolicyOptions
from torch import Tensor

PROMPTS = ["Goal : red lion", "you see green water . Action :", "Goal : red lion", "a"]
CANDIDATES = [["go to red", "go", "grasp"], ["release all"], ["go", "grasp lion"], ["a", "b c"]]


def _state(model: Any, ids: Tensor) -> Tensor:
    """The last hidden state of a text: at the decoder's start token, or at its last token."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            out = model(input_ids=ids[None], decoder_input_ids=start, output_hidden_states=True)
            return out.decoder_hidden_states[-1][0, 0]
        return model(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0, -1]


def _fresh(make_model: Any, architecture: str, policy: Any) -> Any:
    model, _ = make_model(architecture)
    model.load_state_dict(policy.model.state_dict())
    model.set_attn_implementation("sdpa")
    return model


def test_value_is_of_the_prompt_alone(make_policy: Any, make_model: Any, architecture: str):
    policy = make_policy(architecture, critic="value", q_heads=1)
    model = _fresh(make_model, architecture, policy)
    scores = policy.forward(policy.pack_texts(PROMPTS, CANDIDATES, leaves=True))
    assert scores.q is None
    states = [_state(model, torch.from_numpy(policy.codec.text(p)).long()) for p in PROMPTS]
    with torch.no_grad():
        expected = policy.heads(torch.stack(states))[0]
    torch.testing.assert_close(scores.v.detach(), expected, rtol=1e-9, atol=1e-9)
    assert scores.v[0] == scores.v[2]  # the candidates do not matter
    scores.v.sum().backward()
    assert policy.heads.weights[0].grad.abs().sum() > 0
    assert policy.score(PROMPTS, CANDIDATES)[0].q is None


@pytest.mark.parametrize("architecture", ["t5", "flan-t5"])
def test_reencoding_reads_prompt_and_action(make_policy: Any, make_model: Any, architecture: str):
    policy = make_policy(architecture, critic="reencode")
    model = _fresh(make_model, architecture, policy)
    for prompt, actions, found in zip(
        PROMPTS, CANDIDATES, policy.score(PROMPTS, CANDIDATES), strict=True
    ):
        texts = [torch.from_numpy(policy.codec.text(f"{prompt} {a}")).long() for a in actions]
        with torch.no_grad():
            q = policy.heads(torch.stack([_state(model, ids) for ids in texts]))
        np.testing.assert_allclose(found.q, q.min(0).values, rtol=1e-9, atol=1e-9)
    leaf = make_policy(architecture, critic="leaf").score(PROMPTS, CANDIDATES)
    np.testing.assert_allclose(
        leaf[0].log_pi, policy.score(PROMPTS, CANDIDATES)[0].log_pi, rtol=1e-9, atol=1e-12
    )


def test_reencoding_follows_the_chosen_rows_and_their_gradient(make_policy: Any):
    policy = make_policy("t5", critic="reencode")
    ids = [policy.codec.text(p) for p in PROMPTS]
    offsets = np.cumsum([0, *map(len, ids)])
    sets = [policy.candidate_set(c) for c in CANDIDATES]
    everything = policy.forward(policy.pack(np.concatenate(ids), offsets, sets))
    rows = np.array([3, 0])
    some = policy.forward(policy.pack(np.concatenate(ids), offsets, sets, rows=rows))
    torch.testing.assert_close(some.q, everything.q[:, rows], rtol=1e-9, atol=1e-9)
    assert some.q[:, 0, 2:].abs().max() == 0  # the padding of two candidates to three
    some.q.sum().backward()
    encoder = policy.model.encoder.block[0].layer[0].SelfAttention.q.weight
    assert encoder.grad.abs().sum() > 0


def test_reencoding_is_the_leaf_for_causal_models(make_policy: Any):
    leaf, reencoded = (make_policy("llama", critic=kind) for kind in ("leaf", "reencode"))
    for a, b in zip(
        leaf.score(PROMPTS, CANDIDATES), reencoded.score(PROMPTS, CANDIDATES), strict=True
    ):
        assert a.q.tolist() == b.q.tolist()


@pytest.mark.parametrize("options", [{}, {"critic_gradient": False}])
def test_the_gradient_of_the_taken_actions_needs_no_other_pass(make_policy: Any, options: Any):
    policy = make_policy("t5", critic="reencode", **options)
    ids = [policy.codec.text(p) for p in PROMPTS]
    prompts, offsets = np.concatenate(ids), np.cumsum([0, *map(len, ids)], dtype=np.int64)
    sets = [policy.candidate_set(c) for c in CANDIDATES]
    rows = np.array([3, 0, 1])
    taken = np.array([2, 0, 1, 1], dtype=np.int32)
    column = torch.tensor([1, 2, 0])

    def q_and_gradient(**only: Any) -> tuple[Tensor, list[Tensor]]:
        q = policy.forward(policy.pack(prompts, offsets, sets, rows=rows, **only)).q
        loss = q[:, torch.arange(3), column].square().sum()
        parameters = list(policy.trainable_parameters().values())
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return q.detach(), [torch.zeros(0) if g is None else g for g in found]

    taken[0] = 2  # of prompts 0, 1 and 3: columns 2, 0 and 1; prompt 2 is not packed
    q, gradient = q_and_gradient(taken=taken)
    every_q, every_gradient = q_and_gradient()
    torch.testing.assert_close(q, every_q, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, every_gradient, rtol=1e-10, atol=1e-12)
    assert sum(float(g.abs().sum()) for g in gradient) > 0
    passes = []
    hidden = policy.trunk.hidden
    policy.trunk.hidden = lambda forest: passes.append(
        (forest.num_rows, torch.is_grad_enabled())) or hidden(forest)  # fmt: skip
    q_and_gradient(taken=taken)
    assert passes == [(3, True), (6, False), (3, True)]  # the policy, all candidates, those taken


def _values(scores: Any) -> Tensor:
    return scores.v if scores.q is None else scores.q


def _moved(parameters: dict[str, Any]) -> set[str]:
    """Whose parameters have a gradient: of the adapter "default" or "critic", the heads, ..."""
    found = {n: p for n, p in parameters.items() if p.grad is not None and p.grad.any()}
    for parameter in parameters.values():
        parameter.grad = None
    kinds = ("default", "critic", "heads")
    return {next((k for k in kinds if f"{k}." in name), "base") for name in found}


READERS = [("llama", "leaf"), ("t5", "leaf"), ("t5", "reencode"), ("llama", "value")]


@pytest.mark.parametrize(("architecture", "critic"), READERS)
def test_an_adapter_of_its_own_is_what_the_critic_reads_and_trains(
    make_model: Any, architecture: str, critic: str
):
    def adapted() -> tuple[Any, Any]:
        model, tokenizer = make_model(architecture)
        return add_lora(model, LoraOptions(r=2), critic_adapter=True).double().eval(), tokenizer

    model, tokenizer = adapted()
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    own = PolicyOptions(critic=critic, critic_trunk="adapter")
    policy = Policy(model, tokenizer, options=own)
    forest = policy.pack_texts(PROMPTS, CANDIDATES, leaves=True)
    scores = policy.forward(forest)

    def merged(adapter: str) -> Any:
        """The scores of a model whose weights hold this adapter."""
        whole, _ = adapted()
        whole.load_state_dict(model.state_dict())
        whole.set_adapter(adapter)
        plain = Policy(
            whole.merge_and_unload(), tokenizer, options=replace(own, critic_trunk="shared")
        )
        plain.heads.load_state_dict(policy.heads.state_dict())
        with torch.no_grad():
            return plain.forward(forest)

    actor, values = merged("default"), merged("critic")
    torch.testing.assert_close(scores.log_pi.detach(), actor.log_pi, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(_values(scores).detach(), _values(values), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(_values(actor), _values(values))

    parameters = policy.trainable_parameters()
    assert all("lora_" in name or name.startswith("heads.") for name in parameters)
    (scores.log_pi * torch.randn_like(scores.log_pi)).sum().backward(retain_graph=True)
    assert _moved(parameters) == {"default"}
    _values(scores).square().sum().backward()
    assert _moved(parameters) == {"critic", "heads"}
    both = policy.forward(forest)  # the adapters were switched: both are trained still
    (both.log_pi.square().sum() + _values(both).square().sum()).backward()
    assert _moved(parameters) == {"default", "critic", "heads"}


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(("architecture", "critic"), READERS)
def test_the_critics_gradient_enters_a_shared_trunk_or_not(
    make_policy: Any, architecture: str, critic: str, gradient: bool
):
    policy = make_policy(architecture, critic=critic, critic_gradient=gradient)
    parameters = policy.trainable_parameters()
    scores = policy.forward(policy.pack_texts(PROMPTS, CANDIDATES, leaves=True))
    _values(scores).square().sum().backward(retain_graph=True)
    assert _moved(parameters) == ({"base", "heads"} if gradient else {"heads"})
    scores.log_pi.square().sum().backward()
    assert _moved(parameters) == {"base"}


def test_an_empty_list_of_actions_is_refused_also_when_reencoding(make_policy: Any):
    with pytest.raises(CandidateError, match="empty"):
        make_policy("t5", critic="reencode").candidate_set([])


def test_the_action_goes_before_what_closes_the_prompt():
    prompts, offsets = np.array([7, 8, 1, 9, 1], dtype=np.int32), np.array([0, 3, 5])
    tokens = np.array([4, 5, 6], dtype=np.int32)
    first, second = (CandidateSet(ids, np.array([0, len(ids)])) for ids in (tokens[:1], tokens[1:]))
    both = CandidateSet(tokens, np.array([0, 1, 3]))
    found = prompts_with_actions(prompts, offsets, [both, second], None, 1)
    assert found[0].tolist() == [7, 8, 4, 1, 7, 8, 5, 6, 1, 9, 5, 6, 1]
    assert found[1].tolist() == [0, 4, 9, 13]
    found = prompts_with_actions(prompts, offsets, [first, second], np.array([1]), 1)
    assert found[0].tolist() == [9, 5, 6, 1]

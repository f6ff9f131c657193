"""Scoring executes the matrix products that no method can do without, and hardly any others: the
floor by formula over sets of prefixes, what is executed as torch dispatches it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SUITES = Path(__file__).resolve().parents[2] / "bench"
sys.path.append(str(SUITES))  # they import their neighbours by plain names

import scoring_floor as floor  # noqa: E402
import scoring_work as works  # noqa: E402
from scoring_rivals import LAMOREL, RIVALS  # noqa: E402

KINDS = ["T5", "Llama"]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def work(kind: str) -> Any:
    return works.build_work(kind, works.sizes_of(kind, quick=True, prompts=4))


def least(work: Any, *, leaves: bool = False) -> int:
    config = work.stock.config
    tokens = floor.count_tokens(
        work.prompts, work.candidates, encoder_decoder=config.is_encoder_decoder, leaves=leaves
    )
    return floor.flops_of(floor.products(config, tokens))


def test_the_policy_costs_at_most_a_twentieth_over_the_floor(work: Any) -> None:
    executed = floor.executed_flops(lambda: works.ours(work))
    # Below the floor would mean that the floor is wrong, or that the counter misses products.
    assert 1.0 <= executed / least(work) <= 1.05


def test_with_q_it_runs_leaves_and_the_heads_besides(work: Any) -> None:
    executed = floor.executed_flops(lambda: works.ours_with_q(work))
    candidates = sum(map(len, work.candidates))
    heads = sum(2 * candidates * weight.numel() for weight in work.policy.heads.weights)
    assert 1.0 <= executed / (least(work, leaves=True) + heads) <= 1.05


def test_equal_prompts_cost_once(work: Any) -> None:
    """Of four rows with one prompt and one set of candidates, three are free."""
    prompt, candidates = work.prompts[0], work.candidates[0]
    four = replace(
        work,
        prompts=[prompt] * 4,
        candidates=[candidates] * 4,
        sets=[work.sets[0]] * 4,
        ids=np.tile(np.asarray(prompt, dtype=np.int32), 4),
        offsets=np.arange(5, dtype=np.int64) * len(prompt),
    )
    assert 1.0 <= floor.executed_flops(lambda: works.ours(four)) / least(four) <= 1.05
    assert least(four) < least(work) / 3


def test_a_candidate_that_shares_its_first_tokens_costs_the_policy_nothing(work: Any) -> None:
    more = works.with_another_candidate(work)
    before, after = (floor.executed_flops(lambda w=w: works.ours(w)) for w in (work, more))
    assert after == before
    before, after = (floor.executed_flops(lambda w=w: works.ours_with_q(w)) for w in (work, more))
    assert before < after < 1.03 * before


def test_the_counter_sees_what_rivals_waste(kind: str, work: Any) -> None:
    """The negative control: a method that computes the same and more must be seen to do so."""
    assert floor.executed_flops(lambda: LAMOREL[kind](work)) > 2 * least(work)


def test_rivals_give_the_same_log_probabilities(kind: str, work: Any) -> None:
    expected = works.ours(work)
    for rival in RIVALS[kind].values():
        torch.testing.assert_close(rival(work), expected, rtol=1e-4, atol=1e-4)


def test_tokens_are_counted_by_hand() -> None:
    # "1 2", "1 3 4", "5" after prompts of 3 and 2 tokens, the first of which comes twice.
    candidates = [[1, 2], [1, 3, 4], [5]]
    prompts = [[7, 8, 9], [7, 8], [7, 8, 9]]
    decoder = floor.count_tokens(prompts, [candidates] * 3, encoder_decoder=True)
    assert decoder == floor.Tokens(encoder=5, nodes=2 * 3, read=2 * 3, head=2 * 3)
    causal = floor.count_tokens(prompts, [candidates] * 3, encoder_decoder=False)
    assert causal == floor.Tokens(encoder=0, nodes=(3 + 2) + 2 * 2, read=2 * 3, head=2 * 3)
    leaves = floor.count_tokens(prompts, [candidates] * 3, encoder_decoder=False, leaves=True)
    assert leaves == floor.Tokens(encoder=0, nodes=(3 + 2) + 2 * 5, read=2 * 6, head=2 * 3)


def test_the_formula_covers_every_layer(work: Any) -> None:
    """One row everywhere costs two operations a weight of every linear layer."""
    one = floor.Tokens(encoder=1, nodes=1, read=1, head=1)
    config = work.stock.config
    linear = [m for m in work.stock.modules() if isinstance(m, torch.nn.Linear)]
    assert floor.flops_of(floor.products(config, one)) == 2 * sum(m.weight.numel() for m in linear)

"""Each target and loss against the equation written out in plain Python, with varying K."""

from __future__ import annotations

import math

import pytest
import torch
from sacglam.algorithms import sac

COUNTS = [1, 2, 5, 3]
GAMMA, ALPHA = 0.9, 0.3


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """B = 4 prompts with 1 to 5 candidates, padded to A = 5 with zeros."""
    generator = torch.Generator().manual_seed(0)
    a = max(COUNTS)
    mask = torch.arange(a)[None, :] < torch.tensor(COUNTS)[:, None]
    scores = torch.randn(4, a, dtype=torch.float64, generator=generator, requires_grad=True)
    log_pi = scores.masked_fill(~mask, -torch.inf).log_softmax(-1)
    return {
        "mask": mask,
        "scores": scores,
        "pi": log_pi.exp(),
        "log_pi": log_pi.masked_fill(~mask, 0.0),
        "q": torch.randn(2, 4, a, dtype=torch.float64, generator=generator) * mask,
        "action": torch.tensor([0, 1, 4, 2]),
        "weight": torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64),
        "target": torch.randn(4, dtype=torch.float64, generator=generator),
    }


def _value(batch: dict[str, torch.Tensor], b: int, log_prior: torch.Tensor | None = None) -> float:
    total = 0.0
    for k in range(COUNTS[b]):
        p, lp = float(batch["pi"].detach()[b, k]), float(batch["log_pi"].detach()[b, k])
        prior = 0.0 if log_prior is None else float(log_prior[b, k])
        q_min = min(float(batch["q"][0, b, k]), float(batch["q"][1, b, k]))
        total += p * (q_min - ALPHA * (lp - prior))
    return total


def test_soft_value(batch: dict[str, torch.Tensor]):
    found = sac.soft_value(batch["pi"], batch["log_pi"], batch["q"], ALPHA)
    for b in range(4):
        assert found[b].item() == pytest.approx(_value(batch, b), rel=1e-12)


def test_soft_value_with_prior(batch: dict[str, torch.Tensor]):
    prior = torch.randn(4, 5, dtype=torch.float64).masked_fill(~batch["mask"], -torch.inf)
    log_prior = prior.log_softmax(-1).masked_fill(~batch["mask"], 0.0)
    found = sac.soft_value_with_prior(batch["pi"], batch["log_pi"], log_prior, batch["q"], ALPHA)
    for b in range(4):
        assert found[b].item() == pytest.approx(_value(batch, b, log_prior), rel=1e-12)


def test_truncation_bootstraps_and_termination_does_not():
    value = torch.tensor([2.0, 2.0])
    truncated, terminated = GAMMA**3, 0.0
    y = sac.td_target(torch.tensor([0.5, 1.0]), torch.tensor([truncated, terminated]), value)
    assert y.tolist() == pytest.approx([0.5 + GAMMA**3 * 2.0, 1.0])


@pytest.mark.parametrize("huber", [None, 0.4])
def test_critic_loss(batch: dict[str, torch.Tensor], huber: float | None):
    loss, error = sac.critic_loss(
        batch["q"], batch["action"], batch["target"], batch["weight"], huber=huber
    )
    total, errors = 0.0, []
    for b in range(4):
        gaps = [float(batch["q"][i, b, batch["action"][b]] - batch["target"][b]) for i in range(2)]
        errors.append(sum(abs(g) for g in gaps) / 2)
        for gap in gaps:
            if huber is None or abs(gap) <= huber:
                row = gap**2
            else:
                row = 2 * huber * (abs(gap) - huber / 2)
            total += float(batch["weight"][b]) * row / 4
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert error.tolist() == pytest.approx(errors, rel=1e-12)


def test_actor_loss_and_its_gradient(batch: dict[str, torch.Tensor]):
    q = batch["q"].clone().requires_grad_()
    loss = sac.actor_loss(batch["pi"], batch["log_pi"], q, ALPHA, batch["weight"])
    expected = -sum(float(batch["weight"][b]) * _value(batch, b) for b in range(4)) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert q.grad is None  # Q is detached
    # d/ds_k = w/B * pi_k (f_k - E f), f = alpha log pi - q_min: the softmax's policy gradient.
    pi, log_pi = batch["pi"].detach(), batch["log_pi"].detach()
    f = ALPHA * log_pi - batch["q"].min(0).values
    gradient = batch["weight"][:, None] / 4 * pi * (f - (pi * f).sum(-1, keepdim=True))
    torch.testing.assert_close(batch["scores"].grad, gradient * batch["mask"])


def test_the_best_policy_is_the_boltzmann_distribution(batch: dict[str, torch.Tensor]):
    """The actor's loss is least at pi = softmax(Q / alpha): V = alpha logsumexp(Q / alpha)."""
    q_min = batch["q"].min(0).values.masked_fill(~batch["mask"], -torch.inf)
    best = (q_min / ALPHA).log_softmax(-1)
    log_pi = best.masked_fill(~batch["mask"], 0.0)
    value = sac.soft_value(best.exp(), log_pi, batch["q"], ALPHA)
    torch.testing.assert_close(value, ALPHA * (q_min / ALPHA).logsumexp(-1))
    ones = torch.ones(4, dtype=torch.float64)
    least = sac.actor_loss(best.exp(), log_pi, batch["q"], ALPHA, ones)
    other = sac.actor_loss(batch["pi"], batch["log_pi"], batch["q"], ALPHA, ones)
    assert least < other


def test_temperature_follows_the_number_of_candidates(batch: dict[str, torch.Tensor]):
    log_alpha = torch.tensor(math.log(ALPHA), dtype=torch.float64, requires_grad=True)
    entropy = -(batch["pi"] * batch["log_pi"]).sum(-1)
    sac.temperature_loss(log_alpha, entropy, batch["mask"].sum(-1), 0.5).backward()
    gaps = [float(entropy[b].detach()) - 0.5 * math.log(k) for b, k in enumerate(COUNTS) if k > 1]
    assert log_alpha.grad is not None
    assert log_alpha.grad.item() == pytest.approx(ALPHA * sum(gaps) / len(gaps), rel=1e-12)


@pytest.mark.parametrize(("counts", "expected"), [([1, 1], 0.0), ([1, 3], 0.2)])
def test_prompts_with_one_candidate_leave_the_temperature(counts: list[int], expected: float):
    """Also where a batch has no others: no mean is taken over nothing."""
    log_alpha = torch.tensor(math.log(ALPHA), dtype=torch.float64, requires_grad=True)
    entropy = torch.tensor([0.0, expected + 0.5 * math.log(3)], dtype=torch.float64)
    sac.temperature_loss(log_alpha, entropy, torch.tensor(counts), 0.5).backward()
    assert log_alpha.grad is not None
    assert log_alpha.grad.item() == pytest.approx(ALPHA * expected, abs=1e-12)


def test_one_candidate_has_no_entropy_and_no_gradient():
    scores = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    log_pi = scores.log_softmax(-1)
    loss = sac.actor_loss(
        log_pi.exp(), log_pi, torch.ones(2, 1, 1, dtype=torch.float64), ALPHA, torch.ones(1)
    )
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.abs().max() == 0

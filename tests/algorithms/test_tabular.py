"""Gradient steps on SAC's losses converge to the soft-optimal Q and policy of a small world, which
value iteration finds independently, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from sacglam.algorithms import sac
from torch import Tensor

GAMMA, ALPHA = 0.9, 0.2
# WORLD[s][a] = (reward, next state, terminated). Three, one, four and two actions; state 2 can be
# left for good two ways, one of them better.
WORLD = [
    [(0.0, 1, False), (0.1, 2, False), (0.0, 0, False)],
    [(0.0, 3, False)],
    [(0.3, 2, True), (0.0, 0, False), (-0.2, 3, False), (0.0, 1, False)],
    [(1.0, 3, True), (0.0, 2, False)],
]
PRIOR = [[0.2, 0.5, 0.3], [1.0], [0.7, 0.1, 0.1, 0.1], [0.05, 0.95]]
COUNT = torch.tensor([len(actions) for actions in WORLD])
MASK = torch.arange(4)[None, :] < COUNT[:, None]  # [S, A]


def _solution(prior: list[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
    """Q and pi of value iteration with V(s) = alpha log sum_a w(a|s) exp(Q(s,a) / alpha): w = 1
    gives the entropy's optimum, w = prior that of -KL(pi || prior)."""
    q = [[0.0] * len(actions) for actions in WORLD]
    for _ in range(500):
        v = [
            ALPHA * math.log(sum(w * math.exp(x / ALPHA) for w, x in zip(ws, row, strict=True)))
            for ws, row in zip(prior, q, strict=True)
        ]
        q = [[r + (0.0 if end else GAMMA * v[s]) for r, s, end in row] for row in WORLD]
    pi = []
    for ws, row in zip(prior, q, strict=True):
        weights = [w * math.exp(x / ALPHA) for w, x in zip(ws, row, strict=True)]
        pi.append([w / sum(weights) for w in weights])
    return q, pi


def _table(rows: list[list[float]]) -> Tensor:
    """[S, A], 0 where there is no action."""
    return torch.tensor([row + [0.0] * (4 - len(row)) for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("with_prior", [False, True], ids=["entropy", "prior"])
def test_q_and_pi_converge_to_the_soft_optimum(heads: int, with_prior: bool):
    rows = [(s, a, *WORLD[s][a]) for s in range(4) for a in range(len(WORLD[s]))]
    state, action, after = (torch.tensor([row[k] for row in rows]) for k in (0, 1, 3))
    reward = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    discount = torch.tensor([0.0 if row[4] else GAMMA for row in rows], dtype=torch.float64)
    log_prior = _table([[math.log(w) for w in row] for row in PRIOR])

    generator = torch.Generator().manual_seed(heads)
    scores = torch.randn(4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    q = torch.randn(heads, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()
    average = q.detach().clone()
    adam = torch.optim.Adam([scores, q], lr=0.02)
    fall = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 1e-3, total_iters=2500)
    weight = torch.ones(len(rows), dtype=torch.float64)

    def policy() -> tuple[Tensor, Tensor]:
        log_pi = scores.masked_fill(~MASK, -torch.inf).log_softmax(-1)
        return log_pi.exp(), log_pi.masked_fill(~MASK, 0.0)

    for _ in range(2500):
        pi, log_pi = policy()
        with torch.no_grad():
            if with_prior:
                v = sac.soft_value_with_prior(pi, log_pi, log_prior, average * MASK, ALPHA)
            else:
                v = sac.soft_value(pi, log_pi, average * MASK, ALPHA)
            y = sac.td_target(reward, discount, v[after])
        critic, _ = sac.critic_loss((q * MASK)[:, state], action, y, weight)
        prior = log_prior[state] if with_prior else None
        actor = sac.actor_loss(
            pi[state], log_pi[state], (q * MASK)[:, state], ALPHA, weight, log_prior=prior
        )
        adam.zero_grad()
        (critic + actor).backward()
        adam.step()
        fall.step()
        average.lerp_(q.detach(), 0.05)

    best_q, best_pi = _solution(PRIOR if with_prior else [[1.0] * len(row) for row in WORLD])
    for head in q.detach():
        torch.testing.assert_close(head * MASK, _table(best_q), rtol=0, atol=2e-3)
    torch.testing.assert_close(policy()[0].detach(), _table(best_pi), rtol=0, atol=2e-3)


def test_the_learned_temperature_settles_where_the_entropy_is_a_share_of_log_k():
    """With pi kept at the soft optimum for alpha, alpha goes where mean H(pi) = c mean log K."""
    q = torch.tensor([[1.0, 0.4, 0.1, 0.0], [0.3, 0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    share = 0.5
    log_alpha = torch.tensor(math.log(3.0), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log_alpha], lr=0.03)

    def entropy() -> Tensor:
        log_pi = (q / log_alpha.detach().exp()).masked_fill(~mask, -torch.inf).log_softmax(-1)
        return -(log_pi.exp() * log_pi.masked_fill(~mask, 0.0)).sum(-1)

    for _ in range(800):
        adam.zero_grad()
        sac.temperature_loss(log_alpha, entropy(), mask.sum(-1), share).backward()
        adam.step()
    wanted = share * (math.log(4) + math.log(2)) / 2
    assert entropy().mean().item() == pytest.approx(wanted, abs=1e-3)

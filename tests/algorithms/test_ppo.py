"""Each of PPO's estimates and losses against the equation written out in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from sacglam.algorithms import ppo

GAMMA, LAM = 0.9, 0.8


def test_gae_on_episodes_that_terminate_are_cut_and_go_on():
    """Four steps of three environments: terminated after step 1, cut by time after step 2, and
    under way all the time. The definition as a double sum, in float64."""
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    after = torch.randn(4, 3, dtype=torch.float64, generator=generator)  # V of the state after
    ended = torch.zeros(4, 3, dtype=torch.bool)
    ended[1, 0] = ended[2, 1] = True
    next_value = torch.cat([value[1:], after[-1:]])
    next_value[1, 0] = 0.0  # terminal
    next_value[2, 1] = after[2, 1]  # a time limit: the state it would have gone on from
    found = ppo.gae(reward, value, next_value, ended, GAMMA, LAM)
    for i in range(3):
        for t in range(4):
            total, factor = 0.0, 1.0
            for k in range(t, 4):
                terminal, cut = (k, i) == (1, 0), (k, i) == (2, 1)
                v = 0.0 if terminal else float(after[k, i] if cut or k == 3 else value[k + 1, i])
                total += factor * (float(reward[k, i]) + GAMMA * v - float(value[k, i]))
                if terminal or cut:
                    break
                factor *= GAMMA * LAM
            assert found[t, i].item() == pytest.approx(total, rel=1e-12)


def test_gae_at_the_ends_of_lambda():
    """lambda = 0: one-step errors; lambda = 1: the discounted return less the value."""
    reward = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    value = torch.tensor([[0.5], [0.25], [0.125]], dtype=torch.float64)
    next_value = torch.tensor([[0.25], [0.125], [4.0]], dtype=torch.float64)
    ended = torch.zeros(3, 1, dtype=torch.bool)
    zero = ppo.gae(reward, value, next_value, ended, GAMMA, 0.0)
    torch.testing.assert_close(zero, reward + GAMMA * next_value - value)
    one = ppo.gae(reward, value, next_value, ended, GAMMA, 1.0)
    whole = 1.0 + GAMMA * 2.0 + GAMMA**2 * 3.0 + GAMMA**3 * 4.0
    assert one[0, 0].item() == pytest.approx(whole - 0.5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "moves"),
    [
        (1.0, 2.0, 2.0, True),
        (1.5, 2.0, 1.2 * 2.0, False),  # beyond the clip, where it would pay: no gradient
        (1.5, -2.0, 1.5 * -2.0, True),
        (0.5, 2.0, 0.5 * 2.0, True),
        (0.5, -2.0, 0.8 * -2.0, False),
    ],
)
def test_the_clipped_ratio(ratio: float, advantage: float, expected: float, moves: bool):
    log_prob = torch.tensor([math.log(0.3 * ratio)], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([math.log(0.3)], dtype=torch.float64)
    a = torch.tensor([advantage], dtype=torch.float64)
    loss, found = ppo.policy_loss(log_prob, old, a, 0.2)
    assert found.item() == pytest.approx(math.log(ratio))
    assert loss.item() == pytest.approx(-expected)
    loss.backward()
    assert log_prob.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)


def test_the_first_gradient_is_the_policy_gradient():
    """At pi = pi_old: d/ds_k of -E[A log pi(a)] over candidate scores with varying K."""
    counts, action = torch.tensor([1, 2, 4]), torch.tensor([0, 1, 2])
    mask = torch.arange(4)[None, :] < counts[:, None]
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    log_pi = scores.masked_fill(~mask, -torch.inf).log_softmax(-1)
    taken = log_pi.gather(-1, action[:, None]).squeeze(-1)
    advantage = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    ppo.policy_loss(taken, taken.detach(), advantage, 0.2)[0].backward()
    one_hot = torch.nn.functional.one_hot(action, 4).double()
    expected = -advantage[:, None] / 3 * (one_hot - log_pi.detach().exp())
    torch.testing.assert_close(scores.grad, expected)


def test_value_loss_kl_and_normalisation():
    value, returns = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert ppo.value_loss(value, returns).item() == pytest.approx((1.0 + 4.0) / 2)
    ratio = torch.tensor([0.5, 1.5], dtype=torch.float64)
    expected = sum(r - 1 - math.log(r) for r in (0.5, 1.5)) / 2
    assert ppo.approximate_kl(ratio.log()).item() == pytest.approx(expected)
    assert ppo.approximate_kl(torch.zeros(3)).item() == 0.0
    # exp(-110) is 0 in float32
    assert ppo.approximate_kl(torch.tensor([-110.0, 0.0])).item() == pytest.approx(109 / 2)
    found = ppo.normalise(torch.tensor([1.0, 3.0, 5.0]))
    assert found.mean().item() == pytest.approx(0.0, abs=1e-7)
    assert found.square().mean().item() == pytest.approx(1.0, rel=1e-6)
    assert ppo.normalise(torch.tensor([7.0])).item() == 0.0

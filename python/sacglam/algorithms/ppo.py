"""PPO over a finite, varying set of candidate actions: the on-policy baseline.

Schulman et al. 2017 (PPO, arXiv 1707.06347) and 2016 (GAE, arXiv 1506.02438); with a language
model's policy over candidates, Carta et al. 2023 (GLAM, arXiv 2302.02662).

Shapes: T steps, N environments, B rows of a minibatch, A candidates; `log_pi`, `pi` [B, A] with 0
where a candidate does not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, ended: Tensor, gamma: float, lam: float
) -> Tensor:
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), PPO's
    equations (11) and (12); the sum stops where the episode does -> [T, N].

    Args:
        reward: [T, N].
        value: [T, N], V(s_t).
        next_value: [T, N], V of the state that step t led to: 0 where that is terminal, and of the
            last state before the reset where a time limit cut the episode (truncation is not
            termination).
        ended: bool [T, N], whether step t was its episode's last one.
    """
    delta = reward + gamma * next_value - value  # [T, N]
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])  # [N]
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + gamma * lam * running.masked_fill(ended[t], 0.0)
        advantage[t] = running
    return advantage


def normalise(advantage: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over a minibatch; a single row is only centred -> [B]."""
    centred = advantage - advantage.mean()
    return centred / (centred.square().mean().sqrt() + 1e-8)


def policy_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """-E min(rho A, clip(rho, 1 - eps, 1 + eps) A), rho = pi(a|p) / pi_old(a|p), equation (7).

    Args:
        log_prob, old_log_prob: [B], of the actions taken, now and when they were taken.
        advantage: [B].
        clip: eps.

    Returns:
        the loss (scalar), and log rho [B], detached.
    """
    log_ratio = log_prob - old_log_prob  # [B]
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean(), log_ratio.detach()


def value_loss(value: Tensor, returns: Tensor) -> Tensor:
    """E (V(p) - R)^2, R = A + V_old: the lambda-return -> scalar."""
    return (value - returns).square().mean()


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """E[(rho - 1) - log rho], an estimate of KL(pi_old || pi) that is never negative -> scalar.

    Of log rho [B], since rho may underflow to 0.
    """
    return (log_ratio.expm1() - log_ratio).mean()

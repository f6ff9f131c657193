"""SAC over a finite, varying set of candidate actions.

Haarnoja et al. 2018 (arXiv 1801.01290, 1812.05905), discrete form of Christodoulou 2019 (arXiv
1910.07207), for language models by Gaven et al. 2024 (SAC-GLAM, arXiv 2410.12481).

Shapes: `log_pi`, `pi` [B, A] with 0 where a candidate does not exist; `q` [heads, B, A] likewise.
Prompts may have different numbers of candidates: a missing one has pi = 0 and adds nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def soft_value(pi: Tensor, log_pi: Tensor, q: Tensor, alpha: float | Tensor) -> Tensor:
    """V(p) = sum_a pi(a|p) (min_i Q_i(p,a) - alpha log pi(a|p)), exact over candidates -> [B]."""
    q_min = q.min(0).values  # [B, A]
    return (pi * (q_min - alpha * log_pi)).sum(-1)


def soft_value_with_prior(
    pi: Tensor, log_pi: Tensor, log_prior: Tensor, q: Tensor, alpha: float | Tensor
) -> Tensor:
    """V with the entropy replaced by -KL(pi || pi_0): the LLM's prior as a guide (LINVIT, arXiv
    2402.16181) -> [B]."""
    return soft_value(pi, log_pi - log_prior, q, alpha)


def td_target(n_step_return: Tensor, discount: Tensor, value: Tensor) -> Tensor:
    """y = sum_{k<m} gamma^k r_{t+k} + gamma^m (1 - terminated) V(p_{t+m}) -> [B].

    Truncation is not termination: a time limit keeps discount = gamma^m.
    """
    return n_step_return + discount * value


def critic_loss(
    q: Tensor, action: Tensor, target: Tensor, weight: Tensor, *, huber: float | None = None
) -> tuple[Tensor, Tensor]:
    """mean_i (Q_i(p_t, a_t) - y_t)^2, summed over heads; Huber beyond `huber` if given.

    Args:
        q: [heads, B, A]; action: int64 [B]; target, weight: [B].

    Returns:
        the loss (scalar) and the absolute TD error per row, float [B] (mean over heads, detached).
    """
    chosen = q.gather(-1, action.expand(q.shape[0], -1)[..., None]).squeeze(-1)  # [heads, B]
    error = chosen - target
    if huber is None:
        per_row = error.square()
    else:
        per_row = 2.0 * F.huber_loss(
            chosen, target.to(chosen.dtype).expand_as(chosen), reduction="none", delta=huber
        )
    return (weight * per_row).mean(-1).sum(), error.detach().abs().mean(0)


def actor_loss(
    pi: Tensor,
    log_pi: Tensor,
    q: Tensor,
    alpha: float | Tensor,
    weight: Tensor,
    *,
    log_prior: Tensor | None = None,
) -> Tensor:
    """E_p sum_a pi(a|p) (alpha log pi(a|p) - min_i Q_i(p,a)), Q detached -> scalar."""
    q_min = q.detach().min(0).values
    log_ratio = log_pi if log_prior is None else log_pi - log_prior
    return (weight * (pi * (alpha * log_ratio - q_min)).sum(-1)).mean()


def temperature_loss(log_alpha: Tensor, entropy: Tensor, count: Tensor, share: float) -> Tensor:
    """Drives alpha until the entropy is `share` * log K_t, which follows the varying K_t -> scalar.

    Args:
        entropy: of each prompt's policy, float [B]; count: of its candidates, int64 [B]. Prompts
            with one candidate have nothing to explore and are left out.
    """
    target = share * torch.log(count.to(entropy.dtype))
    several = (count > 1).to(entropy.dtype)
    gap = (entropy.detach() - target) * several
    return (log_alpha.exp() * gap).sum() / several.sum().clamp(min=1.0)

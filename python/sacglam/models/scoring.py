"""From hidden states to log-probabilities of candidates and the policy over them.

s(a | p)  = sum_k log P(w_k | p, w_<k)        (GLAM; "mean" divides by the number of tokens)
pi(a | p) = softmax over the candidates of s(a | p) / tau
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..kernels import candidate_softmax, edge_logits, linear_logprob
from .forest import Forest


@dataclass(frozen=True)
class Scores:
    """What one pass knows of a batch of B prompts with at most A candidates.

    Attributes:
        log_prob: float [B, A], the candidates' scores s; 0 where `mask` is False.
        log_pi: float [B, A], log of the policy; 0 where `mask` is False.
        pi: float [B, A], the policy; 0 where `mask` is False.
        q: float [heads, B, A] or None; 0 where `mask` is False.
        mask: bool [B, A], which candidates exist.
        v: float [B] or None, the prompts' values (policies trained by PPO).
    """

    log_prob: Tensor
    log_pi: Tensor
    pi: Tensor
    q: Tensor | None
    mask: Tensor
    v: Tensor | None = None

    def cpu(self) -> Scores:
        """The same on the CPU."""
        return replace(self, **{name: x.cpu() for name, x in vars(self).items() if x is not None})

    @property
    def entropy(self) -> Tensor:
        """Entropy of the policy in nats, float [B]."""
        return -(self.pi * self.log_pi).sum(-1)


def candidate_policy(
    hidden: Tensor,
    weight: Tensor,
    forest: Forest,
    *,
    tau: float,
    normalise: bool = True,
    mean: bool = False,
) -> Scores:
    """Scores and policy over the candidates, without Q.

    Args:
        hidden: float [R, D], states of the forest's head rows, scaled as the head wants them.
        weight: float [V, D], the language-model head.
        tau: temperature of the softmax over candidates.
        normalise: False takes raw logits for log-probabilities (as in GLAM's and MAGELLAN's code).
        mean: divide by the number of tokens.
    """
    edge_scores = linear_logprob if normalise else edge_logits
    edges = edge_scores(hidden, weight, forest.edge_row, forest.edge_token)
    policy = candidate_softmax(
        edges, forest.path_offsets, forest.path_edges, forest.candidate_offsets,
        tau=tau, reduction="mean" if mean else "sum",
    )  # fmt: skip
    log_pi = policy.log_pi[forest.table]
    return Scores(
        log_prob=policy.scores[forest.table].masked_fill(~forest.mask, 0.0),
        log_pi=log_pi.masked_fill(~forest.mask, 0.0),
        pi=log_pi.exp().masked_fill(~forest.mask, 0.0),
        q=None,
        mask=forest.mask,
    )


def values_over(q: Tensor, forest: Forest) -> Tensor:
    """Q per candidate [heads, C] to [heads, B, A], 0 where there is no candidate."""
    return q[:, forest.table].masked_fill(~forest.mask, 0.0)

"""From hidden states to log-probabilities of candidates and the policy over them.

    s(a | p)  = sum_k log P(w_k | p, w_<k)        (GLAM; "mean" divides by the number of tokens)
    pi(a | p) = softmax over the candidates of s(a | p) / tau
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    """

    log_prob: Tensor
    log_pi: Tensor
    pi: Tensor
    q: Tensor | None
    mask: Tensor

    @property
    def entropy(self) -> Tensor:
        """Entropy of the policy in nats, float [B]."""
        return -(self.pi * self.log_pi).sum(-1)


def edge_log_probs(
    hidden: Tensor, weight: Tensor, edge_row: Tensor, edge_token: Tensor, *, normalise: bool = True
) -> Tensor:
    """log P of each trie edge: hidden [R, D], weight [V, D], edges [E] -> [E].

    normalise=False gives the raw logit (the form used by GLAM's and MAGELLAN's code).
    """
    logits = hidden @ weight.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    edges = logits[edge_row, edge_token]
    return edges - logits.logsumexp(-1)[edge_row] if normalise else edges


def candidate_scores(edges: Tensor, forest: Forest, *, mean: bool = False) -> Tensor:
    """Sum (or mean) of edge log-probs along each candidate's path: [E] -> [C]."""
    zeros = edges.new_zeros(forest.num_candidates)
    total = zeros.index_add(0, forest.path_candidate, edges[forest.path_edges])
    return total / forest.path_length.to(total.dtype) if mean else total


def policy_over(scores: Tensor, forest: Forest, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [C] to (score, log_pi, pi), each [B, A] and 0 where there is no candidate."""
    table = scores[forest.table]
    log_pi = (table / tau).masked_fill(~forest.mask, -torch.inf).log_softmax(-1)
    return (
        table.masked_fill(~forest.mask, 0.0),
        log_pi.masked_fill(~forest.mask, 0.0),
        log_pi.exp(),
    )


def values_over(q: Tensor, forest: Forest) -> Tensor:
    """Q per candidate [heads, C] to [heads, B, A], 0 where there is no candidate."""
    return q[:, forest.table].masked_fill(~forest.mask, 0.0)

"""Where the critic's heads read, and what they say.

leaf      Q(p, a) from the hidden state at the action's last token: the pass that scores all
          candidates knows it already
reencode  Q(p, a) from encoding prompt and action afresh, one encoder pass a candidate, at the
          decoder's start token (the authors' code). For causal models the last token's state is
          the same function of prompt and action, so that it is computed as `leaf`
value     V(p) from the hidden state that begins every candidate: the prompt's last token, or
          the decoder's start token (PPO-GLAM)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._C import CandidateSet
from .forest import Forest

CRITICS = ("leaf", "reencode", "value")
Ids = npt.NDArray[np.int32]


def candidates_of(candidates: CandidateSet) -> list[Ids]:
    """The token ids of each candidate of a set."""
    tokens = candidates.tokens
    return [tokens[a:b] for a, b in pairwise(candidates.offsets.tolist())]


def prompts_with_actions(
    prompts: Ids,
    offsets: npt.NDArray[np.int64],
    sets: Sequence[CandidateSet],
    rows: npt.NDArray[np.int64] | None,
    closing: int,
    taken: npt.NDArray[np.integer] | None = None,
) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Each prompt with each of its candidates written behind it, as concatenated ids and offsets.

    Args:
        prompts, offsets: the batch's prompts, concatenated ids and [B + 1].
        sets: the candidates of each of the B prompts.
        rows: which of the prompts, in which order; None: all.
        closing: how many special tokens close a prompt; the action goes before them.
        taken: of the candidates of each of the B prompts only this one; None: all.
    """
    pieces: list[Ids] = []
    lengths = [0]
    for b in range(len(sets)) if rows is None else rows.tolist():
        start, stop = offsets[b : b + 2].tolist()
        before, after = prompts[start : stop - closing], prompts[stop - closing : stop]
        if taken is None:
            actions = candidates_of(sets[b])
        else:
            first, last = sets[b].offsets[taken[b] :][:2]
            actions = [sets[b].tokens[first:last]]
        for action in actions:
            pieces += before, action, after
            lengths.append(stop - start + len(action))
    return np.concatenate(pieces), np.cumsum(lengths, dtype=np.int64)


def first_states(hidden: Tensor, forest: Forest) -> Tensor:
    """The hidden state that begins the candidates of each batch row [B, D]."""
    # The first edge of a row's first candidate leaves from there.
    first = forest.path_edges[forest.path_offsets[forest.table[:, 0]]]  # [B]
    return hidden[forest.head_rows[forest.edge_row[first]]]


def reencoded_values(q: Tensor, forest: Forest) -> Tensor:
    """Q of the batch's rows and candidates in order [heads, sum of K, or more] as [heads, B, A]."""
    empty = q.new_zeros(forest.mask.shape)
    return torch.stack([empty.masked_scatter(forest.mask, one) for one in q])

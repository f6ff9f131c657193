"""Models whose own forward pass does more than transformers' does: refused where that changes
scores, which are made of hidden states and the head's weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._C import CandidateSet
from ..errors import UnsupportedModelError
from . import fused
from .base import base_of
from .options import PolicyOptions
from .stock import stock_scores
from .trunk import refuse_spread, refuse_unsupported, set_attention, uses_packed_attention

if TYPE_CHECKING:
    from .policy import Policy

_PROMPT = 8  # tokens
_LENGTHS = (1, 3)  # of the candidates


def has_own_forward(base: Any) -> bool:
    """Whether what a call of the model runs is written elsewhere than in transformers: by a
    subclass, code of the model's repository, a replaced method or a hook.

    Args:
        base: the model without peft's wrapper.
    """
    written_in = getattr(type(base).forward, "__module__", "")
    return (
        not written_in.startswith("transformers.models.")
        or "forward" in vars(base)
        or bool(base._forward_hooks or base._forward_pre_hooks)
    )


def scores_by_own_forward(model: Any, options: PolicyOptions) -> Tensor | None:
    """What the model itself makes of two candidates, float [2]; None where its forward pass is
    transformers' own. To be asked before its attention becomes ours."""
    base = base_of(model)
    if not has_own_forward(base) or base.get_output_embeddings() is None:
        return None
    refuse_unsupported(base.config)
    refuse_spread(base)
    if uses_packed_attention(base):  # it may have been given to a policy before
        set_attention(base, "sdpa")
        fused.unfuse(base)
    return stock_scores(model, _prompt(model), _candidates(model), options)


def refuse_other_scores(policy: Policy, expected: Tensor) -> None:
    """Raise UnsupportedModelError where scores are not those by the model's own forward pass."""
    prompt, candidates = _prompt(policy.model), _candidates(policy.model)
    ends = np.cumsum([0, *map(len, candidates)])
    packed = CandidateSet(np.concatenate(candidates), ends)
    starts = np.array([0, len(prompt)])
    with torch.no_grad():
        forest = policy.pack(prompt, starts, [packed], leaves=False)
        found = policy.forward(forest, with_q=False).log_prob[0].cpu()
    narrow = policy.dtype.itemsize == 2
    difference = (found.double() - expected.double()).abs() / expected.double().abs().clamp_min(1.0)
    if not difference.max() < (0.05 if narrow else 1e-3):
        base = policy.trunk.base
        raise UnsupportedModelError(
            f"{type(base).__name__} ({type(base).__module__}) has a forward pass of its own (or a "
            "hook on it), which gives candidates other scores than its hidden states and head do: "
            f"{expected.tolist()} and {found.tolist()}. Packed scoring runs the layers alone; put "
            "the change into them, or give the model without"
        )


def _prompt(model: Any) -> np.ndarray:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return (np.arange(1, _PROMPT + 1) * 7919 % vocabulary).astype(np.int32)


def _candidates(model: Any) -> list[np.ndarray]:
    """They differ in their first token where there are two."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return [
        (np.arange(k, k + n) * 104_729 % vocabulary).astype(np.int32)
        for k, n in enumerate(_LENGTHS, 1)
    ]

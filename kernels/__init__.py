"""Operations with a plain torch reference beside a Triton kernel; knows nothing of RL.

Each operation has two files: `<name>.py` (formula, reference, torch path, autograd, the public
function) and `<name>_triton.py` (kernels and launchers), which is imported on first use on a GPU.
Attention has two more ways, `_cpu` and `_flash`.
"""

from __future__ import annotations

from .attention_plan import AttentionPlan, plan_forest, plan_segments
from .backend import Backend, triton_available, triton_serves
from .candidate_softmax import CandidatePolicy, candidate_softmax, candidate_softmax_reference
from .forest_attention import (
    attention,
    attention_reference,
    forest_attention,
    segment_attention,
)
from .gated_activation import gated_activation, gated_activation_reference
from .gated_linear import gated_linear, gated_linear_reference
from .linear_logprob import edge_logits, linear_logprob, linear_logprob_reference
from .rms_norm import rms_norm, rms_norm_reference
from .rotary_embedding import rotary_embedding

__all__ = [
    "AttentionPlan",
    "Backend",
    "CandidatePolicy",
    "attention",
    "attention_reference",
    "candidate_softmax",
    "candidate_softmax_reference",
    "edge_logits",
    "forest_attention",
    "gated_activation",
    "gated_activation_reference",
    "gated_linear",
    "gated_linear_reference",
    "linear_logprob",
    "linear_logprob_reference",
    "plan_forest",
    "plan_segments",
    "rms_norm",
    "rms_norm_reference",
    "rotary_embedding",
    "segment_attention",
    "triton_available",
    "triton_serves",
]

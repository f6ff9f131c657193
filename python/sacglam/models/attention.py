"""`sacglam.kernels.attention` as a Hugging Face attention function.

Registered as "sacglam" and "sacglam_reference" (one dense mask in float64, the simplest code that
is right). No mask function is registered: transformers then builds no mask of its own, and the
plans arrive as extra keywords of the trunk's forward.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..kernels import AttentionPlan, attention, attention_reference

FAST = "sacglam"
REFERENCE = "sacglam_reference"


def _plan_and_bias(
    module: nn.Module,
    plan: AttentionPlan | None,
    cross_plan: AttentionPlan | None,
    position_bias: Tensor | None,
) -> tuple[AttentionPlan, Tensor | None]:
    """The plan for this module, and T5's table of biases (an empty one counts as none)."""
    if cross_plan is not None and getattr(module, "sacglam_cross", False):
        plan = cross_plan
    if plan is None:
        raise TypeError(
            "this model's attention runs over packed forests only: call Policy.forward, or set "
            'another implementation with model.set_attn_implementation("sdpa")'
        )
    return plan, position_bias if position_bias is not None and position_bias.numel() else None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan | None = None,
    cross_plan: AttentionPlan | None = None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention for query [1, H, T, D] and key, value [1, Hkv, T', D] -> [1, T, H, D].

    Args:
        plan: of the module's self-attention.
        cross_plan: of modules marked `sacglam_cross`, whose queries are trie nodes and whose keys
            are their prompts.
        position_bias: a table [H, 2R + 1] by query depth minus key depth (T5), or empty.
    """
    plan, bias = _plan_and_bias(module, plan, cross_plan, position_bias)
    # Unlike an index's, the gradient of squeeze is no copy.
    rows = (x.squeeze(0) for x in (query, key, value))
    out = attention(*rows, plan, bias=bias, scale=scaling)
    return out.transpose(0, 1)[None], None


def reference_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan | None = None,
    cross_plan: AttentionPlan | None = None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The same as `packed_attention`, by one dense mask and a plain softmax."""
    plan, bias = _plan_and_bias(module, plan, cross_plan, position_bias)
    out = attention_reference(query[0], key[0], value[0], plan, bias=bias, scale=scaling)
    return out.to(query.dtype).transpose(0, 1)[None], None


def register() -> None:
    """Make both functions known to transformers; safe to call more than once."""
    from transformers import AttentionInterface

    AttentionInterface.register(FAST, packed_attention)
    AttentionInterface.register(REFERENCE, reference_attention)

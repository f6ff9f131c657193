"""The kernels by their formulas in torch: the interpreter takes up to a second for a launch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

# Their stand-ins in torch wait for nothing.
STOOD_IN_FOR = (
    "candidate_softmax", "gated_activation", "gated_linear", "rms_norm", "rotary_embedding",
)  # fmt: skip


@contextmanager
def quick_kernels() -> Iterator[None]:
    """Within the context the kernels are stood in for; nothing waits for the device."""
    from sacglam.kernels import forest_attention_triton as triton_attention
    from sacglam.kernels import linear_logprob_triton as triton_head
    from sacglam.kernels.forest_attention import attention_reference

    def attention(inputs: tuple[torch.Tensor, ...], plan: Any, scale: float) -> torch.Tensor:
        q, k, v, *bias = inputs
        out = attention_reference(q, k, v, plan, bias=bias[0] if bias else None, scale=scale)
        return out.to(q.dtype)

    def forward(q: Any, k: Any, v: Any, plan: Any, bias: Any, scale: float) -> Any:
        inputs = (q, k, v) if bias is None else (q, k, v, bias)
        return attention(inputs, plan, scale), q.new_zeros(q.shape[:2], dtype=torch.float32)

    def backward(
        grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, plan: Any, bias: Any, scale: float,
        *, need_bias_grad: bool,
    ) -> Any:  # fmt: skip
        given = (q, k, v) if bias is None else (q, k, v, bias)
        with torch.enable_grad():
            inputs = tuple(x.detach().requires_grad_() for x in given)
            found = torch.autograd.grad(attention(inputs, plan, scale), inputs, grad)
        return *found[:3], found[3] if need_bias_grad else None

    def logsumexp(h: torch.Tensor, weight: torch.Tensor, config: Any = None) -> torch.Tensor:
        return (h.float() @ weight.float().T).logsumexp(1)

    def edges(h: Any, weight: Any, edge_row: Any, edge_token: Any, lse: Any) -> torch.Tensor:
        logits = (h.float()[edge_row.long()] * weight.float()[edge_token.long()]).sum(-1)
        return logits - lse[edge_row.long()]

    def probabilities(
        h: Any, weight: Any, lse: Any, row_grad: Any, out: Any, first: int, last: int, _: Any = None
    ) -> None:
        logits = h.float() @ weight[first:last].float().T
        out[:, : last - first] = -row_grad[:, None] * (logits - lse[:, None]).exp()

    with pytest.MonkeyPatch.context() as patch:
        for name in STOOD_IN_FOR:
            patch.setattr(importlib.import_module(f"sacglam.kernels.{name}"), "use_triton", _never)
        # Those of these read on the host what they go by.
        patch.setattr(triton_head, "logsumexp_forward", logsumexp)
        patch.setattr(triton_head, "edge_forward", edges)
        patch.setattr(triton_head, "launch_probabilities", probabilities)
        patch.setattr(triton_attention, "attention_forward", forward)
        patch.setattr(triton_attention, "attention_backward", backward)
        yield


def _never(backend: Any, tensor: Any) -> bool:
    return False

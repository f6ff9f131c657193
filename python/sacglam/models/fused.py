"""Layers of Hugging Face models computed in fewer passes over memory, on the CPU.

A transformer layer of small width spends most of its time on element-wise operations, each of which
reads and writes every token's row. Here norms and residuals, rotary embedding and attention, gates
and activations are one pass each (`sacglam.kernels`), and a causal model's last layer computes only
the rows that are read. Weights and modules stay the model's own; adapters too.

Where a tensor is not float32 or float64 on the CPU, the model's own code runs.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import AttentionPlan, attention, gated_activation, rms_norm
from ..kernels.gated_activation import Activation

# Types whose layers are: norm, attention with rotary embedding, norm, gated feed-forward.
LLAMA_LIKE = ("llama", "qwen2", "qwen3", "mistral", "gemma", "smollm3")
_ACTIVATIONS: dict[str, Activation] = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
}


def fuse(model: Any) -> None:
    """Give the layers of a model faster forward methods, where its type is known."""
    if model.config.model_type in LLAMA_LIKE:
        layers = model.base_model.layers
        if all(_activation(layer.mlp.act_fn) for layer in layers):
            for layer in layers:
                _override(layer, _llama_layer)
            layers[-1].sacglam_last = True
    elif model.config.model_type == "t5":
        for module in model.modules():
            if type(module).__name__ == "T5LayerNorm":
                _override(module, _t5_norm)
            elif type(module).__name__ == "T5DenseGatedActDense" and _activation(module.act):
                _override(module, _t5_gated)


def _override(module: nn.Module, forward: Any) -> None:
    module.sacglam_original = module.forward  # type: ignore[assignment]
    module.forward = types.MethodType(forward, module)


def _serves(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _activation(function: nn.Module) -> Activation | None:
    return _ACTIVATIONS.get(type(function).__name__)


def _norm(module: Any, x: Tensor, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(norm of x + add, x + add) with a model's RMS norm module."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = module.weight
    if "Gemma" in type(module).__name__:
        weight = 1.0 + weight  # stored as its difference from one
    return rms_norm(x, weight, eps, add)


def _llama_layer(
    self: Any,
    hidden_states: Tensor,
    *args: Any,
    position_embeddings: tuple[Tensor, Tensor],
    plan: AttentionPlan | None = None,
    read_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> Tensor:
    """[1, T, D] -> [1, T, D]; the last layer [1, R, D], the rows of `read_plan` if there is one."""
    if plan is None or not _serves(hidden_states):
        return self.sacglam_original(
            hidden_states, *args, position_embeddings=position_embeddings, plan=plan, **kwargs
        )
    x = hidden_states[0]
    own = self.self_attn
    normed, _ = _norm(self.input_layernorm, x)
    asking = normed
    if read_plan is not None and getattr(self, "sacglam_last", False):
        plan, rows = read_plan, read_plan.q_node
        x, asking = x.index_select(0, rows), normed.index_select(0, rows)

    query, key, value = (
        project(rows).view(rows.shape[0], -1, own.head_dim)
        for project, rows in ((own.q_proj, asking), (own.k_proj, normed), (own.v_proj, normed))
    )
    if hasattr(own, "q_norm"):
        query, key = _norm(own.q_norm, query)[0], _norm(own.k_norm, key)[0]
    rotary = None
    if getattr(own, "use_rope", True):
        rotary = (position_embeddings[0][0], position_embeddings[1][0])
    out = attention(
        *(rows.transpose(0, 1) for rows in (query, key, value)),
        plan, scale=own.scaling, rotary=rotary,
    )  # fmt: skip
    out = own.o_proj(out.transpose(0, 1).reshape(x.shape[0], -1))

    normed, x = _norm(self.post_attention_layernorm, out, x)
    mlp = self.mlp
    activation = _activation(mlp.act_fn)
    assert activation is not None
    inner = gated_activation(mlp.gate_proj(normed), mlp.up_proj(normed), activation)
    return (x + mlp.down_proj(inner))[None]


def _t5_norm(self: Any, hidden_states: Tensor) -> Tensor:
    if not _serves(hidden_states):
        return self.sacglam_original(hidden_states)
    return _norm(self, hidden_states)[0]


def _t5_gated(self: Any, hidden_states: Tensor) -> Tensor:
    if not _serves(hidden_states) or (self.training and self.dropout.p > 0):
        return self.sacglam_original(hidden_states)
    activation = _activation(self.act)
    assert activation is not None
    inner = gated_activation(self.wi_0(hidden_states), self.wi_1(hidden_states), activation)
    return self.wo(inner)

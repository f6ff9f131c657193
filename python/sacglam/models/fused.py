"""Layers of Hugging Face models computed in fewer passes over memory.

A transformer layer of small width spends most of its time on element-wise operations, each of which
reads and writes every token's row; on a GPU the same holds up to a billion parameters. Here norms
and residuals, rotary embedding and attention, gates and activations, adapters and their layers are
one pass each (`sacglam.kernels`), and a causal model's last layer computes only the rows that are
read. Weights and modules stay the model's own; adapters too.

On a CPU bfloat16 models have float32 rows (bfloat16.py). GPUs without Triton take the model's own
code.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import (
    AttentionPlan,
    attention,
    gated_activation,
    gated_linear,
    rms_norm,
    triton_serves,
)
from ..kernels.gated_activation import Activation
from .projections import compute, forward_was_replaced, project, projection_of

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
    for module in model.modules():
        if hasattr(module, "lora_A"):
            override(module, _adapted_linear)
    if model.config.model_type in LLAMA_LIKE:
        layers = model.base_model.layers
        for layer in layers:
            if _is_stock(*_llama_parts(layer)) and _activation(layer.mlp.act_fn):
                override(layer, _llama_layer)
                layer.sacglam_last = layer is layers[-1]
    elif model.config.model_type == "t5":
        for module in model.modules():
            if forward_was_replaced(module):
                continue
            if type(module).__name__ == "T5LayerNorm":
                override(module, _t5_norm)
            elif type(module).__name__ == "T5DenseGatedActDense" and _activation(module.act):
                override(module, _t5_gated)
            elif type(module).__name__ == "T5Block" and _is_stock(*_t5_parts(module)):
                override(module, _t5_block)


def unfuse(model: Any) -> None:
    """Give modules their own forward methods back."""
    for module in model.modules():
        replaced = forward_was_replaced(module)
        own = module.__dict__.pop("sacglam_original", None)
        if own is not None:
            del module.forward
            if replaced:
                module.forward = own


def _is_stock(*parts: Any) -> bool:
    """Whether these modules compute what transformers has written: what peft or a user has put in
    their place computes something else, and hooks do."""
    return all(
        type(part).__module__.startswith("transformers.")
        and not part._forward_hooks
        and not part._forward_pre_hooks
        and not forward_was_replaced(part)
        for part in parts
    )


def _llama_parts(layer: Any) -> list[nn.Module]:
    own = layer.self_attn
    norms = [getattr(own, name) for name in ("q_norm", "k_norm") if hasattr(own, name)]
    return [layer, own, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm, *norms]


def _t5_parts(block: Any) -> list[nn.Module]:
    attentions = [
        getattr(layer, name)
        for layer in block.layer
        for name in ("SelfAttention", "EncDecAttention", "DenseReluDense")
        if hasattr(layer, name)
    ]
    return [block, *block.layer, *(layer.layer_norm for layer in block.layer), *attentions]


def override(module: nn.Module, forward: Any) -> None:
    """Give a module another forward method; its own becomes `sacglam_original`."""
    # A model may be given to a policy again.
    module.__dict__.setdefault("sacglam_original", module.forward)
    module.forward = types.MethodType(forward, module)


def _serves(x: Tensor) -> bool:
    if x.is_cuda:
        return triton_serves(x.dtype, x.device)
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _activation(function: nn.Module) -> Activation | None:
    own = type(function).__module__.startswith(("transformers.", "torch."))
    return _ACTIVATIONS.get(type(function).__name__) if own else None


def _norm(module: Any, x: Tensor, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(norm of x + add, x + add) with a model's RMS norm module."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = module.weight
    if "Gemma" in type(module).__name__:  # stored as its difference from one
        weight = 1.0 + (weight.float() if weight.dtype.itemsize == 2 else weight)
    if not x.is_cuda:
        weight = weight.to(x.dtype)  # see bfloat16.py
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
    x = hidden_states.squeeze(0)  # unlike an index's, its gradient is no copy
    own = self.self_attn
    normed, x = _norm(self.input_layernorm, x)
    asking = normed
    if read_plan is not None and getattr(self, "sacglam_last", False):
        plan, rows = read_plan, read_plan.q_node
        x, asking = x.index_select(0, rows), normed.index_select(0, rows)

    query, key, value = (
        rows.view(rows.shape[0], -1, own.head_dim)
        for rows in _projected(asking, normed, own.q_proj, own.k_proj, own.v_proj)
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
    (out,) = _project_each(out.transpose(0, 1).reshape(x.shape[0], -1), own.o_proj)

    normed, x = _norm(self.post_attention_layernorm, out, x)
    mlp = self.mlp
    activation = _activation(mlp.act_fn)
    assert activation is not None
    return (x + _gated(normed, mlp.gate_proj, mlp.up_proj, mlp.down_proj, activation))[None]


def _projected(
    asking: Tensor, asked: Tensor, query: nn.Module, key: nn.Module, value: nn.Module
) -> tuple[Tensor, ...]:
    """Queries of the rows `asking`, keys and values of the rows `asked`."""
    if asking is asked:
        return _project_each(asking, query, key, value)
    return *_project_each(asking, query), *_project_each(asked, key, value)


def _project_each(x: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
    # On the CPU, where products take the time, what is saved does not show.
    return project(x, modules) if x.is_cuda else tuple(module(x) for module in modules)


def _gated(
    x: Tensor, gate: nn.Module, up: nn.Module, down: nn.Module, activation: Activation
) -> Tensor:
    """A gated feed-forward layer over x [R, D]."""
    inner = None
    if x.is_cuda and not torch.is_grad_enabled():
        plain = [projection_of(module) for module in (gate, up)]
        weights = [p.weight for p in plain if p is not None and p.bias is None and p.down is None]
        if len(weights) == 2:
            inner = gated_linear(x, *weights, activation)
    if inner is None:
        inner = gated_activation(*_project_each(x, gate, up), activation)
    return _project_each(inner, down)[0]


def _adapted_linear(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A layer with its LoRA adapter, on a GPU."""
    known = projection_of(self) if x.is_cuda and not args and not kwargs else None
    if known is None or torch.is_autocast_enabled(x.device.type):
        return self.sacglam_original(x, *args, **kwargs)
    return compute(x.reshape(-1, x.shape[-1]), [known])[0].view(*x.shape[:-1], -1)


def _t5_block(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    encoder_decoder_position_bias: Tensor | None = None,
    *,
    plan: AttentionPlan | None = None,
    cross_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """[1, T, D] -> [1, T, D], and the biases that later blocks share."""
    # In float16 the model's own code keeps infinities out.
    served = _serves(hidden_states) and hidden_states.dtype != torch.float16
    if plan is None or not served or (self.training and self.layer[0].dropout.p > 0):
        return self.sacglam_original(
            hidden_states, attention_mask, position_bias, encoder_hidden_states,
            encoder_attention_mask, encoder_decoder_position_bias,
            plan=plan, cross_plan=cross_plan, **kwargs,
        )  # fmt: skip
    own, last = self.layer[0], self.layer[-1]
    table = own.SelfAttention.compute_bias() if position_bias is None else position_bias
    normed, x = _norm(own.layer_norm, hidden_states.squeeze(0))
    out = _t5_attention(own.SelfAttention, normed, normed, plan, table.to(x.dtype))
    if encoder_hidden_states is not None:
        assert cross_plan is not None
        cross = self.layer[1]
        normed, x = _norm(cross.layer_norm, out, x)
        source = encoder_hidden_states.squeeze(0)
        out = _t5_attention(cross.EncDecAttention, normed, source, cross_plan)
    normed, x = _norm(last.layer_norm, out, x)
    return (x + last.DenseReluDense(normed))[None], table, encoder_decoder_position_bias


def _t5_attention(
    module: Any, asking: Tensor, asked: Tensor, plan: AttentionPlan, table: Tensor | None = None
) -> Tensor:
    """Attention of rows [T, D] to rows [T', D], not scaled, as T5's weights expect."""
    rows = _projected(asking, asked, module.q, module.k, module.v)
    heads = (x.view(x.shape[0], -1, module.key_value_proj_dim).transpose(0, 1) for x in rows)
    out = attention(*heads, plan, bias=table, scale=1.0)
    return _project_each(out.transpose(0, 1).reshape(asking.shape[0], -1), module.o)[0]


def _t5_norm(self: Any, hidden_states: Tensor) -> Tensor:
    if not _serves(hidden_states):
        return self.sacglam_original(hidden_states)
    return _norm(self, hidden_states)[0]


def _t5_gated(self: Any, hidden_states: Tensor) -> Tensor:
    # In float16 the model keeps `wo` in float32.
    served = _serves(hidden_states) and hidden_states.dtype != torch.float16
    if not served or (self.training and self.dropout.p > 0):
        return self.sacglam_original(hidden_states)
    activation = _activation(self.act)
    assert activation is not None
    x = hidden_states
    return _gated(x.view(-1, x.shape[-1]), self.wi_0, self.wi_1, self.wo, activation).view(x.shape)

"""Runs an unmodified Hugging Face model over a packed forest and returns hidden states.

A trunk is the transformer without its language-model head. What packed attention cannot compute
correctly (unknown position biases, soft-capped logits, prompts longer than a sliding window) is
refused by name.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, PromptTooLongError, UnsupportedModelError
from . import attention, bfloat16, fused, projections
from .forest import Forest

CAUSAL = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "gpt2", "smollm3", "phi3",
    "gpt_neox", "opt", "olmo", "olmo2", "olmo3", "granite", "cohere", "starcoder2", "glm", "glm4",
)  # fmt: skip
# Those of a sliding window have `layer_types`, or one window for all layers:
WINDOWED = ("mistral", "phi3", "starcoder2")
ENCODER_DECODER = ("t5",)
ATTENTION = {"fast": attention.FAST, "reference": attention.REFERENCE}


class Trunk:
    """The common face of both model kinds; `hidden` is what scoring needs.

    Args:
        model: a Hugging Face model with a language-model head, possibly wrapped by peft.
        attn: "fast" or "reference".
    """

    encoder_decoder: bool

    def __init__(self, model: Any, attn: str = "fast") -> None:
        if attn not in ATTENTION:
            raise ConfigError(f"model.attn is {attn!r}; choose one of {sorted(ATTENTION)}")
        self.base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config: Any = self.base.config
        refuse_unsupported(self.config)
        refuse_spread(self.base)
        _refuse_head(self.base)
        _refuse_prompt_learning(model)
        attention.register()
        set_attention(self.base, ATTENTION[attn])
        fused.unfuse(self.base)  # it may have been given to a policy before
        if attn == "fast":
            fused.fuse(self.base)
            bfloat16.keep_rows_float32(self.base)

    @property
    def hidden_size(self) -> int:
        return int(self.head_weight.shape[1])

    @property
    def head_weight(self) -> Tensor:
        """The language-model head [V, D]."""
        return self.base.get_output_embeddings().weight

    @property
    def head_scale(self) -> float:
        """What hidden states are multiplied with before the head."""
        return 1.0

    @property
    def decoder_start(self) -> int:
        """The token that opens every decoder tree, -1 for causal models."""
        return -1

    @property
    def max_length(self) -> int | None:
        """The longest prompt with a candidate that the model accepts; None: no limit."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":  # other frequencies for the whole batch beyond it
            return int(rope["original_max_position_embeddings"])
        limits = [
            getattr(self.config, name, None) for name in ("max_position_embeddings", "n_positions")
        ]
        limits.append(_window(self.config))  # within it, all is seen
        return min((limit for limit in limits if isinstance(limit, int)), default=None)

    def check_length(self, forest: Forest, *, leaves: bool) -> None:
        """Raise PromptTooLongError if a candidate's end lies beyond the model's limit.

        leaves: whether the forest has the candidates' last tokens; a pass that needs them would be
            refused if one that does not were not.
        """
        limit, longest = self.max_length, forest.longest + (0 if leaves else 1)
        if limit is not None and longest > limit:
            raise PromptTooLongError(
                f"a prompt with its longest candidate has {longest} tokens, but this model "
                f"accepts {limit}: shorten the observation or the history (prompt.history), or "
                "choose a model with a longer context"
            )

    def hidden(self, forest: Forest) -> Tensor:
        """Last hidden states of the nodes that are read (`forest.read`), float [R, D]."""
        raise NotImplementedError


class CausalTrunk(Trunk):
    encoder_decoder = False

    @property
    def head_scale(self) -> float:
        multiplied = getattr(self.config, "logit_scale", None) or 1.0  # Cohere's
        divided = getattr(self.config, "logits_scaling", None) or 1.0  # Granite's
        return float(multiplied) / float(divided)

    def hidden(self, forest: Forest) -> Tensor:
        out = self.base.base_model(
            input_ids=forest.ids[None],
            position_ids=forest.pos[None],
            use_cache=False,
            return_dict=True,
            plan=forest.plan,
            read_plan=forest.read_plan,
        )
        return _rows(out.last_hidden_state.squeeze(0), forest)


class EncoderDecoderTrunk(Trunk):
    encoder_decoder = True

    def __init__(self, model: nn.Module, attn: str = "fast") -> None:
        super().__init__(model, attn)
        _patch_t5(self.base)

    @property
    def head_scale(self) -> float:
        scaled = getattr(self.config, "scale_decoder_outputs", self.config.tie_word_embeddings)
        return float(self.config.d_model) ** -0.5 if scaled else 1.0

    @property
    def decoder_start(self) -> int:
        start = self.config.decoder_start_token_id
        if start is None:
            raise ConfigError("the model's config has no decoder_start_token_id: set it (T5: 0)")
        return int(start)

    @property
    def max_length(self) -> int | None:
        return None  # relative positions: no limit

    def hidden(self, forest: Forest) -> Tensor:
        assert forest.encoder_ids is not None
        encoded = self.base.encoder(
            input_ids=forest.encoder_ids[None], return_dict=True, plan=forest.encoder_plan
        ).last_hidden_state
        out = self.base.decoder(
            input_ids=forest.ids[None],
            encoder_hidden_states=encoded,
            use_cache=False,
            return_dict=True,
            plan=forest.plan,
            cross_plan=forest.cross_plan,
        )
        return _rows(out.last_hidden_state.squeeze(0), forest)


def _rows(hidden: Tensor, forest: Forest) -> Tensor:
    """The rows that are read, unless they are all that was computed."""
    return hidden if hidden.shape[0] == forest.read.shape[0] else hidden[forest.read]


def make_trunk(model: nn.Module, attn: str = "fast") -> Trunk:
    """The trunk for a model; raises UnsupportedModelError."""
    config: Any = model.config
    kind = EncoderDecoderTrunk if config.is_encoder_decoder else CausalTrunk
    return kind(model, attn)


def set_attention(model: Any, name: str) -> None:
    """Let every stack compute attention by the registered function.

    transformers below 5.20 skips submodels whose configuration has their parent's class, as T5's
    stacks do, so that each is told by itself. Raises UnsupportedModelError where a model (T5 below
    5.15) has its attention written out, and would ignore the forest.
    """
    stacks = [model]
    if model.config.is_encoder_decoder:
        stacks += [model.encoder, model.decoder]
    for stack in stacks:
        stack.set_attn_implementation(name)
    if any(stack.config._attn_implementation != name for stack in stacks):
        import transformers

        raise UnsupportedModelError(
            f"{model.config.model_type} models of transformers {transformers.__version__} cannot "
            "take another attention function, which packed scoring needs: "
            "pip install 'transformers>=5.15,<6'"
        )
    for module in model.modules():  # copies of layers have copies of the configuration
        config: Any = getattr(module, "config", None)
        if config is not model.config and hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


def refuse_unsupported(config: Any) -> None:
    """Raise UnsupportedModelError for what a model's configuration says."""
    kind = config.model_type
    known = ENCODER_DECODER if config.is_encoder_decoder else CAUSAL
    if kind not in known:
        raise UnsupportedModelError(
            f"models of type {kind!r} are not supported; packed scoring is verified for "
            f"{', '.join(CAUSAL + ENCODER_DECODER)} (Flan-T5 is of type t5, SmolLM of type llama)"
        )
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UnsupportedModelError(f"this model sets {name}, unknown to packed scoring")
    both = getattr(config, "use_bidirectional_attention", False)
    if both or not getattr(config, "is_causal", True):
        raise UnsupportedModelError(f"this {kind} model attends in both directions (is_causal)")
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        found = quantised if isinstance(quantised, dict) else vars(quantised)
        method = found.get("quant_method")
        raise UnsupportedModelError(
            f"the model's weights are quantised ({getattr(method, 'value', method)}), and a run "
            "could not save them: load it without quantization_config (model.dtype bfloat16 takes "
            "two bytes a parameter)"
        )


def refuse_spread(model: nn.Module) -> None:
    """Raise UnsupportedModelError where weights are not all on one device: what brings them there
    when a layer is called would not be asked by fused layers."""
    devices = {str(parameter.device) for parameter in model.parameters()}
    if devices & {"meta"} or len(devices) > 1:
        where = (
            "offloaded (on the meta device)" if "meta" in devices else ", ".join(sorted(devices))
        )
        raise UnsupportedModelError(
            f"the model's weights must lie on one device, and are {where}: load it without "
            "device_map, or move it with model.to(device)"
        )


def _window(config: Any) -> int | None:
    """How many tokens a layer with a sliding window sees, if there is one."""
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    if sliding or config.model_type in WINDOWED:
        return getattr(config, "sliding_window", None)
    return None


def _refuse_head(model: Any) -> None:
    """Scores are taken from the head's weight alone."""
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no language-model head")
    head = getattr(head, "original_module", head)  # of peft's modules_to_save
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward
    plain = plain and not projections.forward_was_replaced(head)
    if not plain or head.bias is not None or head._forward_hooks or head._forward_pre_hooks:
        raise UnsupportedModelError(
            f"the language-model head is more than a matrix ({type(head).__name__}: an adapter, a "
            "bias or a hook, or a method of its own), which packed scoring does not know; leave "
            "the head out of lora.target_modules, or train it whole (modules_to_save)"
        )


def _refuse_prompt_learning(model: Any) -> None:
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        if getattr(config, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"the adapter {name!r} ({config.peft_type}) adds virtual tokens, which packed "
                "scoring leaves out; use LoRA"
            )


def uses_packed_attention(module: Any) -> bool:
    """Whether attention is ours still: `model.set_attn_implementation` may have taken another."""
    return module.config._attn_implementation in ATTENTION.values()


def _patch_t5(model: Any) -> None:
    """Replace T5's dense position biases, zeros or not, by what packed attention needs.

    Block 0 of each stack would build a bias [1, H, T, T] over the packed length; instead it returns
    its table [H, 2R + 1] by query depth minus key depth, which saturates at R =
    relative_attention_max_distance. A cross-attention would allocate zeros [1, H, T, T']; instead
    it returns an empty tensor.
    """

    def table(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not uses_packed_attention(self):
            return type(self).compute_bias(self, *args, **kwargs)
        embedding = self.relative_attention_bias
        radius = self.relative_attention_max_distance
        bucket = self._relative_position_bucket(
            # key minus query
            torch.arange(radius, -radius - 1, -1, device=embedding.weight.device),
            bidirectional=not self.is_decoder,
            num_buckets=self.relative_attention_num_buckets,
            max_distance=radius,
        )
        return embedding(bucket).t()

    def empty(self: Any, queries: int = 0, keys: int = 0, *_: Any, **__: Any) -> Tensor:
        shape = (0,) if uses_packed_attention(self) else (1, self.n_heads, queries, keys)
        return self.q.weight.new_zeros(shape)

    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            own = block.layer[0].SelfAttention
            if own.has_relative_attention_bias:
                own.compute_bias = types.MethodType(table, own)
            if stack.is_decoder:
                cross = block.layer[1].EncDecAttention
                cross.has_relative_attention_bias = True
                cross.compute_bias = types.MethodType(empty, cross)
                cross.sacglam_cross = True

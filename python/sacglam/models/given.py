"""A language model that is given as an object: what of it is kept, and how it is made ready."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import ConfigError
from .base import base_of
from .loading import DTYPES, LoraOptions, add_lora, train_all_adapters
from .trunk import refuse_unsupported

# peft's ways to begin an adapter that take its part out of the base.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")


def refuse_changed_base(adapters: Mapping[str, Any]) -> None:
    """Raise ConfigError where switching adapters off does not give the frozen model."""
    for name, config in adapters.items():
        bias = getattr(config, "bias", "none")
        start = str(getattr(config, "init_lora_weights", True))
        if bias != "none" or start.startswith(CHANGE_THE_BASE):
            raise ConfigError(
                f"sac.prior needs the frozen model itself, which the adapter {name!r} changes "
                f"(bias={bias!r}, init_lora_weights={start!r}): give an adapter without"
            )


def own_dtype(model: Any) -> str:
    """Of the model's weights; raises ConfigError if none can be trained in it."""
    name = str(next(model.parameters()).dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(
            f"the weights of the given model are {name}; choose model.dtype: {', '.join(DTYPES)}"
        )
    return name


def own_lora(model: Any, r: int | None) -> LoraOptions | None:
    """What adapters the model has, None if none. Raises ConfigError if they cannot be used.

    Args:
        model: as the user gave it.
        r: `lora.r` as the user gave it.
    """
    from peft import LoraConfig, PeftModel

    if not isinstance(model, PeftModel):
        if any("lora_" in name for name, _ in model.named_parameters()):
            raise ConfigError(
                "the given model has adapters, but is no PeftModel: give what get_peft_model or "
                "PeftModel.from_pretrained returned, or load the model afresh"
            )
        return None
    if r == 0:
        raise ConfigError(
            "lora.r is 0, but the given model has adapters: leave lora.r to them, or give the "
            "model without (merge_and_unload)"
        )
    adapter = model.peft_config.get("default")
    # AdaLoRA's is a LoraConfig too, and its ranks would never be allocated.
    if type(adapter) is not LoraConfig or not {"default", "critic"} >= set(model.peft_config):
        found = ", ".join(f"{name!r} ({c.peft_type})" for name, c in model.peft_config.items())
        raise ConfigError(
            f"the given model has the adapters {found}; needed is one of LoRA named 'default', as "
            "get_peft_model names it (and 'critic' beside it if critic.trunk is 'adapter')"
        )
    modules = adapter.target_modules
    return LoraOptions(
        adapter.r, adapter.lora_alpha, None if isinstance(modules, str) else sorted(modules or ())
    )


def prepare(
    model: Any,
    *,
    lora: LoraOptions | None,
    critic_adapter: bool,
    dtype: str,
    device: torch.device | str,
) -> Any:
    """The model as `load_language_model` would return it; adapters that it has are kept.

    Raises:
        ConfigError: adapters cannot be added, or those that it has cannot be used.
    """
    refuse_unsupported(base_of(model).config)  # before peft asks for modules of an unknown type
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        warnings.warn(
            "gradient checkpointing is on in the given model, and has no effect here: to save "
            "memory, make updates in parts (optim.micro_batch)",
            RuntimeWarning,
            stacklevel=2,
        )
    if dtype != str(next(model.parameters()).dtype).removeprefix("torch."):
        for name, parameter in model.named_parameters():  # buffers keep their precision
            narrow = DTYPES[dtype]
            wide = torch.promote_types(narrow, torch.float32)  # as peft keeps adapters
            parameter.data = parameter.data.to(wide if "lora_" in name else narrow)
    if own_lora(model, None) is not None:
        if critic_adapter and "critic" not in model.peft_config:
            model.add_adapter("critic", model.peft_config["default"])
        model.base_model.enable_adapter_layers()  # they may have been switched off
        model.set_adapter("default")
        train_all_adapters(model)
    elif lora is not None:
        model = add_lora(model, lora, critic_adapter)
    else:
        model.requires_grad_(True)
    if next(model.parameters()).device != torch.device(device):
        model.to(device)
    return model.eval()

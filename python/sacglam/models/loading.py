"""Loads a language model and its tokenizer with the Auto classes, and adds LoRA adapters."""

from __future__ import annotations

import difflib
import gc
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, UnknownModelError, UnsupportedModelError
from .device import use_device
from .tiny import TINY
from .trunk import refuse_unsupported

# transformers changes torch's defaults while it loads, and seeds are torch's own: one at a time.
ONE_AT_A_TIME = threading.RLock()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters (peft). target_modules None: peft's default for the model's type."""

    r: int = 16
    alpha: int = 32
    target_modules: Sequence[str] | None = None


def load_language_model(
    name: str | Path,
    *,
    lora: LoraOptions | None = None,
    adapter: str | Path | None = None,
    critic_adapter: bool = False,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    tokenizer_folder: str | Path | None = None,
) -> tuple[Any, Any]:
    """A Hugging Face model (causal or encoder-decoder) and its tokenizer.

    Args:
        name: hub id or local folder; weights must be safetensors.
        lora: add fresh adapters (the base is then frozen); None trains the whole model.
        adapter: folder of a saved peft adapter to load instead of fresh ones.
        critic_adapter: add a second adapter, named "critic".
        dtype: "float32", "bfloat16" or "float64".
        device: where to put the model.
        tokenizer_folder: where the tokenizer is, if not with the model.
        trust_remote_code: run code that comes with the model; off unless the user says so.

    Raises:
        UnknownModelError: nothing loadable under that name.
        ConfigError: an unknown dtype or target module.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
    )

    if dtype not in DTYPES:
        raise ConfigError(f"model.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        refuse_unsupported(config)  # before the weights are read
        tokenizer = _load_tokenizer(tokenizer_folder or name, options)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model: Any
        model, loaded = kind.from_pretrained(
            name, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True, **options
        )
    except (UnsupportedModelError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the libraries raise errors of all kinds for damaged files
        raise UnknownModelError(_unknown_model(str(name), tokenizer_folder, error)) from error
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise UnknownModelError(
            f"the weights of {str(name)!r} lack {', '.join(missing[:3])}"
            f"{' and others' if missing[3:] else ''}: they would be random (was it saved without "
            "its language-model head?)"
        )
    if adapter is not None:
        from peft import PeftModel

        # Where the model is: else peft reads them by way of the first GPU, which may be another's.
        how: dict[str, Any] = {"is_trainable": True, "torch_device": "cpu"}
        with _quiet_peft():
            model = PeftModel.from_pretrained(model, str(adapter), **how)
        critic_folder = Path(adapter) / "critic"
        if critic_folder.is_dir():
            model.load_adapter(str(critic_folder), "critic", **how)
            train_all_adapters(model)
    elif lora is not None:
        model = add_lora(model, lora, critic_adapter)
    use_device(device)
    if torch.device(device).type == "cuda":
        gc.collect()  # an earlier model's weights: its layers refer to themselves (fused.override)
    model.to(device)
    model.eval()  # dropout stays off: scores must be the same function in every pass
    return model, tokenizer


def _load_tokenizer(name: str | Path, options: dict[str, Any]) -> Any:
    """AutoTokenizer, but what is saved as a generic tokenizer is loaded as one: some model types
    would have it rebuilt as their own class, with other pre-tokenisation."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    saved_as = get_tokenizer_config(name, **options).get("tokenizer_class")
    generic = saved_as in ("TokenizersBackend", "PreTrainedTokenizerFast")
    kind = PreTrainedTokenizerFast if generic else AutoTokenizer
    return kind.from_pretrained(name, **options)


def add_lora(model: Any, lora: LoraOptions, critic_adapter: bool) -> Any:
    """A model with fresh adapters on frozen weights; raises ConfigError."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=_targets(model, lora.target_modules),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        with _quiet_peft():
            wrapped = get_peft_model(model, config)
    except ValueError as error:
        linear = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if hasattr(m, "weight")}
        raise ConfigError(
            f"LoRA could not be added: {error}. Name modules of this model in lora.target_modules: "
            f"{', '.join(sorted(linear))}, or all-linear"
        ) from error
    if critic_adapter:
        wrapped.add_adapter("critic", config)
        train_all_adapters(wrapped)
    return wrapped


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without transformers' warning of an old name by which peft asks it, up to 0.21 at least."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def _targets(model: Any, asked: Sequence[str] | None) -> list[str] | str | None:
    """What adapters are added to: peft's default for the type, or else queries and values."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    if asked:
        return "all-linear" if list(asked) == ["all-linear"] else list(asked)
    if model.config.model_type in KNOWN:
        return None
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return [name for name in ("q_proj", "v_proj", "qkv_proj") if name in names]


def train_all_adapters(model: Any) -> None:
    """peft freezes every adapter but the active one; actor and critic are trained together."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)


def _unknown_model(name: str, tokenizer_folder: str | Path | None, error: BaseException) -> str:
    folder = Path(name)
    message = f"no model could be loaded from {name!r}"
    if folder.is_dir():
        needed = ["config.json", *(["tokenizer_config.json"] if tokenizer_folder is None else [])]
        missing = [f for f in needed if not (folder / f).exists()]
        weights = list(folder.glob("*.safetensors"))
        if missing:
            lacking = " and ".join(missing)
            return f"{message}: the folder lacks {lacking} (save both with save_pretrained)"
        if not weights:
            return f"{message}: the folder holds no *.safetensors weights"
        return f"{message}: {error}"
    parent = folder.parent if folder.parent.is_dir() else Path(".")
    visible = (p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    known = [*TINY, *map(str, visible)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return (
        f"{message}{hint} Give a built-in model ({', '.join(TINY)}), a local folder made by "
        f"save_pretrained, or a Hugging Face id that can be reached. ({str(error).splitlines()[0]})"
    )

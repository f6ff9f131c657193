"""The base model under adapters: written without them, and found again by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..files import share, sync, sync_all


def base_of(model: Any) -> Any:
    """The model that peft wrapped, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def base_weights(model: Any) -> dict[str, Tensor]:
    """The state dict that the base model has without adapters."""
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): weight
        for name, weight in base_of(model).state_dict().items()
        if "lora_" not in name and ".modules_to_save." not in name
    }


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Those of transformers, which has one for every file that it writes or reads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_base(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the base model and the tokenizer as `save_pretrained` does, unless they are there.

    Raises:
        CheckpointError: they cannot be written; nothing is left then.
    """
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with without_progress_bars():
            base_of(model).save_pretrained(temporary, state_dict=base_weights(model))
        save_tokenizer(tokenizer, temporary)
        share(temporary, temporary / "config.json")
        sync_all(temporary)
        temporary.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"the model cannot be written to {folder} ({error})") from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """`save_pretrained`; raises OSError also where tokenizers raises a bare Exception for one."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(f"the tokenizer cannot be written to {folder}: {error}") from error


def found_name(model: Any, name: str) -> str:
    """A name under which this machine holds the base's weights as they are now, `name` or what the
    model says; "" if there is none, as for weights that were trained or are new."""
    base = base_of(model)
    adapters = getattr(model, "peft_config", {}).values()
    names = [name, base.config.name_or_path, *(a.base_model_name_or_path for a in adapters)]
    weights = base_weights(model)
    prefix = f"{base.base_model_prefix}."  # which some files leave out
    for known in dict.fromkeys(filter(None, names)):
        if _hold(_weight_files(known), weights, prefix):
            return anywhere(known)
    return ""


def anywhere(name: str) -> str:
    """A folder's name as it is from everywhere; a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _weight_files(name: str) -> list[str]:
    """The safetensors files of a folder, or of a hub id that was downloaded."""
    whole, index = _local(name, "model.safetensors"), _local(name, "model.safetensors.index.json")
    if whole or not index:
        return [whole] if whole else []
    shards = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    found = [_local(name, shard) for shard in shards]
    return [file for file in found if file] if all(found) else []


def _local(name: str, file: str) -> str | None:
    from transformers.utils import cached_file

    try:
        return cached_file(name, file, local_files_only=True)
    except (OSError, ValueError):
        return None


def _hold(files: list[str], weights: dict[str, Tensor], prefix: str) -> bool:
    """Whether every one of the weights is in the files, as it is."""
    found = set()
    for file in files:
        with safe_open(file, framework="pt") as saved:
            for key in saved.keys():  # noqa: SIM118
                weight = weights.get(key, weights.get(prefix + key))
                if weight is None:  # a buffer of an older version
                    continue
                if not torch.equal(saved.get_tensor(key).to(weight.dtype), weight.cpu()):
                    return False
                found.add(weight.data_ptr())
    return all(weight.data_ptr() in found for weight in weights.values())  # tied ones are in once

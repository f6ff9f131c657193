"""A saved policy: a folder with weights in peft's or transformers' own format, Q heads, options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from ..files import share
from .base import base_of, save_base, save_tokenizer, without_progress_bars
from .loading import load_language_model

FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """What the folder holds.

    Attributes:
        model: a Hugging Face model, or one that peft has wrapped.
        tokenizer: its tokenizer.
        heads: the Q heads' tensors by name.
        options, template: the policy's, as plain values.
        name: the base model's id or folder; "" if it is in the folder, or beside.
    """

    model: Any
    tokenizer: Any
    heads: Mapping[str, Tensor]
    options: dict[str, Any]
    template: dict[str, Any]
    name: str


def write(folder: Path, saved: Saved, *, lora: bool, base: Path | None = None) -> None:
    """base: where the base model of adapters is put, if it has no name; by default in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    own = lora and not saved.name
    base = folder / "base" if base is None else base
    if own:
        save_base(saved.model, saved.tokenizer, base)
        for config in saved.model.peft_config.values():
            config.base_model_name_or_path = str(base)
    with without_progress_bars():
        saved.model.save_pretrained(folder / ("adapter" if lora else "model"))
    if lora:
        for file in (folder / "adapter").rglob("adapter_config.json"):
            found = json.loads(file.read_text())
            if own:
                found["base_model_name_or_path"] = os.path.relpath(base, file.parent)
            # PiSSA's, OLoRA's and the like change the base, which is what it is by now.
            found["init_lora_weights"] = True
            file.write_text(json.dumps(found, indent=2) + "\n")
    save_tokenizer(saved.tokenizer, folder / "tokenizer")
    heads = {name: p.detach().cpu().contiguous() for name, p in saved.heads.items()}
    save_file(heads, folder / "heads.safetensors")
    dtype = next(saved.model.parameters()).dtype
    description = {
        "format": FORMAT,
        "base_model": saved.name,
        "base_folder": os.path.relpath(base, folder) if own else None,
        "lora": lora,
        "options": saved.options,
        "template": saved.template,
        "dtype": str(dtype).removeprefix("torch."),
        "remote_code": is_remote_code(saved.model),
    }
    (folder / "policy.json").write_text(json.dumps(description, indent=2) + "\n")
    share(folder, folder / "policy.json")


def is_remote_code(model: Any) -> bool:
    """Whether the model runs code that came with its weights."""
    return type(base_of(model)).__module__.startswith("transformers_modules.")


def read(folder: Path, device: torch.device | str, *, trust_remote_code: bool = False) -> Saved:
    """What `write` wrote. Inside `complete`, which says what is wrong with it.

    trust_remote_code: run the code that came with the base model, if the policy was made with it.
    """
    description = json.loads((folder / "policy.json").read_text())
    if description["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has policy format {description['format']}; this version reads {FORMAT}"
        )
    if description.get("remote_code") and not trust_remote_code:
        raise CheckpointError(
            f"{folder} was made with code of the model's repository, and is another model without: "
            "if you trust it, load it with trust_remote_code=True"
        )
    lora = description["lora"]
    base = description["base_model"]
    if lora and not base:
        base = os.path.normpath(folder / description["base_folder"])
    with without_progress_bars():
        model, tokenizer = load_language_model(
            base if lora else folder / "model",
            adapter=folder / "adapter" if lora else None,
            dtype=description["dtype"],
            device=device,
            tokenizer_folder=folder / "tokenizer",
            trust_remote_code=trust_remote_code,
        )
    return Saved(
        model=model,
        tokenizer=tokenizer,
        heads=load_file(folder / "heads.safetensors"),
        options=description["options"],
        template=description["template"],
        name=description["base_model"],
    )


@contextmanager
def complete(folder: Path) -> Iterator[None]:
    """Raises CheckpointError where a policy cannot be made of what the folder holds.

    The libraries that read it raise errors of all kinds for damage, a bare Exception among them.
    """
    try:
        yield
    except (CheckpointError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise  # the latter say nothing of the folder
    except Exception as error:
        raise CheckpointError(f"{folder} is not a complete saved policy: {error}") from error

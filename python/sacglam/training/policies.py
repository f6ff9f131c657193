"""A policy from wherever one may be: a run, a saved policy, or a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..models.base import anywhere
from ..models.device import usable
from ..models.loading import ONE_AT_A_TIME, LoraOptions, load_language_model
from ..models.options import PolicyOptions
from ..models.policy import Policy, load_saved_policy
from ..text import PromptTemplate
from .checkpoint import latest_checkpoint, verify


def load_policy(
    path_or_id: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: str = "float32",
    lora_r: int = 0,
    template: PromptTemplate | None = None,
    options: PolicyOptions | None = None,
    trust_remote_code: bool = False,
) -> Policy:
    """A trained policy, or a fresh one around a language model.

    Args:
        path_or_id: a run's folder (its newest checkpoint), a checkpoint's `policy` folder, or a
            model's folder or hub id (its Q heads are then untrained).
        device: where to put it; "auto": on a GPU, if there is one.
        dtype, lora_r, template, options: for a language model only; a saved policy has its own.
        trust_remote_code: run code that comes with the model; off unless the user says so.

    Raises:
        CheckpointError: the run has no complete checkpoint, or it is damaged.
        UnknownModelError: nothing is found under that name.
        ConfigError: torch cannot compute on `device`.
    """
    folder = Path(path_or_id)
    how: Any = {"device": usable(device), "trust_remote_code": trust_remote_code}
    saved = _saved_at(folder)
    if saved is not None:
        return load_saved_policy(saved, **how)
    with ONE_AT_A_TIME:
        model, tokenizer = load_language_model(
            path_or_id,
            lora=LoraOptions(r=lora_r) if lora_r else None,
            dtype=dtype,
            **how,
        )
        name = anywhere(str(path_or_id))
        return Policy(model, tokenizer, template=template, options=options, name=name)


def _saved_at(folder: Path) -> Path | None:
    """The saved policy of a run, a checkpoint, or in the folder itself; None: it is none of them.

    Raises:
        CheckpointError: the run has no complete checkpoint.
    """
    for each in (folder, folder / "policy"):
        if (each / "policy.json").is_file():
            return each
    if (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
        newest = latest_checkpoint(folder)
        verify(newest, "policy/")
        return newest / "policy"
    return None

"""Checkpoints: a folder that is either complete or not there.

    checkpoints/step-000012000/
        policy/               weights (adapters in peft's format), heads, options
        target.safetensors    the target's parameters (SAC)
        optimizer.safetensors moments of the optimiser
        replay.bin            the replay buffer (SAC)
        rollout.safetensors   steps that were not yet learned from (PPO)
        lesson.safetensors    those that are being learned from, if any (PPO)
        state.json            counters, random generators, episodes under way

Everything is written into a temporary folder and renamed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from .lock import is_in_use

FORMAT = 2


def checkpoint_folder(run: Path, env_steps: int) -> Path:
    return run / "checkpoints" / f"step-{env_steps:012d}"


def _unfinished(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp")


def list_checkpoints(run: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = Path(run) / "checkpoints"
    found = {p.name: p for p in folder.glob("step-*") if (p / "state.json").is_file()}
    for old in folder.glob(".step-*.old"):  # killed while it was replaced
        if (old / "state.json").is_file():
            found.setdefault(old.name[1 : -len(".old")], old)
    return [found[name] for name in sorted(found)]


def latest_checkpoint(run: str | Path) -> Path:
    """The newest complete checkpoint; raises CheckpointError if there is none."""
    found = list_checkpoints(run)
    if not found:
        if is_in_use(Path(run)):
            raise CheckpointError(
                f"{run} holds no complete checkpoint yet: its run is under way, and writes one "
                "every checkpoint_interval steps and checkpoint_minutes"
            )
        raise CheckpointError(
            f"{run} holds no complete checkpoint: the run stopped before its first one. Delete the "
            "folder, and begin anew"
        )
    return found[-1]


class CheckpointWriter:
    """Collects the parts of a checkpoint in a temporary folder; `commit` makes it visible."""

    def __init__(self, run: Path, env_steps: int) -> None:
        self._final = checkpoint_folder(run, env_steps)
        self.folder = _unfinished(self._final)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)

    def tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        clean = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(clean, self.folder / f"{name}.safetensors")

    def commit(self, state: Mapping[str, Any]) -> Path:
        text = json.dumps({"format": FORMAT, **state}, indent=1)
        (self.folder / "state.json").write_text(text + "\n")
        for path in self.folder.rglob("*"):
            _fsync(path)
        _fsync(self.folder)
        if self._final.exists():  # the same step again, after resuming: the old one is replaced
            old = self._final.with_name(f".{self._final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            self._final.rename(old)
            self.folder.rename(self._final)
            shutil.rmtree(old)
        else:
            self.folder.rename(self._final)
        _fsync(self._final.parent)
        return self._final


@contextmanager
def writing(run: Path, env_steps: int) -> Iterator[CheckpointWriter]:
    """A CheckpointWriter; a checkpoint that cannot be written leaves nothing behind.

    Raises:
        CheckpointError: for a full disk, a folder that is read-only, ...
    """
    final = checkpoint_folder(run, env_steps)
    try:
        yield CheckpointWriter(run, env_steps)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(_unfinished(final), ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint {final} cannot be written ({error}); earlier ones are as they were"
        ) from error


@contextmanager
def older_one_named(run: Path, folder: Path) -> Iterator[None]:
    """While a checkpoint is read: where that fails, a CheckpointError says how to go on."""
    try:
        yield
    except CheckpointError as error:
        older = [p for p in list_checkpoints(run) if p.name < folder.name]
        advice = f"; delete {folder} to go on from {older[-1].name}" if older else ""
        raise CheckpointError(f"{error}{advice}") from error


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint; raises CheckpointError."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a complete checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder}/state.json holds a {type(state).__name__}; it is damaged")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {state.get('format')!r}; this version reads {FORMAT}"
        )
    return state


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / name}.safetensors is missing or damaged: {error}"
        ) from error


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a killed save left behind."""
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors named `index.key`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{key}": torch.as_tensor(value)
        for i, entry in state.items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; parameter groups keep their present settings."""
    current = optimizer.state_dict()
    current["state"] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        current["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(current)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

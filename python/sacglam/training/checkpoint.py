"""Checkpoints: a folder that is either complete or not there.

    checkpoints/step-000012000/
        policy/               weights (adapters in peft's format), heads, options
        target.safetensors    the target's parameters (SAC)
        optimizer.safetensors moments of the optimiser
        replay.bin            the replay buffer (SAC)
        rollout.safetensors   steps that were not yet learned from (PPO)
        lesson.safetensors    those that are being learned from, if any (PPO)
        state.json            counters, random generators, episodes under way, checksums of all

Everything is written into a temporary folder and renamed at the end.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from ..files import read_json, share, sync, sync_all
from .lock import is_in_use

FORMAT = 2
_STATE = "state.json"


def checkpoint_folder(run: Path, env_steps: int) -> Path:
    return run / "checkpoints" / f"step-{env_steps:012d}"


def _unfinished(final: Path) -> Path:
    return final.with_name(f".{final.name}.tmp")


def list_checkpoints(run: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = Path(run) / "checkpoints"
    found = {p.name: p for p in folder.glob("step-*") if (p / _STATE).is_file()}
    for old in folder.glob(".step-*.old"):  # killed while it was replaced
        if (old / _STATE).is_file():
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
        state = {"format": FORMAT, **state}
        sums = {
            str(path.relative_to(self.folder)): _checksum(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.suffix != ".md"  # peft's, which nobody but people reads
        }
        sums[_STATE] = _checksum_of(state)
        text = json.dumps({**state, "checksums": sums}, indent=1)
        (self.folder / _STATE).write_text(text + "\n")
        share(self.folder, self.folder / _STATE)
        sync_all(self.folder)
        if self._final.exists():  # the same step again, after resuming: the old one is replaced
            old = self._final.with_name(f".{self._final.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            self._final.rename(old)
            self.folder.rename(self._final)
            _delete(old)
        else:
            self.folder.rename(self._final)
        sync(self._final.parent)
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
        state = read_json(folder / _STATE)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _STATE} is missing or damaged: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder}/state.json holds a {type(state).__name__}; it is damaged")
    rest = {key: value for key, value in state.items() if key != "checksums"}
    if "checksums" in state and _checksums(state).get(_STATE) != _checksum_of(rest):
        raise CheckpointError(f"{folder}/state.json is damaged: its checksum does not match")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {state.get('format')!r}; this version reads {FORMAT}"
        )
    return state


def verify(folder: Path, part: str = "") -> None:
    """Compare a checkpoint's files with their checksums, of which older ones have none.

    Args:
        folder: of the checkpoint.
        part: how the names begin of those that matter.

    Raises:
        CheckpointError: one is missing or was changed, which is named.
    """
    for name, expected in _checksums(read_state(folder)).items():
        if name == _STATE or not name.startswith(part):
            continue
        try:
            found = _checksum(folder / name)
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
        if found != expected:
            raise CheckpointError(
                f"{folder / name} is damaged: its checksum is not the one in {_STATE}"
            )


def _checksums(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """By the file's name in the checkpoint."""
    found = state.get("checksums", {})
    return found if isinstance(found, dict) else {}


def _checksum_of(state: Mapping[str, Any]) -> int:
    """Of what state.json holds, but for the checksums."""
    return zlib.crc32(json.dumps(state).encode())


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found = zlib.crc32(piece, found)
    return found


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
        _delete(old)
    for leftover in (run / "checkpoints").glob(".step-*"):
        _delete(leftover)


def _delete(folder: Path) -> None:
    """Under a name that is no checkpoint's first: a process that is killed here leaves nothing
    that looks like one, and is finished by the next `prune`."""
    gone = folder.with_name(f".{folder.name.strip('.').split('.')[0]}.gone")
    if folder != gone:
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
    shutil.rmtree(gone)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors named `index.key`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{key}": value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
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

"""Whose a run's folder is: a new run needs an empty one, a resumed run its own; and which run's."""

from __future__ import annotations

from pathlib import Path

from ..config import TrainConfig, read_yaml
from ..errors import RunFolderError
from ..files import shell_word
from . import checkpoint
from .lock import is_in_use


def load_run_config(folder: str | Path, otherwise: str = "is not a run") -> TrainConfig:
    """The configuration of a run; raises RunFolderError if the folder is none, which it says."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        lacking = "" if path.parent.is_dir() else "no such folder, and so "
        raise RunFolderError(f"{folder} {otherwise}: there is {lacking}no config.yaml in it")
    values = read_yaml(path)
    if not values:  # a run writes every field; defaults instead would be another run
        raise RunFolderError(f"{path} is damaged: it is empty")
    return TrainConfig.from_dict(values)


def refuse_used_folder(out: Path, *, locked: bool = False) -> None:
    """Raise RunFolderError if the folder already holds a run or anything else. locked: by us."""
    if not locked and is_in_use(out):
        raise RunFolderError(
            f"another process is training in {out}, or another trainer of this one; choose another "
            "folder with --out"
        )
    if (out / "config.yaml").exists() and not checkpoint.list_checkpoints(out):
        raise RunFolderError(
            f"{out} holds a run that was ended before its first checkpoint; delete it, or choose "
            "another folder with --out"
        )
    if (out / "config.yaml").exists() or (out / "checkpoints").exists():
        raise RunFolderError(
            f"{out} already holds a run. Continue it with `sacglam train --resume "
            f"{shell_word(out)}`, or choose another folder with --out"
        )
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - {".lock"}):
        raise RunFolderError(f"{out} exists and is not an empty folder; choose another --out")


def refuse_foreign_progress(out: Path, known: Path | None) -> None:
    """Raise RunFolderError if another process has trained in the folder meanwhile.

    Args:
        out: the folder, in which none does now.
        known: the newest checkpoint that this process knows of.
    """
    newest = next(reversed(checkpoint.list_checkpoints(out)), None)
    if newest is not None and newest != known:
        raise RunFolderError(
            f"another process has trained in {out} since this trainer was made, up to "
            f"{newest}: go on from there with `sacglam train --resume {shell_word(out)}`"
        )

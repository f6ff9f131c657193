"""Whose a run's folder is: one process at a time trains in it, from where the last one was."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunFolderError
from . import checkpoint


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the folder; the lock ends with the process.

    Raises:
        RunFolderError: another one does.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"another process is training in {folder}; wait for it or stop it, then resume"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def refuse_used_folder(out: Path) -> None:
    """Raise RunFolderError if the folder already holds a run or anything else."""
    if (out / "config.yaml").exists() and not checkpoint.list_checkpoints(out):
        raise RunFolderError(
            f"{out} holds a run that was ended before its first checkpoint; delete it, or choose "
            "another folder with --out"
        )
    if (out / "config.yaml").exists() or (out / "checkpoints").exists():
        raise RunFolderError(
            f"{out} already holds a run. Continue it with `sacglam train --resume {out}`, or "
            "choose another folder with --out"
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
            f"{newest}: go on from there with `sacglam train --resume {out}`"
        )

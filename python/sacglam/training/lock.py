"""One process at a time trains in a run's folder: a lock that ends with the process."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import RunFolderError
from ..files import is_forbidden


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the folder, which is made where there is none.

    Raises:
        RunFolderError: another one does, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        if not is_forbidden(error):
            raise
        raise RunFolderError(
            f"cannot write to {folder} ({error.strerror}): train in another folder, with --out, or "
            "resume a copy of the run"
        ) from error
    with file:
        if not _locked(file):
            raise RunFolderError(
                f"another process is training in {folder}, or another trainer of this one; wait "
                "for it or stop it, then resume"
            )
        yield


def is_in_use(folder: Path) -> bool:
    """Whether a process is training in the folder."""
    try:
        with (folder / ".lock").open("r") as file:
            return not _locked(file)
    except OSError:  # no such file, or somebody else's
        return False


def _locked(file: IO[str]) -> bool:
    """Take the lock until the file is closed; whether nobody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True

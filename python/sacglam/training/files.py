"""Files that appear whole or not at all, and a folder that one process writes at a time."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RunFolderError


def write_text(path: Path, text: str) -> None:
    """Write beside `path`, then rename over it: an interruption leaves the old content."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


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

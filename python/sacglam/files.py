"""Files that appear whole or not at all, are read in one way, and are named in one way."""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename over it: an interruption, be it of the power, leaves the
    old content; so does an OSError, which names `path`, and nothing beside it. What is no file of
    its own, as /dev/stdout, is written to as it is."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with named(path):
            path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text."""
    write_bytes(path, text.encode())


def read_json(path: Path) -> Any:
    """Raises ValueError if it holds no JSON, and OSError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def shell_word(path: object) -> str:
    """A path in a command that is proposed: in quotes where a shell would take it apart."""
    return shlex.quote(str(path))


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to its disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """A folder and all that is in it."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def share(folder: Path, like: Path) -> None:
    """Give all files of a folder the permissions of `like`, which was made as usual: safetensors
    makes its own for their owner alone. Where the file system has none, they stay."""
    mode = stat.S_IMODE(like.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            with suppress(OSError):
                path.chmod(mode)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Within, an OSError says which file it is about; that of a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def is_forbidden(error: OSError) -> bool:
    """Whether it says that a place cannot be written to: another one can."""
    return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)

"""Where to compute. The current GPU is where Triton launches, wherever its arguments lie."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..errors import ConfigError


def best_device() -> str:
    """What "auto" stands for: a GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable(device: torch.device | str) -> str:
    """A device by its name, "auto" as what it stands for.

    Raises:
        ConfigError: it is none, or none that torch can compute on here.
    """
    name = best_device() if str(device) == "auto" else str(device)
    if is_missing(name):
        raise ConfigError(f"device is {name!r}, but torch sees no GPU; use --device cpu or auto")
    try:
        found = torch.device(name)
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            raise RuntimeError(f"torch sees {torch.cuda.device_count()} GPUs")
        if found.type not in ("cpu", "cuda"):
            torch.zeros(1, device=found).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:  # as torch says that it cannot
        raise ConfigError(
            f"device is {name!r}, which torch cannot compute on here; use cpu, cuda, cuda:1, ..., "
            "or auto"
        ) from error
    return name


def is_missing(device: str) -> bool:
    """Whether it is a GPU, and there is none."""
    return device.startswith("cuda") and not torch.cuda.is_available()


def use_device(device: torch.device | str) -> None:
    """Make a GPU the current one, of this thread."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """The GPU, if it is one, is the current one in here: models may lie on several, and threads
    each have a current one of their own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

"""Where to compute. The current GPU is where Triton launches, wherever its arguments lie."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def best_device() -> str:
    """What "auto" stands for: a GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_device(device: torch.device | str) -> None:
    """Make a GPU the current one, of this thread."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """The GPU, if it is one, is the current one in here: models may lie on several, and threads
    each have a current one of their own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

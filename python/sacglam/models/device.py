"""The current GPU: that is where Triton launches, wherever a kernel's arguments lie."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def use_device(device: torch.device | str) -> None:
    """Make a GPU the current one, of this thread."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """The GPU, if it is one, is the current one in here: models may lie on several, and threads
    each have a current one of their own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

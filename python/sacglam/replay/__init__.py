"""Replay of text transitions with hindsight relabeling; usable without the rest of sacglam."""

from __future__ import annotations

from sacglam.replay.buffer import Batch, ReplayBuffer

__all__ = ["Batch", "ReplayBuffer"]

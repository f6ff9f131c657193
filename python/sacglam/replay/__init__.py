"""Replay of text transitions with hindsight relabeling; usable without the rest of sacglam."""

from __future__ import annotations

from sacglam.replay.batch import Batch
from sacglam.replay.buffer import ReplayBuffer
from sacglam.replay.relabel import GoalRequest

__all__ = ["Batch", "GoalRequest", "ReplayBuffer"]

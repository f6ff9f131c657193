"""Playground-Text: grasp things, water seeds, feed animals, all in words. No dependencies."""

from sacglam.envs.playground.env import PlaygroundText
from sacglam.envs.playground.presets import PRESETS

__all__ = ["PRESETS", "PlaygroundText"]

"""The ready-made playgrounds. Each is a set of keyword arguments of `PlaygroundText`."""

from __future__ import annotations

from typing import Any

from sacglam.envs.playground.objects import CATALOGUE

PRESETS: dict[str, dict[str, Any]] = {
    "playground/small": {
        "colours": ("red", "blue"),
        "types": ("water", "carrot", "potato", "table", "chair"),
        "families": ("Grasp", "Grow plant"),
        "n_objects": 6,
        "always": ("water", "plant"),
        "unique_objects": True,
        "time_factor": 2.0,
        "time_slack": 2,
    },
    "playground/zoo": {
        "colours": (),
        "types": (
            "water",
            *("door", "chair", "desk", "lamp", "table", "cupboard", "sofa", "bed", "shelf"),
            *("carrot", "potato", "beet", "berry", "pea", "tomato"),
            *("pig", "cow", "sheep", "goat", "rabbit", "deer"),
            *("fox", "bobcat", "coyote", "wolf", "jackal", "hyena"),
        ),
        "families": ("Grasp", "Grow plant", "Grow herbivore", "Grow carnivore"),
        "n_objects": 4,
        "always": (),
        "unique_objects": False,
        "time_factor": 1.5,
        "time_slack": 0,
    },
    "playground/full": {
        "colours": ("red", "green", "blue"),
        "types": (
            "water",
            *CATALOGUE["furniture"][:8],
            *CATALOGUE["plant"][:8],
            *("pig", "cow", "sheep", "goat", "elephant", "giraffe", "rhinoceros", "bison"),
            *("fox", "bobcat", "coyote", "wolf", "lion", "grizzly", "shark", "tiger"),
        ),
        "families": ("Grasp", "Grow plant", "Grow herbivore", "Grow carnivore"),
        "n_objects": 8,
        "always": (),
        "unique_objects": False,
        "time_factor": 2.0,
        "time_slack": 2,
    },
    "playground/sequential": {
        "colours": ("red", "blue"),
        "types": ("water", "carrot", "potato", "cow", "sheep", "table", "chair"),
        "families": ("Grasp", "Grow plant", "Grow herbivore", "Sequential"),
        "n_objects": 6,
        "always": ("water", "plant"),
        "unique_objects": True,
        "time_factor": 2.0,
        "time_slack": 2,
    },
}

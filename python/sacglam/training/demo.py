"""`sacglam demo`: an agent goes from random to competent, in minutes, on two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config import TrainConfig
from ..files import read_json, shell_word
from ..report.curve import plot_runs
from ..report.tables import result_table
from .playing import play_episodes
from .runner import train_with_progress
from .trainer import Trainer

# What docs/settings.md reports on five seeds; all else is the defaults.
SETTINGS: dict[str, Any] = {
    "env.id": "playground/small",
    "model.id": "tiny-llama",
    "prompt.instruction": "",
    "policy.reduce": "sum",
    "sac.gamma": 0.8,
    "sac.explore": 0.2,
    "replay.capacity": 3000,
    "total_steps": 16_000,
    "steps_per_update": 4.0,
    "log_interval": 1000,
}


def demo_config(out: Path, seed: int) -> TrainConfig:
    """The demo's configuration."""
    return TrainConfig().with_overrides({**SETTINGS, "seed": seed, "out": str(out)})


def run_demo(out: Path, seeds: Sequence[int]) -> int:
    """Train on each seed, print the table and one episode; returns the exit status."""
    console = Console()
    _set_aside(out)
    folders = [out if len(seeds) == 1 else out / f"seed-{seed}" for seed in seeds]
    evaluations = {}
    for folder, seed in zip(folders, seeds, strict=True):
        config = demo_config(folder, seed)
        console.print(
            f"Training {config.model.id} from random weights on {config.env.id}, seed {seed}: "
            f"{config.total_steps} environment steps, a few minutes on two cores."
        )
        result = train_with_progress(Trainer(config))
        if result.evaluation is None:
            print(
                f"stopped and saved. Continue with\n    sacglam train --resume {shell_word(folder)}"
            )
            return 130
        evaluations[f"seed {seed}"] = read_json(folder / "eval.json")
    console.print("\nOne episode of the trained agent:\n")
    play_episodes(folders[0], console)
    print()
    print(result_table(evaluations))
    picture = plot_runs(folders, out / "curve.png")
    print(f"\ncurve: {picture}    run: {out}    watch more: sacglam play {shell_word(folders[0])}")
    return 0


def _set_aside(out: Path) -> None:
    """An earlier demo is kept under another name, never overwritten."""
    if not out.exists():
        return
    number = 1
    while (old := out.with_name(f"{out.name}-{number}")).exists():
        number += 1
    out.rename(old)
    print(f"the earlier {out} is now {old}")

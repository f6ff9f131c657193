"""One function a command: reads arguments, calls the library, prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..config import TrainConfig


def train(arguments: argparse.Namespace) -> int:
    from ..training.runner import quiet_libraries, run_with_progress
    from ..training.trainer import Trainer
    from .flags import overrides_from

    quiet_libraries()
    overrides = overrides_from(arguments)
    if arguments.resume:
        total = overrides.pop("total_steps", None)
        part = overrides.pop("optim.micro_batch", None)
        threads = overrides.pop("threads", None)
        if overrides or arguments.config or arguments.preset:
            given = ", ".join(overrides) or ("--config" if arguments.config else "--preset")
            raise ConfigError(
                f"--resume continues a run with its own configuration; {given} cannot be changed "
                "(only --total-steps may be given, to train longer, --optim.micro-batch and "
                "--threads)"
            )
        return run_with_progress(
            Trainer.resume(arguments.resume, total_steps=total, micro_batch=part, threads=threads)
        )
    return run_with_progress(Trainer(_configuration(arguments, overrides)))


def check(arguments: argparse.Namespace) -> int:
    from ..training.check import check_training
    from ..training.runner import quiet_libraries
    from .checking import check_lines
    from .flags import overrides_from

    quiet_libraries()
    found = check_training(
        _configuration(arguments, overrides_from(arguments)),
        tell=lambda stage: print(f"{stage} ...", file=sys.stderr),
    )
    print("\n".join(check_lines(found)))
    return 0 if found.agreement is None or found.agreement.holds else 1


def _configuration(arguments: argparse.Namespace, overrides: dict[str, Any]) -> TrainConfig:
    """Flags before the file, the file before the preset."""
    from ..config import TrainConfig, read_yaml

    config = TrainConfig.preset(arguments.preset) if arguments.preset else TrainConfig()
    if arguments.config:
        config = config.merged(read_yaml(arguments.config))
    return config.with_overrides(overrides)


def evaluate(arguments: argparse.Namespace) -> int:
    from ..report.tables import result_table
    from ..training.runner import evaluate_with_progress, quiet_libraries

    quiet_libraries()
    result = evaluate_with_progress(
        arguments.dir,
        episodes=arguments.episodes,
        split=arguments.split,
        seed=arguments.seed,
        greedy=arguments.greedy,
        temperature=arguments.temperature,
        device=arguments.device,
        threads=arguments.threads,
    )
    folder = Path(arguments.dir)
    print(result_table({folder.name: result}))
    if result["file"] is not None:
        print(f"saved in {folder / result['file']}")
    return 0


def play(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from ..training.playing import play_episodes
    from ..training.runner import quiet_libraries

    quiet_libraries()
    play_episodes(
        arguments.dir,
        Console(),
        episodes=arguments.episodes,
        goal=arguments.goal,
        seed=arguments.seed,
        greedy=False if arguments.sample else None,
        device=arguments.device,
        threads=arguments.threads,
    )
    return 0


def plot(arguments: argparse.Namespace) -> int:
    from ..report.curve import plot_runs

    print(plot_runs(arguments.dirs, arguments.out))
    return 0


def table(arguments: argparse.Namespace) -> int:
    from ..report.comparison import compare_runs

    print(compare_runs(arguments.dirs, arguments.csv))
    return 0


def bench(arguments: argparse.Namespace) -> int:
    from .bench import run_bench

    return run_bench(arguments.suite, arguments.quick, arguments.json)


def demo(arguments: argparse.Namespace) -> int:
    from ..training.demo import run_demo
    from ..training.runner import quiet_libraries

    quiet_libraries()
    return run_demo(Path(arguments.out), arguments.seeds)


def doctor(_: argparse.Namespace) -> int:
    from rich.console import Console

    from ..envs import list_envs
    from ..report import doctor as report

    found = report.collect()
    found["environments"] = list_envs()
    if found["native"]["available"] and found["torch"]["available"]:
        from ..kernels.cpu import multiplies_bfloat16

        found["machine"]["multiplies_bfloat16"] = multiplies_bfloat16()
    Console().print(report.render(found))
    return 1 if found["problems"] else 0

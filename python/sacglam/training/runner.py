"""Training and evaluating a run as a person starts it: progress, a curve, a closing word."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable as Function
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..errors import ConfigError, RunFolderError
from ..files import write_json
from ..report.curve import plot_runs
from ..report.evaluating import EvaluationDisplay
from ..report.progress import ProgressDisplay
from ..report.tables import result_table
from . import evaluation, setup
from .callbacks import Callback
from .checkpoint import latest_checkpoint, read_state
from .policies import load_policy
from .trainer import Trainer, TrainResult


def quiet_libraries() -> None:
    """Keep the progress bars and advice of transformers out of our output."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    warnings.showwarning = _show_warning


def _show_warning(message: Any, category: type, *_: Any, **__: Any) -> None:
    import sys

    if issubclass(category, UserWarning | RuntimeWarning):
        print(f"sacglam: warning: {message}", file=sys.stderr)


class _ShowEvaluation(Callback):
    def __init__(self, display: EvaluationDisplay) -> None:
        self._display = display

    def on_evaluation(self, kind: str, done: int, episodes: int) -> None:
        self._display.evaluating(kind, done, episodes)


class _Show(Callback):
    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display

    def on_log(self, metrics: Mapping[str, Any]) -> None:
        self._display.update(metrics)

    def on_progress(self, env_steps: int, updates: int) -> None:
        self._display.progress(env_steps, updates)

    def on_evaluation(self, kind: str, done: int, episodes: int) -> None:
        self._display.evaluating(kind, done, episodes)

    def on_interrupt(self) -> None:
        self._display.message(
            "stopping after this step or update, then saving (Ctrl-C again: at once)"
        )


def train_with_progress(make: Function[[Sequence[Callback]], Trainer]) -> TrainResult:
    """Train with a progress display; draws curve.png at the end."""
    show: list[Callback] = []
    trainer = make(show)
    display = ProgressDisplay(trainer.config.total_steps)
    trainer.callbacks.append(_Show(display))
    with display, closing(trainer):
        result = trainer.train()
    if (result.out / "metrics.jsonl").stat().st_size:
        plot_runs(result.out)
    return result


def run_with_progress(make: Function[[Sequence[Callback]], Trainer]) -> int:
    """Train, then print the result or how to resume; returns the exit status."""
    result = train_with_progress(make)
    if result.interrupted:
        print(
            f"stopped at {result.env_steps} steps and saved. Continue with\n"
            f"    sacglam train --resume {result.out}"
        )
        return 130
    assert result.evaluation is not None
    print(result_table({result.out.name: result.evaluation}))
    names = ["eval.json", "curve.png", "metrics.jsonl", "checkpoints"]
    found = ", ".join(name for name in names if (result.out / name).exists())
    print(f"\nresults in {result.out}: {found}")
    print(f"watch it:  sacglam play {result.out}")
    return 0


def evaluate_run(
    folder: str | Path,
    *,
    episodes: int | None = None,
    split: str | None = None,
    seed: int | None = None,
    env: Any = None,
    device: str | None = None,
    threads: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run on fresh episodes; updates eval.json.

    Args:
        folder: the run.
        episodes: how many; by default the run's `eval.episodes`.
        split: goals of "train" or "test"; by default the run's own. Another split goes to
            eval-SPLIT.json.
        seed: of the episodes; by default the run's seed.
        env: as for `Trainer`, if the run had a user's own environment.
        device: where the policy computes; by default where it was trained, if that is there.
        threads: torch's CPU threads; by default the run's.
        callbacks: their `on_evaluation` is told how far it is.

    Raises:
        ConfigError: `split` is "test", and the environment holds no goals back; `episodes` or
            `seed` is out of range.
        RunFolderError, CheckpointError: the folder is no run, or has no complete checkpoint.
    """
    folder = Path(folder)
    config = load_run_config(folder)
    refuse_out_of_range(episodes, seed)
    probe = setup.env_factory(config, env)()
    wanted = split or config.env.split
    options = setup.reset_options(probe, wanted)
    policy = load_policy(
        folder,
        device=setup.computing(config, device, threads),
        trust_remote_code=config.model.trust_remote_code,
    )
    envs = setup.make_envs(config, env)
    seed = config.seed if seed is None else seed
    count = episodes or config.eval.episodes

    def measure(kind: str, chooser: evaluation.Chooser) -> dict[str, Any]:
        def tell(done: int) -> None:
            for callback in callbacks:
                callback.on_evaluation(kind, done, count)

        return evaluation.evaluate(
            envs, chooser, episodes=count, seed=seed, reset_options=options, on_progress=tell
        )

    state = read_state(latest_checkpoint(folder))
    result = {
        "env_steps": state["env_steps"],
        "updates": state["updates"],
        "wall_s": round(state["wall_s"], 3),
        "cpu_s": round(state["cpu_s"], 3),
        **measure("policy", evaluation.policy_chooser(policy, config.eval, seed)),
        "baseline_random": measure("random", evaluation.random_chooser(seed)),
        "expert": None,
    }
    if setup.attribute(probe, "expert_action") is not None:
        result["expert"] = measure("expert", evaluation.expert_chooser(envs))
    envs.close()
    setup.close(probe)
    name = "eval.json" if wanted == config.env.split else f"eval-{wanted}.json"
    untrained = _untrained(folder / name)
    if untrained is None and wanted == config.env.split:
        untrained = _untrained(folder / "baselines.json")  # of a run that was stopped
    if untrained is not None:
        result["untrained"] = untrained
    try:
        write_json(folder / name, result)
    except OSError as error:  # somebody else's run
        warnings.warn(f"the result is not saved: {error}", RuntimeWarning, stacklevel=2)
    return result


def _untrained(file: Path) -> dict[str, Any] | None:
    """How the untrained policy did, if a file knows it."""
    return json.loads(file.read_text()).get("untrained") if file.is_file() else None


def refuse_out_of_range(episodes: int | None, seed: int | None) -> None:
    """Raise ConfigError for what no evaluation can have."""
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")


def evaluate_with_progress(folder: str | Path, **options: Any) -> dict[str, Any]:
    """`evaluate_run` with a progress display; the same arguments."""
    with EvaluationDisplay() as display:
        return evaluate_run(folder, callbacks=[_ShowEvaluation(display)], **options)


def load_run_config(folder: str | Path) -> TrainConfig:
    """The configuration of a run; raises RunFolderError if the folder is none."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise RunFolderError(f"{folder} is not a run: there is no config.yaml in it")
    return TrainConfig.load(path)

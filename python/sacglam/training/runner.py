"""Training and evaluating a run as a person starts it: progress, a curve, a closing word."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

from ..files import shell_word
from ..report.curve import plot_runs
from ..report.evaluating import EvaluationDisplay
from ..report.tables import result_table
from .callbacks import Callback
from .reevaluation import evaluate_run
from .result import TrainResult
from .trainer import Trainer

GREEDY_LOSS = 0.15  # of success: more than the noise of a hundred episodes


def quiet_libraries() -> None:
    """Keep the progress bars and advice of transformers out of our output."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)


class _ShowEvaluation(Callback):
    def __init__(self, display: EvaluationDisplay) -> None:
        self._display = display

    def on_evaluation(self, kind: str, done: int, episodes: int) -> None:
        self._display.evaluating(kind, done, episodes)


def train_with_progress(trainer: Trainer) -> TrainResult:
    """Train with a progress display, draw curve.png at the end, and close the trainer."""
    with closing(trainer):
        result = trainer.train(progress=True)
    if (result.out / "metrics.jsonl").stat().st_size:
        plot_runs(result.out)
    return result


def run_with_progress(trainer: Trainer) -> int:
    """Train, then print the result or how to resume; returns the exit status."""
    result = train_with_progress(trainer)
    if result.interrupted:
        print(
            f"stopped at {result.env_steps} steps and saved. Continue with\n"
            f"    sacglam train --resume {shell_word(result.out)}"
        )
        return 130
    assert result.evaluation is not None
    print(result_table({result.out.name: result.evaluation}))
    hint = _greedy_hint(result)
    if hint:
        print(hint)
    names = ["eval.json", "curve.png", "metrics.jsonl", "checkpoints"]
    found = ", ".join(name for name in names if (result.out / name).exists())
    print(f"\nresults in {result.out}: {found}")
    print(f"watch it:  sacglam play {shell_word(result.out)}")
    return 0


def _greedy_hint(result: TrainResult) -> str:
    """What to look at where the agent did better while it sampled its actions."""
    lines = (result.out / "metrics.jsonl").read_text().splitlines()
    training = json.loads(lines[-1]).get("success_mean") if lines else None
    found = result.evaluation or {}
    if training is None or not found["greedy"] or training < found["success_mean"] + GREEDY_LOSS:
        return ""
    return (
        f"\nWhile it trained, with sampled actions, it succeeded in {100 * training:.0f} %. Greedy "
        "actions can go to and fro between\nthe same states: look at "
        f"`sacglam eval {shell_word(result.out)} --sample`, and at --eval.greedy false, "
        "--prompt.history"
    )


def evaluate_with_progress(folder: str | Path, **options: Any) -> dict[str, Any]:
    """`evaluate_run` with a progress display; the same arguments."""
    with EvaluationDisplay() as display:
        return evaluate_run(folder, callbacks=[_ShowEvaluation(display)], **options)

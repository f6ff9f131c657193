"""What `sacglam check` prints."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import torch

from ..kernels import cpu
from ..report.text import compact, count, roughly, seconds, size
from ..training.parts import update_rows

if TYPE_CHECKING:
    from ..training.check import Agreement, TrainingCheck


def check_lines(found: TrainingCheck) -> list[str]:
    """A paragraph a subject, wrapped."""
    config = found.config
    rows = [
        (
            "environment",
            f"{config.env.id} keeps the protocol; "
            f"prompts of {found.prompt_tokens[0]} tokens (at most {found.prompt_tokens[1]}), "
            f"{found.actions[0]} actions (at most {found.actions[1]}) "
            f"of {found.action_tokens[0]} tokens (at most {found.action_tokens[1]})",
        ),
        (
            "model",
            f"{config.model.id}, {config.model.dtype}: {_short(found.parameters)} parameters; "
            f"trained: {_short(found.trained)}, critic's heads included",
        ),
        ("tokenizer", found.tokenizer_warning or "segments give the ids of the whole prompt"),
        ("hindsight", _hindsight(found.achieving)),
        ("scores", _agreement(found.agreement)),
        (
            "speed",
            f"{seconds(found.step_s)} a step of {config.env.num_envs} environments, "
            f"{seconds(found.update_s)} an update of {update_rows(config)} transitions, "
            f"on {config.device}; {size(found.memory_bytes)} of memory",
        ),
        (
            "the run",
            f"{count(config.total_steps)} steps, {count(found.updates)} updates: about "
            f"{roughly(found.training_s)}, and {roughly(found.evaluation_s)} of evaluations",
        ),
        ("faster", _faster(found)),
    ]
    return [
        textwrap.fill(f"{name:12}{text}", width=100, subsequent_indent=" " * 12)
        for name, text in rows
        if text
    ]


def _hindsight(achieving: float | None) -> str:
    if achieving is None:
        return ""
    if achieving == 0:
        return (
            "NOTHING to learn from: no step of random play achieved a goal, so info["
            "'achieved_goals'] stayed empty; list all that a step satisfies, in the words of goals"
        )
    return f"{100 * achieving:.3g} % of the steps of random play achieve a goal"


def _agreement(found: Agreement | None) -> str:
    if found is None:
        return "not compared: no memory for a second copy of the model"
    verdict = "those of the stock model" if found.holds else "NOT those of the stock model"
    return (
        f"{verdict}: {found.candidates} actions of {found.prompts} prompts differ by at most "
        f"{compact(found.score_error)} in score, {compact(found.pi_error)} in probability; "
        f"one pass took {seconds(found.pass_s)}, one action at a time {seconds(found.stock_s)}"
    )


def _faster(found: TrainingCheck) -> str:
    config = found.config
    frozen = found.trained < found.parameters
    if config.model.dtype != "float32" or not frozen:
        return ""
    if config.device == "cpu" and cpu.multiplies_bfloat16():
        return (
            "this CPU multiplies bfloat16: --model.dtype bfloat16 about halves the time of a pass, "
            "and the memory of the frozen weights (docs/models.md)"
        )
    if config.device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False):
        return (
            "this GPU's tensor cores multiply bfloat16, and not float32: --model.dtype bfloat16 "
            "multiplies at twice (GeForce) to fifteen times (H100) the rate, and halves the memory "
            "of the frozen weights (docs/models.md)"
        )
    return ""


def _short(number: int) -> str:
    """12 345 678 -> 12.3 M"""
    for unit, name in ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)

"""How an episode is shown: on a terminal, piped, narrow, in ASCII."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sacglam.report.episode import render_outcome, render_step

STEP: dict[str, Any] = {
    "step": 3,
    "goal": "Grow red lion",
    "observation": "You see: baby red lion, green water\nInventory (0/2): empty",
    "candidates": ["Grasp", "Go to baby red lion", "Go to green water", "Release all"],
    "probabilities": [0.05, 0.6, 0.3, 0.05],
    "q_values": [0.1, 0.712, 0.55, -0.25],
    "chosen": 2,
    "reward": 1.0,
    "achieved": ["Grasp green water"],
}


def shown(renderable: Any, *, width: int = 80, encoding: str = "utf-8") -> str:
    """What a pipe receives."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=stream, width=width).print(renderable)
    stream.flush()
    return raw.getvalue().decode(encoding)


def row(text: str, candidate: str) -> str:
    (line,) = [line for line in text.splitlines() if candidate in line and "%" in line]
    return line


def test_everything_is_there() -> None:
    text = shown(render_step(**STEP))
    for part in ("step 3", STEP["goal"], *STEP["observation"].splitlines(), "reward 1"):
        assert part in text
    assert "achieved Grasp green water" in text
    assert "\x1b" not in text  # a pipe gets no colours
    for candidate, share, q in zip(
        STEP["candidates"], ("5.0 %", "60.0 %", "30.0 %", "5.0 %"),
        ("0.100", "0.712", "0.550", "-0.250"), strict=True,
    ):  # fmt: skip
        assert share in row(text, candidate)
        assert row(text, candidate).split()[-1] == q


def test_the_choice_is_marked_and_no_other() -> None:
    text = shown(render_step(**STEP))
    (marked,) = [line for line in text.splitlines() if "▶" in line]
    assert marked == row(text, "Go to green water")


def test_bars_are_as_long_as_the_probabilities() -> None:
    text = shown(render_step(**STEP))
    assert row(text, "Go to baby red lion").count("█") == 12  # 0.6 of 20
    assert row(text, "Go to green water").count("█") == 6


def test_the_most_probable_comes_first_and_ties_keep_their_order() -> None:
    text = shown(render_step(**STEP))
    order = sorted(STEP["candidates"], key=lambda c: text.index(row(text, c)))
    assert order == ["Go to baby red lion", "Go to green water", "Grasp", "Release all"]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    long = "Go to the very small but old dark green baby carnivore " * 2
    candidates = [long, *STEP["candidates"][1:]]
    text = shown(render_step(**{**STEP, "candidates": candidates}), width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert all(part in text for part in ("60.0 %", "0.712", "-0.250"))


def test_ascii() -> None:
    text = shown(render_step(**STEP), encoding="ascii")
    assert text.isascii()
    assert "############" in row(text, "Go to baby red lion")
    assert row(text, "Go to green water").lstrip().startswith(">")


def test_brackets_are_text_and_not_markup() -> None:
    goal = "Grasp [bold]any[/bold] [red]"
    step = {**STEP, "goal": goal, "candidates": ["[red]", *STEP["candidates"][1:]]}
    text = shown(render_step(**step))
    assert goal in text
    assert "[red]" in row(text, "[red]")
    assert goal in shown(render_outcome(goal=goal, success=True, steps=1))


def test_arrays_and_tensors_are_taken() -> None:
    tensor = torch.tensor(STEP["probabilities"], requires_grad=True)
    array = np.asarray(STEP["q_values"], dtype=np.float32)
    given = {**STEP, "probabilities": tensor, "q_values": array, "chosen": "Go to green water"}
    assert shown(render_step(**given)) == shown(render_step(**STEP))


def test_values_that_are_missing_or_not_finite() -> None:
    text = shown(render_step(**{**STEP, "q_values": [float("nan"), 1, 2, 3]}))
    assert row(text, "Grasp").split()[-1] == "-"
    text = shown(render_step(**{**STEP, "q_values": None, "reward": None, "achieved": ()}))
    assert " Q" not in text
    assert "reward" not in text


def test_a_long_list_can_be_cut_but_never_the_choice() -> None:
    text = shown(render_step(**{**STEP, "chosen": 3, "max_candidates": 2}))
    assert "Release all" in text
    assert "Go to baby red lion" in text
    assert "Go to green water  " not in text
    assert "35.0 %" in row(text, "2 more")


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probabilities must hold one value per candidate \(4\)"):
        render_step(**{**STEP, "probabilities": [1.0]})
    with pytest.raises(ValueError, match="chosen is 4"):
        render_step(**{**STEP, "chosen": 4})


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ({"success": True, "steps": 7}, "reached in 7 steps"),
        ({"success": True, "steps": 1}, "reached in 1 step"),
        ({"success": False, "steps": 9, "truncated": True}, "not reached: time limit after 9"),
        ({"success": False, "steps": 9}, "not reached: ended after 9 steps"),
    ],
)
def test_outcome(end: dict[str, Any], words: str) -> None:
    assert words in shown(render_outcome(goal="Grasp water", **end))
    assert "return 1" in shown(render_outcome(goal="g", total_reward=1.0, **end))

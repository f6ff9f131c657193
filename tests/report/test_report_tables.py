"""The result table and its intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacglam.report.tables import result_table, wilson_interval

Evaluation = Callable[..., dict[str, Any]]


def cells(table: str) -> list[list[str]]:
    """Rows of a markdown table, without head and rule."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@given(episodes=st.integers(1, 10_000), share=st.floats(0, 1))
def test_the_interval_ends_where_the_score_test_begins_to_reject(
    episodes: int, share: float
) -> None:
    rate = round(share * episodes) / episodes
    low, high = wilson_interval(rate, episodes)
    assert 0.0 <= low <= rate <= high <= 1.0
    for end in (low, high):
        # The definition: a true rate of `end` lies 1.96 standard errors from the observed one.
        error = 1.959964 * math.sqrt(end * (1 - end) / episodes)
        assert abs(rate - end) == pytest.approx(error, abs=1e-6)
    wider = wilson_interval(rate, episodes / 4)
    assert high - low < wider[1] - wider[0]


def test_no_episodes_no_knowledge() -> None:
    assert wilson_interval(0.5, 0) == (0.0, 1.0)


def test_one_run(evaluation: Evaluation) -> None:
    table = result_table({"demo": evaluation(0.98, 0.94)}, style="markdown")
    assert table.splitlines()[0] == "| goals | untrained | random | trained | expert |"
    assert cells(table) == [
        # Intervals from each family's own number of episodes: 200 and 100.
        ["Grasp", "15.0 [11, 21]", "14.0 [10, 19]", "98.0 [95, 99]", "100.0 [98, 100]"],
        ["Grow plant", "1.0 [0, 5]", "2.0 [1, 7]", "94.0 [88, 97]", "100.0 [96, 100]"],
        ["mean", "8.0", "8.0", "96.0", "100.0"],
    ]
    assert "300 episodes after 12 000 environment steps and 4 min 11 s" in table.replace("\n", " ")
    assert "equally" not in table


def test_unknown_counts_are_assumed_equal_and_said_so(evaluation: Evaluation) -> None:
    result = evaluation()
    for part in (result, result["baseline_random"], result["untrained"], result["expert"]):
        del part["count"]
    table = result_table({"demo": result}, style="markdown")
    assert cells(table)[1][3] == "94.0 [89, 97]"  # 150 episodes, not 100
    assert "share the episodes equally" in table.replace("\n", " ")


def test_an_agent_that_nobody_measured_has_no_column(evaluation: Evaluation) -> None:
    result = evaluation()
    result["expert"] = None
    del result["untrained"]
    head = result_table({"demo": result}).splitlines()[0].split()
    assert head == ["goals", "random", "trained"]


def test_several_runs_end_with_mean_and_range(evaluation: Evaluation) -> None:
    table = result_table(
        {
            "seed 0": evaluation(1.0, 0.9),
            "seed 1": evaluation(0.9, 0.6),
            "seed 2": evaluation(0.8, 0.9),
        },
        style="markdown",
    )
    rows = cells(table)
    assert [row[0] for row in rows] == [
        "seed 0", "", "", "seed 1", "", "", "seed 2", "", "", "all 3 runs", "", "",
    ]  # fmt: skip
    assert rows[9][4] == "90.0 (80-100)"
    assert rows[10][4] == "80.0 (60-90)"
    assert rows[11][1] == "mean"
    assert rows[11][4] == "85.0 (75-95)"


def test_a_run_without_a_figure_is_counted_out_loud(evaluation: Evaluation) -> None:
    table = result_table({"seed 0": evaluation(1.0, 0.9), "seed 1": {}}, style="markdown")
    rows = cells(table)
    assert rows[3] == ["seed 1", "Grasp", "-", "-", "-", "-"]
    assert rows[6][4] == "100.0 (100-100), 1 of 2 runs"


def test_plain_columns_line_up(evaluation: Evaluation) -> None:
    lines = result_table({"demo": evaluation()}).splitlines()
    start = lines[0].index("trained", lines[0].index("random"))
    assert [lines[i][start : start + 5] for i in (2, 3, 4)][1] == " 94.0"
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    "result", [{}, {"success": None}, {"success": {"A": None}, "episodes": "x"}]
)
def test_missing_keys_are_tolerated(result: dict[str, Any]) -> None:
    for style in ("plain", "markdown"):
        assert "trained" in result_table({"demo": result}, style=style)
    assert "sacglam eval" in result_table({})


def test_a_goal_with_a_bar_does_not_break_markdown(evaluation: Evaluation) -> None:
    result = {"success": {"a|b": 1.0}, "episodes": 10}
    assert "a\\|b" in result_table({"demo": result}, style="markdown")


def test_an_unknown_style_is_refused(evaluation: Evaluation) -> None:
    with pytest.raises(ValueError, match="markdown"):
        result_table({"demo": evaluation()}, style="html")

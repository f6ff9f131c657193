"""The table of what an agent reached, beside what it is measured against."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping
from typing import Any

from .text import columns_of, count, duration_words, number, rates

# Heading, key in eval.json (None: the evaluation itself).
_AGENTS = (
    ("untrained", "untrained"),
    ("random", "baseline_random"),
    ("trained", None),
    ("expert", "expert"),
)
_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson_interval(rate: float, episodes: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a success rate in 0..1 observed over `episodes`."""
    if episodes <= 0:
        return 0.0, 1.0
    z2 = _Z * _Z / episodes
    centre = (rate + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes))
    # At 0 and 1 the formula meets the end exactly; rounding must not leave it outside.
    return max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))


def family_episodes(
    evaluation: Mapping[str, Any], inherited: Mapping[str, Any] | None = None
) -> tuple[dict[str, float], bool]:
    """Episodes per family of an evaluation, and whether they are known rather than assumed.

    `count` {family: int} is used where the evaluation, or else `inherited` (the one it
    is part of), holds it; otherwise the families are assumed to share `episodes` equally.
    """
    families = rates(evaluation.get("success"))
    for source in (evaluation, inherited or {}):
        counts = rates(source.get("count"))
        known = {f: n for f, n in counts.items() if n is not None and f in families}
        if families and len(known) == len(families):
            return known, True
        total = number(source.get("episodes"))
        if total is not None and families:
            return dict.fromkeys(families, total / len(families)), False
    return {}, False


def result_table(eval_by_label: Mapping[str, Mapping[str, Any]], *, style: str = "plain") -> str:
    """Success by goal family of the untrained, the random, the trained and the expert agent.

    Args:
        eval_by_label: label of a run (say "seed 1") -> the contents of its eval.json. Missing keys
            show as "-"; agents that no evaluation holds have no column.
        style: "plain" for a terminal or a log, "markdown" for a README.

    Returns:
        The table and a line on how it was measured, without a final newline. Rates have their 95 %
        Wilson interval; with several runs the last rows hold the mean over runs and their range.
    """
    if style not in ("plain", "markdown"):
        raise ValueError(f'style must be "plain" or "markdown", got {style!r}')
    if not eval_by_label:
        return "no evaluation to show: run `sacglam eval DIR`"
    agents = [
        (heading, key)
        for heading, key in _AGENTS
        if key is None or any(isinstance(e.get(key), Mapping) for e in eval_by_label.values())
    ]
    families = list(
        dict.fromkeys(f for e in eval_by_label.values() for f in rates(e.get("success")))
    )
    several = len(eval_by_label) > 1
    head = [*(["run"] if several else []), "goals", *(heading for heading, _ in agents)]
    rows: list[list[str]] = []
    assumed = False
    for label, evaluation in eval_by_label.items():
        first = [str(label)]
        for family in families:
            cells = []
            for _, key in agents:
                source = evaluation if key is None else evaluation.get(key)
                cell, known = _cell(source, evaluation, family)
                assumed |= not known
                cells.append(cell)
            rows.append([*(first if several else []), family, *cells])
            first = [""]
        if len(families) > 1 or not families:
            means = [_percent(_mean(evaluation, key)) for _, key in agents]
            rows.append([*(first if several else []), "mean", *means])
    if several:
        rows += _summary(eval_by_label, agents, families)
    lines = _markdown(head, rows) if style == "markdown" else plain_table(head, rows)
    return "\n".join([*lines, "", _caption(eval_by_label, several, assumed)])


def _cell(source: Any, whole: Mapping[str, Any], family: str) -> tuple[str, bool]:
    """The rate with its interval, and whether its number of episodes was known."""
    if not isinstance(source, Mapping):
        return _percent(None), True
    rate = rates(source.get("success")).get(family)
    if rate is None:
        return _percent(None), True
    episodes, known = family_episodes(source, whole)
    if family not in episodes:
        return _percent(rate), True
    low, high = wilson_interval(rate, episodes[family])
    return f"{_percent(rate)} [{100 * low:.0f}, {100 * high:.0f}]", known


def _mean(evaluation: Mapping[str, Any], key: str | None) -> float | None:
    source = evaluation if key is None else evaluation.get(key)
    if not isinstance(source, Mapping):
        return None
    mean = number(source.get("success_mean"))
    if mean is not None:
        return mean
    known = [rate for rate in rates(source.get("success")).values() if rate is not None]
    return statistics.fmean(known) if known else None


def _summary(
    eval_by_label: Mapping[str, Mapping[str, Any]],
    agents: list[tuple[str, str | None]],
    families: list[str],
) -> list[list[str]]:
    rows = []
    first = f"all {len(eval_by_label)} runs"
    for family in [*families, *(["mean"] if len(families) != 1 else [])]:
        cells = []
        for _, key in agents:
            values: list[float | None] = []
            for evaluation in eval_by_label.values():
                source = evaluation if key is None else evaluation.get(key)
                if family == "mean" and family not in families:
                    values.append(_mean(evaluation, key))
                else:
                    success = source.get("success") if isinstance(source, Mapping) else None
                    values.append(rates(success).get(family))
            found = [value for value in values if value is not None]
            if not found:
                cells.append(_percent(None))
                continue
            cell = f"{_percent(statistics.fmean(found))} "
            cell += f"({100 * min(found):.0f}-{100 * max(found):.0f})"
            if len(found) < len(values):
                cell += f", {len(found)} of {len(values)} runs"
            cells.append(cell)
        rows.append([first, family, *cells])
        first = ""
    return rows


def _caption(eval_by_label: Mapping[str, Mapping[str, Any]], several: bool, assumed: bool) -> str:
    evaluations = list(eval_by_label.values())

    def common(key: str) -> list[float]:
        found = {number(e.get(key)) for e in evaluations}
        return sorted(value for value in found if value is not None)

    def span(values: list[float], show: Any) -> str:
        return show(values[0]) if len(values) == 1 else f"{show(values[0])} to {show(values[-1])}"

    parts = ["Success in %"]
    if episodes := common("episodes"):
        each = " per run" if several else ""
        parts.append(f"over {span(episodes, count)} episodes{each}")
    if steps := common("env_steps"):
        parts.append(f"after {span(steps, count)} environment steps")
    if wall := common("wall_s"):
        parts.append(f"and {span(wall, duration_words)} of training" if steps else "")
    notes = "[95 % Wilson interval]"
    if assumed:
        notes += ", taking the families to share the episodes equally"
    if several:
        notes += ", (range over the runs)"
    text = f"{' '.join(part for part in parts if part)}. {notes}"
    return textwrap.fill(text, 80, break_long_words=False)


def _percent(rate: float | None) -> str:
    """Five characters, so that the decimal points in a column stand below each other."""
    return "    -" if rate is None else f"{100 * rate:5.1f}"


def plain_table(head: list[str], rows: list[list[str]], *, spaced: bool = True) -> list[str]:
    """Lines of a table for a terminal; spaced: an empty one between runs, the first column's."""
    widths = [max(columns_of(row[c]) for row in [head, *rows]) for c in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = (c + " " * (width - columns_of(c)) for c, width in zip(cells, widths, strict=True))
        return "  ".join(padded).rstrip()

    lines = [line(head), "  ".join("-" * width for width in widths)]
    for i, row in enumerate(rows):
        if spaced and i and len(head) > 1 and head[0] == "run" and row[0]:
            lines.append("")
        lines.append(line(row))
    return lines


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]

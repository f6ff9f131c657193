"""One line a run: its settings that others do not share, and what it came to."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import write_text
from .grouping import names_apart, taught
from .runs import Run, read_run
from .tables import family_episodes, plain_table, wilson_interval
from .text import compact, count, number, percent, rates

SETTINGS = 6  # that a terminal shows
LEVELS = (0.5, 0.8, 0.9)  # of success, whose first evaluation that reaches them is told


def compare_runs(
    folders: Sequence[str | PathLike[str]] | str | PathLike[str],
    out: str | PathLike[str] | None = None,
) -> str:
    """A table of runs, for the terminal.

    Args:
        folders: one or more folders of runs.
        out: a CSV file for all columns with unrounded numbers; success is in 0..1 there, with the
            ends of its 95 % Wilson intervals.

    Raises:
        RunFolderError: a folder is no run, or a damaged one.
        ConfigError: no folder given.
    """
    folders = [folders] if isinstance(folders, str | PathLike) else folders
    runs = [read_run(folder) for folder in folders]
    if not runs:
        raise ConfigError("no run to compare: give one or more folders of runs")
    settings = [taught(run) for run in runs]
    apart = names_apart(settings)
    rows = [_row(run, setting, apart) for run, setting in zip(runs, settings, strict=True)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if out is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(out), text.getvalue())
    hidden = {"folder", *apart[SETTINGS:]}
    hidden |= {name for name in names if name.endswith((" low", " high"))}
    shown = [n for n in names if n not in hidden and any(row.get(n, "") != "" for row in rows)]
    cells = [[_cell(name, row.get(name, "")) for name in shown] for row in rows]
    lines = plain_table(shown, cells, spaced=False)
    if apart[SETTINGS:]:
        lines.append(f"\nThey differ in {len(apart) - SETTINGS} more settings: --csv has them all.")
    return "\n".join(lines)


def _row(run: Run, setting: Mapping[str, str], apart: Sequence[str]) -> dict[str, Any]:
    final = run.final or {}
    last: dict[str, Any] = dict(run.metrics[-1])
    last.update({name: final[name] for name in ("env_steps", "updates") if name in final})
    row: dict[str, Any] = {
        "run": run.folder.resolve().name,
        "folder": str(run.folder),
        "seed": run.config.get("seed", ""),
        **{name: setting.get(name, "") for name in apart},
        "env_steps": last["env_steps"],
        "updates": last.get("updates", ""),
        "cpu_s": last.get("cpu_s", ""),
    }
    for level in LEVELS:
        row[f"steps to {100 * level:.0f} %"] = _steps_to(run, level)
    mean = number(final.get("success_mean"))
    row["success"] = "" if mean is None else mean
    episodes = family_episodes(final)[0]
    for family, rate in rates(final.get("success")).items():
        row[family] = "" if rate is None else rate
        if rate is not None and family in episodes:
            low, high = wilson_interval(rate, episodes[family])
            row[f"{family} low"], row[f"{family} high"] = low, high
    return row


def _steps_to(run: Run, level: float) -> int | str:
    for line in run.metrics:
        found = line.get("eval")
        mean = number(found.get("success_mean")) if isinstance(found, Mapping) else None
        if mean is not None and mean >= level:
            return int(line["env_steps"])
    return ""


def _cell(name: str, value: Any) -> str:
    if value == "":
        return "-"
    if isinstance(value, float):
        return compact(value) if name.endswith("_s") else percent(value, 1).removesuffix(" %")
    return count(value) if isinstance(value, int) else str(value)

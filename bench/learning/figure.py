"""The figure of a study: success against environment steps, and against CPU time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sacglam.report.drawing import (
    GREY,
    STYLE,
    WIDTH_IN,
    add_kind,
    add_legend,
    finish_axes,
    look_of,
    save,
)

from .studies import Study

_AXES = (("env_steps", "environment steps"), ("cpu_s", "CPU seconds"), ("wall_s", "seconds"))
_ROW_IN = 1.9
_COLUMNS = 3


def draw(results: Mapping[str, Any], study: Study, path: Path) -> None:
    """Interquartile means with their intervals; `results` as of `collect_results`.

    A study without panels has one panel for each axis; one with panels shows them over steps, each
    with a legend of its own, those alone in which methods are compared.
    """
    import matplotlib
    from matplotlib.figure import Figure

    methods = results["methods"]
    looks = {method: look_of(k) for k, method in enumerate(study.methods)}
    cells = _cells(study, set(methods))
    rows = -(-len(cells) // _COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, _ROW_IN * rows), layout="constrained")
        grid = figure.subplots(rows, min(_COLUMNS, len(cells)), squeeze=False, sharey=True)
        kinds: dict[str, Any] = {}
        for k, (heading, axis, label, shown) in enumerate(cells):
            axes = grid[k // _COLUMNS][k % _COLUMNS]
            found = [m for m in shown if m in methods and axis in methods[m]["curves"]]
            last = max((methods[m]["curves"][axis]["x"][-1] for m in found), default=1.0)
            for place, m in enumerate(found):
                look = look_of(place) if study.panels else looks[m]
                _line(axes, methods[m]["curves"][axis], look, label=m)
            if study.panels:
                axes.legend(loc="lower right", fontsize=6, handlelength=1.5, borderpad=0.3)
            finish_axes(axes, last, 3)
            axes.set_title(heading)
            axes.set_xlabel(label)
        for axes in grid.flat[len(cells) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel("success (%)")
        lines: dict[str, Any] = {}
        for m, look in looks.items():
            if m in methods and not study.panels:
                runs = len(methods[m]["runs"])
                add_kind(lines, f"{m} ({runs} {'seed' if runs == 1 else 'seeds'})", lw=1.6, **look)
        add_kind(kinds, "interquartile mean", color=GREY, lw=1.6)
        add_kind(kinds, "95 % bootstrap interval", color=GREY, lw=6, alpha=0.25)
        add_legend(figure, list(lines.values()), list(kinds.values()))
        save(figure, path)


def _cells(study: Study, there: set[str]) -> list[tuple[str, str, str, list[str]]]:
    """Heading, axis, its label and the methods of each panel."""
    if study.panels:
        compared = {h: m for h, m in study.panels.items() if len(there & set(m)) > 1}
        chosen = compared or study.panels
        return [(h, "env_steps", "environment steps", list(m)) for h, m in chosen.items()]
    every = list(study.methods)
    return [
        (study.title if k == 0 else "", axis, label, every) for k, (axis, label) in enumerate(_AXES)
    ]


def _line(
    axes: Any, curve: Mapping[str, list[float]], look: Mapping[str, Any], *, label: str
) -> None:
    x = curve["x"]
    low, mean, high = ([100 * v for v in curve[name]] for name in ("low", "iqm", "high"))
    axes.fill_between(x, low, high, color=look["color"], alpha=0.18, lw=0)
    every = max(1, len(x) // 5)
    axes.plot(x, mean, lw=1.6, zorder=3, markevery=(every // 2, every), label=label, **look)

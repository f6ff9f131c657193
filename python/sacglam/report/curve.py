"""Learning curves: success by goal family against environment steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, RunFolderError
from ..files import is_forbidden
from .drawing import (
    GREY,
    STYLE,
    WIDTH_IN,
    add_kind,
    add_legend,
    finish_axes,
    fitting,
    label_axes,
    look_of,
    looks_by_name,
    markers_of,
    save,
)
from .grouping import Group, common_setting, group_runs, seeds_label
from .runs import Run, read_run
from .tables import family_episodes, wilson_interval
from .text import number, rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_SUFFIXES = (".png", ".pdf", ".svg")
_MAX_PANELS = 12
_PALE = 0.45  # training beside evaluations
_EVALUATION = "evaluation"


def plot_runs(
    run_dirs: Sequence[str | PathLike[str]] | str | PathLike[str],
    out: str | PathLike[str] | None = None,
) -> Path:
    """Draw success by goal family against environment steps.

    One configuration gives one panel with a line per family, in training and in evaluations.
    Several give one panel per family with a line per configuration: of the evaluations where every
    run has two or more, otherwise of training. The label of the axis or the legend says which.
    Runs that differ by their seed alone become their mean, with a band from the lowest to the
    highest. The random baseline and the expert of eval.json are thin dashed and dotted lines.

    Args:
        run_dirs: one or more folders of runs.
        out: the picture to write (.png, .pdf or .svg). By default `curve.png` in the folder of a
            single run, `curves.png` in the working directory for several.

    Returns:
        The path written. It appears whole or not at all.

    Raises:
        RunFolderError: a folder is missing, foreign, or holds no log interval yet; or the picture
            may not be written there.
        ConfigError: no folder given, or a suffix that is not known.
    """
    folders = [run_dirs] if isinstance(run_dirs, str | PathLike) else list(run_dirs)
    if not folders:
        raise ConfigError("no run to plot: give one or more folders of runs")
    if out is None:
        path = Path(folders[0]) / "curve.png" if len(folders) == 1 else Path("curves.png")
    else:
        path = Path(out)
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"cannot draw into {str(path)!r}: its name must end in {', '.join(_SUFFIXES)}"
        )
    groups = group_runs([read_run(folder) for folder in folders])

    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = _families_figure(groups[0]) if len(groups) == 1 else _panels_figure(groups)
        try:
            save(figure, path)
        except OSError as error:
            if not is_forbidden(error):
                raise
            raise RunFolderError(
                f"cannot write {path} ({error.strerror}): name another file with --out"
            ) from error
    return path


def _series(run: Run, family: str, *, evals: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps [N] and success in % [N], without the intervals that lack the family."""
    steps, values = [], []
    for row in run.metrics if evals else run.settled():
        source = row.get("eval") if evals else row
        if not isinstance(source, Mapping):
            continue
        success = rates(source.get("success"))
        rate = success.get(family)
        if not success and family == "all":
            rate = number(source.get("success_mean"))
        if rate is not None:
            steps.append(float(row["env_steps"]))
            values.append(100 * rate)
    return np.asarray(steps), np.asarray(values)


def _known(
    runs: Sequence[Run], family: str, *, evals: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The series of the runs that know the family."""
    found = [_series(run, family, evals=evals) for run in runs]
    return [series for series in found if len(series[0])]


def _last_step(run: Run) -> float:
    return max(float(run.metrics[-1]["env_steps"]), 1.0)


def _families(runs: Sequence[Run]) -> list[str]:
    """By name, whichever was seen first."""
    return sorted({family for run in runs for family in run.families()}) or ["all"]


def _evaluated(runs: Sequence[Run], family: str, key: str | None = None) -> list[float]:
    """Success in [0, 1] after training, or of another policy in eval.json: of the runs that know
    it."""
    found = []
    for run in runs:
        source = run.final if key is None else (run.evaluation or {}).get(key)
        if isinstance(source, Mapping):
            rate = rates(source.get("success")).get(family)
            if rate is not None:
                found.append(rate)
    return found


def _reference(runs: Sequence[Run], key: str, family: str) -> float | None:
    """Success in % of the random agent or the expert: the mean over the runs that know it."""
    found = [100 * rate for rate in _evaluated(runs, family, key)]
    return float(np.mean(found)) if found else None


def _families_figure(group: Group) -> Figure:
    """One panel: a line per family, their mean and range where there are several seeds."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    families = _families(group.runs)
    figure = Figure(figsize=(WIDTH_IN, 2.6), layout="constrained")
    axes = figure.add_subplot()
    handles: list[Line2D] = []
    kinds: dict[str, Line2D] = {}
    looks = looks_by_name(families)
    for family in families:
        _draw_group(axes, group.runs, family, looks[family], kinds)
        handles.append(Line2D([], [], lw=1.8, label=family, **looks[family]))
    _draw_references(axes, group.runs, families, kinds, looks)
    finish_axes(axes, max(map(_last_step, group.runs)), ticks=7)
    finals = [(group.runs, family, looks[family]) for family in families]
    _draw_finals(axes, finals, kinds, slot=0.03)
    heading = ", ".join(p for p in (common_setting(group.runs), seeds_label(group.runs)) if p)
    axes.set_title(fitting(heading, 72 * (WIDTH_IN - 0.5)), loc="left", color="0.25")
    # With evaluations, the legend names both.
    label_axes(axes, x=True, y="success (%)" if _EVALUATION in kinds else "success in training (%)")
    add_legend(figure, handles, list(kinds.values()))
    return figure


def _panels_figure(groups: Sequence[Group]) -> Figure:
    """One panel per family with a line per configuration."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    runs = [run for group in groups for run in group.runs]
    families = _families(runs)
    shown = families[:_MAX_PANELS]
    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    rows = -(-len(shown) // columns)
    height = 2.6 if columns == 1 else 0.5 + 1.7 * rows
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    evals = all(run.evaluations > 1 for run in runs)
    success = f"success in\n{'evaluations' if evals else 'training'} (%)"
    kinds: dict[str, Line2D] = {}
    for p, axes in enumerate(grid.flat):
        if p >= len(shown):
            axes.set_visible(False)
            continue
        for i, group in enumerate(groups):
            _draw_lines(axes, _known(group.runs, shown[p], evals=evals), look_of(i), kinds)
        _draw_references(axes, runs, [shown[p]], kinds)
        finish_axes(axes, max(map(_last_step, runs)), ticks=7 if columns == 1 else 5)
        finals = [(group.runs, shown[p], look_of(i)) for i, group in enumerate(groups)]
        _draw_finals(axes, finals, kinds, slot=0.03 * columns)
        axes.set_title(fitting(shown[p], 72 * (WIDTH_IN - 0.5) / columns), loc="left")
        lowest = p + columns >= len(shown)
        axes.tick_params(labelbottom=lowest)
        label_axes(axes, x=lowest, y=success if p % columns == 0 else None)
    handles = [Line2D([], [], lw=1.8, label=g.label, **look_of(i)) for i, g in enumerate(groups)]
    heading = common_setting(runs)
    if len(shown) < len(families):
        heading += f" (the first {len(shown)} of {len(families)} families)"
    if heading:
        figure.suptitle(fitting(heading), x=0.01, ha="left", fontsize=8, color="0.25")
    add_legend(figure, handles, list(kinds.values()))
    return figure


def _draw_group(
    axes: Axes,
    runs: Sequence[Run],
    family: str,
    look: Mapping[str, Any],
    kinds: dict[str, Line2D],
) -> None:
    """The success of one family in one configuration: pale in training beside evaluations."""
    training, evaluated = _known(runs, family), _known(runs, family, evals=True)
    steps, values = _mean_of(evaluated)
    _draw_lines(axes, training, look, kinds, pale=len(steps) > 0)
    if len(steps):
        markers = markers_of(look)
        line_style = {"color": look["color"], "linestyle": look["linestyle"]}
        axes.plot(steps, values, lw=1.4, clip_on=False, zorder=3, **line_style, **markers)
        if training:
            add_kind(kinds, "training episodes", color=GREY, lw=1.4, alpha=_PALE)
        add_kind(kinds, _EVALUATION, color=GREY, lw=1.4, **{**markers, "marker": "o"})


def _draw_lines(
    axes: Axes,
    series: Sequence[tuple[np.ndarray, np.ndarray]],
    look: Mapping[str, Any],
    kinds: dict[str, Line2D],
    *,
    pale: bool = False,
) -> None:
    """One run as a line, several as their mean and range over the steps that all runs cover, with
    thin lines where some went on alone. A few markers, unless pale."""
    if not series:
        return
    line_style = {"color": look["color"], "linestyle": look["linestyle"]}
    several = len(series) > 1
    steps, mean = _mean_of(series)
    if several:
        _draw_band(axes, series, line_style)
        add_kind(kinds, "range over seeds", color=GREY, lw=6, alpha=0.25, solid_capstyle="butt")
    if len(steps):
        every = max(1, len(steps) // 6)
        extra = {} if pale else {**markers_of(look), "markevery": (every // 2, every)}
        axes.plot(
            steps, mean, lw=1.6 if several else 1.4, alpha=_PALE if pale else 1.0, clip_on=False,
            zorder=3, **line_style, **extra,
        )  # fmt: skip


def _draw_band(
    axes: Axes, series: Sequence[tuple[np.ndarray, np.ndarray]], line_style: Mapping[str, Any]
) -> None:
    """The range over the steps that all runs cover; thin lines where some went on alone."""
    steps, table = _common(series)
    end = steps[-1] if len(steps) else -np.inf
    if len(steps):
        axes.fill_between(
            steps, table.min(axis=0), table.max(axis=0), color=line_style["color"], alpha=0.18, lw=0
        )
    for x, y in series:
        beyond = x >= end
        if beyond.sum() > 1:
            axes.plot(x[beyond], y[beyond], lw=0.7, alpha=0.7, clip_on=False, **line_style)


def _common(series: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [N] that every run covers, and the success of each run there [runs, N]."""
    first, last = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
    steps = np.unique(np.concatenate([x for x, _ in series]))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.stack([np.interp(steps, x, y) for x, y in series])


def _mean_of(series: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [N] that every run covers, and the mean there [N]."""
    if not series:
        return np.empty(0), np.empty(0)
    if len(series) == 1:
        return series[0]
    steps, table = _common(series)
    return steps, table.mean(axis=0)


def _draw_finals(
    axes: Axes,
    drawn: Sequence[tuple[Sequence[Run], str, Mapping[str, Any]]],
    kinds: dict[str, Line2D],
    *,
    slot: float,
) -> None:
    """Final evaluations side by side right of the last step, each taking `slot` of the panel's
    width: of one run with its 95 % interval, of several their mean and range."""
    last = max(_last_step(run) for runs, _, _ in drawn for run in runs)
    slot = min(slot, 0.2 / len(drawn))
    found = [(_final(runs, family), look) for runs, family, look in drawn]
    shown = [(final, look) for final, look in found if final is not None]
    for i, ((rate, low, high, kind), look) in enumerate(shown):
        x = last * (1 + slot * (i + 0.6))
        axes.plot([x, x], [low, high], color=look["color"], lw=1.0, clip_on=False, zorder=3)
        dot: Any = {**markers_of(look), "markersize": 5.5}
        axes.plot([x], [rate], color=look["color"], clip_on=False, zorder=4, **dot)
        add_kind(kinds, f"final evaluation, {kind}", color=GREY, lw=0, marker="|", markersize=9)
    if shown:
        axes.set_xlim(0, last * (1 + slot * (len(drawn) + 0.2)))  # shared by all panels
        axes.axvline(last * 0.998, color="0.8", lw=0.6, zorder=1)


def _final(runs: Sequence[Run], family: str) -> tuple[float, float, float, str] | None:
    """Success in % after training, the ends of its line, and what these are."""
    found = _evaluated(runs, family)
    if not found:
        return None
    values = [100 * rate for rate in found]
    if len(runs) > 1:
        return float(np.mean(values)), min(values), max(values), "mean and range"
    episodes = family_episodes(runs[0].final or {})[0].get(family)
    low, high = (found[0], found[0]) if episodes is None else wilson_interval(found[0], episodes)
    return values[0], 100 * low, 100 * high, "95 % CI"


def _draw_references(
    axes: Axes,
    runs: Sequence[Run],
    families: Sequence[str],
    kinds: dict[str, Line2D],
    looks: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Random agent and expert as thin lines: one for all families where they agree, or where these
    have no looks."""
    for key, name, dash in (
        ("baseline_random", "random agent", (0, (5, 2))),
        ("expert", "expert", (0, (1, 1.5))),
    ):
        levels = {f: _reference(runs, key, f) for f in families}
        known = {f: v for f, v in levels.items() if v is not None}
        if not known:
            continue
        agree = max(known.values()) - min(known.values()) <= 2.0 or looks is None
        drawn = [float(np.mean(list(known.values())))] if agree else list(known.values())
        colours = [GREY] if agree or looks is None else [looks[f]["color"] for f in known]
        for level, colour in zip(drawn, colours, strict=True):
            axes.axhline(level, color=colour, lw=0.9, linestyle=dash, zorder=1.5)
        add_kind(kinds, name, color=GREY, lw=0.9, linestyle=dash)

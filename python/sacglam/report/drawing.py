"""The looks of the figures: colours, axes, legend, and the file they are written to."""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_bytes
from .fonts import give_fonts
from .text import columns_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito: distinct with every common colour blindness; its yellow is too light for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # tell the lines apart in print without colour
_SALT = 5152833  # tried out: with it Playground's families, and BabyAI's, do not share colours
_POINTS, _HANDLE = 4.4, 38  # of a legend, estimated: a letter; a line's handle and the spacing
GREY = "0.45"
WIDTH_IN = 5.5  # the text width of a one-column paper
STYLE: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,  # TrueType: the text of a PDF stays text
    "text.parse_math": False,  # names of goals may hold a $
    "svg.hashsalt": "sacglam",  # the same picture is the same file
}


def look_of(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of line `i`."""
    return {
        "color": _COLOURS[i % len(_COLOURS)],
        "linestyle": ("-", (0, (4, 1.5)))[i // len(_COLOURS) % 2],
        "marker": _MARKERS[i % len(_MARKERS)],
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.7,
    }


def looks_by_name(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A look for each name, the same in every figure, whatever else that shows; where two names
    would have one, the later of them takes one that is free."""
    slots: dict[int, str] = {}
    shared = []
    for name in sorted(set(names)):
        slot = zlib.crc32(f"{_SALT}{name}".encode()) % len(_COLOURS)
        if slots.setdefault(slot, name) != name:
            shared.append(name)
    for name in shared:
        slots[next(i for i in itertools.count() if i not in slots)] = name
    return {name: look_of(slot) for slot, name in slots.items()}


def markers_of(look: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a look that concerns the marker."""
    return {key: value for key, value in look.items() if key.startswith("marker")}


def add_kind(kinds: dict[str, Line2D], label: str, **look: Any) -> None:
    """Note for the legend that the figure has this kind of mark."""
    from matplotlib.lines import Line2D

    if label not in kinds:
        kinds[label] = Line2D([], [], label=label, **look)


def finish_axes(axes: Axes, last_step: float, ticks: int) -> None:
    """0 to 100 %, 0 to `last_step`, about `ticks` ticks."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylim(0, 103)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlim(0, last_step)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _steps_label(value)))


def label_axes(axes: Axes, *, x: bool, y: str | None) -> None:
    if x:
        axes.set_xlabel("environment steps")
    if y is not None:
        axes.set_ylabel(y)


def _steps_label(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"


def fitting(text: str, points: float = WIDTH_IN * 72) -> str:
    """What of a text fits into a width, by default the figure's."""
    most = int(points / _POINTS)
    if columns_of(text) <= most:
        return text
    while columns_of(text) > most - 3:
        text = text[:-1]
    return f"{text}..."


def add_legend(figure: Figure, lines: list[Line2D], kinds: list[Line2D]) -> None:
    """Below the panels: lines in their own rows, then the kinds of marks. The figure grows by the
    height of the legend, so that the panels keep theirs."""
    from matplotlib.lines import Line2D

    for line in lines:
        label = str(line.get_label())
        label = f" {label}" if label.startswith("_") else label  # which matplotlib would hide
        line.set_label(fitting(label, WIDTH_IN * 72 - _HANDLE))
    blank = Line2D([], [], lw=0, label=" ")
    for columns in range(max(len(lines), len(kinds)), 0, -1):
        rows = [
            part[i : i + columns] for part in (lines, kinds) for i in range(0, len(part), columns)
        ]
        rows = [row + [blank] * (columns - len(row)) for row in rows]
        by_column = [[row[c] for row in rows] for c in range(columns)]
        longest = [max(columns_of(str(h.get_label())) for h in column) for column in by_column]
        if sum(_POINTS * n + _HANDLE for n in longest) / 72 <= WIDTH_IN:
            break
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.16 * len(rows) + 0.1)
    figure.legend(
        handles=[handle for column in by_column for handle in column],
        loc="outside lower center", ncols=columns, frameon=False,
        handlelength=2.6, columnspacing=1.6,
    )  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of its suffix; the file appears whole or not at all."""
    kind = path.suffix.lower()[1:]
    give_fonts(figure)
    # Without a date, the same data gives the same file.
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    picture = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing")  # fonts.py says it, once
        figure.savefig(picture, format=kind, dpi=220, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, picture.getvalue())

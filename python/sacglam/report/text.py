"""Small pieces of text that every report shares: bars, sparklines, numbers, durations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.-=+*#"
MISSING = "-"


def number(value: Any) -> float | None:
    """`value` as a finite float, or None where it is missing, not a number, or not finite.

    Accepts everything with `__float__`: Python, NumPy and torch scalars.
    """
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def rates(value: Any) -> dict[str, float | None]:
    """A mapping {family: rate} with every rate finite or None; {} where there is none."""
    if not isinstance(value, Mapping):
        return {}
    return {str(family): number(rate) for family, rate in value.items()}


def columns_of(text: str) -> int:
    """How wide a text is on a terminal: a Chinese letter takes two columns."""
    from rich.cells import cell_len

    return cell_len(text)


def bar(fraction: float | None, width: int, *, ascii_only: bool = False) -> str:
    """A horizontal bar of exactly `width` columns, filled to `fraction` (clipped to 0..1) in steps
    of an eighth of a column, or of a whole one in ASCII."""
    filled = min(max(fraction or 0.0, 0.0), 1.0) * width
    if ascii_only:
        return ("#" * round(filled)).ljust(width, ".")
    full, rest = divmod(round(filled * 8), 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def sparkline(values: Sequence[float | None], *, ascii_only: bool = False) -> str:
    """One character per value on the fixed scale 0..1; a space where the value is missing."""
    levels = _ASCII_LEVELS if ascii_only else _LEVELS
    top = len(levels) - 1
    return "".join(" " if v is None else levels[round(min(max(v, 0.0), 1.0) * top)] for v in values)


def percent(value: float | None, digits: int = 0) -> str:
    """0.874 -> "87 %"."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def compact(value: float | None) -> str:
    """Three significant digits, short: 0.0123, 1.5, 49, 1.2e-05; "-" where missing."""
    if value is None:
        return MISSING
    value += 0.0  # -0.0 becomes 0.0
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2g}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def count(value: float | None) -> str:
    """12000 -> "12 000"."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", " ")


def duration(seconds: float | None) -> str:
    """151 -> "2:31", 3723 -> "1:02:03", more than a day -> "1 d 2:03"."""
    if seconds is None:
        return MISSING
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days} d {hours}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def duration_words(seconds: float | None) -> str:
    """151 -> "2 min 31 s", 42 -> "42 s", 3723 -> "1 h 2 min"."""
    if seconds is None:
        return MISSING
    minutes, secs = divmod(max(0, round(seconds)), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {secs} s" if minutes else f"{secs} s"


def roughly(seconds: float | None) -> str:
    """`duration_words` of an estimate: 1103 -> "18 min", 190000 -> "2 d 5 h"."""
    if seconds is None or seconds < 600:
        return duration_words(seconds)
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def size(n_bytes: float | None) -> str:
    """12582912 -> "12.6 MB" (decimal units)."""
    if n_bytes is None:
        return MISSING
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def seconds(value: float | None) -> str:
    """A duration to measure by: 3.28e-6 -> "3.28 us"."""
    if value is None:
        return MISSING
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def encodes(encoding: str | None, sample: str = _EIGHTHS + _LEVELS) -> bool:
    """Whether a stream with this encoding can show the characters of bars and sparklines."""
    try:
        sample.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

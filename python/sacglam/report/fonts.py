"""Fonts for letters that a figure's own font lacks, as of goals in Chinese or Arabic."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry

_BOXES = "Last Resort"  # has every letter, as a box


def give_fonts(figure: Figure) -> None:
    """Let the figure's texts fall back on installed fonts for letters that theirs lack; warns of
    those that no font has. Boxes stand for them."""
    from matplotlib import font_manager, rcParams
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    own = font_manager.findfont(font_manager.FontProperties())
    lacking = {ord(c) for text in texts for c in text.get_text() if not c.isspace()}
    lacking -= set(font_manager.get_font(own).get_charmap())
    if not lacking:
        return
    added = []
    for name, letters in _by_use(lacking):
        added.append(name)
        lacking -= letters
    for text in texts:
        text.set_fontfamily([*rcParams["font.family"], *added])
    if lacking:
        shown = "".join(map(chr, sorted(lacking)[:10])) + ("..." if len(lacking) > 10 else "")
        warnings.warn(
            f"no installed font has {shown!r}: boxes stand for them in the figure; install one "
            "that does (on Debian fonts-noto, or fonts-noto-cjk for Chinese, Japanese, Korean)",
            UserWarning,
            stacklevel=2,
        )


def _by_use(lacking: set[int]) -> list[tuple[str, set[int]]]:
    """Names of installed fonts and which of the letters each has: first the one that has most, then
    the one that has most of the others. Upright and sans-serif ones are taken first."""
    from matplotlib import font_manager

    found: dict[str, set[int]] = {}
    for entry in sorted(font_manager.fontManager.ttflist, key=_plainness):
        if entry.name.startswith(_BOXES) or entry.name in found:
            continue
        try:
            font = font_manager.get_font(entry.fname)
        except (OSError, RuntimeError):  # a file that is gone, or damaged
            continue
        letters = lacking & set(font.get_charmap())
        if letters and font.scalable:  # coloured emoji are not
            found[entry.name] = letters
    chosen: list[tuple[str, set[int]]] = []
    left = set(lacking)
    while found:
        name = max(found, key=lambda each: len(found[each] & left))
        letters = found.pop(name) & left
        if not letters:
            break
        chosen.append((name, letters))
        left -= letters
    return chosen


def _plainness(entry: FontEntry) -> tuple[bool, bool, bool, str]:
    """Plain fonts come first."""
    regular = entry.weight in (400, "normal", "regular", "book")
    return (entry.style != "normal", not regular, "Serif" in entry.name, entry.name)

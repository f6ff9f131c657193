"""The agent's egocentric partial view as sentences.

The view is minigrid's: a square of `view_size` x `view_size` cells (7 x 7) in front of the agent,
who stands in the middle of its nearest row, with minigrid's rules of what walls and closed doors
hide. Wording after GLAM's BabyAI-Text (arXiv 2302.02662): every visible object; of the walls only
those straight ahead, left and right, where nothing stands in between; what is carried. minigrid's
own image of the view costs ten times as much to make, so it is not used. GLAM writes "a open door";
here it is "an open door".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

# Forward and right of an agent that faces direction 0..3 (x grows to the right, y downwards).
FORWARD = ((1, 0), (0, 1), (-1, 0), (0, -1))
RIGHT = ((0, 1), (-1, 0), (0, -1), (1, 0))

WORDINGS = ("glam", "short")

_NO_LINE, _AHEAD, _LEFT, _RIGHT = range(4)


class _Place(NamedTuple):
    """A cell of the view, relative to the agent."""

    ahead: int  # rows in front, 0 = the agent's own row
    side: int  # columns to the right, negative = left
    line: int  # on one of the three straight lines?


@cache
def places(view_size: int) -> tuple[_Place, ...]:
    """All cells of the view but the agent's own, in the order in which they are told.

    Nearest first (steps ahead plus steps aside); of equally near ones the straighter ahead first;
    then left before right.
    """
    half = view_size // 2
    cells = []
    for ahead in range(view_size):
        for side in range(-half, half + 1):
            if ahead or side:
                line = _NO_LINE
                if side == 0:
                    line = _AHEAD
                elif ahead == 0:
                    line = _LEFT if side < 0 else _RIGHT
                cells.append(_Place(ahead, side, line))
    return tuple(sorted(cells, key=lambda c: (c.ahead + abs(c.side), abs(c.side), c.side)))


@cache
def _window(
    width: int, height: int, view_size: int, x: int, y: int, direction: int
) -> Callable[[list[Any]], tuple[Any, ...]]:
    """Getter of the view's cells, in the order of `places`, from minigrid's flat list of cells."""
    (fx, fy), (rx, ry) = FORWARD[direction], RIGHT[direction]
    indices = []
    for ahead, side, _ in places(view_size):
        i, j = x + ahead * fx + side * rx, y + ahead * fy + side * ry
        # Beyond the grid minigrid shows walls. The corner, cell 0, is a wall in every level.
        indices.append(j * width + i if 0 <= i < width and 0 <= j < height else 0)
    return itemgetter(*indices)


@cache
def _see_row(seen: int, opaque: int, view_size: int) -> tuple[int, int]:
    """(visible cells of a row, cells of the next row that are lit from it), as bits.

    Light spreads sideways through what is not opaque, and from every such cell to the one ahead
    and to both diagonal neighbours of that: minigrid's `Grid.process_vis`.
    """
    lit = 0
    for i in range(view_size - 1):
        if seen >> i & 1 and not opaque >> i & 1:
            seen |= 2 << i
            lit |= 3 << i
    for i in range(view_size - 1, 0, -1):
        if seen >> i & 1 and not opaque >> i & 1:
            seen |= 1 << i - 1
            lit |= 3 << i - 1
    return seen, lit


def _steps(count: int, where: str, wording: str) -> str:
    if wording == "short":
        return f"{count} {where}"
    return f"{count} step{'s' if count > 1 else ''} {where}"


@cache
def _place_texts(view_size: int, wording: str) -> tuple[str, ...]:
    texts = []
    for ahead, side, _ in places(view_size):
        parts = []
        if side:
            parts.append(_steps(abs(side), "left" if side < 0 else "right", wording))
        if ahead:
            parts.append(_steps(ahead, "forward", wording))
        texts.append((" " if wording == "short" else " and ").join(parts))
    return tuple(texts)


class TextView:
    """Describes what the agent of one level sees. `wording` is one of `WORDINGS`."""

    def __init__(self, width: int, height: int, view_size: int, wording: str) -> None:
        self._width, self._height, self._view_size = width, height, view_size
        half = view_size // 2
        self._agent_bit = 1 << half
        # Per place, in telling order: row, bit in the row, straight line, text.
        self._places = tuple(
            (place.ahead, 1 << (place.side + half), place.line, text)
            for place, text in zip(places(view_size), _place_texts(view_size, wording), strict=True)
        )
        short = wording == "short"
        self._see = "" if short else "You see a "
        self._see_an = "" if short else "You see an "
        self._carry = "carrying " if short else "You carry a "
        self._nothing = "nothing" if short else "You see nothing"

    def describe(self, cells: list[Any], x: int, y: int, direction: int, carrying: Any) -> str:
        """The observation: what is carried, then what is seen, in the order of `places`.

        `cells` is `Grid.grid`, minigrid's flat list of objects; `carrying` an object or None.
        """
        view_size = self._view_size
        window = _window(self._width, self._height, view_size, x, y, direction)(cells)
        opaque = [0] * view_size
        found = []
        for cell, place in zip(window, self._places, strict=True):
            if cell is not None:
                kind = cell.type
                if kind == "wall":
                    opaque[place[0]] |= place[1]
                    if not place[2]:
                        continue
                elif kind == "door" and not cell.is_open:
                    opaque[place[0]] |= place[1]
                found.append((cell, place))

        visible = []
        seen = self._agent_bit
        for row in opaque:
            seen, lit = _see_row(seen, row, view_size)
            visible.append(seen)
            seen = lit

        sentences = []
        if carrying is not None:
            sentences.append(f"{self._carry}{carrying.color} {carrying.type}")
        covered = [False] * 4
        for cell, (row_index, bit, line, where) in found:
            if visible[row_index] & bit:
                kind = cell.type
                if kind == "wall":
                    if not covered[line]:
                        sentences.append(f"{self._see}wall {where}")
                elif kind == "door":
                    if cell.is_open:
                        sentences.append(f"{self._see_an}open {cell.color} door {where}")
                    else:
                        state = "locked" if cell.is_locked else "closed"
                        sentences.append(f"{self._see}{state} {cell.color} door {where}")
                else:
                    sentences.append(f"{self._see}{cell.color} {kind} {where}")
                covered[line] = True
        return ", ".join(sentences) if sentences else self._nothing


def view_vocabulary(view_size: int, wording: str, colors: list[str], kinds: list[str]) -> list[str]:
    """Observations that together contain every word of every observation, each sentence form with
    every place and every thing with some place."""
    short = wording == "short"
    see, see_an = ("", "") if short else ("You see a ", "You see an ")
    carry, nothing = ("carrying ", "nothing") if short else ("You carry a ", "You see nothing")
    things = [f"{see}{color} {kind}" for color in colors for kind in kinds]
    things += [f"{see}{state} {color} door" for color in colors for state in ("closed", "locked")]
    things += [f"{see_an}open {color} door" for color in colors]
    wheres = _place_texts(view_size, wording)
    longest = max(len(things), len(wheres))
    texts = [
        f"{carry}{colors[i % len(colors)]} {kinds[i % len(kinds)]}, {things[i % len(things)]}"
        f" {wheres[i % len(wheres)]}, {see}wall {wheres[i % len(wheres)]}"
        for i in range(longest)
    ]
    return [nothing, *texts]

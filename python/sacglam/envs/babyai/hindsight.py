"""Hindsight goals of an episode: which missions the last step would have accomplished.

A goal's text is the one that minigrid would have given to it as the mission of this very episode
(`ObjDesc.surface`): "the red ball" if one object fits at the episode's start, "a red ball" if
several do, and places ("on your left") are those seen from where the agent started. Its meaning is
that of minigrid's verifiers, with three corrections towards the words: an object that was picked up
is no longer "there" for "go to"; being at a goal counts when it becomes true, not at every step
that it stays so; and pairs that minigrid would not draw for "put next" (already together at the
start, or one description fitting both objects) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from sacglam.envs.babyai.grammar import (
    AFTER,
    AND,
    GO_TO,
    LOCATIONS,
    OPEN,
    PICK_UP,
    PUT_NEXT,
    THEN,
    Grammar,
)
from sacglam.envs.babyai.view import FORWARD, RIGHT

_KINDS_OF_OBJECTS = ("key", "ball", "box", "door")
# A sequence is derived with each of the latest two earlier accomplishments: what is left out is
# true as well, but would grow with the square of the episode's length.
_SEQUENCE_MEMORY = 2


class _Key(NamedTuple):
    """A description of objects: `ObjDesc`'s fields."""

    kind: str | None
    color: str | None
    location: str | None


class GoalBook:
    """Derives goals in one episode; made right after the level's reset."""

    def __init__(self, level: Any, grammar: Grammar) -> None:
        self._grammar = grammar
        self._width = level.grid.width
        self._position: dict[int, tuple[int, int]] = {}
        self._object: dict[int, Any] = {}  # keeps the objects alive, so that ids stay theirs
        self._fits: dict[_Key, list[int]] = {}
        self._keys: dict[int, list[_Key]] = {}
        self._texts: dict[tuple[str, int], tuple[str, ...]] = {}
        self._latest: dict[str, int] = {}  # clause -> number of the step that last accomplished it
        self._count = 0
        self._read(level)

    def _read(self, level: Any) -> None:
        placed = [
            (thing, index % self._width, index // self._width)
            for index, thing in enumerate(level.grid.grid)
            if thing is not None and thing.type in _KINDS_OF_OBJECTS
        ]
        if level.carrying is not None:
            # Some levels put an object of their mission into the agent's hands on reset.
            x, y = level.carrying.init_pos
            placed.append((level.carrying, int(x), int(y)))
        ax, ay = int(level.agent_pos[0]), int(level.agent_pos[1])
        needs_location = any(form.location for form in self._grammar.forms)
        room = level.room_from_pos(ax, ay) if needs_location else None
        forward, right = FORWARD[level.agent_dir], RIGHT[level.agent_dir]
        for thing, x, y in placed:
            locations: list[str] = []
            if room is not None and room.pos_inside(x, y):
                ahead = (x - ax) * forward[0] + (y - ay) * forward[1]
                side = (x - ax) * right[0] + (y - ay) * right[1]
                if side:
                    locations.append("right" if side > 0 else "left")
                if ahead:
                    locations.append("front" if ahead > 0 else "behind")
            self._position[id(thing)] = (x, y)
            self._object[id(thing)] = thing
            keys = self._keys[id(thing)] = []
            for form in self._grammar.forms:
                for location in locations if form.location else (None,):
                    keys.append(
                        _Key(
                            thing.type if form.kind else None,
                            thing.color if form.color else None,
                            location,
                        )
                    )
            for key in keys:
                self._fits.setdefault(key, []).append(id(thing))

    def after_step(
        self, action: str, before: Any, after: Any, carried: Any, level: Any
    ) -> list[str]:
        """Goals that the step newly satisfied, without repetition.

        Args:
            action: what was done.
            before: the object in front of the agent before the step, or None.
            after: likewise after the step.
            carried: what the agent held before the step, or None.
            level: minigrid's level after the step.
        """
        carrying = level.carrying
        kinds = self._grammar.kinds
        self._count += 1
        goals: list[str] = []
        clauses: list[str] = []  # the same accomplishments in the fullest form, for sequences
        if after is not None and after is not before and GO_TO in kinds:
            texts = self._simple(GO_TO, after)
            if before is not None:
                stayed = self._simple(GO_TO, before)
                texts = tuple(text for text in texts if text not in stayed)
            goals += texts
            clauses += texts[:1]
        if action == "pick up":
            if PICK_UP in kinds and carried is None and carrying is not None:
                texts = self._simple(PICK_UP, carrying)
                goals += texts
                clauses += texts[:1]
        elif action == "toggle":
            if OPEN in kinds and after is not None and after.type == "door" and after.is_open:
                texts = self._simple(OPEN, after)
                goals += texts
                clauses += texts[:1]
        elif action == "drop":
            if PUT_NEXT in kinds and carried is not None and carrying is None:
                for neighbour in self._neighbours(level):
                    texts = tuple(self._put_next(carried, neighbour))
                    goals += texts
                    clauses += texts[:1]
        if clauses and self._grammar.connectives:
            goals += self._sequences(clauses)
        return list(dict.fromkeys(goals))

    def _simple(self, instruction: str, thing: Any) -> tuple[str, ...]:
        """Texts of a one-object instruction for a thing; none for what was hidden at the start."""
        cached = self._texts.get((instruction, id(thing)))
        if cached is None:
            keys = self._keys.get(id(thing), [])
            cached = tuple(f"{instruction} {self._surface(key)}" for key in keys)
            self._texts[instruction, id(thing)] = cached
        return cached

    def _surface(self, key: _Key) -> str:
        # To minigrid the walls are grey objects, so that there never is just one grey object.
        several = len(self._fits[key]) > 1 or (key.kind is None and key.color == "grey")
        words = ["a" if several else "the"]
        if key.color:
            words.append(key.color)
        words.append(key.kind or "object")
        if key.location:
            words.append(LOCATIONS[key.location])
        return " ".join(words)

    def _neighbours(self, level: Any) -> Iterator[Any]:
        """The things beside the cell in front of the agent, where something was just dropped."""
        dx, dy = FORWARD[level.agent_dir]
        x, y = int(level.agent_pos[0]) + dx, int(level.agent_pos[1]) + dy
        for nx, ny in FORWARD:
            # Dropping needs a free cell and the rim of the grid is wall: no index leaves the grid.
            thing = level.grid.grid[(y + ny) * self._width + x + nx]
            if thing is not None and id(thing) in self._keys:
                yield thing

    def _put_next(self, moved: Any, fixed: Any) -> Iterator[str]:
        """All pairs of descriptions of which at least one is in the level's fullest form."""
        for i, move_key in enumerate(self._keys.get(id(moved), [])):
            for j, fixed_key in enumerate(self._keys[id(fixed)]):
                if (i == 0 or j == 0) and self._can_be_asked(move_key, fixed_key):
                    yield f"put {self._surface(move_key)} next to {self._surface(fixed_key)}"

    def _can_be_asked(self, move_key: _Key, fixed_key: _Key) -> bool:
        for a in self._fits[move_key]:
            ax, ay = self._position[a]
            for b in self._fits[fixed_key]:
                bx, by = self._position[b]
                if abs(ax - bx) + abs(ay - by) <= 1:
                    return False
        return True

    def _sequences(self, clauses: list[str]) -> list[str]:
        """Pairs of an earlier clause and a present one, each pair once per earlier clause.

        An earlier clause counts if it came after the present one's previous time: otherwise the
        pair had been completed then.
        """
        goals = []
        recent = sorted(self._latest.items(), key=lambda item: -item[1])
        for second in clauses:
            previous = self._latest.get(second, 0)
            earlier = [c for c, count in recent if count > previous and c != second]
            for first in earlier[:_SEQUENCE_MEMORY]:
                if THEN in self._grammar.connectives:
                    goals.append(f"{first}, then {second}")
                if AFTER in self._grammar.connectives:
                    goals.append(f"{second} after you {first}")
                if AND in self._grammar.connectives:
                    goals += [f"{first} and {second}", f"{second} and {first}"]
        for clause in clauses:
            self._latest[clause] = self._count
        return goals

"""Which sentences of the baby language each level's missions are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sacglam.envs.babyai.levels import import_minigrid

GO_TO, PICK_UP, OPEN, PUT_NEXT = "go to", "pick up", "open", "put next"
KINDS = (GO_TO, PICK_UP, OPEN, PUT_NEXT)
THEN, AFTER, AND = "then", "after", "and"

COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
PORTABLE = ("key", "ball", "box")
LOCATIONS = {
    "left": "on your left",
    "right": "on your right",
    "front": "in front of you",
    "behind": "behind you",
}


@dataclass(frozen=True)
class Form:
    """What a description of objects mentions: "the red ball on your left" has all three."""

    kind: bool
    color: bool
    location: bool = False


@dataclass(frozen=True)
class Grammar:
    """Instructions, forms of description (the fullest first) and connectives that a level draws."""

    kinds: tuple[str, ...]
    forms: tuple[Form, ...]
    connectives: tuple[str, ...] = ()


FULL = Form(kind=True, color=True)
KIND_ONLY = Form(kind=True, color=False)
COLOR_ONLY = Form(kind=False, color=True)
KIND_PLACED = Form(kind=True, color=False, location=True)
FULL_PLACED = Form(kind=True, color=True, location=True)

_GO_TO = Grammar((GO_TO,), (FULL,))
_PICK_UP = Grammar((PICK_UP,), (FULL,))
_PICK_UP_KIND = Grammar((PICK_UP,), (KIND_ONLY,))
_OPEN = Grammar((OPEN,), (FULL,))
_OPEN_KIND = Grammar((OPEN,), (KIND_ONLY,))
_PUT_NEXT = Grammar((PUT_NEXT,), (FULL,))

# By the name of minigrid's level class: what its `gen_mission` can draw.
_BY_CLASS = {
    "GoToRedBallGrey": _GO_TO,
    "GoToRedBall": _GO_TO,
    "GoToObj": _GO_TO,
    "GoToLocal": _GO_TO,
    "GoTo": _GO_TO,
    "GoToImpUnlock": _GO_TO,
    "GoToRedBlueBall": _GO_TO,
    "GoToDoor": _GO_TO,
    "GoToObjDoor": _GO_TO,
    "Open": _OPEN,
    "OpenRedDoor": _OPEN,
    "OpenTwoDoors": Grammar((OPEN,), (FULL,), (THEN,)),
    "OpenDoorsOrder": Grammar((OPEN,), (FULL,), (THEN, AFTER)),
    "Pickup": _PICK_UP,
    "UnblockPickup": _PICK_UP,
    "PickupDist": Grammar((PICK_UP,), (FULL, KIND_ONLY, COLOR_ONLY)),
    "PickupAbove": _PICK_UP,
    "PutNextLocal": _PUT_NEXT,
    "PutNext": _PUT_NEXT,
    "MoveTwoAcross": Grammar((PUT_NEXT,), (FULL,), (THEN,)),
    "Unlock": _OPEN,
    "UnlockLocal": _OPEN_KIND,
    "KeyInBox": _OPEN_KIND,
    "UnlockPickup": _PICK_UP,
    "BlockedUnlockPickup": _PICK_UP_KIND,
    "UnlockToUnlock": _PICK_UP_KIND,
    "ActionObjDoor": Grammar((GO_TO, PICK_UP, OPEN), (FULL,)),
    "FindObjS5": _PICK_UP_KIND,
    "KeyCorridor": _PICK_UP_KIND,
    "OneRoomS8": _PICK_UP_KIND,
}
_LEVELGEN_KINDS = {"goto": GO_TO, "pickup": PICK_UP, "open": OPEN, "putnext": PUT_NEXT}
_OPEN_DOOR_FORMS = {None: (FULL, KIND_PLACED), "color": (FULL,), "loc": (KIND_PLACED,)}


def grammar_of(level: Any) -> Grammar:
    """The grammar of a level that has just been reset.

    A level unknown here (of a later minigrid, or registered by somebody else) is taken to speak as
    its present mission does.
    """
    # The bases' names, too: GoToRedBallNoDists is a GoToRedBall.
    names = [cls.__name__ for cls in type(level).__mro__]
    for name in names:
        if name in _BY_CLASS:
            return _BY_CLASS[name]
    if "OpenDoor" in names:
        return Grammar((OPEN,), _OPEN_DOOR_FORMS[level.select_by])
    if "LevelGen" in names:
        placed = (FULL_PLACED, KIND_PLACED) if level.locations else ()
        also = (AND,) if "and" in level.instr_kinds else ()
        ordered = (THEN, AFTER) if "seq" in level.instr_kinds else ()
        kinds = tuple(_LEVELGEN_KINDS[kind] for kind in level.action_kinds)
        return Grammar(kinds, (FULL, KIND_ONLY, *placed), (*also, *ordered))
    return _grammar_of_mission(level.instrs)


def _grammar_of_mission(instruction: Any) -> Grammar:
    verifier = import_minigrid("minigrid.envs.babyai.core.verifier")
    kind_of = {
        verifier.GoToInstr: GO_TO,
        verifier.PickupInstr: PICK_UP,
        verifier.OpenInstr: OPEN,
        verifier.PutNextInstr: PUT_NEXT,
    }
    connective_of = {
        verifier.BeforeInstr: THEN,
        verifier.AfterInstr: AFTER,
        verifier.AndInstr: AND,
    }
    kinds: dict[str, None] = {}
    forms: dict[Form, None] = {}
    connectives: dict[str, None] = {}
    for part in _parts(instruction):
        if type(part) in connective_of:
            connectives[connective_of[type(part)]] = None
        elif type(part) in kind_of:
            kinds[kind_of[type(part)]] = None
        for attribute in ("desc", "desc_move", "desc_fixed"):
            desc = getattr(part, attribute, None)
            if desc is not None:
                form = Form(desc.type is not None, desc.color is not None, desc.loc is not None)
                forms[form] = None
    return Grammar(tuple(kinds), tuple(forms), tuple(connectives))


def _parts(instruction: Any) -> Iterator[Any]:
    yield instruction
    for attribute in ("instr_a", "instr_b"):
        part = getattr(instruction, attribute, None)
        if part is not None:
            yield from _parts(part)


def family_of(goal: str) -> str | None:
    """The family of a goal's text, or None if it is no sentence of the baby language."""
    if ", then " in goal or " after you " in goal or " and " in goal:
        return "Sequence"
    for start, family in (
        ("go to ", "Go to"),
        ("pick up ", "Pick up"),
        ("open ", "Open"),
        ("put ", "Put next"),
    ):
        if goal.startswith(start):
            return family
    return None


def goal_vocabulary() -> list[str]:
    """Missions that together contain every word of every mission."""
    texts = []
    for color in COLORS:
        for kind in PORTABLE:
            texts.append(f"go to the {color} {kind}, then pick up a {color} {kind}")
            texts.append(f"put a {color} {kind} next to the {color} {kind}")
        texts.append(f"open the {color} door and go to a {color} door")
        texts.append(f"pick up the {color} object")
    for place in LOCATIONS.values():
        texts.append(f"open a door {place} after you go to the ball {place}")
    return texts

"""The rules of the world. State, actions, and what happened; it knows nothing of goals.

The agent stands on one object of the scene or on nothing, and holds up to two.

    Go to X       stand on X
    Grasp         hold what one stands on (furniture and babies too); then one stands on nothing
    Release X     put X down. On a young thing that eats X, X is consumed and the thing grows
    Release all   put down both held things at once, which is how a big animal is fed

A seed takes water, a young herbivore a grown plant, a young carnivore a grown herbivore; big
animals take two of them, released together. Food must be released onto the eater: a seed that is
put down on water does not grow (in the authors' simulation it does). What is put down without
being eaten lies in the scene again; somebody who stood on nothing then stands on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sacglam.envs.playground.objects import FOOD, ObjectSpec

HANDS = 2

GRASP = "Grasp"
GO_TO = "Go to "
RELEASE = "Release "
RELEASE_ALL = "Release all"


class Thing:
    """An object in a scene: its spec and what changes about it."""

    __slots__ = ("spec", "grown", "present", "name", "go_to", "release")

    def __init__(self, spec: ObjectSpec) -> None:
        self.spec = spec
        self.grown = False
        self.present = True  # lies in the scene: neither held nor consumed
        self._rename(spec.young)

    def _rename(self, name: str) -> None:
        self.name = name
        self.go_to = GO_TO + name
        self.release = RELEASE + name

    def grow(self) -> None:
        """From "baby red lion" to "red lion"."""
        self.grown = True
        self._rename(self.spec.text)

    def feeds(self, eater: Thing) -> bool:
        """Whether this, released onto `eater`, is food for it."""
        spec = self.spec
        return (
            not eater.grown
            and FOOD.get(eater.spec.category) == spec.category
            and (self.grown or spec.need == 0)
        )


class World:
    """A scene and the agent in it.

    Attributes:
        things: every object of the scene in the order of the observation, also held and
            consumed ones.
        on: what the agent stands on.
        held: what it holds, oldest first.
        menu: admissible action -> the object meant (None for "Grasp" and "Release all"). Of
            several objects with the same text, the first in the scene's order is meant.
    """

    __slots__ = ("things", "on", "held", "menu")

    def __init__(self, specs: Sequence[ObjectSpec]) -> None:
        self.things = [Thing(spec) for spec in specs]
        self.on: Thing | None = None
        self.held: list[Thing] = []
        self.menu: dict[str, Thing | None] = {}
        self._refresh()

    def _refresh(self) -> None:
        menu: dict[str, Thing | None] = {}
        on, held = self.on, self.held
        if on is not None:
            standing = on.name
            if len(held) < HANDS:
                menu[GRASP] = None
        else:
            standing = ""
        for thing in self.things:
            if thing.present and thing.name != standing and thing.go_to not in menu:
                menu[thing.go_to] = thing
        for thing in held:
            if thing.release not in menu:
                menu[thing.release] = thing
        if len(held) == HANDS:
            menu[RELEASE_ALL] = None
        self.menu = menu

    def observe(self) -> str:
        """The observation, three lines."""
        seen = ", ".join([thing.name for thing in self.things if thing.present])
        on, held = self.on, self.held
        return (
            f"You see: {seen or 'nothing'}\n"
            f"You are standing on: {'nothing' if on is None else on.name}\n"
            f"Inventory ({len(held)}/{HANDS}): "
            f"{', '.join([thing.name for thing in held]) or 'empty'}"
        )

    def act(self, action: str) -> tuple[ObjectSpec | None, ObjectSpec | None]:
        """Takes an admissible action.

        Returns:
            what was grasped by it and what has grown by it, None where nothing was.

        Raises:
            KeyError: the action is not in `menu`.
        """
        thing = self.menu[action]
        grasped = grown = None
        if action == GRASP:
            thing = self.on
            if thing is None:
                raise KeyError(action)
            thing.present = False
            self.held.append(thing)
            self.on = None
            grasped = thing.spec
        elif action == RELEASE_ALL:
            released, self.held = self.held, []
            grown = self._put_down(released)
        elif thing is None:
            raise KeyError(action)
        elif thing.present:
            self.on = thing
        else:
            self.held.remove(thing)
            grown = self._put_down([thing])
        self._refresh()
        return grasped, grown

    def _put_down(self, released: list[Thing]) -> ObjectSpec | None:
        eater = self.on
        eaten: list[Thing] = []
        if eater is not None:
            need = eater.spec.need
            foods = [thing for thing in released if thing.feeds(eater)]
            if need and len(foods) >= need:
                eaten = foods[:need]
                eater.grow()
        for thing in released:
            if thing not in eaten:
                thing.present = True
                if self.on is None:
                    self.on = thing
        return eater.spec if eater is not None and eaten else None

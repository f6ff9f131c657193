"""Goals as text: their grammar, their families, the train and test split, and which of them a
transition satisfies.

    Grasp {colour|any} {type|category}          Grow {colour|any} {type|category}
    Grow {colour|any} {type} then grasp {colour|any} {type}

Without colours there is no "any" either: `Grasp cow`, `Grow plant`. A goal is satisfied by an
event, not by a state: the grasping of a matching object, the growing of one, the grasping of the
second after the first grew in the same episode. So the reward of a Grasp or Grow goal depends on
the transition alone.

The split holds out combinations, as a test of systematic generalisation: of every second type
of a category one colour, so the type is known from its other colours. Without colours, every
third type is held out altogether. "any" and category goals are train goals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sacglam.envs.near import hint
from sacglam.envs.playground.objects import (
    CARNIVORE,
    CATEGORY_OF,
    FOOD,
    FURNITURE,
    HERBIVORE,
    PLANT,
    ObjectSpec,
)
from sacglam.errors import ConfigError

GRASP_FAMILY = "Grasp"
SEQUENTIAL_FAMILY = "Sequential"
IMPOSSIBLE_FAMILY = "Impossible"
GROW_FAMILIES = {
    PLANT: "Grow plant",
    HERBIVORE: "Grow herbivore",
    CARNIVORE: "Grow carnivore",
}
#: The families that may be asked for; "Impossible" has a switch of its own.
FAMILIES = (GRASP_FAMILY, *GROW_FAMILIES.values(), SEQUENTIAL_FAMILY)
#: The categories that goals may name.
NOUN_CATEGORIES = (FURNITURE, PLANT, HERBIVORE, CARNIVORE)

THEN = " then grasp "


@dataclass(frozen=True, slots=True)
class Phrase:
    """A description of objects: "red lion", "any plant"."""

    colour: str  # "" matches every colour
    noun: str  # a type or a category
    text: str

    @property
    def category(self) -> str:
        """The category of everything that matches."""
        return CATEGORY_OF.get(self.noun, self.noun)

    def matches(self, spec: ObjectSpec) -> bool:
        """Whether an object, young or grown, is described by this."""
        return (not self.colour or self.colour == spec.colour) and self.noun in (
            spec.type,
            spec.category,
        )


@dataclass(frozen=True, slots=True)
class Goal:
    """A parsed goal. `grow` or `grasp` may be None, not both; with both, grow comes first."""

    text: str
    family: str
    grow: Phrase | None
    grasp: Phrase | None


class GoalSpace:
    """All goals over some colours and types.

    Args:
        specs: every object that may occur, see `make_specs`.
        families: the families whose goals are listed.
        categories: whether goals may name categories ("any plant"). Sequential goals never do.
        impossible: also list goals to grow furniture, as the family "Impossible".

    Raises:
        ConfigError: a family is unknown, or lacks a type that it needs.
    """

    def __init__(
        self,
        specs: Sequence[ObjectSpec],
        families: Sequence[str],
        *,
        categories: bool = True,
        impossible: bool = False,
    ) -> None:
        for family in families:
            if family not in FAMILIES:
                raise ConfigError(f"unknown goal family {family!r}; {hint(family, FAMILIES)}")
        self.specs = tuple(specs)
        self.families = (*families, *([IMPOSSIBLE_FAMILY] if impossible else []))
        self.colours = tuple(dict.fromkeys(spec.colour for spec in specs if spec.colour))
        self.types = tuple(dict.fromkeys(spec.type for spec in specs))
        present = {spec.category for spec in specs}
        nouns = self.types + tuple(c for c in NOUN_CATEGORIES if c in present)
        self._phrases = {phrase.text: phrase for noun in nouns for phrase in self._forms(noun)}
        self._held_out = self._hold_out()
        self._remembered: dict[tuple[ObjectSpec | None, ObjectSpec | None, bool], list[str]] = {}
        self.train: list[str] = []
        self.test: list[str] = []
        for goal in self._enumerate(categories):
            if goal.family in self.families:
                (self.test if self._is_held_out(goal) else self.train).append(goal.text)
        self._listed = frozenset(self.train) | frozenset(self.test)
        for goal in map(self.parse, self.train):
            eater = goal.grow.category if goal.grow else ""
            while eater in FOOD and goal.family != IMPOSSIBLE_FAMILY:
                if FOOD[eater] not in present:
                    raise ConfigError(
                        f"the goal {goal.text!r} cannot be reached: a {eater} needs "
                        f"{FOOD[eater]}, and no such type is in types={list(self.types)}; add one"
                    )
                eater = FOOD[eater]
        for family in self.families:
            if not any(self.family(goal) == family for goal in self.train):
                raise ConfigError(
                    f"no goal of the family {family!r} exists with the types "
                    f"{list(self.types)}; add a type that it needs or leave the family out"
                )

    def _forms(self, noun: str) -> list[Phrase]:
        if not self.colours:
            return [Phrase("", noun, noun)]
        return [
            Phrase("", noun, f"any {noun}"),
            *(Phrase(colour, noun, f"{colour} {noun}") for colour in self.colours),
        ]

    def _hold_out(self) -> frozenset[tuple[str, str]]:
        held_out = set()
        for category in NOUN_CATEGORIES:
            names = [name for name in self.types if CATEGORY_OF[name] == category]
            if self.colours and len(self.colours) > 1:
                for index, name in enumerate(names[::2]):
                    held_out.add((self.colours[index % len(self.colours)], name))
            elif not self.colours:
                held_out.update(("", name) for name in names[2::3])
        return frozenset(held_out)

    def _is_held_out(self, goal: Goal) -> bool:
        return any(
            phrase is not None and (phrase.colour, phrase.noun) in self._held_out
            for phrase in (goal.grow, goal.grasp)
        )

    def _enumerate(self, categories: bool) -> list[Goal]:
        listed = [p for p in self._phrases.values() if categories or p.noun in CATEGORY_OF]
        goals = [self._goal(None, phrase) for phrase in listed]
        goals += [
            self._goal(phrase, None)
            for phrase in listed
            if phrase.category in FOOD or phrase.category == FURNITURE
        ]
        if SEQUENTIAL_FAMILY in self.families:
            typed = [p for p in self._phrases.values() if p.noun in self.types]
            goals += [
                self._goal(first, second)
                for first in typed
                if first.category in FOOD
                for second in typed
                if first != second
            ]
        return goals

    def _goal(self, grow: Phrase | None, grasp: Phrase | None) -> Goal:
        if grow is None and grasp is not None:
            return Goal(f"Grasp {grasp.text}", GRASP_FAMILY, None, grasp)
        if grow is None:
            raise ValueError("a goal needs something to grow or to grasp")
        if grasp is None:
            family = GROW_FAMILIES.get(grow.category, IMPOSSIBLE_FAMILY)
            return Goal(f"Grow {grow.text}", family, grow, None)
        return Goal(f"Grow {grow.text}{THEN}{grasp.text}", SEQUENTIAL_FAMILY, grow, grasp)

    def parse(self, text: str) -> Goal:
        """The goal that a text means. Goals outside the listed ones are fine when they follow the
        grammar over the same colours and types, such as `Grow any table`.

        Raises:
            ConfigError: the text is no goal here; near matches are named.
        """
        if not isinstance(text, str):
            raise ConfigError(f"a goal is a text, not a {type(text).__name__}")
        verb, _, rest = text.partition(" ")
        first, then, second = rest.partition(THEN)
        phrase = self._phrases.get(first)
        last = self._phrases.get(second)
        if phrase is not None and verb == "Grasp" and not then:
            return self._goal(None, phrase)
        if phrase is not None and verb == "Grow" and (not then or last is not None):
            return self._goal(phrase, last)
        raise ConfigError(f"{text!r} is not a goal here; {hint(text, [*self.train, *self.test])}")

    def family(self, text: str) -> str:
        """The family of a goal's text."""
        return self.parse(text).family

    def satisfied(
        self,
        grasped: ObjectSpec | None,
        grown: ObjectSpec | None,
        grown_before: Sequence[ObjectSpec],
        *,
        train_only: bool,
    ) -> list[str]:
        """The listed goals that a transition satisfies, without repetition.

        Args:
            grasped: what the transition grasped.
            grown: what grew by it.
            grown_before: what grew earlier in the episode.
            train_only: leave the held-out goals away.
        """
        texts: list[str] = []
        if grasped is not None:
            texts += self._events(None, grasped, train_only)
            if SEQUENTIAL_FAMILY in self.families:
                for spec in grown_before:
                    texts += self._events(spec, grasped, train_only)
        if grown is not None:
            texts += self._events(grown, None, train_only)
        return list(dict.fromkeys(texts)) if grown_before else texts

    def _events(
        self, grown: ObjectSpec | None, grasped: ObjectSpec | None, train_only: bool
    ) -> list[str]:
        """The listed goals satisfied by these events, in this order. Remembered: it is asked for
        at every grasp, and there are only as many answers as (pairs of) objects."""
        key = (grown, grasped, train_only)
        texts = self._remembered.get(key)
        if texts is None:
            firsts: list[Phrase | None] = [None] if grown is None else [*self._matching(grown)]
            seconds: list[Phrase | None] = [None] if grasped is None else [*self._matching(grasped)]
            known = frozenset(self.train) if train_only else self._listed
            goals = [self._goal(first, second).text for first in firsts for second in seconds]
            texts = self._remembered[key] = [text for text in goals if text in known]
        return texts

    def _matching(self, spec: ObjectSpec) -> list[Phrase]:
        return [phrase for phrase in self._phrases.values() if phrase.matches(spec)]

"""Scenes for goals: which objects lie there, and how long the goal takes at best."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sacglam.envs.playground.goals import Goal, GoalSpace, Phrase
from sacglam.envs.playground.objects import (
    CARNIVORE,
    CATEGORY_OF,
    FOOD,
    HERBIVORE,
    PLANT,
    WATER,
    ObjectSpec,
)

#: Fewest steps to grasp an object of the scene from its start: go there, grasp.
GRASP_STEPS = 2
#: Fewest steps to grow something from the start of a scene, where all is young and on the floor;
#: the tests check them against a search. Herbivores by the plants that they eat, carnivores by
#: the plants that each of their herbivores eats.
PLANT_STEPS = 4
HERBIVORE_STEPS = {1: 7, 2: 12}
CARNIVORE_STEPS = {(1,): 10, (2,): 15, (1, 1): 18, (1, 2): 23, (2, 2): 29}


class SceneMaker:
    """Draws scenes in which a goal can be reached, or cannot.

    Args:
        space: the goals and the objects that may occur.
        n_objects: objects in a scene; more where a goal needs more.
        always: categories of which every scene holds at least one object.
        unique: avoid equal objects, beyond those that a goal needs.
    """

    def __init__(
        self, space: GoalSpace, *, n_objects: int, always: Sequence[str], unique: bool
    ) -> None:
        self._n_objects = n_objects
        self._always = tuple(always)
        self._unique = unique
        by_category: dict[str, list[ObjectSpec]] = {}
        for spec in space.specs:
            by_category.setdefault(spec.category, []).append(spec)
        self._by_category = by_category
        self._categories = tuple(by_category)
        self._specs = space.specs

    def scene(self, goal: Goal, rng: random.Random) -> list[ObjectSpec]:
        """A scene in which `goal` can be reached (or would be, if its object could grow)."""
        scene = self._needed(goal, rng)
        present = {spec.category for spec in scene}
        for category in self._always:
            if category not in present:
                scene.append(self._draw(rng, scene, lambda spec: True, category))
        while len(scene) < self._n_objects:
            scene.append(self._draw(rng, scene, lambda spec: True))
        rng.shuffle(scene)
        return scene

    def hopeless_scene(self, goal: Goal, rng: random.Random) -> list[ObjectSpec]:
        """A scene without the object that `goal` asks for (for a sequential goal, the first)."""
        phrase = goal.grow or goal.grasp

        def allowed(spec: ObjectSpec) -> bool:
            return phrase is None or not phrase.matches(spec)

        scene: list[ObjectSpec] = []
        for category in self._always:
            if any(allowed(spec) for spec in self._by_category[category]):
                scene.append(self._draw(rng, scene, allowed, category))
        while len(scene) < self._n_objects:
            scene.append(self._draw(rng, scene, allowed))
        rng.shuffle(scene)
        return scene

    def _draw(
        self,
        rng: random.Random,
        scene: list[ObjectSpec],
        allowed: Callable[[ObjectSpec], bool],
        category: str | None = None,
    ) -> ObjectSpec:
        """One more object: first a category, so that water is not drowned by the many animals."""
        for _ in range(64):
            spec = rng.choice(self._by_category[category or rng.choice(self._categories)])
            if allowed(spec) and not (self._unique and spec in scene):
                return spec
        # Nearly everything is taken or forbidden: settle for any allowed one.
        return rng.choice([spec for spec in self._specs if allowed(spec)] or list(self._specs))

    def _needed(self, goal: Goal, rng: random.Random) -> list[ObjectSpec]:
        scene: list[ObjectSpec] = []
        if goal.grow is not None:
            target = self._choose(goal.grow, rng)
            scene.append(target)
            self._add_food(target, scene, rng)
            # The second object must outlive the growing, so it is none of the foods.
            if goal.grasp is not None and not goal.grasp.matches(target):
                scene.append(self._choose(goal.grasp, rng))
        elif goal.grasp is not None:
            scene.append(self._choose(goal.grasp, rng))
        return scene

    def _choose(self, phrase: Phrase, rng: random.Random) -> ObjectSpec:
        return rng.choice(
            [spec for spec in self._by_category[phrase.category] if phrase.matches(spec)]
        )

    def _add_food(self, eater: ObjectSpec, scene: list[ObjectSpec], rng: random.Random) -> None:
        food = FOOD.get(eater.category)
        if food is None:
            return
        choices = self._by_category.get(food, [])
        # Small food is enough, and keeps the scene small.
        choices = [spec for spec in choices if spec.need < 2] or choices
        for _ in range(eater.need if choices else 0):
            spec = rng.choice(choices)
            scene.append(spec)
            self._add_food(spec, scene, rng)


def optimum(goal: Goal, scene: Sequence[ObjectSpec]) -> int | None:
    """Fewest steps to `goal` from the start of `scene`, or None where it cannot be reached."""
    best: int | None = None
    if goal.grow is None:
        if goal.grasp is not None and any(goal.grasp.matches(spec) for spec in scene):
            return GRASP_STEPS
        return None
    for index, target in enumerate(scene):
        if not target.need or not goal.grow.matches(target):
            continue
        others = [*scene[:index], *scene[index + 1 :]]
        for steps, left in _grow_steps(target, others):
            total = steps
            if goal.grasp is not None:
                if goal.grasp.matches(target):
                    total += 1  # one stands on it, with free hands
                elif _survivor(goal.grasp, others, left):
                    total += GRASP_STEPS
                else:
                    continue
            best = total if best is None else min(best, total)
    return best


def nominal_optimum(goal: Goal) -> int:
    """What `optimum` would be if all that is needed were there: gives a time limit to goals that
    cannot be reached. For furniture, as for a plant."""
    extra = GRASP_STEPS if goal.grow is not None and goal.grasp is not None else 0
    if goal.grow is None:
        return GRASP_STEPS
    category = goal.grow.category
    if category == HERBIVORE:
        return HERBIVORE_STEPS[1] + extra
    if category == CARNIVORE:
        return CARNIVORE_STEPS[(1,)] + extra
    return PLANT_STEPS + extra


def _grow_steps(
    target: ObjectSpec, others: Sequence[ObjectSpec]
) -> list[tuple[int, dict[str, int]]]:
    """Ways to grow `target`: (steps, foods used up, by category; big herbivores as "big")."""
    water = sum(spec.category == WATER for spec in others)
    plants = sum(spec.category == PLANT for spec in others)
    if target.category == PLANT:
        return [(PLANT_STEPS, {WATER: 1})] if water >= 1 else []
    if target.category == HERBIVORE:
        need = target.need
        if min(water, plants) < need:
            return []
        return [(HERBIVORE_STEPS[need], {WATER: need, PLANT: need})]
    ways = []
    small = sum(spec.category == HERBIVORE and spec.need == 1 for spec in others)
    big = sum(spec.category == HERBIVORE and spec.need == 2 for spec in others)
    for foods, steps in CARNIVORE_STEPS.items():
        use = sum(foods)
        if (
            len(foods) == target.need
            and foods.count(1) <= small
            and foods.count(2) <= big
            and use <= min(water, plants)
        ):
            eaten = {WATER: use, PLANT: use, HERBIVORE: foods.count(1), "big": foods.count(2)}
            ways.append((steps, eaten))
    return ways


def _survivor(phrase: Phrase, others: Sequence[ObjectSpec], eaten: dict[str, int]) -> bool:
    """Whether something that matches `phrase` can be left when `eaten` is gone."""
    for kind in _kinds(phrase):
        same = [spec for spec in others if _kind(spec) == kind]
        matching = sum(phrase.matches(spec) for spec in same)
        # Those that do not match are eaten first.
        if matching and len(same) - eaten.get(kind, 0) >= 1:
            return True
    return False


def _kind(spec: ObjectSpec) -> str:
    return "big" if spec.category == HERBIVORE and spec.need == 2 else spec.category


def _kinds(phrase: Phrase) -> tuple[str, ...]:
    category = CATEGORY_OF.get(phrase.noun, phrase.noun)
    return (HERBIVORE, "big") if category == HERBIVORE else (category,)

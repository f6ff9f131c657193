"""The expert: shortest plans by uniform-cost search over an abstraction of the world.

Objects that play the same part for a goal are interchangeable, and what plays none is left away,
so a state is a handful of small numbers: the parts that lie on the floor, the part stood on, the
parts held. Moves are "take" (go there and grasp) and "feed" (go there and release), which cost a
step less when one stands there already, and "drop". Plans are remembered, so that most calls are
a look-up.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sacglam.envs.playground.goals import Goal
from sacglam.envs.playground.objects import (
    CARNIVORE,
    FOOD,
    HERBIVORE,
    PLANT,
    WATER,
    ObjectSpec,
)
from sacglam.envs.playground.world import GO_TO, GRASP, HANDS, RELEASE, RELEASE_ALL, Thing, World


class Part(NamedTuple):
    """What an object is to a plan. Equal parts are interchangeable."""

    category: str  # "" for what plays no part
    need: int  # foods at once; 0: grown, or it never grows
    target: bool  # its growing is what the goal waits for
    prize: bool  # grasping it is what the goal ends with

    def feeds(self, eater: Part) -> bool:
        """Whether this is food for `eater`."""
        return eater.need > 0 and self.need == 0 and FOOD.get(eater.category) == self.category


NO_PART = Part("", 0, False, False)


class State(NamedTuple):
    """An abstract state. `chain` are the categories whose growing helps now."""

    floor: tuple[Part, ...]  # sorted; holds `on` too, unless that is None or NO_PART
    on: Part | None
    held: tuple[Part, ...]  # sorted
    chain: tuple[str, ...]  # ends with the target's category; empty: nothing is left to grow
    then: bool  # the goal ends with grasping a prize


class Move(NamedTuple):
    """The first step of a plan: "Go to " or "Release " a part, or a whole action."""

    verb: str
    part: Part | None = None


Plan = tuple[int, Move]  # steps to the goal, first step


class Planner:
    """Shortest plans for goals, remembered from call to call.

    Args:
        memory: states to remember, before starting afresh.
    """

    def __init__(self, memory: int = 200_000) -> None:
        self._memory = memory
        self._plans: dict[State, Plan | None] = {}

    def steps(self, world: World, goal: Goal, grown: Sequence[ObjectSpec]) -> int | None:
        """Fewest steps to `goal`, or None where it cannot be reached.

        Args:
            world: the world now.
            goal: the goal, not yet reached.
            grown: what has grown so far in the episode.
        """
        plan = self._plan(_abstract(world, goal, grown))
        return None if plan is None else plan[0]

    def action(self, world: World, goal: Goal, grown: Sequence[ObjectSpec]) -> str:
        """The first action of a shortest plan; the first possible action where there is none."""
        plan = self._plan(_abstract(world, goal, grown))
        if plan is None:
            return next(iter(world.menu))
        move = plan[1]
        if move.part is None:
            return move.verb
        chain = _chain(goal, grown)
        for text, thing in world.menu.items():
            if thing is not None and text.startswith(move.verb):
                if _part(thing, goal, chain) == move.part:
                    return text
        raise RuntimeError(f"no action fits the planned move {move}; this is a bug")

    def _plan(self, start: State) -> Plan | None:
        if start in self._plans:
            return self._plans[start]
        if len(self._plans) > self._memory:
            self._plans.clear()
        came: dict[State, tuple[State, int, Move]] = {}
        best = {start: 0}
        queue: list[tuple[int, int, State]] = [(0, 0, start)]
        order = 0
        while queue:
            cost, _, state = heapq.heappop(queue)
            if cost > best[state]:
                continue
            if state is _DONE:
                return self._remember(start, came, cost)
            for price, move, after in _moves(state):
                total = cost + price
                if after not in best or total < best[after]:
                    best[after] = total
                    came[after] = (state, total, move)
                    order += 1
                    heapq.heappush(queue, (total, order, after))
        self._plans[start] = None
        return None

    def _remember(
        self, start: State, came: dict[State, tuple[State, int, Move]], cost: int
    ) -> Plan:
        state = _DONE
        while state is not start:
            before, _, move = came[state]
            paid = came[before][1] if before in came and before is not start else 0
            self._plans[before] = (cost - paid, move)
            state = before
        plan = self._plans[start]
        if plan is None:
            raise RuntimeError("a plan was lost; this is a bug")
        return plan


_DONE = State((), None, (), ("done",), False)


def _chain(goal: Goal, grown: Sequence[ObjectSpec]) -> tuple[str, ...]:
    if goal.grow is None or (
        goal.grasp is not None and any(goal.grow.matches(spec) for spec in grown)
    ):
        return ()
    chain = [goal.grow.category]
    while chain[0] in FOOD and FOOD[chain[0]] in FOOD:
        chain.insert(0, FOOD[chain[0]])
    return tuple(chain)


def _part(thing: Thing, goal: Goal, chain: tuple[str, ...]) -> Part:
    spec = thing.spec
    need = spec.need if chain and not thing.grown else 0
    prize = goal.grasp is not None and goal.grasp.matches(spec)
    target = bool(chain) and need > 0 and goal.grow is not None and goal.grow.matches(spec)
    food = bool(chain) and (spec.category == WATER or spec.category in chain[:-1])
    if not (prize or target or food):
        return NO_PART
    return Part(spec.category, need, target, prize)


def _abstract(world: World, goal: Goal, grown: Sequence[ObjectSpec]) -> State:
    chain = _chain(goal, grown)
    floor = [_part(thing, goal, chain) for thing in world.things if thing.present]
    on = None if world.on is None else _part(world.on, goal, chain)
    held = [_part(thing, goal, chain) for thing in world.held]
    return _state(floor, on, held, chain, goal.grasp is not None)


#: More than these of a part on the floor make no difference: the most that a plan uses up. A
#: big carnivore eats two herbivores, each of which may eat two plants.
_MOST = {PLANT: 1, HERBIVORE: 2, CARNIVORE: 4}


def _state(
    floor: list[Part], on: Part | None, held: list[Part], chain: tuple[str, ...], then: bool
) -> State:
    most = _MOST.get(chain[-1], 1) if chain else 0
    kept = []
    for part, count in Counter(floor).items():
        if part != NO_PART:
            kept += [part] * min(count, (1 if part.target else most) + part.prize)
    return State(tuple(sorted(kept)), on, tuple(sorted(held)), chain, then)


def _moves(state: State) -> Iterator[tuple[int, Move, State]]:
    """Steps, first step and outcome of everything worth doing."""
    floor, on, held, chain, then = state
    free = len(held) < HANDS
    for part in dict.fromkeys(floor):
        here = part == on
        cost, first = (1, None) if here else (2, Move(GO_TO, part))
        if free:
            move = first or Move(GRASP)
            if part.prize and not chain:
                yield cost, move, _DONE
            else:
                rest = list(floor)
                rest.remove(part)
                yield cost, move, _state(rest, None, [*held, part], chain, then)
        if part.need and (part.target or part.category in chain[:-1]):
            for release, foods, dropped in _meals(part, held):
                yield cost, first or release, _fed(state, part, foods, dropped)
    for part in dict.fromkeys(held):
        if on is None or not (on.need == 1 and part.feeds(on)):
            rest = list(held)
            rest.remove(part)
            yield 1, Move(RELEASE, part), _state([*floor, part], on or part, rest, chain, then)
    if len(held) == HANDS and (on is None or not any(_meals(on, held))):
        # Who stood on nothing then stands on the one held longest, which is forgotten here.
        yield 1, Move(RELEASE_ALL), _state([*floor, *held], on or NO_PART, [], chain, then)


def _meals(eater: Part, held: tuple[Part, ...]) -> Iterator[tuple[Move, list[Part], list[Part]]]:
    """Ways to feed with what is held: the release, the foods eaten, what is dropped beside."""
    foods = [part for part in held if part.feeds(eater)]
    if eater.need == 1:
        for food in dict.fromkeys(foods):
            yield Move(RELEASE, food), [food], []
        if foods and len(held) == HANDS:
            rest = list(held)
            rest.remove(foods[0])
            yield Move(RELEASE_ALL), [foods[0]], rest
    elif eater.need == len(foods) == HANDS:
        yield Move(RELEASE_ALL), foods, []


def _fed(state: State, eater: Part, foods: list[Part], dropped: list[Part]) -> State:
    floor, _, held, chain, then = state
    left = list(held)
    for part in (*foods, *dropped):
        left.remove(part)
    ground = [*floor, *dropped]
    ground.remove(eater)
    if not eater.target:
        now = Part(eater.category, 0, False, eater.prize)
        return _state([*ground, now], now, left, chain, then)
    if not then:
        return _DONE
    # What is left is a grasp, for which nothing but the prizes plays a part.
    now = _only_prize(eater)
    return _state(
        [*(_only_prize(part) for part in ground), now],
        now,
        [_only_prize(part) for part in left],
        (),
        True,
    )


def _only_prize(part: Part) -> Part:
    return Part(part.category, 0, False, True) if part.prize else NO_PART

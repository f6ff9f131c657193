"""Hindsight goals against a brute-force oracle: every instruction that the level could have drawn,
verified at every step by minigrid's own verifiers."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("minigrid")

from minigrid.core.constants import COLOR_NAMES  # noqa: E402
from minigrid.core.world_object import Ball, Box, Door, Key  # noqa: E402
from minigrid.envs.babyai.core import verifier as v  # noqa: E402
from minigrid.envs.babyai.core.roomgrid_level import RejectSampling  # noqa: E402
from sacglam.envs.babyai import ACTIONS, make_babyai  # noqa: E402

NOT_DOORS = ("key", "ball", "box")


def descriptions(kinds, colors, locations):
    return [(kind, color, location) for kind in kinds for color in colors for location in locations]


class Oracle:
    """All instructions of a level that make sense in this episode, with their verifiers."""

    def __init__(self, level, make_instructions) -> None:
        self.level = level
        self.instructions = {}
        for make in make_instructions:
            try:
                instruction = make()
                text = instruction.surface(level)
                level.validate_instrs(instruction)
            except (AssertionError, RejectSampling):  # nothing fits, or minigrid would not ask this
                continue
            instruction.reset_verifier(level)
            self.instructions[text] = instruction
        self.there = {text for text in self.instructions if self._is_there(text)}

    def _is_there(self, text: str) -> bool:
        instruction = self.instructions[text]
        return isinstance(instruction, v.GoToInstr) and instruction.verify(None) == "success"

    def new(self, action: str) -> set[str]:
        number = ACTIONS.index(action)
        goals = set()
        for text, instruction in self.instructions.items():
            # minigrid notes where things are only on "drop"; "go to" should not find what is gone.
            if action == "drop" or isinstance(instruction, v.GoToInstr):
                instruction.update_objs_poss()
            if instruction.verify(number) == "success":
                goals.add(text)
        there = {text for text in self.instructions if self._is_there(text)}
        new = goals - self.there
        self.there = there
        return new


def go_to(kinds, colors, locations=(None,)):
    return [lambda d=d: v.GoToInstr(v.ObjDesc(*d)) for d in descriptions(kinds, colors, locations)]


def pick_up(kinds, colors, locations=(None,)):
    return [
        lambda d=d: v.PickupInstr(v.ObjDesc(*d)) for d in descriptions(kinds, colors, locations)
    ]


def open_(colors, locations=(None,)):
    return [
        lambda d=d: v.OpenInstr(v.ObjDesc(*d)) for d in descriptions(("door",), colors, locations)
    ]


def put_next(kinds, colors):
    pairs = itertools.product(descriptions(kinds, colors, (None,)), repeat=2)
    return [lambda a=a, b=b: v.PutNextInstr(v.ObjDesc(*a), v.ObjDesc(*b)) for a, b in pairs]


PLACES = (None, *v.LOC_NAMES)
CASES = {
    "GoToLocal": go_to(NOT_DOORS, COLOR_NAMES),
    "GoToObjDoor": go_to((*NOT_DOORS, "door"), COLOR_NAMES),
    "PickupLoc": pick_up(NOT_DOORS, (None, *COLOR_NAMES), PLACES),
    "PickupDist": [
        *pick_up(NOT_DOORS, (None, *COLOR_NAMES)),
        *pick_up((None,), COLOR_NAMES),
    ],
    "OpenDoor": [*open_(COLOR_NAMES), *open_((None,), v.LOC_NAMES)],
    "PutNextLocal": put_next(NOT_DOORS, COLOR_NAMES),
    "ActionObjDoor": [
        *go_to((*NOT_DOORS, "door"), COLOR_NAMES),
        *pick_up(NOT_DOORS, COLOR_NAMES),
        *open_(COLOR_NAMES),
    ],
}
EPISODES = {"PutNextLocal": 25, "PickupLoc": 60, "GoToLocal": 60}


def clumsy_expert(env, rng) -> str:
    """Often the bot, so that things happen; else at random, favouring the hands where useful."""
    if rng.random() < 0.4:
        return env.expert_action()
    ahead = env.minigrid.grid.get(*env.minigrid.front_pos)
    if rng.random() < 0.4:
        if env.minigrid.carrying is not None:
            return "drop"
        if ahead is not None:
            return "toggle" if ahead.type == "door" else "pick up"
    return ACTIONS[rng.integers(6)]


@pytest.mark.parametrize("level", CASES)
def test_achieved_goals_are_those_of_the_oracle(level: str) -> None:
    env = make_babyai(level)
    rng = np.random.default_rng(1)
    seen: Counter[str] = Counter()
    for episode in range(EPISODES.get(level, 30)):
        _, info = env.reset(seed=episode)
        oracle = Oracle(env.minigrid, CASES[level])
        assert info["goal"] in oracle.instructions
        assert info["achieved_goals"] == []
        ended = False
        while not ended:
            action = clumsy_expert(env, rng)
            _, _, terminated, truncated, info = env.step(action)
            achieved = info["achieved_goals"]
            assert len(set(achieved)) == len(achieved)
            assert set(achieved) == oracle.new(action), (episode, action)
            seen.update(achieved)
            ended = terminated or truncated
    assert len(seen) >= 10


def achieved(env, *actions: str) -> list[list[str]]:
    return [env.step(action)[-1]["achieved_goals"] for action in actions]


def staged(level: str, things, carrying=None, **kwargs):
    """An episode of the level with the things at (x, y), and the agent at (2, 2) facing right.

    The mission asks for something absent, to stay out of the way.
    """
    env = make_babyai(level, **kwargs)
    inner = env.minigrid

    def gen_mission() -> None:
        inner.agent_pos, inner.agent_dir = (2, 2), 0
        for thing, x, y in things:
            inner.put_obj(thing, x, y)
        inner.put_obj(Box("purple"), 6, 6)
        inner.put_obj(Box("yellow"), 1, 6)
        a, b = v.ObjDesc("box", "purple"), v.ObjDesc("box", "yellow")
        inner.instrs = v.PutNextInstr(a, b)

    def reset(**options):
        result = type(inner).reset(inner, **options)
        inner.carrying = carrying
        return result

    inner.gen_mission, inner.reset = gen_mission, reset
    env.reset(seed=0)
    return env


def test_articles_tell_whether_one_or_several_fit() -> None:
    env = staged("GoToLocal", [(Ball("red"), 4, 2), (Ball("red"), 6, 5), (Key("blue"), 3, 3)])
    assert achieved(env, "go forward") == [["go to a red ball"]]
    env = staged("GoToLocal", [(Ball("red"), 4, 2), (Ball("green"), 6, 5)])
    assert achieved(env, "go forward") == [["go to the red ball"]]


def test_turning_from_one_to_another_of_the_same_description_is_nothing_new() -> None:
    env = staged("GoToLocal", [(Ball("red"), 4, 2), (Ball("red"), 3, 3), (Key("blue"), 3, 1)])
    assert achieved(env, "go forward", "turn right", "turn left", "turn left", "turn right") == [
        ["go to a red ball"],
        [],
        [],
        ["go to the blue key"],
        ["go to a red ball"],
    ]


def test_staying_in_front_is_nothing_new_and_what_was_picked_up_is_gone() -> None:
    env = staged("GoToLocal", [(Ball("red"), 3, 2)])
    assert achieved(env, "go forward", "pick up", "turn left", "turn right", "drop") == [
        [],
        [],
        [],
        [],
        ["go to the red ball"],
    ]


def test_putting_next_to_a_door_that_the_agent_stands_in_counts() -> None:
    box = Box("grey")
    box.init_pos = (6, 5)  # minigrid's levels that start with full hands took it from somewhere
    things = [(Door("green", is_open=True), 2, 2), (Ball("red"), 5, 5)]
    env = staged("PutNextLocal", things, carrying=box)
    assert achieved(env, "turn left", "turn right") == [[], []]
    assert achieved(env, "drop") == [["put the grey box next to the green door"]]


def test_things_together_from_the_start_are_no_goal_to_put_together() -> None:
    env = staged("PutNextLocal", [(Ball("red"), 3, 2), (Key("blue"), 3, 3), (Box("grey"), 4, 2)])
    assert achieved(env, "pick up", "drop") == [[], []]


def test_put_next_names_the_moved_thing_first() -> None:
    env = staged("PutNextLocal", [(Ball("red"), 3, 2), (Key("blue"), 5, 3), (Box("grey"), 5, 1)])
    results = achieved(env, "pick up", "go forward", "go forward", "drop")
    assert results[:3] == [[], [], []]
    assert sorted(results[3]) == [
        "put the red ball next to the blue key",
        "put the red ball next to the grey box",
    ]


def test_other_kinds_of_hindsight_only_on_request() -> None:
    for hindsight, expected in {
        "level": [["go to the red ball"], [], [], [], ["go to the red ball"]],
        "all": [
            ["go to the red ball"],
            ["pick up the red ball"],
            [],
            [],
            ["go to the red ball", "put the red ball next to the blue key"],
        ],
    }.items():
        env = staged("GoToLocal", [(Ball("red"), 4, 2), (Key("blue"), 6, 2)], hindsight=hindsight)
        plan = ("go forward", "pick up", "turn left", "turn right", "go forward", "drop")
        results = achieved(env, *plan)
        assert results[:4] == expected[:4]
        assert results[5] == expected[4]


def test_a_sequence_needs_its_first_part_anew() -> None:
    env = staged("GoToSeq", [(Ball("red"), 2, 3), (Key("blue"), 2, 1)])
    ball, key = "go to the red ball", "go to the blue key"
    results = achieved(env, "turn right", "turn left", "turn left", "turn right", "turn left")
    assert results[0] == [ball, "go to the ball"]
    assert results[2] == [
        key,
        "go to the key",
        f"{ball}, then {key}",
        f"{key} after you {ball}",
        f"{ball} and {key}",
        f"{key} and {ball}",
    ]
    assert results[4] == [key, "go to the key"]


def sequences(level, first_kind, descs):
    """All two-part sequences over descriptions, with minigrid's verifiers."""
    out = {}
    for a, b in itertools.permutations(descs, 2):
        for connective in (v.BeforeInstr, v.AfterInstr, v.AndInstr):
            instruction = connective(first_kind(v.ObjDesc(*a)), first_kind(v.ObjDesc(*b)))
            text = instruction.surface(level)
            instruction.reset_verifier(level)
            out[text] = instruction
    return out


@pytest.mark.parametrize(
    ("level", "kind"), [("OpenDoorsOrderN4", v.OpenInstr), ("GoToSeqS5R2", v.GoToInstr)]
)
def test_sequences_are_true(level: str, kind: type) -> None:
    """A sequence is only derived when minigrid's verifier, watching since the start, agrees that
    it has been accomplished."""
    env = make_babyai(level)
    rng = np.random.default_rng(0)
    derived = Counter()
    for episode in range(12):
        env.reset(seed=episode)
        state = env.minigrid
        things = {
            (c.type, c.color)
            for c in state.grid.grid
            if c is not None and c.type != "wall" and (kind is v.GoToInstr or c.type == "door")
        }
        instructions = sequences(state, kind, sorted(things))
        done: set[str] = set()
        ended = False
        while not ended:
            ahead = state.grid.get(*state.front_pos)
            at_door = ahead is not None and ahead.type == "door"
            action = "toggle" if at_door and rng.random() < 0.7 else ACTIONS[rng.integers(3)]
            _, _, terminated, truncated, info = env.step(action)
            for text, instruction in instructions.items():
                if text not in done and instruction.verify(ACTIONS.index(action)) == "success":
                    done.add(text)
            for goal in info["achieved_goals"]:
                if env.goal_family(goal) == "Sequence" and goal != info["goal"]:
                    assert goal in done
                    derived[", then" in goal, "after" in goal] += 1
            ended = terminated or truncated
    assert derived[True, False] > 5
    assert derived[False, True] > 5

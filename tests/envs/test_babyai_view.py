"""The agent's view in words: hand-placed scenes, and independent computations on random states."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("minigrid")

from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT  # noqa: E402
from minigrid.core.grid import Grid  # noqa: E402
from minigrid.core.world_object import Ball, Box, Door, Key, Wall  # noqa: E402
from sacglam.envs.babyai import ACTIONS, make_babyai  # noqa: E402
from sacglam.envs.babyai.view import TextView, places  # noqa: E402

RIGHT, DOWN, LEFT, UP = range(4)


def scene(*things: tuple[object, int, int], size: int = 9) -> Grid:
    """A walled room of `size` x `size` with things at (x, y)."""
    grid = Grid(size, size)
    grid.wall_rect(0, 0, size, size)
    for thing, x, y in things:
        grid.set(x, y, thing)
    return grid


def tell(
    grid: Grid, x: int, y: int, direction: int, carrying: object = None, wording: str = "glam"
) -> str:
    return TextView(grid.width, grid.height, 7, wording).describe(
        grid.grid, x, y, direction, carrying
    )


def test_things_are_told_in_glams_words_nearest_first() -> None:
    grid = scene((Ball("red"), 2, 3), (Key("blue"), 4, 1), (Box("green"), 5, 3))
    assert tell(grid, 4, 4, UP) == (
        "You see a green box 1 step right and 1 step forward, "
        "You see a blue key 3 steps forward, "
        "You see a red ball 2 steps left and 1 step forward"
    )


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        (RIGHT, "You see a red ball 2 steps left and 1 step forward"),
        (UP, "You see a red ball 1 step right and 2 steps forward"),
    ],
)
def test_the_same_ball_from_two_sides(direction: int, expected: str) -> None:
    assert expected in tell(scene((Ball("red"), 5, 2)), 4, 4, direction)


def test_what_is_behind_is_not_seen() -> None:
    grid = scene((Ball("red"), 5, 2))
    assert "ball" not in tell(grid, 4, 4, LEFT)
    assert "ball" not in tell(grid, 4, 4, DOWN)


def test_only_the_wall_ahead_and_those_straight_aside_are_told() -> None:
    assert tell(scene(), 2, 5, UP) == "You see a wall 2 steps left, You see a wall 5 steps forward"
    assert tell(scene(), 7, 1, RIGHT) == (
        "You see a wall 1 step forward, You see a wall 1 step left"
    )


def test_a_thing_in_between_hides_the_wall() -> None:
    grid = scene((Ball("red"), 4, 3))
    assert tell(grid, 4, 4, UP) == "You see a red ball 1 step forward"


def test_doors_are_open_closed_or_locked() -> None:
    grid = scene(
        (Door("red"), 8, 4),
        (Door("blue", is_open=True), 6, 2),
        (Door("grey", is_locked=True), 6, 6),
    )
    assert tell(grid, 6, 4, RIGHT) == (
        "You see a closed red door 2 steps forward, "
        "You see an open blue door 2 steps left, "
        "You see a locked grey door 2 steps right"
    )


def test_a_closed_door_hides_what_is_behind_and_an_open_one_does_not() -> None:
    wall = [(Wall(), x, 3) for x in range(1, 8) if x != 4]
    for is_open in (False, True):
        door = Door("red", is_open=is_open)
        text = tell(scene(*wall, (door, 4, 3), (Ball("green"), 4, 2)), 4, 5, UP)
        assert ("green ball" in text) is is_open


def test_what_is_carried_comes_first() -> None:
    text = tell(scene(), 1, 1, UP, Key("blue"))
    assert text == (
        "You carry a blue key, You see a wall 1 step forward, You see a wall 1 step left"
    )


def test_an_empty_view_is_said_to_be_empty() -> None:
    grid = scene(size=20)
    assert tell(grid, 10, 10, UP) == "You see nothing"
    assert tell(grid, 10, 10, UP, Key("red")) == "You carry a red key"


def test_the_short_wording() -> None:
    grid = scene((Ball("red"), 2, 3), (Door("blue", is_open=True), 4, 0))
    assert tell(grid, 4, 4, UP, Key("grey"), "short") == (
        "carrying grey key, red ball 2 left 1 forward, open blue door 4 forward"
    )
    assert tell(scene(size=20), 10, 10, UP, None, "short") == "nothing"


def test_the_environment_tells_its_own_state() -> None:
    env = make_babyai("GoToObj")
    env.reset(seed=0)
    env.minigrid.grid = scene((Ball("red"), 4, 1), size=8)
    env.minigrid.agent_pos, env.minigrid.agent_dir = (4, 3), UP
    assert env.step("pick up")[0] == (
        "You see a red ball 2 steps forward, You see a wall 3 steps right"
    )
    env.step("go forward")
    assert env.step("pick up")[0] == (
        "You carry a red ball, You see a wall 2 steps forward, You see a wall 3 steps right"
    )


def random_states(level: str, steps: int, **kwargs: object):
    """(level, observation) along random walks, with carried things, opened doors and gone boxes."""
    env = make_babyai(level, **kwargs)
    rng = np.random.default_rng(0)
    episode = 0
    observation, _ = env.reset(seed=episode)
    for _ in range(steps):
        yield env.minigrid, observation
        action = ACTIONS[rng.choice(6, p=[0.15, 0.15, 0.35, 0.15, 0.1, 0.1])]
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            episode += 1
            observation, _ = env.reset(seed=episode)


def facts(observation: str) -> list[tuple[str, complex]]:
    """(thing, place ahead + right * i) of every sentence about something seen, in order."""
    out = []
    for sentence in observation.split(", "):
        words = sentence.split()
        if words[1] == "carry" or sentence == "You see nothing":
            continue
        at = next(i for i, word in enumerate(words) if word.isdigit())
        place = 0j
        for count, where in zip(words[at::4], words[at + 2 :: 4], strict=True):
            place += int(count) * {"forward": 1, "left": -1j, "right": 1j}[where]
        out.append((" ".join(words[3:at]), place))
    return out


def from_image(level: object) -> set[tuple[str, complex]]:
    """The same facts from minigrid's own image of the view."""
    image = type(level).gen_obs(level)["image"]
    size = level.agent_view_size
    mx, my = size // 2, size - 1
    out = set()
    for i in range(size):
        for j in range(size):
            kind, color, state = (int(v) for v in image[i, j])
            name = IDX_TO_OBJECT[kind]
            if name in ("unseen", "empty", "wall") or (i, j) == (mx, my):
                continue
            words = [IDX_TO_COLOR[color], name]
            if name == "door":
                words.insert(0, ("open", "closed", "locked")[state])
            out.add((" ".join(words), complex(my - j, i - mx)))
    for di, dj in ((0, -1), (-1, 0), (1, 0)):
        i, j = mx + di, my + dj
        while 0 <= i < size and j >= 0 and IDX_TO_OBJECT[image[i, j, 0]] in ("unseen", "empty"):
            i, j = i + di, j + dj
        if 0 <= i < size and j >= 0 and IDX_TO_OBJECT[image[i, j, 0]] == "wall":
            out.add(("wall", complex(my - j, i - mx)))
    return out


@pytest.mark.parametrize(
    ("level", "kwargs"),
    [
        ("GoToLocal", {}),
        ("PutNextLocal", {}),
        ("MiniBossLevel", {}),
        ("BossLevel", {}),
        ("KeyCorridor", {}),
        ("GoToOpen", {}),
        ("GoToLocal", {"agent_view_size": 5}),
        ("GoToObjDoor", {"agent_view_size": 9}),
    ],
)
def test_everything_in_minigrids_image_is_told_and_nothing_else(level: str, kwargs: dict) -> None:
    carried = 0
    for state, observation in random_states(level, 1500, **kwargs):
        told = facts(observation)
        assert len(set(told)) == len(told)
        assert set(told) == from_image(state), observation
        if state.carrying is not None:
            carried += 1
            thing = f"{state.carrying.color} {state.carrying.type}"
            assert observation.startswith(f"You carry a {thing}")
        else:
            assert "carry" not in observation
    assert carried > 20


@pytest.mark.parametrize("level", ["GoToLocal", "BossLevel"])
def test_told_places_lead_to_the_things_in_the_world(level: str) -> None:
    """Independent of minigrid's view: walk from the agent to the told place, turning by i."""
    told = 0
    for state, observation in random_states(level, 1500):
        heading = 1j**state.agent_dir  # x + y * i, y downwards: turning right multiplies by i
        position = complex(int(state.agent_pos[0]), int(state.agent_pos[1]))
        for thing, place in facts(observation):
            # ahead + right * i, rotated into the agent's heading
            spot = position + place * heading
            x, y = round(spot.real), round(spot.imag)
            if 0 <= x < state.grid.width and 0 <= y < state.grid.height:
                cell = state.grid.get(x, y)
                assert thing.split()[-1] == cell.type
                assert cell.type == "wall" or cell.color in thing
                told += 1
    assert told > 1500


@pytest.mark.parametrize("level", ["GoToLocal", "BossLevel"])
def test_order_is_nearest_first_then_straighter_then_left(level: str) -> None:
    for _, observation in random_states(level, 500):
        order = [(abs(p.real) + abs(p.imag), abs(p.imag), p.imag) for _, p in facts(observation)]
        assert order == sorted(order)


def test_every_cell_of_the_view_is_told_once() -> None:
    cells = places(7)
    assert len(cells) == 48
    assert {(c.ahead, c.side) for c in cells} == {
        (a, s) for a in range(7) for s in range(-3, 4) if (a, s) != (0, 0)
    }

"""The rules of the playground's world."""

from __future__ import annotations

import pytest
from sacglam.envs.playground.objects import make_spec
from sacglam.envs.playground.world import World


def world_of(*names: str) -> World:
    """A scene of "red cow" and the like."""
    return World([make_spec(*name.split(" ")) if " " in name else make_spec("", name)
                  for name in names])  # fmt: skip


def do(world: World, *actions: str) -> None:
    for action in actions:
        world.act(action)


def test_observation_is_exactly_as_specified() -> None:
    world = world_of("red lion", "green water", "blue potato")
    assert world.observe() == (
        "You see: baby red lion, green water, blue potato seed\n"
        "You are standing on: nothing\n"
        "Inventory (0/2): empty"
    )
    do(world, "Go to green water", "Grasp", "Go to blue potato seed")
    assert world.observe() == (
        "You see: baby red lion, blue potato seed\n"
        "You are standing on: blue potato seed\n"
        "Inventory (1/2): green water"
    )


def test_the_whole_food_chain() -> None:
    world = world_of("water", "carrot", "cow", "fox")
    do(world, "Go to water", "Grasp", "Go to carrot seed")
    assert world.act("Release water")[1] == make_spec("", "carrot")
    assert world.observe().startswith("You see: carrot, baby cow, baby fox\nYou are standing on: c")
    do(world, "Grasp", "Go to baby cow")
    assert world.act("Release carrot")[1] == make_spec("", "cow")
    do(world, "Grasp", "Go to baby fox")
    assert world.act("Release cow")[1] == make_spec("", "fox")
    assert world.observe() == ("You see: fox\nYou are standing on: fox\nInventory (0/2): empty")


def test_only_the_right_food_grows_and_only_once() -> None:
    world = world_of("water", "carrot", "cow", "fox", "water")
    do(world, "Go to carrot seed", "Grasp", "Go to baby cow")
    assert world.act("Release carrot seed") == (None, None), "a seed is no food"
    do(world, "Go to water", "Grasp")
    for place in ("Go to baby cow", "Go to baby fox"):
        do(world, place)
        assert world.act("Release water") == (None, None), "water is for plants"
        do(world, "Go to water", "Grasp")
    do(world, "Go to carrot seed")
    assert world.act("Release water")[1] is not None
    do(world, "Go to water", "Grasp", "Go to carrot")
    assert world.act("Release water") == (None, None), "what has grown eats no more"
    assert "water" in world.observe()


def test_a_seed_put_on_water_does_not_grow() -> None:
    world = world_of("water", "carrot")
    do(world, "Go to carrot seed", "Grasp", "Go to water")
    assert world.act("Release carrot seed") == (None, None)
    assert world.on is not None
    assert world.on.name == "water"


@pytest.mark.parametrize("one_by_one", [True, False])
def test_big_animals_need_two_foods_at_once(one_by_one: bool) -> None:
    world = world_of("water", "water", "carrot", "potato", "elephant")
    for plant in ("carrot", "potato"):
        do(world, "Go to water", "Grasp", f"Go to {plant} seed", "Release water")
    do(world, "Go to carrot", "Grasp", "Go to potato", "Grasp", "Go to baby elephant")
    if one_by_one:
        do(world, "Release carrot", "Release potato")
        assert world.observe().startswith("You see: carrot, potato, baby elephant\n")
    else:
        assert world.act("Release all")[1] == make_spec("", "elephant")
        assert world.observe().startswith("You see: elephant\n")


def test_released_together_one_is_eaten_and_one_is_dropped() -> None:
    world = world_of("water", "table", "carrot")
    do(world, "Go to water", "Grasp", "Go to table", "Grasp", "Go to carrot seed", "Release all")
    assert world.observe() == (
        "You see: table, carrot\nYou are standing on: carrot\nInventory (0/2): empty"
    )


def test_what_is_put_down_where_one_stands_on_nothing_is_stood_on() -> None:
    world = world_of("water", "table")
    do(world, "Go to table", "Grasp", "Release table")
    assert world.on is world.things[1]
    do(world, "Grasp", "Go to water", "Grasp", "Release all")
    assert world.on is world.things[1], "the one that was held longest"


def test_only_admissible_actions_are_listed() -> None:
    world = world_of("water", "water", "table", "chair")
    assert list(world.menu) == ["Go to water", "Go to table", "Go to chair"]
    do(world, "Go to water")
    assert list(world.menu) == ["Grasp", "Go to table", "Go to chair"]
    assert world.on is world.things[0], "of equal texts the first is meant"
    do(world, "Grasp", "Go to water", "Grasp")
    assert list(world.menu) == ["Go to table", "Go to chair", "Release water", "Release all"]
    do(world, "Go to table")
    assert "Grasp" not in world.menu, "both hands are full"

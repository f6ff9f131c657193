"""The playground against an independent reference that knows nothing but texts: every transition,
every achieved goal, and the fewest steps to a goal."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from sacglam.envs import make_env
from sacglam.envs.playground.expert import Planner
from sacglam.envs.playground.goals import FAMILIES, GoalSpace
from sacglam.envs.playground.objects import make_specs
from sacglam.envs.playground.scene import optimum
from sacglam.envs.playground.world import World

PRESETS = ["playground/small", "playground/zoo", "playground/full", "playground/sequential"]

KINDS = {
    "plant": "carrot potato beet berry pea tomato onion lettuce spinach",
    "herbivore": "pig cow sheep goat rabbit deer elephant giraffe rhinoceros bison",
    "carnivore": "fox bobcat coyote wolf jackal hyena lion grizzly shark tiger",
    "furniture": "door chair desk lamp table cupboard sofa bed shelf",
    "water": "water",
}
KIND = {name: kind for kind, names in KINDS.items() for name in names.split()}
TWO_FOODS = set("elephant giraffe rhinoceros bison lion grizzly shark tiger".split())
EATS = {"plant": "water", "herbivore": "plant", "carnivore": "herbivore"}


class Scene(NamedTuple):
    see: tuple[str, ...]
    on: str
    held: tuple[str, ...]


def read(obs: str) -> Scene:
    first, second, third = obs.split("\n")
    see = first.removeprefix("You see: ")
    held = third.split(": ")[1]
    scene = Scene(
        () if see == "nothing" else tuple(see.split(", ")),
        second.removeprefix("You are standing on: "),
        () if held == "empty" else tuple(held.split(", ")),
    )
    assert third.startswith(f"Inventory ({len(scene.held)}/2): ")
    return scene


def young(name: str) -> bool:
    return name.startswith("baby ") or name.endswith(" seed")


def grown_up(name: str) -> str:
    return name.removeprefix("baby ").removesuffix(" seed")


def kind(name: str) -> str:
    return KIND[grown_up(name).split(" ")[-1]]


def actions(scene: Scene) -> set[str]:
    found = {f"Go to {name}" for name in scene.see if name != scene.on}
    found |= {f"Release {name}" for name in scene.held}
    if scene.on != "nothing" and len(scene.held) < 2:
        found.add("Grasp")
    if len(scene.held) == 2:
        found.add("Release all")
    return found


def move(scene: Scene, action: str) -> tuple[Scene, str, str]:
    """The next scene (what is seen, sorted), what was grasped, and what has grown."""
    see, held = list(scene.see), list(scene.held)
    on, grasped, grown = scene.on, "", ""
    if action.startswith("Go to "):
        on = action.removeprefix("Go to ")
    elif action == "Grasp":
        see.remove(on)
        held.append(on)
        grasped, on = on, "nothing"
    else:
        put = list(held) if action == "Release all" else [action.removeprefix("Release ")]
        for name in put:
            held.remove(name)
        if on != "nothing" and young(on):
            need = 2 if grown_up(on).split(" ")[-1] in TWO_FOODS else 1
            food = [x for x in put if not young(x) and kind(x) == EATS[kind(on)]][:need]
            if len(food) == need:
                for name in food:
                    put.remove(name)
                grown = grown_up(on)
                see[see.index(on)] = grown
                on = grown
        see += put
        if on == "nothing":
            on = put[0]
    return Scene(tuple(sorted(see)), on, tuple(held)), grasped, grown


def fits(phrase: str, name: str) -> bool:
    """Whether a phrase such as "any plant", "red lion" or "cow" describes an object."""
    words, is_ = phrase.split(" "), grown_up(name).split(" ")
    noun_fits = words[-1] in (is_[-1], KIND[is_[-1]])
    return noun_fits and (len(words) == 1 or words[0] in ("any", is_[0]))


def satisfied(goal: str, grasped: str, grown: str, before: list[str]) -> bool:
    first, _, second = goal.partition(" then grasp ")
    verb, _, phrase = first.partition(" ")
    if second:
        return bool(grasped) and fits(second, grasped) and any(fits(phrase, g) for g in before)
    event = grasped if verb == "Grasp" else grown
    return bool(event) and fits(phrase, event)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("hindsight", ["train", "all"])
def test_every_transition_is_as_the_reference_says(name: str, hindsight: str) -> None:
    env = make_env(name, hindsight=hindsight)
    listed = env.train_goals + (env.test_goals if hindsight == "all" else [])
    rng = random.Random(5)
    seen: Counter[str] = Counter()
    for episode in range(150):
        obs, info = env.reset(seed=episode, options={"split": rng.choice(["train", "test"])})
        before: list[str] = []
        done = False
        while not done:
            scene = read(obs)
            assert set(info["possible_actions"]) == actions(scene)
            # Half of the time on the expert's way, so that animals grow too.
            action = env.expert_action() if rng.random() < 0.5 else ""
            action = action or rng.choice(info["possible_actions"])
            obs, reward, terminated, truncated, info = env.step(action)
            after, grasped, grown = move(scene, action)
            now = read(obs)
            assert Scene(tuple(sorted(now.see)), now.on, now.held) == after
            goals = {g for g in listed if satisfied(g, grasped, grown, before)}
            if satisfied(info["goal"], grasped, grown, before):
                goals.add(info["goal"])
            assert set(info["achieved_goals"]) == goals
            assert terminated == (info["goal"] in goals) == (reward == 1.0)
            assert reward in (0.0, 1.0)
            seen.update(env.goal_family(goal) for goal in goals)
            if grown:
                before.append(grown)
            done = terminated or truncated
    assert set(seen) == {env.goal_family(goal) for goal in env.train_goals}


def search(scene: Scene, goal: str) -> int | None:
    """Fewest steps to a goal, by breadth-first search over everything that can be done."""
    start = (Scene(tuple(sorted(scene.see)), scene.on, scene.held), "")
    grow_first = " then grasp " in goal
    first = goal.partition(" then grasp ")[0].removeprefix("Grow ")
    queue, seen = deque([(start, 0)]), {start}
    while queue:
        (here, ready), steps = queue.popleft()
        for action in sorted(actions(here)):
            there, grasped, grown = move(here, action)
            if satisfied(goal, grasped, grown, [ready] if ready else []):
                return steps + 1
            counts = grow_first and not ready and bool(grown) and fits(first, grown)
            after = (there, grown if counts else ready)
            if after not in seen:
                seen.add(after)
                queue.append((after, steps + 1))
    return None


def small_scenes() -> Iterator[tuple[list[str], str]]:
    rng = random.Random(3)
    types = ["water", "carrot", "cow", "elephant", "fox", "table"]
    goals = ["Grasp table", "Grow carrot", "Grow plant", "Grow cow", "Grow elephant", "Grow fox"]
    goals += ["Grow carrot then grasp water", "Grow plant then grasp carrot", "Grow table"]
    goals += ["Grow cow then grasp carrot", "Grow cow then grasp cow", "Grow herbivore"]
    for _ in range(120):
        yield [rng.choice(types) for _ in range(rng.randint(2, 6))], rng.choice(goals)
    yield ["water", "water", "carrot", "carrot", "elephant"], "Grow elephant"
    yield ["water", "water", "carrot", "carrot", "elephant", "fox"], "Grow fox"
    yield ["water", "water", "carrot", "carrot", "cow", "cow", "lion"], "Grow lion"
    yield ["water"] * 3 + ["carrot"] * 3 + ["cow", "elephant", "lion"], "Grow lion"
    yield ["water"] * 4 + ["carrot"] * 4 + ["elephant"] * 2 + ["lion"], "Grow lion"
    yield ["water", "carrot", "cow", "fox", "table"], "Grow fox then grasp table"
    for left in ("elephant", "cow", "herbivore"):  # one of them is eaten
        yield ["water", "carrot", "cow", "elephant", "fox"], f"Grow fox then grasp {left}"


@pytest.mark.parametrize(("types", "goal_text"), list(small_scenes()))
def test_optimum_and_planner_agree_with_exhaustive_search(types: list[str], goal_text: str) -> None:
    known = ("water", "carrot", "cow", "elephant", "fox", "lion", "table")
    space = GoalSpace(make_specs((), known), FAMILIES)
    by_type = {spec.type: spec for spec in space.specs}
    scene = [by_type[name] for name in types]
    goal = space.parse(goal_text)
    world = World(scene)
    expected = search(read(world.observe()), goal_text)
    assert optimum(goal, scene) == expected
    assert Planner().steps(world, goal, []) == expected


@pytest.mark.parametrize("seed", range(12))
def test_planner_is_optimal_from_the_middle_of_an_episode(seed: int) -> None:
    env = make_env("playground/sequential", colours=(), n_objects=5, time_slack=50)
    rng = random.Random(seed)
    obs, info = env.reset(seed=seed)
    family = info["goal_family"]
    for _ in range(12):
        obs, _, terminated, _, info = env.step(rng.choice(info["possible_actions"]))
        if terminated or (
            family == "Sequential" and any("Grow" in g for g in info["achieved_goals"])
        ):
            return
        expected = search(read(obs), info["goal"])
        goal = env.goals.parse(info["goal"])
        assert env._planner.steps(env._world, goal, env._grown) == expected

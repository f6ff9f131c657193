"""Playground-Text as an environment: goals and their split, presets, options, errors."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacglam.envs import make_env
from sacglam.envs.playground import PRESETS, PlaygroundText
from sacglam.envs.playground.objects import CATALOGUE
from sacglam.errors import ConfigError, EnvironmentProtocolError

NAMES = list(PRESETS)


@pytest.mark.parametrize("name", NAMES)
def test_split_is_disjoint_complete_and_stable(name: str) -> None:
    env, again = make_env(name), make_env(name)
    assert env.train_goals == again.train_goals
    assert env.test_goals == again.test_goals
    assert env.test_goals
    assert not set(env.train_goals) & set(env.test_goals)
    families = {env.goal_family(goal) for goal in env.train_goals}
    assert families == set(PRESETS[name]["families"])


def test_split_does_not_change_from_version_to_version() -> None:
    small, full = make_env("playground/small"), make_env("playground/full")
    assert small.test_goals == ["Grasp red carrot", "Grasp red table", "Grow red carrot"]
    assert (len(full.train_goals), len(full.test_goals)) == (228, 28)
    assert (len(make_env("playground/zoo").train_goals), len(small.train_goals)) == (38, 27)
    assert len(make_env("playground/sequential").train_goals) == 213


def test_held_out_goals_are_known_from_their_parts() -> None:
    full = make_env("playground/full")
    for goal in full.test_goals:
        verb, colour, noun = goal.split(" ")
        others = [g for g in full.train_goals if g.startswith(verb) and g.endswith(f" {noun}")]
        assert len(others) == 3, "two colours and any"
        assert any(f" {colour} " in g for g in full.train_goals)


@pytest.mark.parametrize("name", NAMES)
def test_hindsight_names_no_held_out_goal_but_the_pursued_one(name: str) -> None:
    env = make_env(name)
    rng = random.Random(1)
    named = set()
    for episode in range(200):
        _, info = env.reset(seed=episode, options={"split": "test"})
        done = False
        while not done:
            action = env.expert_action() if episode % 2 else rng.choice(info["possible_actions"])
            _, _, terminated, truncated, info = env.step(action)
            held_out = set(info["achieved_goals"]) & set(env.test_goals)
            assert held_out <= {info["goal"]}
            named |= held_out
            done = terminated or truncated
    assert named


def test_goals_outside_the_lists_can_be_pursued() -> None:
    env = make_env("playground/small")
    _, info = env.reset(seed=0, options={"goal": "Grow red table"})
    assert info["goal_family"] == "Impossible"
    assert env.optimum is None
    _, info = env.reset(seed=0, options={"goal": "Grow any plant then grasp any water"})
    reward, steps = 0.0, 0
    while not reward:
        _, reward, _, _, info = env.step(env.expert_action())
        steps += 1
    assert steps == env.optimum
    assert info["goal"] in info["achieved_goals"]


@pytest.mark.parametrize(
    "goal", ["grasp red table", "Grasp table", "Grow red tabel", "Grasp red table then grasp any "
             "water", "Grow any plant then grasp", "Fly", "", 3]
)  # fmt: skip
def test_what_is_no_goal_is_refused(goal: object) -> None:
    env = make_env("playground/small")
    with pytest.raises(ConfigError, match=r"goal"):
        env.reset(options={"goal": goal})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_expert_solves_every_goal_in_the_fewest_steps(name: str, split: str) -> None:
    env = make_env(name)
    goals = env.train_goals if split == "train" else env.test_goals
    for seed, goal in enumerate(goals):
        env.reset(seed=seed, options={"goal": goal})
        steps, terminated, truncated, reward = 0, False, False, 0.0
        while not (terminated or truncated):
            _, reward, terminated, truncated, _ = env.step(env.expert_action())
            steps += 1
        assert (reward, steps) == (1.0, env.optimum), goal
        assert steps <= env.max_steps


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), choices=st.lists(st.integers(0, 99), min_size=40, max_size=40))
def test_same_seed_and_actions_give_the_same_episode(
    name: str, seed: int, choices: list[int]
) -> None:
    env = make_env(name)

    def episode() -> list[object]:
        log: list[object] = []
        obs, info = env.reset(seed=seed)
        log.append((obs, info))
        for choice in choices:
            actions = info["possible_actions"]
            step = env.step(actions[choice % len(actions)])
            info = step[4]
            log.append(step)
            if step[2] or step[3]:
                break
        return log

    first = episode()
    env.reset()
    assert episode() == first


def test_episodes_go_on_from_the_seed() -> None:
    env, twin = make_env("playground/full"), make_env("playground/full")
    one = [env.reset(seed=4)] + [env.reset() for _ in range(5)]
    assert one == [twin.reset(seed=4)] + [twin.reset() for _ in range(5)]
    assert len({obs for obs, _ in one}) == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_deep_copy_goes_on_alone_and_alike(name: str) -> None:
    env = make_env(name)
    env.reset(seed=2)
    env.step(env.expert_action())
    twin = copy.deepcopy(env)
    done = False
    while not done:
        action = env.expert_action()
        assert twin.expert_action() == action
        result = env.step(action)
        assert twin.step(action) == result
        done = result[2]
    assert env.reset() == twin.reset()


def test_time_limit_truncates_and_grows_with_difficulty() -> None:
    limits = {}
    for goal in ("Grasp lamp", "Grow carrot", "Grow cow", "Grow fox"):
        env = make_env("playground/zoo")
        _, info = env.reset(seed=1, options={"goal": goal})
        steps, truncated, terminated = 0, False, False
        while not truncated:
            go = [a for a in info["possible_actions"] if a.startswith("Go to")]
            _, reward, terminated, truncated, info = env.step(go[0])
            steps += 1
            assert not terminated
            assert reward == 0.0
        limits[goal] = steps
        assert info["possible_actions"]
    assert limits == {"Grasp lamp": 3, "Grow carrot": 6, "Grow cow": 10, "Grow fox": 15}


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary_holds_every_word(name: str) -> None:
    env = make_env(name, impossible_goals=True)
    words = set(" ".join(env.vocabulary).replace("\n", " ").split(" "))
    rng = random.Random(0)
    for seed in range(150):
        obs, info = env.reset(seed=seed)
        done = False
        while not done:
            for text in (obs, info["goal"], *info["possible_actions"], *info["achieved_goals"]):
                for word in text.replace("\n", " ").split(" "):
                    assert word in words or word.rstrip(",") in words, word
            obs, _, terminated, truncated, info = env.step(rng.choice(info["possible_actions"]))
            done = terminated or truncated
    assert len(words) < 90


def test_random_agent_fails_on_the_demo_and_never_feeds_in_the_zoo() -> None:
    def play(env: PlaygroundText) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
        rng = random.Random(0)
        success: dict[str, list[float]] = {}
        something: dict[str, list[bool]] = {}
        for seed in range(3000):
            _, info = env.reset(seed=seed)
            family, any_goal, done, reward = info["goal_family"], False, False, 0.0
            while not done:
                _, reward, terminated, truncated, info = env.step(
                    rng.choice(info["possible_actions"])
                )
                any_goal |= bool(info["achieved_goals"])
                done = terminated or truncated
            success.setdefault(family, []).append(reward)
            something.setdefault(family, []).append(any_goal)
        return success, something

    success, _ = play(make_env("playground/small"))
    assert set(success) == {"Grasp", "Grow plant"}
    for rewards in success.values():
        assert sum(rewards) / len(rewards) <= 0.12
    success, something = play(make_env("playground/zoo"))
    for family in ("Grow herbivore", "Grow carnivore"):
        assert sum(success[family]) / len(success[family]) <= 0.01
        assert sum(something[family]) / len(something[family]) >= 0.9


def test_unreachable_and_impossible_goals_are_an_option() -> None:
    env = make_env("playground/full", unreachable=1.0)
    for seed in range(100):
        env.reset(seed=seed)
        assert env.optimum is None
        assert env.max_steps >= 4
        assert env.expert_action() in env.reset(seed=seed)[1]["possible_actions"]
    env = make_env("playground/full", impossible_goals=True)
    impossible = [g for g in env.train_goals if env.goal_family(g) == "Impossible"]
    assert "Grow any furniture" in impossible
    env.reset(options={"goal": impossible[0]})
    assert env.optimum is None
    reachable = make_env("playground/full")
    for seed in range(100):
        reachable.reset(seed=seed)
        assert reachable.optimum is not None


def test_nothing_can_be_done_after_the_time_limit() -> None:
    env = make_env("playground/small")
    _, info = env.reset(seed=0, options={"goal": "Grow any plant"})
    truncated = False
    while not truncated:
        go = next(a for a in info["possible_actions"] if a.startswith("Go to"))
        _, _, _, truncated, info = env.step(go)
    with pytest.raises(EnvironmentProtocolError, match="episode is over"):
        env.step(info["possible_actions"][0])
    env.reset()
    env.step(env.expert_action())


def test_goals_name_categories_only_if_they_may() -> None:
    types = ("water", "carrot", "cow", "table")
    lists = [
        PlaygroundText(types=types, families=("Grasp", "Grow plant"), categories=may).train_goals
        for may in (True, False)
    ]
    assert lists[1] == [f"Grasp {name}" for name in types] + ["Grow carrot"]
    categories = {"Grasp plant", "Grasp herbivore", "Grasp furniture", "Grow plant"}
    assert set(lists[0]) - set(lists[1]) == categories


def _seen(obs: str) -> list[str]:
    return obs.split("\n")[0].removeprefix("You see: ").split(", ")


def test_equal_objects_are_avoided_on_request() -> None:
    arguments = {"types": ("water", "carrot", "table", "chair"), "families": ("Grasp",)}
    for unique in (True, False):
        env = PlaygroundText(**arguments, n_objects=4, unique_objects=unique)
        scenes = [_seen(env.reset(seed=seed)[0]) for seed in range(30)]
        distinct = [len(set(scene)) == len(scene) for scene in scenes]
        assert all(distinct) if unique else not all(distinct)


def test_scenes_hold_what_the_goal_needs_and_no_more_than_that() -> None:
    """With n_objects as small as can be; a small herbivore feeds a carnivore as well as a big one,
    and where there are big ones alone, they do."""
    for herbivores, fewest, size in ((("cow", "elephant"), 10, 4), (("elephant",), 15, 6)):
        types = ("water", "carrot", *herbivores, "fox")
        env = PlaygroundText(types=types, n_objects=2)
        for seed in range(20):
            obs, _ = env.reset(seed=seed, options={"goal": "Grow fox"})
            assert (env.optimum, len(_seen(obs))) == (fewest, size)


def test_hopeless_scenes_hold_what_every_scene_holds() -> None:
    types = ("water", "carrot", "potato", "table", "chair", "cow", "fox")
    env = PlaygroundText(types=types, n_objects=2, always=("water", "plant"), unreachable=1.0)
    for seed in range(30):
        obs, _ = env.reset(seed=seed, options={"goal": "Grow carrot"})
        assert sorted(_seen(obs)) == ["potato seed", "water"]


def test_where_every_object_is_the_goals_scenes_are_drawn_all_the_same() -> None:
    env = PlaygroundText(types=("table",), families=("Grasp",), n_objects=3, unreachable=1.0)
    obs, _ = env.reset(seed=0, options={"goal": "Grasp table"})
    assert _seen(obs) == ["table"] * 3


@pytest.mark.parametrize(
    ("goal", "fewest"),
    [
        ("Grasp table", 2),
        ("Grow carrot", 4),
        ("Grow table", 4),
        ("Grow cow", 7),
        ("Grow fox", 10),
        ("Grow carrot then grasp table", 6),
        ("Grow fox then grasp table", 12),
    ],
)
def test_the_time_limit_of_a_goal_out_of_reach_is_that_of_one_within(
    goal: str, fewest: int
) -> None:
    types = ("water", "carrot", "cow", "fox", "table", "chair")
    within, without = (PlaygroundText(types=types, unreachable=share) for share in (0.0, 1.0))
    for env in (within, without):
        env.reset(seed=1, options={"goal": goal})
        assert env.max_steps == max(2 * fewest, fewest + 2)
    assert without.optimum is None
    assert within.optimum == (None if goal == "Grow table" else fewest)


def test_goal_sampling_by_families_or_by_goals() -> None:
    shares = {}
    for how in ("families", "goals"):
        env = make_env("playground/full", goal_sampling=how)
        drawn = [env.reset(seed=seed)[1]["goal_family"] for seed in range(2000)]
        shares[how] = drawn.count("Grasp") / len(drawn)
    assert 0.2 < shares["families"] < 0.3
    assert 0.45 < shares["goals"] < 0.65, "of the goals, more than half"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n_objects": 1}, "n_objects=1"),
        ({"n_objects": "6"}, "n_objects='6'"),
        ({"types": ("water", "carott")}, "did you mean 'carrot'"),
        ({"types": ("water", "table"), "always": ()}, "no goal of the family 'Grow plant'"),
        ({"types": ("carrot", "table"), "always": ()}, "a plant needs water"),
        ({"types": ("water", "water", "carrot")}, "twice"),
        ({"colours": ("any",)}, "cannot be a colour"),
        ({"families": ("Grow plants",)}, "did you mean 'Grow plant'"),
        ({"always": ("carnivore",)}, "always='carnivore'"),
        ({"split": "tests"}, "did you mean 'test'"),
        ({"time_factor": 0.5}, "time_factor=0.5"),
        ({"unreachable": 2}, "unreachable=2"),
        ({"goal_sampling": "x"}, "goal_sampling='x'"),
        ({"hindsight": "none"}, "hindsight='none'"),
        ({"n_objects": 2, "always": ("water", "plant", "furniture")}, "n_objects=2"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        make_env("playground/small", **arguments)
    assert says in str(caught.value)


def test_misuse_of_an_episode_is_named() -> None:
    env = make_env("playground/small")
    with pytest.raises(EnvironmentProtocolError, match="call reset"):
        env.step("Grasp")
    with pytest.raises(EnvironmentProtocolError, match="before reset"):
        env.expert_action()
    env.reset(seed=0)
    with pytest.raises(EnvironmentProtocolError, match="not possible now"):
        env.step("Grasp")
    with pytest.raises(ConfigError, match="unknown reset option 'gaol'"):
        env.reset(options={"gaol": "Grasp any table"})
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        env.reset(options={"split": "tset"})
    env.reset(seed=0, options={"goal": "Grasp any table"})
    while True:
        _, _, terminated, truncated, _ = env.step(env.expert_action())
        if terminated:
            break
        assert not truncated
    with pytest.raises(EnvironmentProtocolError, match="episode is over"):
        env.step("Grasp")


def test_a_split_without_goals_says_so() -> None:
    env = PlaygroundText(types=("water", "carrot"), colours=("red",), families=("Grasp",))
    assert env.test_goals == []
    with pytest.raises(ConfigError, match="no goals"):
        env.reset(options={"split": "test"})


def test_catalogue_has_one_category_for_every_word() -> None:
    names = [name for types in CATALOGUE.values() for name in types]
    assert len(names) == len(set(names))
    assert not set(names) & (set(CATALOGUE) - {"water"})

"""The environment as a whole: missions and rewards, determinism, silence, errors."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from sacglam.envs import check_env, make_env
from sacglam.envs.babyai import ACTIONS, babyai_levels, make_babyai
from sacglam.errors import (
    ConfigError,
    EnvironmentProtocolError,
    MissingDependencyError,
    UnknownEnvironmentError,
)

try:
    import minigrid  # noqa: F401
except ImportError:
    minigrid = None
needs_minigrid = pytest.mark.skipif(minigrid is None, reason="minigrid is not installed")

DOZEN = [
    "GoToLocal",
    "GoToRedBall",
    "GoToObjDoor",
    "GoToSeqS5R2",
    "PickupLoc",
    "PickupDist",
    "OpenDoor",
    "OpenTwoDoors",
    "OpenDoorsOrderN4",
    "PutNextLocalS5N3",
    "PutNextS4N1",
    "PutNextS5N2Carrying",
    "MoveTwoAcrossS5N2",
    "UnlockLocalDist",
    "UnlockPickup",
    "ActionObjDoor",
    "FindObjS5",
    "MiniBossLevel",
    "SynthS5R2",
]


def play(env, seed: int, rng, advice: float = 0.6):
    """One episode of expert and random actions; yields (previous info, result of step)."""
    _, info = env.reset(seed=seed)
    ended = False
    while not ended:
        action = env.expert_action() if rng.random() < advice else ACTIONS[rng.integers(6)]
        result = env.step(action)
        yield info, result
        info = result[-1]
        ended = result[2] or result[3]


def test_without_minigrid_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'sacglam\[babyai\]'"):
        make_babyai("GoToLocal")


@needs_minigrid
def test_an_unknown_level_names_near_ones() -> None:
    with pytest.raises(UnknownEnvironmentError, match="GoToLocal"):
        make_babyai("gotolocl")
    with pytest.raises(UnknownEnvironmentError, match="GoToLocal"):
        make_babyai("BabyAI-GoToLocal-v7")


@needs_minigrid
def test_a_level_has_two_names() -> None:
    short, long = make_babyai("GoToLocal"), make_babyai("BabyAI-GoToLocal-v0")
    assert short.level == long.level == "GoToLocal"
    assert short.reset(seed=3) == long.reset(seed=3)
    assert make_babyai("GoToObjS6").level == "GoToObjS6"  # exists as -v1 only


@needs_minigrid
@pytest.mark.parametrize(
    "kwargs",
    [
        {"wording": "verbose"},
        {"history": -1},
        {"hindsight": "none"},
        {"number_of_things": 3},
        {"room_size": "large"},
    ],
)
def test_bad_arguments_are_refused(kwargs: dict) -> None:
    with pytest.raises(ConfigError):
        make_babyai("GoToLocal", **kwargs)


@needs_minigrid
def test_levels_take_their_own_arguments() -> None:
    env = make_babyai("GoToLocal", num_dists=2, room_size=6, max_steps=7)
    env.reset(seed=0)
    assert env.max_steps == 7
    things = [c for c in env.minigrid.grid.grid if c is not None and c.type != "wall"]
    assert (len(things), env.minigrid.width) == (2, 6)


@needs_minigrid
def test_goals_cannot_be_chosen() -> None:
    env = make_babyai("GoToLocal")
    env.reset(seed=0, options={"goal": None, "split": "test"})
    with pytest.raises(ConfigError, match="draw their own missions"):
        env.reset(options={"goal": "go to the red ball"})
    with pytest.raises(ConfigError, match="unknown reset option"):
        env.reset(options={"gaol": None})


@needs_minigrid
def test_steps_need_an_action_and_an_episode() -> None:
    env = make_babyai("GoToLocal", max_steps=1)
    with pytest.raises(EnvironmentProtocolError, match="reset"):
        env.step("turn left")
    env.reset(seed=0)
    with pytest.raises(EnvironmentProtocolError, match="turn left, turn right"):
        env.step("left")
    env.step("turn left")
    with pytest.raises(EnvironmentProtocolError, match="reset"):
        env.step("turn left")
    with pytest.raises(EnvironmentProtocolError, match="reset"):
        env.expert_action()


@needs_minigrid
@pytest.mark.parametrize("level", DOZEN)
def test_the_mission_is_achieved_exactly_on_success(level: str) -> None:
    env = make_babyai(level)
    rng = np.random.default_rng(0)
    successes = 0
    for episode in range(12):
        for before, (_, reward, terminated, truncated, info) in play(env, episode, rng):
            assert info["goal"] == before["goal"] == env.minigrid.mission
            assert info["possible_actions"] == list(ACTIONS)
            assert reward == float(terminated)  # these levels do not end otherwise
            assert (info["goal"] in info["achieved_goals"]) == bool(reward)
            assert len(set(info["achieved_goals"])) == len(info["achieved_goals"])
            assert not (terminated and truncated)
        successes += int(reward)
    assert successes >= 6


@needs_minigrid
def test_a_strict_level_ends_without_reward_on_the_wrong_thing() -> None:
    env = make_babyai("PickupDistDebug")
    rng = np.random.default_rng(0)
    failures = 0
    for episode in range(20):
        for _, (_, reward, terminated, _, info) in play(env, episode, rng, advice=0.0):
            assert (info["goal"] in info["achieved_goals"]) == bool(reward)
            failures += terminated and not reward
    assert failures > 0


@needs_minigrid
def test_the_time_limit_truncates() -> None:
    env = make_babyai("GoToLocal", max_steps=5)
    env.reset(seed=0)
    ends = [env.step("drop")[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


@needs_minigrid
def test_success_on_the_last_step_is_termination() -> None:
    env = make_babyai("GoToLocal")
    env.reset(seed=1)
    plan = []
    while True:
        plan.append(env.expert_action())
        if env.step(plan[-1])[2]:
            break
    env = make_babyai("GoToLocal", max_steps=len(plan))
    env.reset(seed=1)
    for action in plan:
        _, reward, terminated, truncated, _ = env.step(action)
    assert (reward, terminated, truncated) == (1.0, True, False)


@needs_minigrid
def test_minigrids_discounted_reward_on_request() -> None:
    env = make_babyai("GoToLocal", time_discounted_reward=True)
    steps = [r for _, r in play(env, 0, np.random.default_rng(0), advice=1.0)]
    assert steps[-1][1] == pytest.approx(1 - 0.9 * len(steps) / 64)
    assert all(step[1] == 0 for step in steps[:-1])


@needs_minigrid
@pytest.mark.parametrize("level", ["GoToLocal", "PickupLoc", "PutNextLocal"])
def test_the_bot_solves(level: str) -> None:
    env = make_babyai(level)
    rng = np.random.default_rng(0)
    for episode in range(40):
        *_, (_, last) = play(env, episode, rng, advice=1.0)
        assert last[1] == 1.0


@needs_minigrid
def test_the_bot_helps_from_the_middle_of_an_episode() -> None:
    env = make_babyai("PutNextLocal", max_steps=200)
    rng = np.random.default_rng(0)
    for episode in range(20):
        env.reset(seed=episode)
        # Boxes stay closed: what was in the mission might be gone.
        if any(env.step(ACTIONS[rng.integers(5)])[2] for _ in range(60)):
            continue
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.expert_action())
            ended = terminated or truncated
        assert reward == 1.0


@needs_minigrid
def test_a_bot_that_goes_in_circles_is_stopped() -> None:
    env = make_babyai("GoToImpUnlock", max_steps=250)
    *_, (_, last) = play(env, 6, np.random.default_rng(0), advice=1.0)  # hangs minigrid 3.2's bot
    assert last[2] or last[3]


@needs_minigrid
def test_a_level_that_the_bot_cannot_solve_has_no_expert() -> None:
    assert not hasattr(make_babyai("KeyInBox"), "expert_action")
    assert callable(make_babyai("GoToLocal").expert_action)


def digest(level: str, episodes: int = 10) -> str:
    env = make_babyai(level)
    rng = np.random.default_rng(0)
    hashed = hashlib.sha256()
    for episode in range(episodes):
        hashed.update(repr(env.reset(seed=episode)).encode())
        ended = False
        while not ended:
            result = env.step(ACTIONS[rng.integers(6)])
            hashed.update(repr(result).encode())
            ended = result[2] or result[3]
    return hashed.hexdigest()


@needs_minigrid
@pytest.mark.parametrize("level", ["GoToLocal", "MiniBossLevel"])
def test_seed_and_actions_determine_everything(level: str) -> None:
    first, second = make_babyai(level), make_babyai(level)
    rng = np.random.default_rng(0)
    for _ in play(first, 99, rng):  # a past that the second one does not have
        pass
    for seed in range(5):
        assert first.reset(seed=seed) == second.reset(seed=seed)
        ended = False
        while not ended:
            action = ACTIONS[rng.integers(6)]
            one, two = first.step(action), second.step(action)
            assert one == two
            ended = one[2] or one[3]
    assert first.reset(seed=0) != first.reset(seed=1)


@needs_minigrid
def test_other_processes_agree() -> None:
    """Whatever their hash seed."""
    code = (
        "import sys, importlib.util as u;"
        f"s = u.spec_from_file_location('t', {__file__!r}); t = u.module_from_spec(s);"
        "s.loader.exec_module(t); sys.stdout.write(t.digest('PutNextLocal', 30))"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        # This module imports minigrid before the package does, so that pygame greets first.
        assert done.stdout.splitlines()[-1] == digest("PutNextLocal", 30)


@needs_minigrid
def test_a_fresh_interpreter_hears_nothing_on_stdout() -> None:
    code = (
        "from sacglam.envs.babyai import make_babyai\n"
        "env = make_babyai('PutNextLocal')\n"
        "for seed in range(30): env.reset(seed=seed)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


@needs_minigrid
def test_rejected_layouts_are_logged_and_not_printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    env = make_babyai("PutNextLocal")
    with caplog.at_level(logging.DEBUG, logger="sacglam.envs.babyai"):
        for seed in range(30):
            env.reset(seed=seed)
    assert "Sampling rejected" in caplog.text  # so there was something to print
    assert capfd.readouterr().out == ""


@needs_minigrid
def test_silence_is_ours_alone(capfd: pytest.CaptureFixture[str]) -> None:
    import gymnasium

    make_babyai("PutNextLocal").reset(seed=0)
    raw = gymnasium.make("BabyAI-PutNextLocal-v0")
    for seed in range(30):
        raw.reset(seed=seed)
    assert "Sampling rejected" in capfd.readouterr().out


@needs_minigrid
@pytest.mark.parametrize("wording", ["glam", "short"])
@pytest.mark.parametrize("level", ["GoToLocal", "OpenDoor", "PickupDist", "MiniBossLevel"])
def test_the_vocabulary_holds_every_word(level: str, wording: str) -> None:
    env = make_babyai(level, wording=wording)
    words = {word for text in env.vocabulary for word in re.findall(r"\w+|[^\w\s]", text)}
    rng = np.random.default_rng(0)
    for episode in range(12):
        for _, (observation, _, _, _, info) in play(env, episode, rng, advice=0.3):
            for text in (observation, info["goal"], *info["achieved_goals"]):
                assert set(re.findall(r"\w+|[^\w\s]", text)) <= words


@needs_minigrid
def test_goal_families() -> None:
    env = make_babyai("BossLevel")
    for goal, family in {
        "go to the red ball": "Go to",
        "pick up a box behind you": "Pick up",
        "open the door on your left": "Open",
        "put the red ball next to a key": "Put next",
        "go to a ball and open the red door": "Sequence",
        "go to a ball, then pick up the key": "Sequence",
        "open a door after you go to the ball": "Sequence",
    }.items():
        assert env.goal_family(goal) == family
    with pytest.raises(ConfigError, match="no mission"):
        env.goal_family("grasp the ball")


@needs_minigrid
def test_every_level_starts_and_speaks() -> None:
    levels = babyai_levels()
    assert len(levels) >= 80
    for level in levels:
        env = make_babyai(level)
        observation, info = env.reset(seed=0)
        assert observation.startswith("You ")
        assert info["goal_family"] == env.goal_family(info["goal"])
        env.step("turn left")
        env.close()


@needs_minigrid
@pytest.mark.parametrize("wording", ["glam", "short"])
@pytest.mark.parametrize(
    "level", ["GoToLocal", "PutNextLocal", "OpenDoorsOrderN4", "MiniBossLevel", "PickupDistDebug"]
)
def test_the_protocol_is_kept(level: str, wording: str) -> None:
    check_env(make_env(f"babyai/{level}", wording=wording), episodes=2)


@needs_minigrid
def test_history_asks_for_two_earlier_steps() -> None:
    assert make_babyai("GoToLocal").history == 2
    assert make_babyai("GoToLocal", history=0).history == 0

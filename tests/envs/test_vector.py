"""Vectors of environments, in this process and in others: the same transitions, the same checks,
and a typed error when a worker dies, hangs or meets an error."""

from __future__ import annotations

import gc
import importlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sacglam.envs import make_env, process_vector, register_env
from sacglam.envs.process_vector import EnvironmentWorkerError, ProcessVectorEnv
from sacglam.envs.vector import Transition, VectorEnv
from sacglam.errors import ConfigError, EnvironmentProtocolError, UnknownEnvironmentError

IDS = ["playground/small", "playground/zoo", "playground/full", "playground/sequential"]

MODULE = '''
import os, sys, time
from sacglam.envs import make_env

class Troubled:
    """playground/small with a trouble that begins at some step."""

    def __init__(self, trouble="", at=1):
        self.env, self.trouble, self.at, self.count = make_env("playground/small"), trouble, at, 0
        self.odd = {1, 2}

    def reset(self, *, seed=None, options=None):
        print("chatter on stdout")
        self.count = 0
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, {**info, "odd": self.odd, "pid": os.getpid()}

    def step(self, action):
        self.count += 1
        if self.count == self.at:
            if self.trouble == "crash":
                os.write(1, b"\\xff is in no encoding\\n")
                print("about to fall", flush=True)
                os._exit(3)
            if self.trouble == "leave":
                os._exit(0)
            if self.trouble == "slow":
                time.sleep(0.5)
            if self.trouble == "orphan":
                if os.fork() == 0:  # a helper, which inherits the socket and outlives this
                    os.close(1), os.close(2)
                    time.sleep(20)
                    os._exit(0)
                os._exit(3)
            if self.trouble == "raise":
                raise KeyError("lost the key")
            if self.trouble == "hang":
                time.sleep(600)
            if self.trouble == "protocol":
                obs, reward, terminated, truncated, info = self.env.step(action)
                return "", reward, terminated, truncated, info
            if self.trouble == "shape":
                return ["not", "a", "tuple"]
        return self.env.step(action)

    def where(self):
        return os.environ.get("OMP_NUM_THREADS")


class Kinds:
    """Has its families in a method alone."""

    def __init__(self, family="warm"):
        self.family = family

    def info(self, **more):
        return {"goal": "g", "possible_actions": ["wait", "end"], "achieved_goals": [], **more}

    def reset(self, *, seed=None, options=None):
        return "o", self.info(**(options or {}))

    def step(self, action):
        return "o", 1.0, action == "end", False, self.info()

    def goal_family(self, goal):
        return self.family and f"{self.family} {goal}"
'''


@pytest.fixture
def troubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "troubled_of_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "troubled_of_test:Troubled"
    sys.modules.pop("troubled_of_test", None)


def local(ids: list[str]) -> VectorEnv:
    return VectorEnv([make_env(id) for id in ids])


def grouped(ids: list[str]) -> ProcessVectorEnv:
    return ProcessVectorEnv(ids, workers=2)


KINDS = pytest.mark.parametrize("make", [local, grouped, ProcessVectorEnv])


def run(vector: Any, steps: int) -> list[Any]:
    """A log of random steps of a random part of the environments, ended ones being reset."""
    rng = random.Random(0)
    log: list[Any] = []
    actions = {}
    for i in range(vector.num_envs):
        obs, info = vector.reset(i, seed=i)
        actions[i] = info["possible_actions"]
        log.append((obs, info))
    for _ in range(steps):
        chosen = [i for i in actions if rng.random() < 0.7]
        rng.shuffle(chosen)
        out = vector.step({i: rng.choice(actions[i]) for i in chosen})
        assert list(out) == chosen
        for i, transition in out.items():
            log.append((i, transition))
            info = transition.info
            if transition.terminated or transition.truncated:
                _, info = vector.reset(i, seed=None, options={"split": "test"})
                log.append(info)
            actions[i] = info["possible_actions"]
    return log


@KINDS
def test_a_vector_gives_what_the_environments_give(make: Callable[..., Any]) -> None:
    with make(IDS) as vector:
        assert vector.num_envs == 4
        got = run(vector, 60)
    with local(IDS) as vector:
        assert got == run(vector, 60)
    assert sum(isinstance(entry, tuple) and isinstance(entry[1], Transition) for entry in got) > 90


@KINDS
def test_misuse_is_named_and_harms_nothing(make: Callable[..., Any]) -> None:
    with make(["playground/small"] * 2) as vector:
        with pytest.raises(EnvironmentProtocolError, match="environment 1 .* reset it"):
            vector.step({1: "Grasp"})
        _, info = vector.reset(0, seed=0)
        vector.reset(1, seed=1)
        first = info["possible_actions"][0]
        with pytest.raises(EnvironmentProtocolError, match="environment 1 cannot take.*step 1"):
            vector.step({0: first, 1: "Fly"})
        with pytest.raises(ConfigError, match="no environment 2"):
            vector.reset(2, seed=0)
        with pytest.raises(ConfigError, match="no environment -1"):
            vector.step({-1: "Grasp"})
        # The good action beside the bad one was not taken.
        with local(["playground/small"]) as other:
            other.reset(0, seed=0)
            assert vector.step({0: first}) == other.step({0: first})
        with pytest.raises(ConfigError, match="unknown reset option 'gaol'"):
            vector.reset(0, seed=0, options={"gaol": "x"})
        assert vector.step({}) == {}


@KINDS
def test_an_ended_episode_must_be_reset(make: Callable[..., Any]) -> None:
    with make(["playground/small"]) as vector:
        _, info = vector.reset(0, seed=0)
        transition = vector.step({0: vector.call(0, "expert_action")})[0]
        while not transition.terminated:
            transition = vector.step({0: vector.call(0, "expert_action")})[0]
        assert transition.reward == 1.0
        assert transition.info["goal"] == info["goal"]
        with pytest.raises(EnvironmentProtocolError, match="episode is over"):
            vector.step({0: transition.info["possible_actions"][0]})
        vector.reset(0, seed=None)


@KINDS
def test_calls_and_attributes(make: Callable[..., Any]) -> None:
    with make(["playground/small", "playground/zoo"]) as vector:
        assert vector.attribute(1, "train_goals") == make_env("playground/zoo").train_goals
        assert vector.attribute(1, "no_such_thing", "none") == "none"
        assert vector.call(0, "goal_family", "Grow any plant") == "Grow plant"
        for i in (-1, 2):
            with pytest.raises(ConfigError, match=f"no environment {i}"):
                vector.call(i, "goal_family", "Grow any plant")
            with pytest.raises(ConfigError, match=f"no environment {i}"):
                vector.attribute(i, "train_goals")


class Wrapper:
    """Has something of its own, and something in what it wraps."""

    def __init__(self, inner: Any) -> None:
        self.unwrapped, self.instruction = inner, "the wrapper's"


def test_a_wrappers_own_attributes_come_before_those_of_what_it_wraps() -> None:
    vector = VectorEnv([Wrapper(make_env("playground/small")), make_env("playground/small")])
    assert vector.attribute(0, "instruction") == "the wrapper's"
    assert vector.attribute(1, "instruction") == "Reach the goal."
    assert vector.call(0, "goal_family", "Grow any plant") == "Grow plant"
    for i in range(2):
        with pytest.raises(AttributeError, match="fly"):
            vector.call(i, "fly")


def test_closing_a_vector_closes_what_can_be_closed() -> None:
    class Closing:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    envs = [Closing(), object(), Closing()]
    with VectorEnv(envs):
        assert [env.closed for env in envs[::2]] == [0, 0]
    assert [env.closed for env in envs[::2]] == [1, 1]


def test_a_reset_that_fails_leaves_no_episode(troubled: str) -> None:
    with kinds_here() as vector:
        vector.reset(0, seed=0)
        with pytest.raises(EnvironmentProtocolError, match="goal"):
            vector.reset(0, seed=0, options={"goal": 3})
        with pytest.raises(EnvironmentProtocolError, match="reset it"):
            vector.step({0: "wait"})


def kinds_here(**kwargs: Any) -> VectorEnv:
    return VectorEnv([make_env("troubled_of_test:Kinds", **kwargs.pop("made", {}))], **kwargs)


def kinds_elsewhere(**kwargs: Any) -> ProcessVectorEnv:
    return ProcessVectorEnv([("troubled_of_test:Kinds", kwargs.pop("made", {}))], **kwargs)


PLACES = pytest.mark.parametrize("make", [kinds_here, kinds_elsewhere])


@PLACES
def test_a_time_limit_truncates(make: Callable[..., Any], troubled: str) -> None:
    with make(max_steps=3) as vector:
        for _ in range(2):
            vector.reset(0, seed=0)
            steps = [vector.step({0: "wait"})[0] for _ in range(3)]
            assert [(s.terminated, s.truncated) for s in steps] == [
                *[(False, False), (False, False), (False, True)]
            ]
            assert steps[-1].info["possible_actions"] == ["wait", "end"]
            with pytest.raises(EnvironmentProtocolError, match="episode is over"):
                vector.step({0: "wait"})
        vector.reset(0, seed=0)
        ends = [vector.step({0: action})[0] for action in ("wait", "wait", "end")]
        assert ends[-1][2:4] == (True, False), "an episode that ends by itself is not cut"
    with pytest.raises(ConfigError, match="max_steps=0"):
        make(max_steps=0)


@PLACES
def test_a_family_is_asked_for_where_info_has_none(make: Callable[..., Any], troubled: str) -> None:
    with make() as vector:
        assert vector.reset(0, seed=0)[1]["goal_family"] == "warm g"
        for own in ("cold", None):
            assert vector.reset(0, seed=0, options={"goal_family": own})[1]["goal_family"] == own
    with (
        make(made={"family": None}) as vector,
        pytest.raises(EnvironmentProtocolError, match="'goal-family-of-goal' at reset"),
    ):
        vector.reset(0, seed=0)


def test_an_attribute_of_that_name_is_no_family(troubled: str) -> None:
    env = make_env("troubled_of_test:Kinds")
    env.goal_family = "warm"
    assert "goal_family" not in VectorEnv([env]).reset(0, seed=0)[1]


def test_an_episode_without_end_is_warned_of_once(troubled: str) -> None:
    with kinds_here() as vector, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            vector.reset(0, seed=0)
            for _ in range(1999):
                vector.step({0: "wait"})
        assert not caught
        vector.step({0: "wait"})
        assert len(caught) == 1
        vector.step({0: "wait"})
        vector.reset(0, seed=0)
        for _ in range(2010):
            vector.step({0: "wait"})
        assert len(caught) == 1
    assert caught[0].category is RuntimeWarning
    for part in ("goal 'g'", "2000 steps", "must end", "truncated", "--env.max-steps"):
        assert part in str(caught[0].message)


def test_episodes_with_a_time_limit_are_not_warned_of(troubled: str) -> None:
    with kinds_here(max_steps=2500) as vector, warnings.catch_warnings():
        warnings.simplefilter("error")
        vector.reset(0, seed=0)
        assert [vector.step({0: "wait"})[0].truncated for _ in range(2500)].index(True) == 2499


def test_what_the_program_itself_defines_is_no_worker_s(troubled: str) -> None:
    kinds = importlib.import_module("troubled_of_test").Kinds
    kinds.__module__ = "__main__"
    with pytest.raises(ConfigError, match="Kinds is defined in __main__.*a file of its own"):
        ProcessVectorEnv([kinds])


def test_protocol_is_checked_at_each_step(troubled: str) -> None:
    for vector in (
        VectorEnv([make_env(troubled), make_env(troubled, trouble="protocol", at=2)]),
        ProcessVectorEnv([troubled, (troubled, {"trouble": "protocol", "at": 2})]),
        ProcessVectorEnv([troubled, (troubled, {"trouble": "shape", "at": 2})]),
    ):
        with vector:
            infos = {i: vector.reset(i, seed=0)[1] for i in range(2)}
            actions = {i: info["possible_actions"][0] for i, info in infos.items()}
            out = vector.step(actions)
            actions = {i: t.info["possible_actions"][0] for i, t in out.items()}
            for _ in range(2):  # steps are counted from the last reset
                with pytest.raises(EnvironmentProtocolError, match="at step 2 of environment 1"):
                    vector.step(actions)
                first = vector.reset(1, seed=0)[1]["possible_actions"][0]
                obs = vector.step({1: first})[1]
                actions = {1: obs.info["possible_actions"][0]}


def test_empty_and_repeated_environments_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        VectorEnv([])
    with pytest.raises(ConfigError, match="at least one"):
        ProcessVectorEnv([])
    env = make_env("playground/small")
    with pytest.raises(ConfigError, match="more than once"):
        VectorEnv([env, env])
    with pytest.raises(ConfigError, match="workers=0"):
        ProcessVectorEnv(["playground/small"], workers=0)


def test_what_cannot_be_made_is_refused_as_by_make_env() -> None:
    with pytest.raises(UnknownEnvironmentError, match="did you mean"):
        ProcessVectorEnv(["playground/smal"])
    with pytest.raises(ConfigError, match="n_objects"):
        ProcessVectorEnv([("playground/small", {"n_object": 3})])
    register_env("vector-test/local", lambda: make_env("playground/small"))
    with pytest.raises(ConfigError, match="another process cannot import"):
        ProcessVectorEnv(["vector-test/local"])


def test_environments_live_in_groups_in_other_processes(troubled: str) -> None:
    with ProcessVectorEnv([troubled] * 5, workers=2) as vector:
        pids = [vector.reset(i, seed=0)[1]["pid"] for i in range(5)]
        assert os.getpid() not in pids
        assert pids[0] == pids[2] == pids[4] != pids[1] == pids[3]
        # A set is no JSON: it arrives as something to read.
        assert vector.reset(0, seed=0)[1]["odd"] == "{1, 2}"
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_factories_of_a_module_are_specs_too(troubled: str) -> None:
    factory = importlib.import_module("troubled_of_test").Troubled
    with ProcessVectorEnv([factory, (factory, {"trouble": "raise"})]) as vector:
        actions = first_actions(vector)
        with pytest.raises(EnvironmentWorkerError, match="environment 1 raised KeyError"):
            vector.step(actions)
    with pytest.raises(ConfigError, match="another process cannot import"):
        ProcessVectorEnv([lambda: factory()])


def first_actions(vector: Any) -> dict[int, str]:
    return {i: vector.reset(i, seed=i)[1]["possible_actions"][0] for i in range(vector.num_envs)}


def test_a_crash_names_the_worker_and_its_last_words(troubled: str) -> None:
    with ProcessVectorEnv([troubled, (troubled, {"trouble": "crash"})]) as vector:
        actions = first_actions(vector)
        with pytest.raises(EnvironmentWorkerError) as caught:
            vector.step(actions)
        message = str(caught.value)
        assert "exit status 3" in message
        assert "[1]" in message
        assert "is in no encoding\n  about to fall" in message
        with pytest.raises(EnvironmentWorkerError, match="make a new one"):
            vector.reset(0, seed=0)


def test_a_worker_that_leaves_has_an_exit_status_too(troubled: str) -> None:
    with ProcessVectorEnv([(troubled, {"trouble": "leave"})]) as vector:
        actions = first_actions(vector)
        with pytest.raises(EnvironmentWorkerError, match=r"ended with exit status 0 .*\[0\]"):
            vector.step(actions)


def test_an_answer_is_waited_for(troubled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_vector, "_LOOK_S", 0.1)
    with ProcessVectorEnv([(troubled, {"trouble": "slow"})]) as vector:
        assert vector.step(first_actions(vector))[0].info["goal"]


def test_the_death_of_a_worker_shows_where_a_process_of_its_environment_lives_on(
    troubled: str,
) -> None:
    begin = time.monotonic()
    with ProcessVectorEnv([(troubled, {"trouble": "orphan"})], timeout_s=15.0) as vector:
        actions = first_actions(vector)
        with pytest.raises(EnvironmentWorkerError, match="exit status 3"):
            vector.step(actions)
    assert time.monotonic() - begin < 15.0


def test_workers_end_with_a_vector_that_nobody_closes(troubled: str) -> None:
    vector = ProcessVectorEnv([troubled])
    pid = vector.reset(0, seed=0)[1]["pid"]
    del vector
    gc.collect()
    assert not _runs(pid)


def test_a_hanging_worker_is_given_up(troubled: str) -> None:
    with ProcessVectorEnv([troubled, (troubled, {"trouble": "hang"})], timeout_s=2.0) as vector:
        actions = first_actions(vector)
        with pytest.raises(EnvironmentWorkerError, match="no answer within 2 s"):
            vector.step(actions)


def test_an_exception_is_told_and_the_vector_lives_on(troubled: str) -> None:
    with ProcessVectorEnv([troubled, (troubled, {"trouble": "raise"})], workers=1) as vector:
        actions = first_actions(vector)
        with pytest.raises(
            EnvironmentWorkerError, match=r"environment 1 raised KeyError"
        ) as caught:
            vector.step(actions)
        assert "lost the key" in str(caught.value)
        assert "troubled_of_test.py" in str(caught.value), "with the traceback"
        vector.reset(0, seed=0)
        actions = first_actions(vector)
        assert vector.step({0: actions[0]})[0].reward == 0.0


def test_a_closed_vector_says_so(troubled: str) -> None:
    vector = ProcessVectorEnv([troubled])
    vector.close()
    vector.close()
    with pytest.raises(EnvironmentWorkerError, match="closed"):
        vector.reset(0, seed=0)


def test_workers_end_when_their_parent_is_killed(troubled: str, tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(tmp_path)!r})
        from sacglam.envs.process_vector import ProcessVectorEnv
        vector = ProcessVectorEnv([{troubled!r}])
        print(vector.reset(0, seed=0)[1]["pid"], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    waiting = 200
    while waiting and _runs(pid):
        waiting -= 1
        time.sleep(0.05)
    assert not _runs(pid)


def test_workers_outlive_the_signals_of_a_scheduler(troubled: str) -> None:
    with ProcessVectorEnv([troubled]) as vector:
        for number in (signal.SIGTERM, signal.SIGHUP):
            pid = vector.reset(0, seed=0)[1]["pid"]
            os.kill(pid, number)
            time.sleep(0.1)  # for one that would die of it
            assert vector.step({0: vector.reset(0, seed=1)[1]["possible_actions"][0]})
            assert _runs(pid)
    assert not _runs(pid)  # and end when they are told to


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"

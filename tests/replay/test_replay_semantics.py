"""What hindsight, n-step returns and eviction mean, on episodes small enough to see."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
from sacglam.replay import ReplayBuffer

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

GOAL, A, B = 10, 11, 12  # text ids of goals; observation at step t is text t


def make(capacity=100, **kw):
    kw = {"n_step": 3, "gamma": 0.5, "her_balance": "events", "her_ratio": 1.0} | kw
    buffer = ReplayBuffer(capacity, **kw)
    for i in range(13):
        buffer.intern_text([100 + i])
    buffer.intern_candidates([0, 1])
    buffer.set_template([("goal",), ("observation",)])
    return buffer


def add(buffer, length, achieved, *, terminated=False, rewards=None, goal=GOAL):
    """`achieved` maps a step to the goals that it achieves."""
    sets = [achieved.get(t, []) for t in range(length)]
    return buffer.add_episode(
        goal,
        list(range(length + 1)),
        [0] * (length + 1),
        [t % 2 for t in range(length)],
        rewards or [0.0] * length,
        terminated,
        not terminated,
        np.cumsum([0] + [len(s) for s in sets]),
        [g for s in sets for g in s],
    )


def rows(buffer, n=2000):
    batch = buffer.sample(n)
    for i in range(n):
        lo, hi = batch.prompt_offsets[i : i + 2]
        nlo, nhi = batch.next_prompt_offsets[i : i + 2]
        yield {
            "t": int(batch.step[i]),
            "goal": int(batch.goal[i]),
            "m": int(batch.steps[i]),
            "r": float(batch.n_step_return[i]),
            "d": float(batch.discount[i]),
            "episode": int(batch.episode[i]),
            "relabeled": bool(batch.relabeled[i]),
            "prompt": batch.prompt_ids[lo:hi].tolist(),
            "next": batch.next_prompt_ids[nlo:nhi].tolist(),
        }


def test_future_stops_at_the_first_hit_of_the_new_goal():
    buffer = make(her_strategy="future")
    add(buffer, 8, {2: [A], 5: [A, B]})
    seen = set()
    for row in rows(buffer):
        t, goal = row["t"], row["goal"]
        assert row["relabeled"]
        assert row["prompt"] == [100 + goal, 100 + t]
        assert row["next"] == [100 + goal, 100 + t + row["m"]]
        hits = [s for s in {A: (2, 5), B: (5,)}[goal] if t <= s]
        assert hits
        if hits[0] < t + 3:
            assert row["m"] == hits[0] - t + 1
            assert row["r"] == 0.5 ** (row["m"] - 1)
            assert row["d"] == 0.0
        else:
            assert (row["m"], row["r"], row["d"]) == (3, 0.0, 0.125)
        seen.add((t, goal))
    assert seen == {(t, g) for t in range(6) for g in (A, B)}


def test_future_by_goal_gives_a_rare_goal_its_equal_share():
    buffer = make(her_strategy="future", her_balance="goals")
    for _ in range(30):
        add(buffer, 2, {1: [A]})
    rare = add(buffer, 3, {2: [B]})
    batch = buffer.sample(3000)
    of_rare = batch.goal == B
    assert 0.45 < of_rare.mean() < 0.55
    assert set(batch.episode[of_rare].tolist()) == {rare}
    assert np.allclose(np.bincount(batch.step[of_rare]) / of_rare.sum(), 1 / 3, atol=0.06)
    by_event = make(her_strategy="future", her_balance="events")
    for _ in range(30):
        add(by_event, 2, {1: [A]})
    add(by_event, 3, {2: [B]})
    assert (by_event.sample(3000).goal == B).mean() < 0.1


def test_final_draws_goals_of_the_last_achieving_step():
    buffer = make(her_strategy="final")
    add(buffer, 6, {1: [A], 3: [B, GOAL]})
    drawn = list(rows(buffer))
    assert {r["goal"] for r in drawn} == {B, GOAL}
    assert {r["t"] for r in drawn} == set(range(6))
    for row in drawn:
        if row["t"] > 3:  # the goal lies behind: nothing is reached, the time limit bootstraps
            assert (row["r"], row["d"]) == (0.0, 0.5 ** row["m"])


@pytest.mark.parametrize("balance", ["events", "goals"])
def test_episode_never_takes_goals_from_elsewhere_and_random_does(balance):
    for strategy in ("episode", "random"):
        buffer = make(her_strategy=strategy, her_balance=balance)
        first = add(buffer, 4, {3: [A]})
        second = add(buffer, 4, {0: [B]})
        pairs = {(r["episode"], r["goal"]) for r in rows(buffer)}
        own = {(first, A), (second, B)}
        assert pairs == (own if strategy == "episode" else own | {(first, B), (second, A)})


def test_a_share_of_random_goals_comes_from_elsewhere():
    buffer = make(her_strategy="future", her_random=0.4)
    first = add(buffer, 1, {0: [A]})
    second = add(buffer, 1, {0: [B]})
    drawn = list(rows(buffer))
    strange = [(r["episode"], r["goal"]) in {(first, B), (second, A)} for r in drawn]
    assert np.mean(strange) == pytest.approx(0.2, abs=0.03)  # half of them meet their own goal
    assert all(r["r"] == (0.0 if odd else 1.0) for r, odd in zip(drawn, strange, strict=True))


def test_recorded_termination_does_not_end_another_goal():
    buffer = make(her_strategy="random", her_balance="goals")
    add(buffer, 2, {0: [A]}, terminated=True, rewards=[0.0, 1.0])
    late = [r for r in rows(buffer) if r["t"] == 1]
    assert late
    assert all((r["r"], r["d"], r["m"]) == (0.0, 0.5, 1) for r in late)


@pytest.mark.parametrize("reward", [0.0, -1.0])
def test_a_failure_ends_every_goal(reward):
    """Terminated without a reward: death, after which nothing more can be reached."""
    buffer = make(her_strategy="random", her_balance="goals")
    add(buffer, 5, {0: [A]}, terminated=True, rewards=[0.0] * 4 + [reward])
    drawn = list(rows(buffer))
    assert {r["t"] for r in drawn} == set(range(5))
    for r in drawn:
        if r["t"] == 0:  # hindsight's own end
            assert (r["m"], r["r"], r["d"]) == (1, 1.0, 0.0)
        else:
            m = min(3, 5 - r["t"])
            assert (r["m"], r["r"], r["d"]) == (m, 0.0, 0.0 if r["t"] + m == 5 else 0.5**m)


def test_plain_rows_keep_rewards_and_tell_termination_from_truncation():
    buffer = make(her_strategy="none")
    end = add(buffer, 4, {3: [GOAL]}, terminated=True, rewards=[1.0, 2.0, 4.0, 8.0])
    cut = add(buffer, 4, {}, rewards=[1.0, 2.0, 4.0, 8.0])
    returns = {0: 1 + 1 + 1, 1: 2 + 2 + 2, 2: 4 + 4, 3: 8}
    for row in rows(buffer):
        t, m = row["t"], min(3, 4 - row["t"])
        assert not row["relabeled"]
        assert row["goal"] == GOAL
        assert (row["m"], row["r"]) == (m, returns[t])
        ends = row["episode"] == end and t + m == 4
        assert row["d"] == (0.0 if ends else 0.5**m)
    assert {r["episode"] for r in rows(buffer)} == {end, cut}


def test_the_oldest_episodes_go_first_and_whole():
    buffer = make(capacity=10, her_strategy="future")
    ids = [add(buffer, 4, {3: [A if i == 0 else B]}) for i in range(3)]
    stats = buffer.stats()
    assert (stats["steps"], stats["episodes"], stats["evicted_steps"]) == (8, 2, 4)
    assert stats["goals"] == 1
    drawn = list(rows(buffer))
    assert {r["episode"] for r in drawn} == set(ids[1:])
    assert {r["goal"] for r in drawn} == {B}
    add(buffer, 10, {})
    assert buffer.stats()["steps"] == len(buffer) == 10
    assert not any(r["relabeled"] for r in rows(buffer, 50))


@pytest.mark.parametrize("sampling", ["transitions", "episodes", "prioritised"])
@pytest.mark.parametrize("balance", ["events", "goals"])
def test_draws_are_the_same_after_four_billion_episodes(tmp_path, sampling, balance):
    """Transitions are linked to the low half of their episode's id."""
    settings = {
        "capacity": 40,
        "her_strategy": "future",
        "her_ratio": 0.7,
        "her_balance": balance,
        "her_random": 0.2,
        "sampling": sampling,
        "seed": 3,
    }

    def add_some(buffer, numbers):
        for i in numbers:
            length = i % 5 + 1
            achieved = {t: [[A], [B, GOAL], []][(i + t) % 3] for t in range(length)}
            add(buffer, length, achieved, rewards=[float(i % 7)] * length)

    young = make(**settings)
    add_some(young, range(300))
    young.save(tmp_path / "young")
    stats = young.stats()
    # What is known of the episodes as a whole comes together: see write_state().
    evicted, episodes = stats["evicted_steps"], stats["episodes"]
    here = struct.pack("<QQQ", evicted, 300 - episodes, episodes)
    data = bytearray((tmp_path / "young").read_bytes())
    assert data.count(here) == 1
    at, first, following = data.index(here), 2**32 - 20, 2**32 + 1000
    data[at : at + len(here)] = struct.pack("<QQQ", evicted, first, episodes)
    assert data[-8:] == struct.pack("<Q", 300)  # the label of the next one
    data[-8:] = struct.pack("<Q", following)
    (tmp_path / "old").write_bytes(hostile.resealed(data))
    old = make(**settings)
    old.load(tmp_path / "old")

    for i in range(300, 340):
        add_some(young, [i])
        add_some(old, [i])
        ours, theirs = old.sample(64), young.sample(64)
        for name in theirs._fields:
            a, b = getattr(ours, name), getattr(theirs, name)
            if name == "episode":
                b = np.where(b < 300, b, b - 300 + following)
            np.testing.assert_array_equal(a, b, err_msg=name)
        assert ours.relabeled.any()
        assert not ours.relabeled.all()


def test_interning_is_idempotent_and_ordered():
    buffer = ReplayBuffer(10)
    assert buffer.intern_text([5, 6]) == 0
    assert buffer.intern_text(np.array([], np.int32)) == 1
    assert buffer.intern_text(np.array([5, 6])) == 0
    assert buffer.intern_text([6, 5]) == 2
    assert buffer.text(0).tolist() == [5, 6]
    assert buffer.text(1).tolist() == []
    assert buffer.intern_candidates([0, 1]) == 0
    assert buffer.intern_candidates([1, 0]) == 1
    assert buffer.intern_candidates([0, 1]) == 0
    assert buffer.candidate_set(1).tolist() == [1, 0]
    for i in range(5000):
        assert buffer.intern_text([7, i]) == i + 3
    assert buffer.text(4002).tolist() == [7, 3999]


def test_the_readme_path_works_with_plain_arrays():
    buffer = ReplayBuffer(1000, seed=1)
    say = {w: buffer.intern_text([i + 1]) for i, w in enumerate("goal room key door open".split())}
    actions = buffer.intern_candidates([say["key"], say["open"]])
    buffer.set_template([("goal",), ("observation",), ("actions", say["goal"])])
    episode = buffer.add_episode(
        goal=say["door"], observations=[say["room"]] * 3, candidates=[actions] * 3,
        actions=[0, 1], rewards=[0.0, 1.0], terminated=True, truncated=False,
        achieved_offsets=[0, 1, 2], achieved=[say["key"], say["door"]],
    )  # fmt: skip
    batch = buffer.sample(8)
    assert set(batch.episode.tolist()) == {episode}
    assert batch.relabeled.sum() in (6, 7)
    assert batch.prompt_ids[1 : batch.prompt_offsets[1]].tolist() == [2, 3, 1, 5]


def test_what_is_shown_of_a_buffer():
    buffer = make()
    add(buffer, 3, {})
    assert repr(buffer) == "ReplayBuffer(3 of 100 steps)"
    buffer.close()
    assert repr(buffer) == "ReplayBuffer(closed)"
    with ReplayBuffer(5, shared="what-is-shown") as shared:
        assert repr(shared) == "ReplayBuffer(0 of 5 steps, shared as 'what-is-shown')"

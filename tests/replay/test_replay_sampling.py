"""Other ways to draw: by episode, by priority, under goals that a user proposes. Against the
oracle, bit for bit."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sacglam.errors import ReplayError
from sacglam.replay import Batch, GoalRequest, ReplayBuffer

_spec = importlib.util.spec_from_file_location(
    "replay_differential", Path(__file__).with_name("test_replay_oracle.py")
)
differential = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(differential)
assert_same, episodes, fill_tables, options, oracle = (
    differential.assert_same, differential.episodes, differential.fill_tables,
    differential.options, differential.oracle,
)  # fmt: skip

slow = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
histories = st.lists(st.tuples(episodes(), st.integers(0, 9)), min_size=1, max_size=9)


def pair(capacity, **kw):
    buffers = ReplayBuffer(capacity, **kw), oracle.Oracle(capacity, **kw)
    for buffer in buffers:
        fill_tables(buffer)
    return buffers


@slow
@given(capacity=st.integers(7, 25), kw=options, history=histories)
def test_by_episode(capacity, kw, history):
    native, plain = pair(capacity, **kw, sampling="episodes")
    for episode, batch_size in history:
        assert native.add_episode(**episode) == plain.add_episode(**episode)
        if batch_size:
            assert_same(native.sample(batch_size), plain.sample(batch_size))
    assert_same(native.sample(40), plain.sample(40))


priorities = st.floats(0, 1e30) | st.sampled_from([0.0, 1e-300, 1e-9, 0.5, 1e12, 5e-324])


@slow
@given(
    capacity=st.integers(7, 25) | st.just(90),
    kw=options,
    exponent=st.sampled_from([0.0, 0.6, 1.0, 2.5]),
    beta=st.floats(0, 2),
    epsilon=st.sampled_from([0.0, 1e-6, 0.1]),
    history=st.lists(
        st.tuples(episodes(), st.integers(0, 9), st.lists(priorities, max_size=9)),
        min_size=1,
        max_size=9,
    ),
)
def test_by_priority(tmp_path_factory, capacity, kw, exponent, beta, epsilon, history):
    native, plain = pair(
        capacity, **kw, sampling="prioritised", priority_exponent=exponent,
        priority_beta=beta, priority_epsilon=epsilon,
    )  # fmt: skip
    old: list[int] = []  # keys of all batches, many of them stale by now
    for episode, batch_size, given_priorities in history:
        assert native.add_episode(**episode) == plain.add_episode(**episode)
        if batch_size:
            batch = native.sample(batch_size)
            assert_same(batch, plain.sample(batch_size))
            old += batch.key.tolist()
        keys = old[-len(given_priorities) :] if given_priorities else []
        args = (keys, given_priorities[: len(keys)])
        assert native.update_priorities(*args) == plain.update_priorities(*args)
    assert_same(native.sample(40, beta=0.7), plain.sample(40, beta=0.7))
    assert native.stats()["stale_priorities"] == plain.stale
    path = tmp_path_factory.mktemp("replay") / "a.replay"
    native.save(path)
    loaded = ReplayBuffer(capacity, **(kw | {"seed": 1}), sampling="prioritised",
                          priority_exponent=exponent, priority_beta=beta,
                          priority_epsilon=epsilon)  # fmt: skip
    loaded.load(path)
    batch = plain.sample(30)
    assert_same(loaded.sample(30), batch)
    for buffer in (loaded, plain):
        buffer.add_episode(**history[0][0])
    assert_same(loaded.sample(30), plain.sample(30))
    assert loaded.update_priorities(old, [1.0] * len(old)) == plain.update_priorities(
        old, [1.0] * len(old)
    )


@slow
@given(
    capacity=st.integers(7, 25),
    kw=options,
    sampling=st.sampled_from(["transitions", "episodes", "prioritised"]),
    form=st.sampled_from(["goals", "hits", "rewards", "both"]),
    history=histories,
)
def test_goals_of_a_users_own(capacity, kw, sampling, form, history):
    """A relabeling that hashes all that it is told, so that each array counts."""

    def propose(row, episode, step, length, goal, observations, events):
        x = hash((row, episode, step, length, goal, tuple(observations), tuple(events))) & 0xFFFF
        width = len(observations) - 1
        hits = [bool((x >> k) % 3 == 0) for k in range(width)]
        rewards = [((x >> k) % 7) / 3 for k in range(width)]
        return (
            x % (differential.N_TEXTS + 1) - 1,
            hits if form in ("hits", "both") else None,
            rewards if form in ("rewards", "both") else None,
        )

    def native_hook(r: GoalRequest):
        o = r.achieved_offsets
        answers = [
            propose(
                *(int(x) for x in (r.row[i], r.episode[i], r.step[i], r.length[i], r.goal[i])),
                r.observations[i].tolist(),
                list(zip(r.achieved_steps[o[i] : o[i + 1]].tolist(),
                         r.achieved[o[i] : o[i + 1]].tolist(), strict=True)),
            )
            for i in range(len(r.row))
        ]  # fmt: skip
        goals, hits, rewards = zip(*answers, strict=True)
        if form == "goals":
            return np.array(goals)
        return goals, None if hits[0] is None else hits, None if rewards[0] is None else rewards

    def plain_hook(*columns):
        return [propose(*row) for row in zip(*columns, strict=True)]

    native, plain = (
        kind(capacity, **kw, sampling=sampling, goals=hook)
        for kind, hook in ((ReplayBuffer, native_hook), (oracle.Oracle, plain_hook))
    )
    for buffer in (native, plain):
        fill_tables(buffer)
    for episode, batch_size in history:
        assert native.add_episode(**episode) == plain.add_episode(**episode)
        if batch_size:
            assert_same(native.sample(batch_size), plain.sample(batch_size))
    assert_same(native.sample_many(1, 40)[0], plain.sample(40))


@slow
@given(
    capacity=st.integers(1, 6),
    kw=options,
    sampling=st.sampled_from(["transitions", "prioritised"]),
    history=histories,
)
def test_long_episodes_are_split(capacity, kw, sampling, history):
    native, plain = pair(capacity, **kw, long_episodes="split", sampling=sampling)
    for episode, batch_size in history:
        assert native.add_episode(**episode) == plain.add_episode(**episode)
        assert len(native) == plain.steps() >= min(capacity, len(episode["actions"])) // 2
        if batch_size:
            assert_same(native.sample(batch_size), plain.sample(batch_size))


@slow
@given(
    kw=options,
    sampling=st.sampled_from(["transitions", "episodes", "prioritised"]),
    depth=st.integers(1, 5),
    history=st.lists(episodes(), min_size=1, max_size=4),
    sizes=st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), max_size=12),
)
def test_batches_drawn_ahead_are_the_same(tmp_path_factory, kw, sampling, depth, history, sizes):
    ahead = ReplayBuffer(50, **kw, sampling=sampling, prefetch=depth)
    plain = ReplayBuffer(50, **kw, sampling=sampling)
    for buffer in (ahead, plain):
        fill_tables(buffer)
        for episode in history:
            buffer.add_episode(**episode)
    out = Batch.allocate(9, 2000, 2000)
    path = tmp_path_factory.mktemp("replay") / "a.replay"
    for size, into, reload in sizes:
        a = ahead.sample(size, out=out) if into else ahead.sample(size)
        for x, y in zip(a, plain.sample(size), strict=True):
            assert x.tobytes() == y.tobytes()
        if reload:  # what is ready is void; the counter is that of the batches handed out
            for buffer in (ahead, plain):
                buffer.save(path)
                buffer.load(path)
    assert ahead.stats()["samples"] == plain.stats()["samples"]
    for a, b in zip(ahead.sample_many(3, 5), plain.sample_many(3, 5), strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.tobytes() == y.tobytes()
    ahead.close()


def filled(**kw):
    buffer = ReplayBuffer(40, **({"seed": 5} | kw))
    fill_tables(buffer)
    for k in range(6):
        buffer.add_episode(
            3, [1, 2, k], [0, 1, 2], [0, 1], [0.0, 1.0], True, False, [0, 1, 3], [4, 5, 6]
        )
    return buffer


@pytest.mark.parametrize("setting", [{"goals": lambda r: r.goal}, {"capacity_bytes": 10**6}])
def test_what_cannot_be_drawn_ahead_is_refused(setting):
    with pytest.raises(ReplayError, match="prefetch"):
        ReplayBuffer(10, prefetch=1, **setting)


def test_attaching_with_goals_and_prefetch_is_refused():
    name = f"ahead-{os.getpid()}"
    with ReplayBuffer(100, shared=name), pytest.raises(ReplayError, match="prefetch"):
        ReplayBuffer.attach(name, goals=lambda r: r.goal, prefetch=2)


def test_closing_frees_the_memory_also_with_batches_drawn_ahead():
    name = f"ahead-{os.getpid()}"
    for _ in range(2):  # the second finds the name free
        buffer = ReplayBuffer(100, shared=name, prefetch=2)
        buffer.close()


def test_what_a_batch_drawn_ahead_may_miss():
    """An addition is first seen `prefetch` + 1 calls later, at the latest."""
    buffer = filled(prefetch=2, her_strategy="none")
    buffer.sample(64)
    late = buffer.add_episode(3, [1, 2], [0, 1], [0], [0.0], True, False, [0, 0], [])
    assert late in [e for _ in range(4) for e in buffer.sample(64).episode][-64:]


def test_a_fault_ahead_is_raised_by_the_next_call_and_passes():
    buffer = ReplayBuffer(40, prefetch=3)
    for _ in range(2):
        with pytest.raises(ReplayError, match="call set_template first"):
            buffer.sample(4)
    fill_tables(buffer)
    with pytest.raises(ReplayError, match="the buffer is empty"):
        buffer.sample(4)
    buffer.add_episode(3, [1, 2], [0, 1], [0], [0.0], True, False, [0, 0], [])
    first = buffer.sample(4)
    with pytest.raises(ReplayError, match=r"out\.prompt_ids holds 1 token"):
        buffer.sample(4, out=Batch.allocate(4, 1, 1))
    assert buffer.stats()["batches"] == 1
    assert len(first.step) == len(buffer.sample(4).step)
    buffer.close()
    with pytest.raises(ReplayError, match="closed"):
        buffer.sample(4)


def test_a_process_ends_and_forks_while_batches_are_drawn_ahead():
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_replay_sampling import filled
buffer, plain = filled(prefetch=4), filled()
for _ in range(20):
    child = os.fork()
    if child == 0:
        same = all(a.tobytes() == b.tobytes() for a, b in zip(buffer.sample(8), plain.sample(8)))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    buffer.sample(8); plain.sample(8)
child = os.fork()
if child == 0:
    buffer.sample(8)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
buffer.sample(8)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_draws_are_proportional_and_weights_undo_them():
    """Chi-square over the transitions; weighted means are those of uniform draws."""
    buffer = filled(sampling="prioritised", her_strategy="none", priority_exponent=1.0,
                    priority_beta=1.0)  # fmt: skip
    keys = np.unique(buffer.sample(512).key)
    assert len(keys) == 12
    wanted = np.arange(1.0, 13.0)
    buffer.update_priorities(keys, wanted)
    batch = buffer.sample(200_000)
    counts = np.bincount(np.searchsorted(keys, batch.key), minlength=12)
    expected = 200_000 * wanted / wanted.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 11 + 5 * np.sqrt(22)
    share = np.bincount(np.searchsorted(keys, batch.key), weights=batch.weight)
    assert np.allclose(share / share.sum(), 1 / 12, rtol=0.03)
    assert batch.weight.max() == 1.0


def test_a_key_never_names_another_transition():
    buffer = filled(sampling="prioritised")
    old = buffer.sample(64)
    for k in range(40):  # many times the capacity: every place has been used again
        buffer.add_episode(3, [1, 2, k % 9], [0, 1, 2], [0, 1], [0, 1], True, False, [0, 0, 0], [])
    before = buffer.sample(64).weight
    assert buffer.update_priorities(old.key, np.full(64, 1e6)) == 0
    assert buffer.stats()["stale_priorities"] == 64
    assert (buffer.sample(64).weight == before).all()


def test_keys_of_other_contents_are_stale(tmp_path):
    buffer, other = filled(sampling="prioritised"), filled(sampling="prioritised", seed=9)
    other.save(tmp_path / "other.replay")
    old = buffer.sample(64)
    buffer.load(tmp_path / "other.replay")
    assert buffer.update_priorities(old.key, np.full(64, 1e6)) == 0
    assert (buffer.sample(64).weight == 1.0).all()
    assert buffer.update_priorities(buffer.sample(8).key, np.ones(8)) == 8


def test_priorities_of_another_exponent_are_not_taken(tmp_path):
    buffer = filled(sampling="prioritised")
    buffer.update_priorities(buffer.sample(64).key, np.arange(64.0))
    buffer.save(tmp_path / "a.replay")
    for kw in ({"priority_exponent": 0.5}, {"sampling": "transitions"}):
        loaded = filled(**({"sampling": "prioritised"} | kw))
        loaded.load(tmp_path / "a.replay")
        assert (loaded.sample(64).weight == 1.0).all()
    filled().save(tmp_path / "b.replay")
    buffer.load(tmp_path / "b.replay")
    assert (buffer.sample(64).weight == 1.0).all()


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ([0], [-1.0]), ([0], [float("nan")]), ([0], [float("inf")]), ([0], []), ([], [1.0]),
        ([-1], [1.0]), ([10**6], [1.0]), ([2**63 - 1], [1.0]), ([1 << 48], [1.0]), ([0.5], [1.0]),
        (None, [1.0]), ([0], ["a"]), ([[0]], [[1.0]]), ([2**64 - 1], [1.0]), ([0], None),
        ([0, 0, -(2**63)], [1.0, 1.0, 1.0]),
    ],
)  # fmt: skip
def test_bad_priorities_are_refused_and_change_nothing(keys, values):
    buffer, twin = filled(sampling="prioritised"), filled(sampling="prioritised")
    with pytest.raises(ReplayError):
        buffer.update_priorities(keys, values)
    for a, b in zip(buffer.sample(32), twin.sample(32), strict=True):
        assert a.tobytes() == b.tobytes()
    with pytest.raises(ReplayError, match="sampling="):
        filled().update_priorities([0], [1.0])


def _uneven(r: GoalRequest):
    return r.goal, [[True], []]


@pytest.mark.parametrize(
    "answer",
    [
        lambda r: None, lambda r: 3, lambda r: r.goal[:-1], lambda r: r.goal.astype(float),
        lambda r: np.full(len(r.goal), 99), lambda r: np.full(len(r.goal), -2), lambda r: (),
        lambda r: np.full(len(r.goal), 2**40), lambda r: np.full(len(r.goal), 2**64 - 1, np.uint64),
        lambda r: (r.goal, r.goal), lambda r: (r.goal, np.ones(r.observations.shape, bool)),
        lambda r: (r.goal, None, np.full((len(r.goal), r.observations.shape[1] - 1), np.nan)),
        lambda r: (r.goal, None, np.ones(3)), lambda r: (r.goal, None, None, None), _uneven,
        lambda r: "abc", lambda r: 1 / 0,
    ],
)  # fmt: skip
def test_bad_answers_of_a_hook_are_refused_and_the_batch_is_not_lost(answer):
    bad = [True]

    def hook(r: GoalRequest):
        return answer(r) if bad[0] else r.goal

    buffer, twin = filled(goals=hook), filled(goals=lambda r: r.goal)
    with pytest.raises((ReplayError, ZeroDivisionError)):
        buffer.sample(16)
    bad[0] = False
    for a, b in zip(buffer.sample(16), twin.sample(16), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda r: r.goal * 1.0, r"goals of dtype float64 and shape \[\d+\]; integers of shape"),
        (lambda r: r.goal[None], r"goals of dtype int32 and shape \[1, \d+\]; integers of shape"),
        (lambda r: (r.goal, _width(r)), r"hits of dtype float64 .*; bools of shape"),
        (lambda r: (r.goal, _width(r).T > 0), r"hits of dtype bool .*; bools of shape"),
        (lambda r: (r.goal, None, _width(r).T), r"rewards of dtype float64 .*; real numbers of"),
        (lambda r: (r.goal, None, _width(r) > 0), r"rewards of dtype bool .*; real numbers of"),
        (lambda r: r.goal.astype(np.uint64) + np.uint64(2**63), "goals that are no text ids"),
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_or_dtype_is_named(answer, says):
    with pytest.raises(ReplayError, match=says):
        filled(goals=answer, n_step=3).sample(16)


def test_a_hook_may_answer_in_any_integers():
    plain = filled(goals=lambda r: r.goal).sample(16)
    for kind in (np.uint8, np.uint64, np.int64):
        batch = filled(goals=lambda r, kind=kind: r.goal.astype(kind)).sample(16)
        for a, b in zip(batch, plain, strict=True):
            assert a.tobytes() == b.tobytes()


def _width(request: GoalRequest) -> np.ndarray:
    return np.zeros((len(request.row), request.observations.shape[1] - 1))


def test_a_hook_may_use_the_buffer_even_evict_its_own_rows():
    def hook(r: GoalRequest):
        inner.sample(8)
        for k in range(25):
            buffer.add_episode(
                7, [1, 2, k % 9], [0, 1, 2], [0, 1], [0, 1], True, False, [0, 0, 0], []
            )
        return np.full(len(r.row), buffer.intern_text([1, 2, 3]))

    inner = filled()
    buffer = filled(goals=hook, her_ratio=1.0)
    batch = buffer.sample(16)
    assert (batch.relabeled == 0).all()  # all of them were overtaken
    assert (batch.goal == 7).all()
    assert buffer.stats()["redrawn"] >= 16


@pytest.mark.parametrize(
    "kw",
    [
        {"sampling": "uniform"}, {"sampling": None}, {"priority_exponent": -1.0},
        {"priority_beta": float("nan")}, {"priority_epsilon": -1e-9}, {"prefetch": -1},
        {"prefetch": 1.5}, {"prefetch": 10**6}, {"goals": 3}, {"long_episodes": "drop"},
        {"goals": lambda r: r.goal, "prefetch": 1},
        {"capacity": 2**25, "sampling": "prioritised"},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(kw):
    with pytest.raises(ReplayError):
        ReplayBuffer(**({"capacity": 10} | kw))
    with pytest.raises(ReplayError):
        filled().sample(4, beta=-1.0)
    with pytest.raises(ReplayError):
        filled().sample_many(0, 4)


def test_a_shared_buffer_splits_at_its_segments_and_ranks_for_itself():
    name = f"split-{os.getpid()}"
    n = 1000
    episode = {
        "goal": 3, "observations": [1] * (n + 1), "candidates": [0] * (n + 1), "actions": [0] * n,
        "rewards": [1.0] * n, "terminated": True, "truncated": False,
        "achieved_offsets": list(range(n + 1)), "achieved": [4] * n,
    }  # fmt: skip
    options = {"her_strategy": "none", "n_step": 1}
    with ReplayBuffer(4000, shared=name, **options) as refusing:
        fill_tables(refusing)
        with pytest.raises(ReplayError, match=r"holds 1024; raise.*long_episodes"):
            refusing.add_episode(**episode)
        writer = ReplayBuffer.attach(name, long_episodes="split")
        assert writer.add_episode(**episode) == 0
        ranked = ReplayBuffer.attach(name, sampling="prioritised", seed=3)
        ranked.set_template([("goal",), ("observation",)])
        for buffer in (refusing, ranked):
            assert len(buffer) == n
            batch = buffer.sample(4096)
            ends = batch.step[batch.discount == 0]  # one true end, and the cuts bootstrap
            assert set(batch.episode.tolist()) == {0, 1, 2}
            assert len(set(ends.tolist())) <= 1
        assert ranked.update_priorities(batch.key, np.zeros(4096)) == 4096
        assert ranked.sample(512).weight.min() < 1
        assert (refusing.sample(64).weight == 1).all()

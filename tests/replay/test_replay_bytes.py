"""A capacity in bytes: the oldest episodes go, and with them the texts that nothing uses."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sacglam.errors import CheckpointError, ReplayError
from sacglam.replay import ReplayBuffer


def _sibling(name):
    spec = importlib.util.spec_from_file_location(
        f"bytes_{name}", Path(__file__).with_name(f"{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


differential, stress = _sibling("test_replay_oracle"), _sibling("test_replay_stress")


@st.composite
def episodes(draw):
    """An episode given by its token lists: what the ids are is found when it is added."""
    length = draw(st.integers(1, 6))
    word = st.lists(st.integers(0, 40), max_size=20)
    sets = st.lists(word, min_size=1, max_size=3, unique_by=tuple)
    candidates = draw(st.lists(sets, min_size=length + 1, max_size=length + 1))
    return {
        "goal": draw(word),
        "observations": draw(st.lists(word, min_size=length + 1, max_size=length + 1)),
        "candidates": candidates,
        "actions": [draw(st.integers(0, len(c) - 1)) for c in candidates[:-1]],
        "achieved": draw(st.lists(st.lists(word, max_size=2), min_size=length, max_size=length)),
        "terminated": draw(st.booleans()),
    }


def add(buffer, e):
    text = buffer.intern_text
    goal, observations = text(e["goal"]), [text(o) for o in e["observations"]]
    sets = [buffer.intern_candidates([text(a) for a in c]) for c in e["candidates"]]
    achieved = [[text(g) for g in goals] for goals in e["achieved"]]
    return buffer.add_episode(
        goal, observations, sets, e["actions"], [1.0] * len(e["actions"]), e["terminated"],
        not e["terminated"], np.cumsum([0, *map(len, achieved)]).tolist(),
        [g for goals in achieved for g in goals],
    )  # fmt: skip


def form(buffer):
    a, b = buffer.intern_text([7]), buffer.intern_text([])
    buffer.set_template(
        [("literal", a), ("goal",), ("history", 2, [("observation",), ("action",)]),
         ("observation",), ("actions", b)]
    )  # fmt: skip


def assert_alike(native, plain, size):
    differential.assert_same(native.sample(size), plain.sample(size))
    stats = native.stats()
    assert stats["content_bytes"] == plain.content_bytes()
    assert stats["texts"] == sum(x is not None for x in plain.texts)
    assert stats["candidate_sets"] == sum(x is not None for x in plain.sets)
    assert stats["steps"] == plain.steps()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kw=differential.options,
    sampling=st.sampled_from(["transitions", "episodes", "prioritised"]),
    capacity_bytes=st.integers(20_000, 40_000),
    history=st.lists(episodes(), min_size=1, max_size=14),
    cut=st.integers(0, 14),
)
def test_texts_are_freed_as_in_the_oracle(
    tmp_path_factory, kw, sampling, capacity_bytes, history, cut
):
    kw = kw | {"sampling": sampling, "capacity_bytes": capacity_bytes}
    native = ReplayBuffer(60, **kw)
    plain = differential.oracle.Oracle(60, **kw)
    for buffer in (native, plain):
        form(buffer)
    for k, episode in enumerate(history):
        assert add(native, episode) == add(plain, episode)
        assert_alike(native, plain, 7)
        if k == cut:  # what is freed when is part of what is saved
            path = tmp_path_factory.mktemp("replay") / "a.replay"
            native.save(path)
            native = ReplayBuffer(60, **(kw | {"seed": 1}))
            native.load(path)
            assert_alike(native, plain, 7)


def observe(buffer, k, length, tokens):
    """An episode whose every text is its own; which, its tokens say."""
    texts = [buffer.intern_text(np.arange(tokens) + 1000 * (k * (length + 1) + t))
             for t in range(length + 1)]  # fmt: skip
    act = buffer.intern_candidates([buffer.intern_text([1]), buffer.intern_text([2 + k])])
    goal = buffer.intern_text([5, k])
    return (goal, texts, [act] * (length + 1), [k % 2] * length, [0.0] * length, True, False,
            np.arange(length + 1), [goal] * length)  # fmt: skip


def resident():
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


@pytest.mark.parametrize("sampling", ["transitions", "prioritised"])
def test_memory_stays_bounded_with_a_text_of_its_own_for_every_observation(sampling):
    limit = 4 << 20
    buffer = ReplayBuffer(10**6, capacity_bytes=limit, sampling=sampling)
    buffer.set_template([("goal",), ("observation",), ("actions", buffer.intern_text([9]))])
    sizes, whole = [], []
    for k in range(2400):  # 55 MB of texts
        buffer.add_episode(*observe(buffer, k, 25, 200))
        if k % 100 == 0 and k >= 400:
            batch = buffer.sample(32)
            ids = batch.prompt_ids[batch.prompt_offsets[:-1] + 2]
            assert (ids == 1000 * (batch.episode * 26 + batch.step)).all()
            stats = buffer.stats()
            assert stats["content_bytes"] <= limit
            sizes.append(stats["bytes"])
            whole.append(resident())
    assert buffer.stats()["episodes"] > 100
    assert max(sizes) <= 2 * limit
    assert max(sizes) <= 1.1 * min(sizes)
    assert whole[-1] - whole[0] < limit


def test_samplers_that_never_pause_do_not_keep_freed_texts_alive():
    limit = 1 << 20
    buffer = ReplayBuffer(10**6, capacity_bytes=limit, her_ratio=1.0, her_strategy="random",
                          her_balance="events")  # fmt: skip
    buffer.set_template([("goal",), ("observation",), ("actions", buffer.intern_text([9]))])
    buffer.add_episode(*observe(buffer, 0, 25, 60))
    stop, failures = threading.Event(), []

    def consume():
        while not stop.is_set():
            batch = buffer.sample(16)
            o = batch.prompt_offsets[:-1]
            texts = batch.prompt_ids[o + 2] - 1000 * (batch.episode * 26 + batch.step)
            if texts.any() or (batch.prompt_ids[o] != 5).any():
                failures.append(batch)

    threads = [threading.Thread(target=consume) for _ in range(2)]
    for thread in threads:
        thread.start()
    before = resident()
    for k in range(1, 1500):
        buffer.add_episode(*observe(buffer, k, 25, 60))
    grown = resident() - before
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert grown < 12 * limit  # 1500 episodes are 14 MB of content


def test_an_id_is_good_until_all_that_was_stored_is_gone():
    buffer = ReplayBuffer(50, capacity_bytes=1 << 20)
    buffer.set_template([("goal",), ("observation",)])
    held = buffer.intern_text([1, 2, 3])
    for k in range(40):
        episode = observe(buffer, k, 25, 3)
        if k == 0:
            buffer.add_episode(held, *episode[1:])
        elif k < 3:
            assert buffer.text(held).tolist() == [1, 2, 3]
            buffer.add_episode(*episode)
        else:
            buffer.add_episode(*episode)
    for use in (
        lambda: buffer.text(held),
        lambda: buffer.add_episode(held, *episode[1:]),
        lambda: buffer.assemble(held, episode[1], episode[2], [], 0),
        lambda: buffer.intern_candidates([held]),
    ):
        with pytest.raises(ReplayError, match="it was freed"):
            use()
    fresh = buffer.intern_text([1, 2, 3])
    assert fresh > held  # ids are not used again
    assert buffer.text(fresh).tolist() == [1, 2, 3]


def test_what_does_not_fit_is_refused_and_changes_nothing():
    buffer = ReplayBuffer(1000, capacity_bytes=20_000)
    buffer.set_template([("goal",), ("observation",)])
    small = buffer.add_episode(*observe(buffer, 0, 3, 5))
    with pytest.raises(ReplayError, match="no room for a list of 10000 ids"):
        buffer.intern_text(np.arange(10_000))
    text = buffer.intern_text([1, 77])
    sets = [buffer.intern_candidates([text])] * 901
    with pytest.raises(ReplayError, match="takes [0-9]+ bytes with its texts"):
        buffer.add_episode(
            text, [text] * 901, sets, [0] * 900, [0.0] * 900, True, False, [0] * 901, []
        )

    def fill():
        for k in range(1000):
            buffer.intern_text([k, 78])

    with pytest.raises(ReplayError, match="raise capacity_bytes"):
        fill()
    assert buffer.stats()["content_bytes"] <= 20_000
    assert set(buffer.sample(8).episode.tolist()) == {small}


def test_a_text_that_never_fits_drives_no_episode_out():
    buffer = ReplayBuffer(1000, capacity_bytes=20_000)
    episodes = [buffer.add_episode(*observe(buffer, k, 3, 5)) for k in range(5)]
    for intern in (buffer.intern_text, buffer.intern_candidates):
        with pytest.raises(ReplayError, match="no room for a list of 10000 ids: it takes [0-9]+ b"):
            intern(np.arange(10_000))
    assert buffer.stats()["episodes"] == len(episodes)


@pytest.mark.parametrize("length", [11, 21, 40])
def test_splitting_keeps_the_texts_of_the_pieces_to_come(length):
    buffer = ReplayBuffer(10, long_episodes="split", capacity_bytes=10**6)
    pair = [buffer.intern_text([7]), buffer.intern_text([8])]

    def add(length, first):
        observations = [buffer.intern_text([first + t]) for t in range(length + 1)]
        buffer.add_episode(
            buffer.intern_text([9]), observations,
            [buffer.intern_candidates(pair)] * (length + 1), [0] * length, [0.0] * length,
            True, False, [0] * (length + 1), [],
        )  # fmt: skip
        return observations

    add(10, 100)
    observations = add(length, 1000)
    assert buffer.stats()["steps"] == 10 if length % 5 == 0 else length % 5 + 5
    assert [buffer.text(t).tolist() for t in observations[-6:]] == [
        [1000 + t] for t in range(length - 5, length + 1)
    ]


def test_splitting_stores_all_pieces_or_none():
    buffer = ReplayBuffer(400, long_episodes="split", capacity_bytes=20_000)
    text = buffer.intern_text([1])
    actions = buffer.intern_candidates([text])
    events = [0] * 201 + [500 * (t + 1) for t in range(300)]  # the second piece is too large
    with pytest.raises(ReplayError, match="capacity_bytes"):
        buffer.add_episode(
            text, [text] * 501, [actions] * 501, [0] * 500, [0.0] * 500, True, False,
            events, [text] * events[-1],
        )  # fmt: skip
    assert buffer.stats()["episodes"] == 0


@pytest.mark.parametrize("value", [0, 1, 4095, -1, 2**60, 1e6, "1MB", True])
def test_bad_limits_are_refused(value):
    with pytest.raises(ReplayError, match="capacity_bytes"):
        ReplayBuffer(10, capacity_bytes=value)


def test_a_shared_buffer_has_no_limit_in_bytes():
    with pytest.raises(ReplayError, match="shared_bytes bounds"):
        ReplayBuffer(100, shared="bytes-test", capacity_bytes=1 << 20)


def test_a_damaged_file_is_refused(tmp_path):
    buffer = ReplayBuffer(50, capacity_bytes=1 << 20)
    buffer.set_template([("goal",), ("observation",)])
    for k in range(5):
        buffer.add_episode(*observe(buffer, k, 15, 3))
    path = tmp_path / "a.replay"
    buffer.save(path)
    whole = path.read_bytes()
    for i in range(40, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(CheckpointError):
            buffer.load(path)
    path.write_bytes(whole)
    plain = ReplayBuffer(50)  # without a limit: ids are given anew
    plain.load(path)
    for a, b, name in zip(buffer.sample(20), plain.sample(20), buffer.sample(1)._fields,
                          strict=True):  # fmt: skip
        if "candidates" not in name and name != "goal":
            assert a.tobytes() == b.tobytes(), name


@pytest.mark.skipif(not stress.LONG, reason="by make stress")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_freed_text_is_read(tmp_path, sanitizer):
    """In C++, every text new; `make native` runs it without sanitizers."""
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    done = stress.run(stress.build(tmp_path, *flags, test="bytes"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("wrong 0")

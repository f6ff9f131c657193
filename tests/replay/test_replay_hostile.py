"""Hostile input: a typed error each, the buffer untouched, never a crash."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from sacglam.errors import CheckpointError, ReplayError, SacglamError
from sacglam.replay import Batch, ReplayBuffer


def make(**kw):
    buffer = ReplayBuffer(20, **kw)
    for i in range(6):
        buffer.intern_text([i, i])
    buffer.intern_candidates([0, 1])
    buffer.intern_candidates([2])
    buffer.set_template([("goal",), ("observation",), ("actions", 5)])
    return buffer


GOOD = {
    "goal": 3,
    "observations": [0, 1, 2],
    "candidates": [0, 1, 0],
    "actions": [1, 0],
    "rewards": [0.0, 1.0],
    "terminated": True,
    "truncated": False,
    "achieved_offsets": [0, 1, 2],
    "achieved": [4, 3],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("goal", 6), ("goal", -1), ("goal", 2**40), ("goal", 1.0), ("goal", None), ("goal", True),
        ("observations", [0, 1]), ("observations", [0, 1, 6]), ("observations", [0, 1, -1]),
        ("observations", [0, 1, 2**31]), ("observations", [0, 1, 2**63]), ("observations", "abc"),
        ("observations", np.zeros(3)), ("observations", np.zeros((3, 1), np.int32)),
        ("observations", None), ("observations", [[0], [1, 2]]), ("observations", [0, 1, 2**70]),
        ("observations", np.array([0, 1, 2**64 - 1], np.uint64)), ("observations", object()),
        ("observations", np.broadcast_to(np.int32(0), (2**40,))),
        ("rewards", np.broadcast_to(np.float16(0), (2**45,))),
        ("candidates", [0, 1, 2]), ("candidates", [0, 1]), ("candidates", [True, False, True]),
        ("actions", [2, 0]), ("actions", [1, 1]), ("actions", [-1, 0]), ("actions", []),
        ("actions", [1]), ("actions", [1, 0, 0]), ("actions", np.array([1, 0], np.float32)),
        ("rewards", [0.0]), ("rewards", [0.0, float("nan")]), ("rewards", [float("inf"), 0.0]),
        ("rewards", [0.0, 1e300]), ("rewards", ["a", "b"]), ("rewards", [1j, 0]),
        ("terminated", "yes"), ("terminated", None), ("truncated", 2), ("truncated", float("nan")),
        ("achieved_offsets", [0, 1]), ("achieved_offsets", [0, 2, 1]),
        ("achieved_offsets", [1, 1, 2]), ("achieved_offsets", [0, 1, 3]),
        ("achieved_offsets", [0, -5, 2]), ("achieved_offsets", [0, 2**62, 2]),
        ("achieved_offsets", [-(2**62), 0, 2]),
        ("achieved", [4]), ("achieved", [4, 6]), ("achieved", [-4, 3]),
    ],
)  # fmt: skip
def test_a_bad_episode_is_refused_and_leaves_no_trace(field, value):
    buffer, twin = make(), make()
    buffer.add_episode(**GOOD)
    twin.add_episode(**GOOD)
    with pytest.raises(ReplayError):
        buffer.add_episode(**(GOOD | {field: value}))
    assert buffer.stats() == twin.stats()
    for a, b in zip(buffer.sample(16), twin.sample(16), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", ["i4", "i8", "u8", "f4", "f8"])
def test_arrays_that_are_not_aligned_are_read_all_the_same(dtype):
    buffer, twin = make(), make()
    twin.add_episode(**GOOD)
    size = np.dtype(dtype).itemsize
    odd = {}
    for field, value in GOOD.items():
        if isinstance(value, list) and (field == "rewards") == (dtype[0] == "f"):
            a = np.frombuffer(bytearray(size * len(value) + 1), np.uint8)[1:].view(dtype)
            a[:] = value
            odd[field] = a
    buffer.add_episode(**(GOOD | odd))
    for a, b in zip(buffer.sample(16), twin.sample(16), strict=True):
        assert a.tobytes() == b.tobytes()


def test_messages_name_what_to_do():
    buffer = make()
    long = GOOD | {
        "observations": [0] * 22, "candidates": [0] * 22, "actions": [0] * 21,
        "rewards": [0.0] * 21, "achieved_offsets": [0] * 22, "achieved": [],
    }  # fmt: skip
    with pytest.raises(ReplayError, match="21 transitions.*capacity 20.*raise the capacity"):
        buffer.add_episode(**long)
    with pytest.raises(ReplayError, match=r"actions\[0\] is 2.*2 candidates"):
        buffer.add_episode(**(GOOD | {"actions": [2, 0]}))
    with pytest.raises(ReplayError, match="did you mean 'future'"):
        ReplayBuffer(10, her_strategy="futur")
    with pytest.raises(ReplayError, match="the buffer is empty"):
        buffer.sample(1)
    with pytest.raises(ReplayError, match="call set_template first"):
        ReplayBuffer(10).sample(1)


@pytest.mark.parametrize(
    "kw",
    [
        {"capacity": 0}, {"capacity": -1}, {"capacity": 2**63}, {"capacity": 10.0},
        {"n_step": 0}, {"n_step": 2**40}, {"gamma": 1.5}, {"gamma": float("nan")},
        {"her_ratio": -0.1}, {"her_ratio": float("inf")}, {"her_reward": float("nan")},
        {"her_balance": "goal"}, {"her_balance": np.array([])}, {"her_strategy": None},
        {"her_random": -0.1}, {"her_random": 2},
        {"seed": -1}, {"seed": 2**64},
        {"gamma": "0.9"}, {"n_step": True}, {"gamma": 10**400}, {"seed": 10**5000},
        {"shared": "\ud800"}, {"shared": 3}, {"shared": "x", "shared_texts": "y"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(kw):
    with pytest.raises(ReplayError):
        ReplayBuffer(**({"capacity": 10} | kw))


@pytest.mark.parametrize("ids", [[-1], [1.5], ["a"], None, 3, [[1]], [2**31], b"abc", [True]])
def test_bad_texts_are_refused(ids):
    with pytest.raises(ReplayError):
        make().intern_text(ids)


@pytest.mark.parametrize("ids", [[], [0, 0], [6], [-1], [0, 2**40], None])
def test_bad_candidate_sets_are_refused(ids):
    with pytest.raises(ReplayError):
        make().intern_candidates(ids)


@pytest.mark.parametrize(
    "ops",
    [
        None, [], "goal", ["goal"], [("goal", 1)], [("gaol",)], [("literal",)], [("literal", 6)],
        [("literal", -1)], [("literal", "a")], [("actions",)], [("actions", 99)], [("action",)],
        [("history", 0, [("observation",)])], [("history", 2, [])], [("history", 2, None)],
        [("history", 2, [("goal",)])], [("history", 2, [("history", 1, [("action",)])])],
        [("history", 2**40, [("action",)])], [()], [(3,)], [("\ud800",)],
    ],
)  # fmt: skip
def test_bad_templates_are_refused_and_the_old_one_stays(ops):
    buffer = make()
    before = buffer.assemble(3, [1], [0], [], 0).tolist()
    with pytest.raises(ReplayError):
        buffer.set_template(ops)
    assert buffer.assemble(3, [1], [0], [], 0).tolist() == before


@pytest.mark.parametrize(
    "args",
    [
        (6, [0], [0], [], 0), (3, [0], [0], [], 1), (3, [0], [0], [], -1), (3, [], [0], [], 0),
        (3, [0, 1], [0, 0], [], 1), (3, [0, 1], [1, 0], [1], 1), (3, [0], [9], [], 0),
        (3, [9], [0], [], 0), (3, [0], [0], [], 2**40), (3, [0], [0], [], 0.0),
    ],
)  # fmt: skip
def test_bad_running_episodes_are_refused(args):
    with pytest.raises(ReplayError):
        make().assemble(*args)


@pytest.mark.parametrize(
    "size",
    [0, -1, 2**24 + 1, 2**70, pytest.param(10**5000, id="huge"), 1.0, "3", None, True],
)
def test_bad_batch_sizes_are_refused(size):
    buffer = make()
    buffer.add_episode(**GOOD)
    with pytest.raises(ReplayError):
        buffer.sample(size)


def bad_outs():
    readonly = np.empty(64, np.float32)
    readonly.flags.writeable = False
    yield "discount", readonly
    yield "discount", np.empty(64, np.float64)
    yield "discount", np.empty(7, np.float32)
    yield "discount", np.empty(128, np.float32)[::2]
    yield "discount", np.empty((8, 8), np.float32)
    yield "discount", [0.0] * 64
    yield "discount", None
    yield "action", np.empty(64, np.uint32)
    yield "action", np.empty(64, ">i4")
    yield "action", np.frombuffer(bytearray(4 * 64 + 1), np.uint8)[1:].view(np.int32)
    yield "prompt_offsets", np.empty(8, np.int64)
    yield "prompt_ids", np.empty(3, np.int32)
    yield "next_prompt_ids", np.empty(3, np.int32)
    yield "prompt_ids", None
    yield "next_prompt_ids", "abc"


@pytest.mark.parametrize(("field", "value"), list(bad_outs()))
def test_bad_out_arrays_are_refused_and_the_batch_is_not_lost(field, value):
    buffer, twin = make(), make()
    buffer.add_episode(**GOOD)
    twin.add_episode(**GOOD)
    out = Batch.allocate(8, 500, 500)
    with pytest.raises(ReplayError, match=field):
        buffer.sample(8, out=out._replace(**{field: value}))
    for a, b in zip(buffer.sample(8, out=out), twin.sample(8), strict=True):
        assert a.tobytes() == b.tobytes()
    with pytest.raises(ReplayError, match="Batch"):
        buffer.sample(8, out=tuple(out))


def test_a_damaged_file_is_refused_and_the_buffer_stays(tmp_path):
    saved, buffer, twin = make(), make(seed=9), make(seed=9)
    for b in (saved, buffer, twin):
        b.add_episode(**GOOD)
    path = tmp_path / "a.replay"
    saved.save(path)
    whole = path.read_bytes()
    damaged = [b"", b"hello", whole[:-1], whole + b"x", whole[: len(whole) // 2], b"\0" * 500]
    for i in range(0, len(whole)):
        damaged.append(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            buffer.load(path)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError):
            buffer.load(missing)
    for a, b in zip(buffer.sample(16), twin.sample(16), strict=True):
        assert a.tobytes() == b.tobytes()
    path.write_bytes(whole)
    buffer.load(path)
    assert len(buffer) == 2


def test_a_temporary_file_that_a_killed_process_left_is_passed_over(tmp_path):
    """Containers use the same few process ids again and again."""
    buffer = ReplayBuffer(10)
    buffer.save(str(tmp_path / "first.bin"))
    for serial in range(1000):
        (tmp_path / f"c.bin.tmp.{os.getpid()}.{serial}").write_bytes(b"half")
    buffer.save(str(tmp_path / "c.bin"))
    ReplayBuffer(10).load(str(tmp_path / "c.bin"))


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    buffer = make()
    buffer.add_episode(**GOOD)
    with pytest.raises(CheckpointError, match="untouched"):
        buffer.save(tmp_path / "no" / "such" / "folder")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(CheckpointError):
        buffer.save(target)
    assert os.listdir(tmp_path) == ["target"]
    path = tmp_path / "b.replay"
    buffer.save(path)
    buffer.save(path)
    assert sorted(os.listdir(tmp_path)) == ["b.replay", "target"]


@pytest.mark.parametrize("path", ["a\0b", b"a\0b", "\0", "", "\ud800", 3, None])
def test_bad_paths_are_refused_and_name_no_other_file(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    buffer = make()
    buffer.add_episode(**GOOD)
    for call in (buffer.save, buffer.load):
        with pytest.raises(CheckpointError):
            call(path)
    assert os.listdir(tmp_path) == []


def test_a_file_for_a_larger_buffer_keeps_the_newest_or_is_refused(tmp_path):
    buffer = make()
    for _ in range(5):
        buffer.add_episode(**GOOD)
    path = tmp_path / "c.replay"
    buffer.save(path)
    small = ReplayBuffer(5)
    small.load(path)
    assert len(small) == 4
    assert set(small.sample(64).episode.tolist()) == {3, 4}
    assert small.stats()["evicted_steps"] == 6
    tiny = ReplayBuffer(1)
    with pytest.raises(CheckpointError, match="capacity 1"):
        tiny.load(path)
    assert len(tiny) == 0


def test_errors_are_sacglam_errors():
    assert issubclass(ReplayError, SacglamError)
    with pytest.raises(ValueError, match="capacity"):
        ReplayBuffer(0)


def test_threads_insert_intern_sample_save_and_load_at_once(tmp_path):
    """Every row tells where it is from: prompts must agree with (episode, step, goal)."""
    buffer = ReplayBuffer(300, her_strategy="future", seed=2)
    for i in range(40):
        buffer.intern_text([i])
    sets = [buffer.intern_candidates([i, i + 1]) for i in range(10)]
    buffer.set_template([("goal",), ("observation",), ("actions", 0)])
    failures: list[str] = []
    stop = threading.Event()

    def produce(k):
        rng = np.random.default_rng(k)
        for _ in range(400):
            n = int(rng.integers(1, 9))
            obs = rng.integers(0, 40, n + 1)
            # The observation's text names the candidate set: a torn row would disagree.
            cand = np.array([sets[o % 10] for o in obs])
            buffer.add_episode(
                int(rng.integers(0, 40)), obs, cand, np.zeros(n, int), np.zeros(n), True, False,
                np.arange(n + 1), (obs[:-1] + 1) % 40,
            )  # fmt: skip
            buffer.intern_text(rng.integers(0, 1000, 5))

    def consume():
        out = Batch.allocate(64, 1000, 1000)
        while not stop.is_set():
            batch = buffer.sample(64, out=out)
            for side, width in (
                ("prompt", batch.candidates),
                ("next_prompt", batch.next_candidates),
            ):
                ids = getattr(batch, f"{side}_ids").reshape(64, 5)
                ok = (ids[:, 0] == batch.goal) & (ids[:, 1] % 10 == width)
                ok &= ids[:, 2] == width
                hit = (batch.relabeled == 1) & (batch.n_step_return == 1.0) & (batch.steps == 1)
                if side == "prompt":
                    ok &= ~hit | ((ids[:, 1] + 1) % 40 == batch.goal)
                if not ok.all():
                    failures.append(f"{side}: {ids[~ok]}")

    buffer.add_episode(0, [0, 0], [0, 0], [0], [0.0], True, False, [0, 1], [1])
    threads = [threading.Thread(target=produce, args=(k,)) for k in range(2)]
    readers = [threading.Thread(target=consume) for _ in range(2)]
    for t in threads + readers:
        t.start()
    for i in range(5):
        buffer.save(tmp_path / f"{i}.replay")
        ReplayBuffer(300).load(tmp_path / f"{i}.replay")
        buffer.load(tmp_path / f"{i}.replay")
    for t in threads:
        t.join()
    stop.set()
    for t in readers:
        t.join()
    assert not failures
    assert 0 < len(buffer) <= 300

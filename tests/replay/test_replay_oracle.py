"""The native buffer against the plain Python oracle: bit-identical batches."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sacglam.replay import Batch, ReplayBuffer

_spec = importlib.util.spec_from_file_location(
    "replay_oracle", Path(__file__).with_name("oracle.py")
)
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

N_TEXTS = 9
SETS = [[0], [1, 2], [3, 1, 0], [2, 4, 5, 8]]
TEMPLATE = [
    ("literal", 0),
    ("goal",),
    ("history", 2, [("literal", 1), ("observation",), ("action",)]),
    ("observation",),
    ("actions", 2),
]


def texts():
    # Text 0 is empty; every second one is near 2^16, where ids no longer fit two bytes.
    return [
        list(range(first, first + size))
        for first, size in zip(
            [0, 65_535, 6, 65_533, 12, 65_529, 18, 65_530, 24], [0, 1, 2, 3, 8, 8, 9, 16, 35],
            strict=True,
        )
    ]  # fmt: skip


def fill_tables(buffer) -> None:
    for ids in texts():
        buffer.intern_text(ids)
    for ids in SETS:
        buffer.intern_candidates(ids)
    buffer.set_template(TEMPLATE)


@st.composite
def episodes(draw):
    length = draw(st.integers(1, 7))
    text = st.integers(0, N_TEXTS - 1)
    cand = draw(st.lists(st.integers(0, 3), min_size=length + 1, max_size=length + 1))
    achieved = draw(
        st.lists(st.lists(text, max_size=3), min_size=length, max_size=length)
        | st.just([[]] * length)
    )
    return {
        "goal": draw(text),
        "observations": draw(st.lists(text, min_size=length + 1, max_size=length + 1)),
        "candidates": cand,
        "actions": [draw(st.integers(0, len(SETS[c]) - 1)) for c in cand[:-1]],
        "rewards": draw(st.lists(st.floats(-10, 10, width=32), min_size=length, max_size=length)),
        "terminated": draw(st.booleans()),
        "truncated": draw(st.booleans()),
        "achieved_offsets": np.cumsum([0] + [len(a) for a in achieved]).tolist(),
        "achieved": [g for a in achieved for g in a],
    }


options = st.fixed_dictionaries(
    {
        "n_step": st.integers(1, 4),
        "gamma": st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
        "her_strategy": st.sampled_from(["future", "final", "episode", "random", "none"]),
        "her_ratio": st.floats(0, 1),
        "her_random": st.sampled_from([0.0, 0.3, 1.0]),
        "her_balance": st.sampled_from(["events", "goals"]),
        "her_reward": st.sampled_from([1.0, 0.3, -2.0]),
        "seed": st.integers(0, 2**64 - 1),
    }
)


def assert_same(batch: Batch, rows: list[dict]) -> None:
    assert len(batch.prompt_offsets) == len(batch.next_prompt_offsets) == len(rows) + 1
    assert batch.prompt_offsets[0] == batch.next_prompt_offsets[0] == 0
    assert batch.prompt_offsets[-1] == len(batch.prompt_ids)
    assert batch.next_prompt_offsets[-1] == len(batch.next_prompt_ids)
    for i, row in enumerate(rows):
        po, no = batch.prompt_offsets, batch.next_prompt_offsets
        assert batch.prompt_ids[po[i] : po[i + 1]].tolist() == row["prompt"]
        assert batch.next_prompt_ids[no[i] : no[i + 1]].tolist() == row["next_prompt"]
        for name in set(Batch._fields) & set(row):
            # The bytes, so that -0.0 and rounding count.
            value = getattr(batch, name)[i]
            assert value.tobytes() == value.dtype.type(row[name]).tobytes(), (i, name)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    capacity=st.integers(7, 25),
    kw=options,
    history=st.lists(st.tuples(episodes(), st.integers(0, 9)), min_size=1, max_size=9),
)
def test_batches_are_bit_identical_to_the_oracle(capacity, kw, history):
    native, plain = ReplayBuffer(capacity, **kw), oracle.Oracle(capacity, **kw)
    fill_tables(native)
    fill_tables(plain)
    for episode, batch_size in history:
        assert native.add_episode(**episode) == plain.add_episode(**episode)
        assert len(native) == plain.steps()
        if batch_size:
            assert_same(native.sample(batch_size), plain.sample(batch_size))
    assert_same(native.sample(50), plain.sample(50))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kw=options, history=st.lists(episodes(), min_size=2, max_size=8), cut=st.integers(1, 7))
def test_a_loaded_buffer_continues_bit_identically(tmp_path_factory, kw, history, cut):
    path = tmp_path_factory.mktemp("replay") / "buffer.ckpt"
    saved = ReplayBuffer(20, **kw)
    fill_tables(saved)
    for episode in history[:cut]:
        saved.add_episode(**episode)
    saved.sample(5)
    saved.save(path)
    loaded = ReplayBuffer(20, **(kw | {"seed": 1}))
    loaded.load(path)
    for buffer in (saved, loaded):
        for episode in history[cut:]:
            buffer.add_episode(**episode)
    for _ in range(3):
        for a, b in zip(saved.sample(17), loaded.sample(17), strict=True):
            assert a.tobytes() == b.tobytes()
    a, b = saved.stats(), loaded.stats()
    assert {k: a[k] for k in a if "bytes" not in k} == {k: b[k] for k in b if "bytes" not in k}


@settings(max_examples=60, deadline=None)
@given(episode=episodes(), data=st.data())
def test_acting_assembles_the_prompt_that_sampling_returns(episode, data):
    buffer, plain = ReplayBuffer(100, her_strategy="none"), oracle.Oracle(
        100, n_step=1, gamma=1.0, her_strategy="none", her_ratio=0, her_balance="events",
        her_reward=1, seed=0,
    )  # fmt: skip
    fill_tables(buffer)
    fill_tables(plain)
    t = data.draw(st.integers(0, len(episode["actions"])))
    args = (episode["goal"], episode["observations"][: t + 1], episode["candidates"][: t + 1],
            episode["actions"][:t], t)  # fmt: skip
    acting = buffer.assemble(*args)
    assert acting.dtype == np.int32
    assert acting.tolist() == plain.assemble(*args)
    if t < len(episode["actions"]):
        buffer.add_episode(**episode)
        batch = buffer.sample(64)
        for i in np.flatnonzero(batch.step == t):
            o = batch.prompt_offsets
            assert batch.prompt_ids[o[i] : o[i + 1]].tolist() == acting.tolist()


def test_out_arrays_receive_the_same_batch():
    fresh, reused = ReplayBuffer(50, seed=3), ReplayBuffer(50, seed=3)
    for buffer in (fresh, reused):
        fill_tables(buffer)
        buffer.add_episode(
            3, [1, 2, 3], [0, 1, 2], [0, 1], [0, 1], True, False, [0, 1, 3], [4, 5, 6]
        )
    out = Batch.allocate(40, 10_000, 10_000)
    for _ in range(3):
        a, b = fresh.sample(33), reused.sample(33, out=out)
        for x, y, own in zip(a, b, out, strict=True):
            assert x.dtype == y.dtype
            assert x.tobytes() == y.tobytes()
            assert np.shares_memory(y, own)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.8, 1.0])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_share_of_relabeled_rows_is_exact(ratio, batch_size):
    buffer = ReplayBuffer(1000, her_ratio=ratio, seed=5)
    fill_tables(buffer)
    buffer.add_episode(3, [1, 2, 3], [0, 1, 2], [0, 1], [0, 0], False, True, [0, 0, 1], [4])
    for _ in range(20):  # none of these can be relabeled: the share must not suffer
        buffer.add_episode(3, [1, 2], [0, 1], [0], [0], False, True, [0, 0], [])
    counts = [int(buffer.sample(batch_size).relabeled.sum()) for _ in range(400)]
    exact = ratio * batch_size
    assert set(counts) <= {int(np.floor(exact)), int(np.ceil(exact))}
    assert np.mean(counts) == pytest.approx(exact, abs=0.1)
    assert buffer.stats()["her_share"] == pytest.approx(sum(counts) / (400 * batch_size))


def test_plain_rows_are_uniform_over_transitions():
    buffer = ReplayBuffer(60, her_ratio=0.5, her_balance="events", seed=11)
    fill_tables(buffer)
    rng = np.random.default_rng(0)
    for _ in range(40):
        n = int(rng.integers(1, 9))
        buffer.add_episode(
            3, [1] * (n + 1), [0] * (n + 1), [0] * n, [0.0] * n, False, True, [0] * n + [1], [4]
        )
    counts: dict[tuple[int, int, int], int] = {}
    for _ in range(100):
        batch = buffer.sample(1000)
        for key in zip(batch.relabeled.tolist(), batch.episode.tolist(), batch.step.tolist(),
                       strict=True):  # fmt: skip
            counts[key] = counts.get(key, 0) + 1
    steps = buffer.stats()["steps"]
    for kind in (0, 1):  # with an achievement at each episode's end `future` is uniform as well
        seen = np.array([n for (k, _, _), n in counts.items() if k == kind], float)
        assert len(seen) == steps
        expected = seen.sum() / steps
        chi2 = ((seen - expected) ** 2 / expected).sum()
        assert chi2 < (steps - 1) + 5 * np.sqrt(2 * (steps - 1))

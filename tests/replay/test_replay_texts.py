"""Texts come back as they were given, however wide their ids are and however long they are."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from sacglam.errors import ReplayError
from sacglam.replay import Batch, ReplayBuffer

# Two bytes hold the first two; where one id of a text does not fit, all of it takes four.
HIGHEST = [9, 65_535, 65_536, 2**31 - 1]
LENGTHS = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 129, 1000]


def a_text(length: int, highest: int, seed: int) -> list[int]:
    rng = np.random.default_rng((length, highest, seed))
    ids = rng.integers(0, min(highest, 65_535), length, endpoint=True)
    if length:
        ids[rng.integers(length)] = highest
    return ids.tolist()


@pytest.fixture(params=["private", "capacity_bytes", "shared"])
def buffer(request):
    kinds = {
        "private": {},
        "capacity_bytes": {"capacity_bytes": 1 << 22},
        "shared": {"shared": f"texts-{os.getpid()}"},
    }
    with ReplayBuffer(1000, her_strategy="none", **kinds[request.param]) as made:
        yield made


@pytest.mark.parametrize("highest", HIGHEST)
def test_interned_texts_come_back(buffer, highest):
    texts = [a_text(length, highest, 0) for length in LENGTHS]
    ids = [buffer.intern_text(text) for text in texts]
    assert len(set(ids)) == len(texts)
    assert [buffer.text(i).tolist() for i in ids] == texts
    assert [buffer.intern_text(text) for text in texts] == ids


def test_texts_that_differ_beyond_two_bytes_are_different(buffer):
    texts = [[1, 2], [65_537, 2], [1, 65_538], [65_537, 65_538]]
    ids = [buffer.intern_text(text) for text in texts]
    assert len(set(ids)) == 4
    assert [buffer.text(i).tolist() for i in ids] == texts


def test_the_tokens_of_a_candidate_set(buffer):
    texts = [a_text(length, highest, 3) for length in (1, 9, 40) for highest in HIGHEST]
    made = buffer.intern_candidates([buffer.intern_text(text) for text in texts])
    tokens, offsets = buffer.candidate_tokens(made)
    assert tokens.dtype == np.int32
    assert offsets.dtype == np.int64
    assert [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)] == texts
    for wrong in (made + 1, -1):
        with pytest.raises(ReplayError, match="candidates"):
            buffer.candidate_tokens(wrong)


def test_prompts_of_both_widths_are_exact(buffer, tmp_path):
    """Every text beside every other one, in arrays that hold no id more than the batch."""
    texts = [a_text(length, highest, 1) for length in LENGTHS for highest in HIGHEST]
    action = buffer.intern_text(a_text(3, 65_536, 2))
    chosen = buffer.intern_candidates([action, buffer.intern_text(a_text(2, 9, 2))])
    buffer.set_template([("goal",), ("history", 1, [("action",)]), ("observation",)])
    rng = np.random.default_rng(0)
    stored = {}
    for _ in range(20):
        goal, *observations = (texts[i] for i in rng.integers(0, len(texts), 6))
        ids = [buffer.intern_text(text) for text in (goal, *observations)]
        episode = buffer.add_episode(
            ids[0], ids[1:], [chosen] * 5, [0] * 4, [0.0] * 4, True, False, [0] * 5, []
        )
        stored[episode] = goal, observations

    def check(source: ReplayBuffer) -> None:
        sizes = source.sample(64)  # of some batch; the next one is larger or smaller
        out = Batch.allocate(64, 2 * len(sizes.prompt_ids) + 9000, 2 * len(sizes.prompt_ids) + 9000)
        out.prompt_ids.fill(-7)
        out.next_prompt_ids.fill(-7)
        batch = source.sample(64, out=out)
        for row in range(64):
            goal, observations = stored[int(batch.episode[row])]
            step = int(batch.step[row])
            for ids, offsets, t in (
                (batch.prompt_ids, batch.prompt_offsets, step),
                (batch.next_prompt_ids, batch.next_prompt_offsets, step + int(batch.steps[row])),
            ):
                history = a_text(3, 65_536, 2) if t else []
                got = ids[offsets[row] : offsets[row + 1]].tolist()
                assert got == goal + history + observations[t]
        assert (out.prompt_ids[len(batch.prompt_ids) :] == -7).all()
        assert (out.next_prompt_ids[len(batch.next_prompt_ids) :] == -7).all()

    check(buffer)
    buffer.save(tmp_path / "buffer.ckpt")
    loaded = ReplayBuffer(1000, her_strategy="none")
    loaded.load(tmp_path / "buffer.ckpt")
    check(loaded)


def test_texts_of_a_small_vocabulary_take_half():
    sizes = {}
    for highest in (65_535, 65_536):
        buffer = ReplayBuffer(1000, capacity_bytes=1 << 22)
        before = buffer.stats()["content_bytes"]
        buffer.intern_text([highest] * 1024)
        sizes[highest] = buffer.stats()["content_bytes"] - before
    assert sizes == {65_535: 160 + 2048, 65_536: 160 + 4096}

"""Candidate sets: values that batches and threads share, and that nobody has to keep."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from sacglam._C import CandidateSet, ForestPacker
from sacglam.models import policy as policy_module


def make(*candidates: list[int]) -> CandidateSet:
    tokens = np.array([t for c in candidates for t in c], dtype=np.int32)
    return CandidateSet(tokens, np.cumsum([0, *map(len, candidates)], dtype=np.int64))


def pack(prompts: list[list[int]], sets: list[Any], packer: Any = None) -> dict[str, Any]:
    ids = np.array([t for p in prompts for t in p], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, prompts)], dtype=np.int64)
    return (packer or ForestPacker(-1)).pack(ids, offsets, sets, True, None)


def test_it_says_what_it_was_made_of():
    made = make([5], [5, 6], [7, 8, 9])
    assert len(made) == 3
    assert made.tokens.tolist() == [5, 5, 6, 7, 8, 9]
    assert made.offsets.tolist() == [0, 1, 3, 6]
    made.tokens[0] = 1  # a copy
    assert made.tokens[0] == 5
    assert made == make([5], [5, 6], [7, 8, 9])
    assert hash(made) == hash(make([5], [5, 6], [7, 8, 9]))
    assert made != make([5], [5, 6, 7], [8, 9])
    assert made != [5, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("tokens", "offsets", "what"),
    [
        ([], [0], "at least one"),
        ([], [], "at least one"),
        ([5], [0, 1, 1], "no tokens"),
        ([5, 5], [0, 1, 2], "same tokens"),
        ([5, 6], [0, 1], "end at the token count"),
        ([5, 6], [1, 2], "start at 0"),
        ([5, 6], [0, 3, 2], "no tokens"),
    ],
)
def test_what_is_no_set_is_refused(tokens: list[int], offsets: list[int], what: str):
    with pytest.raises(ValueError, match=what):
        CandidateSet(np.array(tokens, dtype=np.int32), np.array(offsets, dtype=np.int64))


def test_a_prompt_without_a_set_is_refused():
    with pytest.raises(ValueError, match="prompt 1 has no candidate set"):
        pack([[1], [2]], [make([5]), None])
    with pytest.raises(ValueError, match="one entry more"):
        pack([[1], [2]], [make([5])])
    with pytest.raises(TypeError):
        pack([[1]], [0])


def test_equal_prompts_with_equal_sets_are_one_tree_whoever_made_them():
    """What a batch computes must not depend on what was remembered when it was packed."""
    sets = [make([5], [6, 7]), make([5], [6, 7]), make([5, 6], [7]), make([6, 7], [5])]
    packed = pack([[1, 2]] * 4, sets)
    assert packed["tree_of_row"].tolist() == [0, 0, 1, 2]


def test_the_policy_remembers_some_and_keeps_none(make_policy: Any, monkeypatch: Any):
    monkeypatch.setattr(policy_module, "REMEMBERED_SETS", 4)
    policy = make_policy("llama")
    first = policy.candidate_set(["a", "b"])
    assert policy.candidate_set(("a", "b")) is first
    kept = weakref.ref(first)
    scores = policy.score(["go"], [["a", "b"]])[0].log_probs.tolist()
    del first
    for word in "c d e f g".split():
        policy.candidate_set([word])
    gc.collect()
    assert kept() is None
    assert policy.score(["go"], [["a", "b"]])[0].log_probs.tolist() == scores


def test_a_policy_is_freed_at_once(make_policy: Any):
    """Not when the collector of cycles gets to it: a model is large."""
    policy = make_policy("llama")
    policy.score(["go"], [["a", "b"]])
    gc.collect()
    gc.disable()
    try:
        freed = weakref.ref(policy)
        del policy
        assert freed() is None
    finally:
        gc.enable()


def test_threads_pack_while_others_make_sets():
    """Packing holds no lock and not the GIL."""
    packer, sets = ForestPacker(-1), [make([k], [k + 1, k]) for k in range(5, 45)]
    prompts = [[k, k + 1, k + 2] for k in range(40)] * 20
    want = pack(prompts, sets * 20, packer)
    wrong: list[str] = []

    def check() -> None:
        for _ in range(30):
            got = pack(prompts, [make([k], [k + 1, k]) for k in range(5, 45)] * 20, packer)
            wrong.extend(k for k in want if not np.array_equal(want[k], got[k]))

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

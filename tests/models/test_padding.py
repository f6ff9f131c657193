"""Forests padded to few sizes have the same scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sacglam._C import CandidateSet, ForestPacker
from sacglam.models.forest import Forest, forest_from_packed
from sacglam.models.padding import (
    holds,
    pad_forest,
    padded_sizes,
    power_of_two,
    round_up,
)

WORDS = "a b c d e f go to red blue green lion water grasp Goal :".split()
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
actions = st.lists(
    st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=4).map(" ".join),
    min_size=1, max_size=19, unique=True,
)  # fmt: skip
batches = st.lists(st.tuples(texts, actions), min_size=1, max_size=6)
# More tokens than a size holds, rows that share a tree, more rows and columns than 16.
LARGE = [("go to red green lion " * 14, ["a", "a b", "a c d", "b"])] * 17 + [
    ("b c " * 20, [f"{x} {y}" for x in "abcde" for y in "fghi"])
]
# As many tokens as head rows: one for each prompt, and leaves that are left out.
SHORT = [(word, ["a", "b"]) for word in "cdef"]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "t5", "flan-t5"])
@pytest.mark.parametrize("leaves", [False, True])
def test_padding_leaves_scores_as_they_are(make_policy: Any, architecture: str, leaves: bool):
    policy = make_policy(architecture)
    check = settings(max_examples=15, deadline=None)(
        example(LARGE)(example(SHORT)(given(batches)(lambda batch: same(policy, batch, leaves))))
    )
    check()


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_padding_leaves_values_as_they_are(make_policy: Any, architecture: str):
    policy = make_policy(architecture)
    check = settings(max_examples=15, deadline=None)(
        example(LARGE)(example(SHORT)(given(batches)(lambda batch: same_values(policy, batch))))
    )
    check()


@pytest.mark.parametrize("taken", [False, True])
def test_padding_leaves_reencoded_values_as_they_are(make_policy: Any, taken: bool):
    policy = make_policy("t5", critic="reencode")

    def values(batch: list[tuple[str, list[str]]]) -> None:
        last = np.array([len(actions) - 1 for _, actions in batch]) if taken else None
        same_values(policy, batch, leaves=False, taken=last)

    check = settings(max_examples=15, deadline=None)(
        example(LARGE)(example(SHORT)(given(batches)(values)))
    )
    check()


def same_values(
    policy: Any,
    batch: list[tuple[str, list[str]]],
    leaves: bool = True,
    taken: npt.NDArray[np.int64] | None = None,
):
    """With what a critic reads and as many rows as there are, Q and its gradient too."""
    prompts, candidates = zip(*batch, strict=True)
    ids = [policy.codec.text(prompt) for prompt in prompts]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    sets = [policy.candidate_set(actions) for actions in candidates]
    forest = policy.pack(np.concatenate(ids), offsets, sets, taken=taken)
    assert (forest.taken is None) is (taken is None)
    sizes = padded_sizes(forest, leaves=leaves, rows=len(batch), parts=8)
    padded = pad_forest(forest, sizes)
    assert padded.mask.shape[0] == len(batch)
    assert bool((padded.read.diff() > 0).all())
    assert holds(sizes, forest, sizes)
    found = []
    for made in (forest, padded):
        scores = policy.forward(made)
        loss = scores.entropy.mean() + scores.q.square().sum(-1).mean()
        parameters = policy.trainable_parameters().values()
        found.append((scores, torch.autograd.grad(loss, list(parameters), allow_unused=True)))
    (want, gradient), (got, other) = found
    rows, columns = forest.mask.shape
    torch.testing.assert_close(got.q[:, :rows, :columns], want.q, rtol=1e-12, atol=1e-12)
    assert not got.q[:, :, columns:].any()
    for one, two in zip(gradient, other, strict=True):
        if one is not None:
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


def test_no_row_gathers_the_gradients_of_all_padding(make_policy: Any):
    policy = make_policy("llama")
    forest = policy.pack_texts(*zip(*LARGE, strict=True), leaves=True)
    padded = pad_forest(forest, padded_sizes(forest, leaves=True, parts=8))
    real = {"leaf": 1, "head_rows": 1, "edge_row": None, "edge_token": None, "path_edges": None}
    for name, most in real.items():
        was, now = (getattr(f, name) for f in (forest, padded))
        added = int(now[len(was) :].bincount().max())
        times = -(-len(now) // len(was))
        assert added <= times * (most or int(was.bincount().max())), name


def test_a_forest_fits_where_its_sizes_are_a_little_smaller(make_policy: Any):
    policy = make_policy("llama")

    def packed(rows: int, leaves: bool) -> Forest:
        return policy.pack_texts(
            ["go to red " * 20 + f"{w} {x}" for w in WORDS for x in WORDS][:rows],
            [["a", "a b", "c"]] * rows, leaves=leaves,
        )  # fmt: skip

    for leaves in (False, True):
        sizes = padded_sizes(packed(48, leaves), leaves=leaves)
        for rows, fits in (
            (48, True),
            (45, True),
            (40, True),
            (24, False),
            (49, False),
            (5, False),
        ):
            smaller = packed(rows, leaves)
            wanted = padded_sizes(smaller, leaves=leaves)
            assert holds(sizes, smaller, wanted) is fits, (leaves, rows)
            if fits:
                with torch.no_grad():
                    want = policy.forward(smaller, with_q=leaves)
                    got = policy.forward(pad_forest(smaller, sizes), with_q=leaves)
                torch.testing.assert_close(got.log_pi[:rows, :3], want.log_pi)
                if leaves:
                    torch.testing.assert_close(got.q[:, :rows, :3], want.q)


def test_a_forest_fits_where_those_inside_it_do(make_policy: Any):
    policy = make_policy("t5", critic="reencode")

    def packed(actions: int, taken: bool = True) -> Forest:
        prompts = [f"go to red {w}" for w in WORDS]
        ids = [policy.codec.text(prompt) for prompt in prompts]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        sets = [policy.candidate_set([f"a b {x}" for x in WORDS[:actions]])] * len(prompts)
        last = np.zeros(len(prompts), dtype=np.int64) if taken else None
        return policy.pack(np.concatenate(ids), offsets, sets, taken=last)

    forest, small = packed(12), padded_sizes(packed(2))
    sizes = padded_sizes(forest)
    assert holds(sizes, forest, sizes)
    assert not holds(sizes._replace(reencoded=small.reencoded), forest, sizes)
    assert not holds(sizes._replace(reencoded=None), forest, sizes)
    assert not holds(sizes._replace(taken=None), forest, sizes)
    untaken = packed(12, taken=False)
    assert not holds(sizes, untaken, padded_sizes(untaken))
    padded = pad_forest(forest, sizes)
    inside = [f for f in (padded, padded.reencoded, padded.taken) if f is not None]
    prompts = [f.encoder_ids for f in inside if f.encoder_ids is not None]
    assert sizes.computed == sum(len(ids) for ids in [*prompts, *(f.ids for f in inside)])


def same(policy: Any, batch: list[tuple[str, list[str]]], leaves: bool, within: float = 1e-12):
    forest = policy.pack_texts(*zip(*batch, strict=True), leaves=leaves)
    padded = pad_forest(forest)
    sizes = padded_sizes(forest)
    assert padded.ids.shape[0] == sizes.tokens > 0
    assert padded.mask.shape == (sizes.rows, sizes.columns)
    assert int(padded.mask.sum()) == int(forest.mask.sum())
    assert padded.longest >= forest.longest
    assert bool((padded.read.diff() > 0).all())
    with torch.no_grad():
        want = policy.forward(forest, with_q=False)
        got = policy.forward(padded, with_q=False)
    rows, columns = forest.mask.shape
    for name in ("log_prob", "log_pi", "pi"):
        real = getattr(got, name)[:rows, :columns]
        torch.testing.assert_close(real, getattr(want, name), rtol=within, atol=within)
    assert bool((got.mask[:rows, :columns] == want.mask).all())


@pytest.mark.parametrize("architecture", ["qwen2", "t5"])
def test_padding_with_the_native_kernels(make_policy: Any, architecture: str):
    policy = make_policy(architecture, torch.float32)
    same(policy, LARGE, leaves=False, within=1e-4)
    same(policy, SHORT, leaves=False, within=1e-4)


@pytest.mark.parametrize("options", [{"reduce": "mean"}, {"score": "raw_logit"}])
def test_padding_with_other_scores(make_policy: Any, options: dict[str, str]):
    same(make_policy("llama", **options), LARGE, leaves=False)


@given(st.integers(1, 1 << 20), st.sampled_from([4, 8]))
def test_sizes_waste_less_than_a_quarter_or_an_eighth(count: int, parts: int):
    size = round_up(count, parts)
    assert count <= size < max((1 + 1 / parts) * count, count + 64)
    assert size % 64 == 0
    assert count <= power_of_two(count) < max(2 * count, 17)


def random_forest(
    sets: list[CandidateSet],
    decoder_start: int,
    rng: np.random.Generator,
    rows: int,
    shortest: int,
    longest: int,
) -> Forest:
    """Each row has one of these sets of candidates."""
    lengths = rng.integers(shortest, longest + 1, rows)
    prompts = rng.integers(4, 1000, lengths.sum()).astype(np.int32)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    chosen = [sets[k] for k in rng.integers(0, len(sets), rows)]
    return forest_from_packed(
        ForestPacker(decoder_start).pack(prompts, offsets, chosen, False, None)
    )


def random_sets(rng: np.random.Generator) -> list[CandidateSet]:
    sets = []
    for _ in range(20):  # 8 to 14 candidates of 1 to 5 tokens
        wanted, found = rng.integers(8, 15), set()
        while len(found) < wanted:
            found.add(tuple(rng.integers(4, 40, rng.integers(1, 6)).tolist()))
        tokens = [np.array(c, dtype=np.int32) for c in found]
        offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
        sets.append(CandidateSet(np.concatenate(tokens), offsets))
    return sets


@pytest.mark.parametrize("decoder_start", [-1, 0])
@pytest.mark.parametrize(
    ("rows", "shortest", "longest"), [(16, 40, 80), (32, 100, 200), (1, 9, 90)]
)
def test_few_sizes_serve_many_batches(decoder_start: int, rows: int, shortest: int, longest: int):
    rng = np.random.default_rng(rows)
    sets = random_sets(rng)
    forests = [
        random_forest(sets, decoder_start, rng, rows, shortest, longest) for _ in range(1000)
    ]
    assert len({padded_sizes(forest) for forest in forests}) <= 16


def test_paths_of_padding_stay_short():
    rng = np.random.default_rng(0)
    sets = random_sets(rng)
    for rows in range(1, 40):
        padded = pad_forest(random_forest(sets, -1, rng, rows, 5, 60))
        assert int(padded.path_offsets.diff().max()) <= 16
        assert int(padded.plan.q_start.diff().max()) <= 128

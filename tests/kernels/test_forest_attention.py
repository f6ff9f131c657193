"""Packed attention against the dense float64 mask: torch path always, Triton when interpreted."""

from __future__ import annotations

import pytest
import torch
from sacglam.kernels import (
    attention,
    attention_reference,
    forest_attention,
    plan_forest,
    plan_segments,
    segment_attention,
)
from sacglam.kernels.cpu import max_head_dim

# name -> (tree sizes, prefix, H, Hkv, D, bias, trunk)
FORESTS = {
    "one token": ([1], 0, 1, 1, 16, False, 1.0),
    "one prompt, one chain": ([23], 0, 2, 2, 16, False, 1.0),
    "chain with bias": ([40], 0, 1, 1, 8, True, 1.0),
    "ragged, grouped heads": ([5, 17, 1, 30], 0, 4, 2, 16, False, 0.5),
    "ragged, prefix, bias": ([5, 17, 1, 30], 7, 4, 2, 16, True, 0.5),
    "bushy": ([60], 0, 2, 1, 16, True, 0.05),
    "long chain, grouped heads": ([130, 2], 0, 4, 2, 16, False, 1.0),
    "long trunk, then branches": ([120, 9], 0, 2, 1, 16, False, 0.7),
    "long and short": ([110, 3], 0, 2, 2, 24, True, 0.8),
    "many small, long prefix": ([3] * 20, 33, 2, 1, 16, False, 0.3),
    "odd head dimension": ([33, 20], 5, 3, 1, 20, False, 0.7),
}


def _inputs(shapes, dtype, seed):
    """Leaves laid out [T, H, D] in memory and seen as [H, T, D], as a transformer hands them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for heads, tokens, dim in shapes:
        x = torch.randn(tokens, heads, dim, generator=generator, dtype=torch.float64)
        made.append(x.to(dtype).transpose(0, 1).requires_grad_())
    return made, generator


def _compare(plan, heads, kv_heads, dim, with_bias, dtype, backend, tolerance, relative_error):
    shapes = [(heads, plan.q_total, dim), *[(kv_heads, plan.k_total, dim)] * 2]
    leaves, generator = _inputs(shapes, dtype, seed=1)
    bias = None
    if with_bias:  # a radius smaller than the depths, so that clamping is exercised
        bias = torch.randn(heads, 13, generator=generator).to(dtype).requires_grad_()
        leaves.append(bias)
    out = attention(*leaves[:3], plan, bias=bias, backend=backend)
    expected = attention_reference(*leaves[:3], plan, bias=bias)
    assert out.shape == expected.shape
    assert out.dtype == dtype
    assert relative_error(out, expected) < tolerance
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((out.double() * weight).sum(), leaves)
    want = torch.autograd.grad((expected * weight).sum(), leaves)
    for name, a, b in zip(("dq", "dk", "dv", "dbias"), got, want, strict=False):
        assert relative_error(a, b) < tolerance, name


def _case(make_forest, name):
    sizes, prefix, heads, kv_heads, dim, with_bias, trunk = FORESTS[name]
    forest = make_forest(sizes, prefix=prefix, trunk=trunk)
    plan = plan_forest(forest.end, forest.tree_start, prefix=prefix, pos=forest.pos)
    return plan, heads, kv_heads, dim, with_bias


@pytest.mark.parametrize("name", FORESTS)
def test_forest_matches_dense_mask(name, make_forest, relative_error):
    _compare(*_case(make_forest, name), torch.float64, "torch", 1e-12, relative_error)


@pytest.mark.parametrize("prefix", [0, 6])
def test_branches_behind_a_long_trunk(prefix, relative_error):
    """The trunk has a causal call of its own, unless it continues a prefix."""
    trunk, branches = 84, [12, 1, 20]
    end, pos = [trunk + sum(branches)] * trunk, list(range(trunk))
    for length in branches:
        pos += range(trunk, trunk + length)
        end += [len(end) + length] * length
    total = prefix + len(end)
    as_int = [
        torch.tensor(x, dtype=torch.int32)
        for x in (
            [total] * prefix + [prefix + e for e in end],
            [prefix, total],
            [*range(prefix), *(prefix + p for p in pos)],
        )
    ]
    plan = plan_forest(*as_int[:2], prefix=prefix, pos=as_int[2])
    assert plan.buckets()[-1].trunk == (0 if prefix else trunk)
    _compare(plan, 2, 1, 16, False, torch.float64, "torch", 1e-12, relative_error)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_forest_in_lower_precision(dtype, tolerance, make_forest, relative_error):
    case = _case(make_forest, "ragged, prefix, bias")
    _compare(*case, dtype, "torch", tolerance, relative_error)


@pytest.mark.parametrize("name", [name for name, case in FORESTS.items() if case[1] == 0])
def test_native_forest(name, make_forest, relative_error):
    case = _case(make_forest, name)
    if case[0].q_total == 1:
        pytest.skip("the gradients of a single token are rounding alone")
    _compare(*case, torch.float32, "native", 2e-6, relative_error)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 5), (4, 2, 64), (2, 1, 200)])
def test_native_forest_of_many_shapes(heads, kv_heads, dim, threads, make_forest, relative_error):
    dim = min(dim, max_head_dim())  # narrower vector units take narrower heads
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        forest = make_forest([1, 40, 7, 1, 90], trunk=0.8, seed=dim)
        plan = plan_forest(forest.end, forest.tree_start, pos=forest.pos)
        _compare(plan, heads, kv_heads, dim, True, torch.float32, "native", 3e-6, relative_error)
    finally:
        torch.set_num_threads(before)


def test_native_result_does_not_depend_on_the_threads(make_forest):
    forest = make_forest([30, 50, 20, 60], trunk=0.6)
    plan = plan_forest(forest.end, forest.tree_start, pos=forest.pos)
    leaves, generator = _inputs([(4, 160, 16)] * 3, torch.float32, seed=4)
    bias = torch.randn(4, 21, generator=generator).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = attention(*leaves, plan, bias=bias, backend="native")
            results.append([out, *torch.autograd.grad(out.square().sum(), [*leaves, bias])])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float32, "native"), (torch.float64, "torch")]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_some_queries_with_rotary_embedding(dtype, backend, with_bias, make_forest, relative_error):
    _compare_some_queries(dtype, backend, with_bias, make_forest, relative_error)
    if backend == "torch":
        _compare_some_queries(dtype, backend, with_bias, make_forest, relative_error, prefix=17)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_kernels_of_some_queries(
    with_bias, skip, interpreter, make_forest, relative_error, monkeypatch
):
    from sacglam.kernels import forest_attention_triton as kernels

    if skip:
        monkeypatch.setattr(kernels, "_SKIP_TOKENS", 1)
    small = dict(block_m=16, block_n=16, num_warps=1, num_stages=1)
    monkeypatch.setattr(kernels, "attention_tiles", lambda which, q: dict(small))
    for prefix in (0, 17):
        _compare_some_queries(
            torch.float32, "triton", with_bias, make_forest, relative_error, prefix
        )


def _compare_some_queries(dtype, backend, with_bias, make_forest, relative_error, prefix=0):
    """Rows of the result for all queries, with queries and keys rotated beforehand."""
    forest = make_forest([23, 1, 40 - prefix], prefix=prefix, trunk=0.5, seed=2)
    whole = plan_forest(forest.end, forest.tree_start, prefix=prefix, pos=forest.pos)
    tokens = torch.tensor([0, 3, 4, 22, 30, 31, 62, 63])
    tokens = tokens[tokens >= prefix]
    (q, k, v), generator = _inputs([(4, 64, 16), (2, 64, 16), (2, 64, 16)], dtype, seed=5)
    angle = torch.rand(64, 8, generator=generator, dtype=torch.float64).repeat(1, 2) * 6
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    bias = torch.randn(4, 13, generator=generator).to(dtype) if with_bias else None
    out = attention(
        q[:, tokens], k, v, whole.only(tokens), bias=bias, rotary=(cos, sin), backend=backend
    )
    turned = [
        x.double() * angle.cos() + torch.cat([-x[..., 8:], x[..., :8]], -1) * angle.sin()
        for x in (q, k)
    ]
    expected = attention_reference(*turned, v, whole, bias=bias)[:, tokens]
    tolerance = 5e-6 if dtype is torch.float32 else 1e-12
    assert relative_error(out, expected) < tolerance
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((out * weight).sum(), [q, k, v])
    want = torch.autograd.grad((expected * weight).sum(), [q, k, v])
    for name, a, b in zip(("dq", "dk", "dv"), got, want, strict=True):
        assert relative_error(a, b) < tolerance, name


def test_native_attention_refuses_what_it_cannot_do(make_forest):
    wide = torch.randn(1, 1, max_head_dim() + 1)
    single = plan_segments(torch.tensor([0, 1], dtype=torch.int32), 1)
    with pytest.raises(ValueError, match=f"at most {max_head_dim()} columns"):
        attention(wide, wide, wide, single, backend="native")
    assert attention(wide, wide, wide, single).shape == wide.shape
    forest = make_forest([4], prefix=2)
    plan = plan_forest(forest.end, forest.tree_start, prefix=2)
    x = torch.randn(1, 6, 8)
    with pytest.raises(ValueError, match="prefix of 2"):
        attention(x, x, x, plan, backend="native")
    some = make_forest([4]).end
    once = plan_forest(some, torch.tensor([0, 4], dtype=torch.int32)).only(torch.tensor([3]))
    with pytest.raises(ValueError, match="all tokens are queries"):
        once.only(torch.tensor([0]))
    two = make_forest([3, 3])
    outside = plan_forest(two.end, two.tree_start).only(torch.tensor([1]))
    outside.q_node = torch.tensor([5], dtype=torch.int32)  # a token of the other tree
    with pytest.raises(ValueError, match="tokens of their tree"):
        attention(x[:, :1], x, x, outside, backend="native")


@pytest.mark.parametrize("name", FORESTS)
def test_forest_kernels(name, interpreter, make_forest, relative_error):
    _compare(*_case(make_forest, name), torch.float32, "triton", 5e-6, relative_error)


@pytest.mark.parametrize("name", ["bushy", "ragged, prefix, bias", "long trunk, then branches"])
def test_forest_kernels_that_skip_branches(
    name, interpreter, make_forest, relative_error, monkeypatch
):
    from sacglam.kernels import forest_attention_triton as kernels

    monkeypatch.setattr(kernels, "_SKIP_TOKENS", 1)
    small = dict(block_m=16, block_n=16, num_warps=1, num_stages=1)
    monkeypatch.setattr(kernels, "attention_tiles", lambda which, q: dict(small))
    _compare(*_case(make_forest, name), torch.float32, "triton", 5e-6, relative_error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_forest_kernels_in_16_bits(dtype, interpreter, make_forest, relative_error):
    case = _case(make_forest, "ragged, prefix, bias")
    _compare(*case, dtype, "triton", 2e-2, relative_error)


def _segments(q_sizes, k_sizes):
    starts = [torch.tensor([0, *s]).cumsum(0).int() for s in (q_sizes, k_sizes)]
    q_total, k_total = sum(q_sizes), sum(k_sizes)
    positions = [torch.cat([torch.arange(n) for n in s]).int() for s in (q_sizes, k_sizes)]
    return plan_segments(
        starts[0], q_total, starts[1], k_total, q_pos=positions[0], k_pos=positions[1]
    )


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("sizes", [([4, 19, 1], [4, 19, 1]), ([2, 7, 40], [50, 1, 33])])
def test_segments_match_dense_mask(sizes, with_bias, relative_error):
    plan = _segments(*sizes)
    _compare(plan, 4, 2, 16, with_bias, torch.float64, "torch", 1e-12, relative_error)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("sizes", [([4, 19, 1], [4, 19, 1]), ([2, 7, 40], [50, 1, 33])])
def test_native_segments(sizes, with_bias, relative_error):
    plan = _segments(*sizes)
    _compare(plan, 4, 2, 16, with_bias, torch.float32, "native", 2e-6, relative_error)


def test_native_bias_where_positions_do_not_count_up(relative_error):
    """Positions of any order: a bias is then looked up pair by pair."""
    start = torch.tensor([0, 7, 12], dtype=torch.int32)
    pos = torch.tensor([3, 1, 0, 6, 2, 2, 9, 0, 4, 1, 1, 5], dtype=torch.int32)
    plan = plan_segments(start, 12, q_pos=pos)
    _compare(plan, 2, 1, 16, True, torch.float32, "native", 2e-6, relative_error)


@pytest.mark.parametrize("sizes", [([4, 19, 1], [4, 19, 1]), ([2, 7, 40], [50, 1, 33])])
def test_segment_kernels(sizes, interpreter, relative_error):
    plan = _segments(*sizes)
    _compare(plan, 4, 2, 16, True, torch.float32, "triton", 5e-6, relative_error)


@pytest.mark.parametrize("tokens", [16, 30, 32])
@pytest.mark.parametrize("shift", [-17, -3, 1, 5, 15])
def test_native_bias_where_the_keys_begin_elsewhere(tokens, shift, relative_error):
    start, place = torch.tensor([0, tokens]), torch.arange(tokens)
    plan = plan_segments(start, tokens, start, tokens, q_pos=place, k_pos=place + shift)
    _compare(plan, 2, 2, 16, True, torch.float32, "native", 2e-6, relative_error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", range(3), ids=["q", "k", "v"])
def test_native_attention_hides_nothing_that_is_not_finite(where, value, make_forest):
    """A diverged model must be seen in its losses."""
    forest = make_forest([9, 40], trunk=0.8)
    plan = plan_forest(forest.end, forest.tree_start, pos=forest.pos)
    leaves, _ = _inputs([(2, plan.q_total, 16)] * 3, torch.float32, seed=3)
    with torch.no_grad():
        leaves[where][:, 4] = value
    spoilt = ~attention(*leaves, plan, backend="native").isfinite().all(-1)  # [H, T]
    row = torch.arange(plan.q_total)
    expected = (row == 4) if where == 0 else (row >= 4) & (row < forest.end[4])
    assert torch.equal(spoilt, expected.expand_as(spoilt))


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_query_without_keys_gets_zeros(backend):
    plan = _segments([3, 2], [0, 4])
    q, k, v = torch.randn(2, 5, 8), torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    out = attention(q, k, v, plan, backend=backend)
    assert out[:, :3].abs().max() == 0
    expected = attention_reference(q, k, v, plan)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_gradcheck(make_forest):
    forest = make_forest([4, 3], prefix=2)
    plan = plan_forest(forest.end, forest.tree_start, prefix=2, pos=forest.pos)
    (q, k, v), generator = _inputs([(2, 9, 4), (1, 9, 4), (1, 9, 4)], torch.float64, seed=3)
    bias = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: attention(*x[:3], plan, bias=x[3], backend="torch"), (q, k, v, bias)
    )


def test_output_is_laid_out_for_the_next_projection(make_forest):
    forest = make_forest([6, 5])
    q = torch.randn(3, 11, 8)
    out = forest_attention(q, q, q, forest.end, forest.tree_start)
    assert out.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("fault", ["branch sees branch", "no causality", "depth off by one"])
def test_a_wrong_mask_is_noticed(fault, make_forest, relative_error):
    """Negative control: what the comparison above must catch moves the result by over 1 %."""
    forest = make_forest([30, 12], trunk=0.4, seed=5)
    plan = plan_forest(forest.end, forest.tree_start, pos=forest.pos)
    (q, k, v), generator = _inputs([(2, 42, 8)] * 3, torch.float64, seed=2)
    bias = torch.randn(2, 21, generator=generator, dtype=torch.float64)
    good = attention_reference(q, k, v, plan, bias=bias)
    if fault == "branch sees branch":
        ends = torch.tensor([30] * 30 + [42] * 12, dtype=torch.int32)
        plan = plan_forest(ends, forest.tree_start, pos=forest.pos)
    elif fault == "no causality":
        plan = plan_segments(forest.tree_start, 42, q_pos=forest.pos)
    else:
        plan = plan_segments(forest.tree_start, 42, q_pos=forest.pos)
        plan.end, plan.q_pos = forest.end, forest.pos + (forest.pos > 3).int()
    wrong = attention(q, k, v, plan, bias=bias, backend="torch")
    assert relative_error(wrong, good) > 1e-2


def test_padding_tokens_are_trees_of_their_own(make_forest):
    """A pack padded to a bucket's size gives the same results in its real part."""
    forest = make_forest([9, 4])
    end = torch.cat([forest.end, torch.arange(14, 20).int()])
    start = torch.cat([forest.tree_start, torch.tensor([19], dtype=torch.int32)])
    x = torch.randn(2, 19, 8, dtype=torch.float64)
    padded = forest_attention(x, x, x, end, start)
    alone = forest_attention(*[x[:, :13]] * 3, forest.end, forest.tree_start)
    torch.testing.assert_close(padded[:, :13], alone)
    torch.testing.assert_close(padded[:, 13:], x[:, 13:])


def test_tiles_cover_every_token_once(make_forest):
    forest = make_forest([5, 17, 1, 64, 65], prefix=7)
    plan = plan_forest(forest.end, forest.tree_start, prefix=7)
    for side, first in (("q", 0), ("k", 7)):
        tiles = plan.tiles(side, 16).tolist()
        covered = [t for a, b, *_ in tiles for t in range(a, min(b, a + 16))]
        assert sorted(covered) == list(range(first, 159))
        starts = forest.tree_start.tolist()
        for begin, stop, other_begin, other_end in tiles:
            if begin < stop and begin >= 7:
                tree = max(i for i, s in enumerate(starts) if s <= begin)
                assert (other_begin, other_end) == (starts[tree], starts[tree + 1])
                assert stop == starts[tree + 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(end=[2, 2, 2, 4]), "i < end"),
        (dict(end=[4, 4, 3, 5]), "i < end"),
        (dict(tree_start=[0, 3]), "rise from 0 to 4"),
        (dict(tree_start=[0, 3, 2, 4]), "rise from 0 to 4"),
        (dict(prefix=1), "rise from 1 to 4"),
        (dict(heads=3), "multiple"),
        (dict(tokens=5), "plan is for 4"),
        (dict(bias=[2, 5]), "depths"),
        (dict(bias=[2, 4], pos=True), "2R \\+ 1"),
        (dict(backend="cuda"), "need 'auto'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    end = torch.tensor(change.get("end", [4, 4, 4, 4]), dtype=torch.int32)
    start = torch.tensor(change.get("tree_start", [0, 4]), dtype=torch.int32)
    q = torch.randn(change.get("heads", 2), change.get("tokens", 4), 8)
    k = torch.randn(2, change.get("tokens", 4), 8)
    bias = torch.zeros(*change["bias"]) if "bias" in change else None
    pos = torch.arange(4).int() if "pos" in change else None
    with pytest.raises(ValueError, match=message):
        forest_attention(
            q, k, k, end, start, prefix=change.get("prefix", 0), pos=pos, bias=bias,
            backend=change.get("backend", "auto"),
        )  # fmt: skip


def test_segment_attention_defaults_to_self(relative_error):
    x = torch.randn(2, 9, 8)
    start = torch.tensor([0, 4, 9], dtype=torch.int32)
    out = segment_attention(x, x, x, start)
    expected = attention_reference(x, x, x, plan_segments(start, 9))
    assert relative_error(out, expected) < 1e-6

"""Segment softmax over candidates against float64 loops: torch always, Triton interpreted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sacglam.kernels import candidate_softmax, candidate_softmax_reference

# name -> (candidates of each prompt, longest path, edges)
CASES = {
    "one prompt, one candidate": ([1], 1, 1),
    "one candidate each": ([1, 1, 1], 4, 9),
    "ragged": ([3, 12, 1, 7], 6, 40),
    "no candidates in the middle": ([2, 0, 3], 3, 10),
    "many candidates": ([150, 2], 5, 60),
    "long paths": ([4], 60, 70),
}


def _inputs(name, dtype=torch.float64):
    counts, longest, edges = CASES[name]
    rng = np.random.default_rng(11)
    lengths = rng.integers(1, longest + 1, size=sum(counts))
    paths = [rng.choice(edges, size=n, replace=False) for n in lengths]
    as_int = [
        torch.tensor(np.asarray(x), dtype=torch.int32)
        for x in (np.r_[0, lengths.cumsum()], np.concatenate(paths), np.r_[0, np.cumsum(counts)])
    ]
    logp = torch.tensor(-rng.exponential(3.0, size=edges)).to(dtype).requires_grad_()
    sizes = (sum(counts), len(counts), sum(counts))
    weights = [torch.tensor(rng.standard_normal(n)) for n in sizes]
    return logp, as_int, weights


def _compare(name, dtype, backend, tau, reduction, tolerance, relative_error):
    logp, index, weights = _inputs(name, dtype)
    got = candidate_softmax(logp, *index, tau=tau, reduction=reduction, backend=backend)
    want = candidate_softmax_reference(logp, *index, tau=tau, reduction=reduction)
    for field, a, b in zip(got._fields, got, want, strict=True):
        assert a.shape == b.shape, field
        assert relative_error(a, b) < tolerance, field
    for field, a, b, w in zip(got._fields, got, want, weights, strict=True):
        (da,) = torch.autograd.grad((a.double() * w).sum(), logp, retain_graph=True)
        (db,) = torch.autograd.grad((b * w).sum(), logp, retain_graph=True)
        assert relative_error(da, db) < 10 * tolerance, f"gradient of {field}"


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("tau", [1.0, 0.3])
@pytest.mark.parametrize("name", CASES)
def test_matches_loops(name, tau, reduction, relative_error):
    _compare(name, torch.float64, "torch", tau, reduction, 1e-12, relative_error)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", CASES)
def test_kernels(name, reduction, interpreter, relative_error):
    _compare(name, torch.float32, "triton", 0.7, reduction, 1e-5, relative_error)


def test_gradcheck():
    logp, index, _ = _inputs("ragged")
    assert torch.autograd.gradcheck(
        lambda x: tuple(candidate_softmax(x, *index, tau=0.5, backend="torch")), (logp,)
    )


def test_probabilities_sum_to_one_even_where_scores_are_huge():
    logp, index, _ = _inputs("ragged")
    policy = candidate_softmax(logp.detach() * 1e4, *index)
    ends = index[2].tolist()
    for a, b in zip(ends, ends[1:], strict=False):
        assert float(policy.log_pi[a:b].exp().sum()) == pytest.approx(1.0, abs=1e-9)
    assert torch.isfinite(policy.entropy).all()


def test_equal_candidates_have_the_greatest_entropy():
    index = [torch.tensor(x) for x in ([0, 1, 2, 3, 4], [0, 0, 0, 0], [0, 4])]
    policy = candidate_softmax(torch.tensor([-2.0]), *index)
    torch.testing.assert_close(policy.entropy, torch.tensor([4.0]).log())


def test_shared_edges_collect_every_candidates_gradient():
    """Negative control for scatter writes that overwrite instead of adding."""
    index = [torch.tensor(x) for x in ([0, 2, 4], [0, 1, 0, 2], [0, 2])]
    logp = torch.tensor([-1.0, -0.5, -2.0], dtype=torch.float64, requires_grad=True)
    policy = candidate_softmax(logp, *index)
    policy.scores.sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))


def test_16_bit_input_is_computed_in_float32():
    logp, index, _ = _inputs("ragged", torch.bfloat16)
    assert candidate_softmax(logp, *index).log_pi.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tau=0.0), "positive"),
        (dict(reduction="max"), "'sum' or 'mean'"),
        (dict(cand_edge_offsets=torch.tensor([0, 2, 2])), "at least one edge"),
        (dict(cand_edge_offsets=torch.tensor([0, 1, 2])), "ends at 2"),
        (dict(prompt_offsets=torch.tensor([0, 3])), "rise to 2"),
        (dict(prompt_offsets=torch.tensor([0, 3, 2])), "rise to 2"),
        (dict(edge_logp=torch.zeros(2, 2)), "vectors"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = dict(
        edge_logp=torch.zeros(3), cand_edge_offsets=torch.tensor([0, 1, 3]),
        cand_edges=torch.tensor([0, 1, 2]), prompt_offsets=torch.tensor([0, 2]),
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        candidate_softmax(**{**arguments, **change})

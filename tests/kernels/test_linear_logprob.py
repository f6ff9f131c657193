"""The fused head against dense float64 logits: torch path always, Triton when interpreted."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from sacglam.kernels import edge_logits, linear_logprob, linear_logprob_reference

# name -> (rows, hidden, vocabulary, edges, scale of h)
SHAPES = {
    "one of each": (1, 8, 1, 1, 1.0),
    "one row": (1, 16, 50, 12, 1.0),
    "ragged": (37, 24, 131, 90, 1.0),
    "large logits": (20, 16, 70, 40, 60.0),
    "rows without edges": (50, 16, 65, 3, 1.0),
}

# A block has at least 64 rows: here the last of three is partial.
BLOCKED = {**SHAPES, "many rows": (150, 8, 30, 200, 1.0)}


def _inputs(name, dtype):
    rows, hidden, vocab, edges, scale = BLOCKED[name]
    generator = torch.Generator().manual_seed(7)
    h = torch.randn(rows, hidden, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    row = torch.randint(rows, (edges,), generator=generator, dtype=torch.int32)
    token = torch.randint(vocab, (edges,), generator=generator, dtype=torch.int32)
    leaves = h.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    grad = torch.randn(edges, generator=generator, dtype=torch.float64)
    return *leaves, row, token, grad


def _compare(name, dtype, backend, tolerance, relative_error):
    h, weight, row, token, grad = _inputs(name, dtype)
    out = linear_logprob(h, weight, row, token, backend=backend)
    expected = linear_logprob_reference(h, weight, row, token)
    # A log-prob of a certain token is 0: the error is relative to the logits it came from.
    scale = max(1.0, float((h.double() @ weight.double().T).detach().abs().max()))
    assert float((out.double() - expected).abs().max()) < tolerance * scale
    got = torch.autograd.grad((out.double() * grad).sum(), (h, weight))
    want = torch.autograd.grad((expected * grad).sum(), (h, weight))
    for which, a, b in zip(("dh", "dW"), got, want, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, b) < 10 * tolerance, which


@pytest.mark.parametrize("name", SHAPES)
def test_matches_dense_logits(name, relative_error):
    _compare(name, torch.float64, "torch", 1e-13, relative_error)


@pytest.mark.parametrize("name", BLOCKED)
@pytest.mark.parametrize("block", [(32, 4), (64, 16)])
def test_blocks_of_any_size(name, block, monkeypatch, relative_error):
    """Vocabulary and rows cut in many blocks, the last one partial."""
    module = importlib.import_module("sacglam.kernels.linear_logprob")
    monkeypatch.setattr(module, "_BLOCK_LOGITS", block[0])
    monkeypatch.setattr(module, "_BLOCK_VOCAB", block[1])
    _compare(name, torch.float64, "torch", 1e-13, relative_error)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, tolerance, relative_error):
    _compare("ragged", dtype, "torch", tolerance, relative_error)


def test_16_bit_logits_are_exact_where_the_probability_is():
    """Logits near 60 rounded to bfloat16 are off by 0.1; relative to the row's maximum they are
    not, in whatever block of the vocabulary the maximum lies."""
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(40, 128, generator=generator).bfloat16()
    weight = torch.randn(5000, 128, generator=generator).bfloat16() * 2
    row, token = torch.arange(40), torch.randint(5000, (40,), generator=generator)
    expected = linear_logprob_reference(h, weight, row, token)
    plain = torch.log_softmax((h @ weight.T).float(), -1)[row, token]
    error = float((linear_logprob(h, weight, row, token, backend="torch") - expected).abs().max())
    assert error < 0.02
    assert error < float((plain - expected).abs().max()) / 3


def test_16_bit_inputs_are_summed_in_float32():
    """A uniform law's log V, of which bfloat16 holds two digits, in blocks that are partly full."""
    h, weight = torch.zeros(2, 16).bfloat16(), torch.randn(5003, 16).bfloat16()
    token = torch.tensor([3, 5002])
    found = linear_logprob(h, weight, torch.tensor([0, 1]), token, backend="torch")
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([-math.log(5003)] * 2, abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_kernels(name, interpreter, relative_error):
    _compare(name, torch.float32, "triton", 1e-6, relative_error)


def test_kernels_in_16_bits(interpreter, relative_error):
    _compare("ragged", torch.bfloat16, "triton", 1e-2, relative_error)


def test_kernels_with_several_chunks(interpreter, monkeypatch, relative_error):
    from sacglam.kernels import linear_logprob_triton as kernels

    h, weight, row, token, grad = _inputs("ragged", torch.float32)
    lse = kernels.logsumexp_forward(h.detach(), weight.detach())
    got = kernels.backward(
        grad.float(), h.detach(), weight.detach(), row, token, lse,
        need_h=True, need_weight=True, chunk=64,
    )  # fmt: skip
    expected = linear_logprob_reference(h, weight, row, token)
    want = torch.autograd.grad((expected * grad).sum(), (h, weight))
    for a, b in zip(got, want, strict=True):
        assert a is not None
        assert relative_error(a, b) < 1e-5


def test_gradcheck():
    h, weight, row, token, _ = _inputs("one row", torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: linear_logprob(a, b, row, token, backend="torch"), (h, weight)
    )


def test_gradients_are_made_only_where_asked():
    h, weight, row, token, grad = _inputs("ragged", torch.float64)
    both = torch.autograd.grad((linear_logprob(h, weight, row, token) * grad).sum(), (h, weight))
    frozen = linear_logprob(h, weight.detach(), row, token)
    (dh,) = torch.autograd.grad((frozen * grad).sum(), (h,))
    torch.testing.assert_close(dh, both[0])
    fixed = linear_logprob(h.detach(), weight, row, token)
    (dw,) = torch.autograd.grad((fixed * grad).sum(), (weight,))
    torch.testing.assert_close(dw, both[1])


def test_no_tensor_of_rows_times_vocabulary(monkeypatch):
    """The point of the fusion: no intermediate as large as the logits, forward or backward."""
    module = importlib.import_module("sacglam.kernels.linear_logprob")
    monkeypatch.setattr(module, "_BLOCK_LOGITS", 1 << 12)
    monkeypatch.setattr(module, "_BLOCK_VOCAB", 64)
    rows, vocab = 400, 3000
    h, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(vocab, 8)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    row, token = torch.arange(rows), torch.arange(rows)
    with Watch():
        linear_logprob(h, weight, row, token, backend="torch").sum().backward()
    assert 0 < largest < rows * vocab // 20


def test_edge_logits_are_the_raw_products():
    h, weight, row, token, _ = _inputs("ragged", torch.float64)
    expected = (h @ weight.T)[row.long(), token.long()]
    torch.testing.assert_close(edge_logits(h, weight, row, token), expected)


def test_a_dropped_edge_is_noticed():
    """Negative control: the tolerance above is far below the effect of one wrong edge."""
    h, weight, row, token, _ = _inputs("ragged", torch.float64)
    wrong = token.clone()
    wrong[3] = (wrong[3] + 1) % weight.shape[0]
    a = linear_logprob(h, weight, row, wrong, backend="torch")
    b = linear_logprob_reference(h, weight, row, token)
    assert float((a - b).abs().max()) > 1e-3


def test_no_edges():
    out = linear_logprob(torch.randn(3, 4), torch.randn(5, 4), *[torch.empty(0).int()] * 2)
    assert out.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(weight=torch.randn(5, 3)), ValueError, r"\[V, D\]"),
        (dict(weight=torch.randn(5, 4).double()), ValueError, "one dtype"),
        (dict(edge_row=torch.tensor([0])), ValueError, "one length"),
        (dict(edge_row=torch.tensor([0, 3])), IndexError, "edge_row holds 0..3: need 0..2"),
        (dict(edge_token=torch.tensor([-1, 3])), IndexError, "edge_token holds -1..3"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = dict(
        h=torch.randn(3, 4), weight=torch.randn(5, 4), edge_row=torch.tensor([0, 2]),
        edge_token=torch.tensor([4, 0]),
    )  # fmt: skip
    with pytest.raises(error, match=message):
        linear_logprob(**{**arguments, **change})

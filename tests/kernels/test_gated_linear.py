"""Gated products against the formula in float64: torch, and Triton interpreted."""

from __future__ import annotations

import pytest
import torch
from sacglam.kernels import gated_linear, gated_linear_reference


def _inputs(sizes, dtype, requires_grad=False):
    rows, dim, inner = sizes
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, dim), (inner, dim), (inner, dim))
    drawn = [torch.randn(shape, generator=generator) * dim**-0.25 for shape in shapes]
    return [x.to(dtype).requires_grad_(requires_grad) for x in drawn]


def _compare(backend, activation, sizes, dtype, tolerance, relative_error):
    inputs = _inputs(sizes, dtype)
    y = gated_linear(*inputs, activation, backend=backend)
    assert y.dtype == dtype
    want = gated_linear_reference(*(t.double() for t in inputs), activation)
    assert relative_error(y, want) < tolerance


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_matches_float64(activation, relative_error):
    _compare("auto", activation, (9, 12, 20), torch.float32, 2e-6, relative_error)
    _compare("auto", activation, (9, 12, 20), torch.float64, 1e-12, relative_error)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("sizes", [(1, 16, 16), (70, 40, 100), (33, 64, 65)])
def test_kernel(activation, sizes, interpreter, relative_error):
    _compare("triton", activation, sizes, torch.float32, 2e-6, relative_error)


def test_kernel_in_bfloat16(interpreter, relative_error):
    _compare("triton", "silu", (40, 64, 96), torch.bfloat16, 1e-2, relative_error)


def test_kernel_of_many_tiles(interpreter, relative_error, monkeypatch):
    """More row tiles than sweep the columns together, and a last group that is not full."""
    from sacglam.kernels import gated_linear_triton as kernels

    tiles = dict(block_m=16, block_n=16, block_k=16, num_warps=1, num_stages=1)
    monkeypatch.setattr(kernels, "gated_linear_tiles", lambda x: dict(tiles))
    monkeypatch.setattr(kernels, "_GROUP", 3)
    _compare("triton", "silu", (16 * 7 + 1, 16, 40), torch.float32, 2e-6, relative_error)


def test_gradients_where_they_are_needed(relative_error):
    inputs = _inputs((9, 12, 20), torch.float32, requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    got = torch.autograd.grad(gated_linear(*inputs, "silu").square().sum(), inputs)
    want = torch.autograd.grad(gated_linear_reference(*exact, "silu").square().sum(), exact)
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(got, want, strict=True))


def test_gradients_beside_the_kernel(interpreter, relative_error):
    inputs = _inputs((9, 16, 20), torch.float32, requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y = gated_linear(*inputs, "gelu_tanh", backend="triton")
    got = torch.autograd.grad(y.square().sum(), inputs)
    want = torch.autograd.grad(gated_linear_reference(*exact, "gelu_tanh").square().sum(), exact)
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(got, want, strict=True))


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="relu"):
        gated_linear(torch.ones(1, 2), torch.ones(2, 2), torch.ones(2, 2), "relu")

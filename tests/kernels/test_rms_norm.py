"""The RMS norm against the formula in float64: native, and Triton when interpreted."""

from __future__ import annotations

import pytest
import torch
from sacglam.kernels import rms_norm, rms_norm_reference


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 70, 16), (150, 100)])
@pytest.mark.parametrize("with_add", [False, True])
def test_matches_float64(shape, with_add, relative_error):
    _compare(shape, with_add, "native", relative_error)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 70, 16), (3000, 8), (5, 900)])
@pytest.mark.parametrize("with_add", [False, True])
def test_kernels(shape, with_add, interpreter, relative_error):
    _compare(shape, with_add, "triton", relative_error)


def _compare(shape, with_add, backend, relative_error):
    generator = torch.Generator().manual_seed(0)
    x, add, to_y, to_z = (torch.randn(shape, generator=generator) for _ in range(4))
    weight = torch.randn(shape[-1], generator=generator).requires_grad_()
    x, add = x.requires_grad_(), add.requires_grad_() if with_add else None
    leaves = [x, weight] if add is None else [x, weight, add]
    y, z = rms_norm(x, weight, 1e-6, add, backend=backend)
    expected = rms_norm_reference(
        x.double(), weight.double(), 1e-6, None if add is None else add.double()
    )
    assert relative_error(y, expected[0]) < 1e-6
    assert relative_error(z, expected[1]) < 1e-6
    got = torch.autograd.grad((y * to_y + z * to_z).sum(), leaves)
    want = torch.autograd.grad((expected[0] * to_y + expected[1] * to_z).sum(), leaves)
    for name, a, b in zip(("dx", "dweight", "dadd"), got, want, strict=False):
        assert relative_error(a, b) < 2e-6, name


def test_frozen_weight_and_unused_results():
    x, add = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    results = rms_norm(x, torch.ones(8), 1e-6, add)
    expected = rms_norm_reference(x, torch.ones(8), 1e-6, add)
    for got, want in zip(results, expected, strict=True):
        grads = [torch.autograd.grad(r.square().sum(), x, retain_graph=True) for r in (got, want)]
        torch.testing.assert_close(grads[0], grads[1])


def test_kernels_in_bfloat16(interpreter, relative_error):
    x, add = (torch.randn(9, 40).bfloat16().requires_grad_() for _ in range(2))
    weight = torch.randn(40).bfloat16()
    y, z = rms_norm(x, weight, 1e-6, add, backend="triton")
    expected = rms_norm_reference(x.double(), weight.double(), 1e-6, add.double())
    assert y.dtype == z.dtype == torch.bfloat16
    assert relative_error(y, expected[0]) < 1e-2
    got = torch.autograd.grad((y * y + z).sum(), [x, add])
    want = torch.autograd.grad((expected[0].square() + expected[1]).sum(), [x, add])
    assert all(relative_error(a, b) < 2e-2 for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_take_the_formula(dtype):
    x, weight = torch.randn(3, 8).to(dtype), torch.ones(8).to(dtype)
    y, z = rms_norm(x, weight, 1e-6)
    expected, _ = rms_norm_reference(x, weight, 1e-6)
    assert torch.equal(y, expected)
    assert z is x

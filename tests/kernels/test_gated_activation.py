"""The gate against the formula in float64: native, and Triton when interpreted."""

from __future__ import annotations

import pytest
import torch
from sacglam.kernels import gated_activation, gated_activation_reference


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (70, 130)])
def test_matches_float64(activation, shape, relative_error):
    _compare(activation, shape, "native", relative_error)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (35, 130)])
def test_kernels(activation, shape, interpreter, relative_error):
    _compare(activation, shape, "triton", relative_error)


def _compare(activation, shape, backend, relative_error):
    generator = torch.Generator().manual_seed(0)
    gate = (4 * torch.randn(shape, generator=generator)).requires_grad_()
    up = torch.randn(shape, generator=generator).requires_grad_()
    y = gated_activation(gate, up, activation, backend=backend)
    expected = gated_activation_reference(gate.double(), up.double(), activation)
    assert relative_error(y, expected) < 1e-6
    weight = torch.randn(shape, generator=generator)
    got = torch.autograd.grad((y * weight).sum(), [gate, up])
    want = torch.autograd.grad((expected * weight).sum(), [gate, up])
    for name, a, b in zip(("dgate", "dup"), got, want, strict=True):
        assert relative_error(a, b) < 1e-6, name


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_far_values_stay_finite(activation):
    _compare_far(activation, "native")


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_far_values_stay_finite_in_kernels(activation, interpreter):
    _compare_far(activation, "triton")


def _compare_far(activation, backend):
    gate = torch.tensor([-1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4], requires_grad=True)
    y = gated_activation(gate, torch.ones(7), activation, backend=backend)
    y.sum().backward()
    expected = gated_activation_reference(gate.double(), torch.ones(7).double(), activation)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-30)
    assert torch.isfinite(gate.grad).all()


def test_nan_is_not_hidden():
    assert gated_activation(torch.tensor([float("nan")]), torch.ones(1), "silu").isnan().all()


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match="relu"):
        gated_activation(torch.ones(1), torch.ones(1), "relu")

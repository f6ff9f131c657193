"""Triton's rotary embedding, interpreted, against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from sacglam.kernels.rotary_embedding import rotary_embedding, rotate


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 2), (14, 2, 64), (3, 3, 24)])
@pytest.mark.parametrize("laid_out", ["heads first", "tokens first"])
def test_kernel(heads, kv_heads, dim, laid_out, interpreter, relative_error):
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, 37, dim), (kv_heads, 41, dim))

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        if laid_out == "heads first":
            return torch.randn(shape, generator=generator).requires_grad_()
        flat = torch.randn(shape[1], shape[0], shape[2], generator=generator)
        return flat.transpose(0, 1).requires_grad_()

    q, k = map(draw, shapes)
    # The halves of cos and sin differ here, which no model does but the formula allows.
    tables = [[torch.randn(n, dim, generator=generator) for _ in range(2)] for n in (37, 41)]
    got = rotary_embedding(q, k, tuple(tables[0]), tuple(tables[1]), backend="triton")
    want = [
        rotate(x.double(), *(t.double() for t in own))
        for x, own in zip((q, k), tables, strict=True)
    ]
    weights = [torch.randn(x.shape, generator=generator) for x in (q, k)]
    got_grads = torch.autograd.grad(
        sum((a * w).sum() for a, w in zip(got, weights, strict=True)), [q, k]
    )
    want_grads = torch.autograd.grad(
        sum((a * w).sum() for a, w in zip(want, weights, strict=True)), [q, k]
    )
    for a, b in zip((*got, *got_grads), (*want, *want_grads), strict=True):
        assert relative_error(a, b) < 1e-6


def test_formula_serves_the_cpu():
    q, k = torch.randn(2, 3, 4).double(), torch.randn(1, 3, 4).double()
    angle = torch.rand(3, 2).double().repeat(1, 2)
    got = rotary_embedding(q, k, (angle.cos(), angle.sin()), (angle.cos(), angle.sin()))
    for x, y in zip((q, k), got, strict=True):
        pair = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1))
        turned = pair * torch.polar(torch.ones(3, 2).double(), angle[:, :2])
        torch.testing.assert_close(y, torch.cat([turned.real, turned.imag], -1))

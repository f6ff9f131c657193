"""The critic's heads, one number at a time in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from sacglam.models.heads import QHeads


@pytest.mark.parametrize("layers", [(5,), (5, 3), ()], ids=str)
def test_every_head_is_an_mlp_of_its_own(layers: tuple[int, ...]):
    torch.manual_seed(0)
    heads = QHeads(4, layers, heads=3).double()
    with torch.no_grad():
        for bias in heads.biases:
            bias.normal_()
    hidden = torch.randn(6, 4, dtype=torch.float64)
    found = heads(hidden)
    assert found.shape == (3, 6)
    assert len(heads.weights) == len(heads.biases) == len(layers) + 1
    for i in range(3):
        for c in range(6):
            x = hidden[c].tolist()
            for k, (weight, bias) in enumerate(zip(heads.weights, heads.biases, strict=True)):
                table, shift = weight[i].tolist(), bias[i, 0].tolist()
                x = [sum(x[d] * table[d][j] for d in range(len(x))) + shift[j]
                     for j in range(len(shift))]  # fmt: skip
                if k < len(layers):
                    x = [max(0.0, v) for v in x]  # ReLU, but for the last
            assert found[i, c].item() == pytest.approx(x[0], rel=1e-12)
    assert (found < 0).any()  # the last layer has none
    assert (found > 0).any()


def test_they_begin_apart_and_within_the_bounds_of_their_fan_in():
    torch.manual_seed(0)
    heads = QHeads(64, (32,), heads=2)
    for weight, bias in zip(heads.weights, heads.biases, strict=True):
        bound = 1.0 / math.sqrt(weight.shape[1])
        assert 0.8 * bound < weight.abs().max().item() <= bound
        assert abs(weight.mean().item()) < 0.3 * bound
        assert not torch.equal(weight[0], weight[1])  # twins that are equal would stay equal
        assert not bias.any()

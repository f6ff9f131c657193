"""Q heads: small MLPs on the hidden state of a candidate's last token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class QHeads(nn.Module):
    """An ensemble of Q MLPs evaluated together, D -> hidden... -> 1 with ReLU.

    Args:
        hidden_size: D.
        layers: widths of the hidden layers.
        heads: number of Q functions (2: twin Q, clipped by their minimum).
    """

    def __init__(self, hidden_size: int, layers: Sequence[int] = (128,), heads: int = 2) -> None:
        super().__init__()
        widths = [hidden_size, *layers, 1]
        self.heads = heads
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            bound = 1.0 / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(torch.empty(heads, fan_in, fan_out, device="cpu")))
            self.biases.append(nn.Parameter(torch.zeros(heads, 1, fan_out, device="cpu")))
            nn.init.uniform_(self.weights[-1], -bound, bound)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [C, D] -> Q [heads, C]."""
        x = hidden.to(self.weights[0].dtype).expand(self.heads, *hidden.shape)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
                x = torch.relu(x)
        return x.squeeze(-1)

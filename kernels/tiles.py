"""Shapes of the tiles of the Triton kernels that multiply, by GPU, size of an element and head
dimension.

"227 KiB" is what a block has of shared memory on data-centre GPUs since Hopper. At head dimension
64, and for the language-model head and the gated product, these tiles are the fastest of sweeps on
an H200 (bench/device.py); the others are the nearest to them that pass
tests/kernels/test_kernel_compilation.py: no spills, and tensor-core instructions. "99 KiB" is what
Ampere, Ada and GeForce Blackwell have at least: those pass the same test for these, and have not
been timed.
"""

from __future__ import annotations

from typing import Literal

import torch

from .backend import wide_tiles

Tiles = dict[str, int]
Pass = Literal["forward", "backward_q", "backward_kv"]

# Rows of queries, of keys, warps, stages. By pass and head dimension, padded to a power of two:
_ATTENTION = {
    #                    16 bits, 227 KiB      99 KiB      32 bits, 227 KiB      99 KiB
    ("forward", 64): ((64, 64, 4, 2), (64, 64, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    ("forward", 128): ((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 8, 1)),
    ("forward", 256): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 32, 8, 1), (32, 32, 8, 1)),
    ("backward_q", 64): ((64, 32, 4, 2), (64, 32, 4, 2), (32, 32, 4, 1), (32, 32, 4, 1)),
    ("backward_q", 128): ((64, 64, 8, 2), (64, 64, 8, 2), (32, 32, 8, 1), (16, 32, 4, 1)),
    ("backward_q", 256): ((64, 64, 8, 2), (64, 32, 8, 1), (32, 32, 8, 1), (16, 16, 8, 1)),
    ("backward_kv", 64): ((32, 64, 4, 1), (32, 64, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    ("backward_kv", 128): ((32, 64, 4, 1), (32, 64, 8, 1), (32, 32, 4, 1), (16, 16, 4, 1)),
    ("backward_kv", 256): ((32, 64, 8, 2), (32, 32, 8, 1), (32, 32, 8, 1), (16, 16, 4, 1)),
}
_HEAD = dict(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3)
_HEAD_BACKWARD = dict(block_m=128, block_n=256, block_k=64, num_warps=8, num_stages=3)
_HEAD_32BIT = dict(block_m=32, block_n=64, block_k=32, num_warps=4, num_stages=2)

_GATED_LINEAR = dict(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3)
_GATED_LINEAR_NARROW = dict(block_m=128, block_n=64, block_k=64, num_warps=8, num_stages=3)
_GATED_LINEAR_32BIT = dict(block_m=32, block_n=32, block_k=32, num_warps=4, num_stages=2)


def attention_tiles(which: Pass, q: torch.Tensor) -> Tiles:
    """For a pass of attention over q [H, T, D]. ValueError for a D above 256."""
    dim = q.shape[-1]
    width = max(64, 1 << (dim - 1).bit_length())
    if (which, width) not in _ATTENTION:
        raise ValueError(f"head dimension {dim}: the kernels serve up to 256")
    column = (0 if q.element_size() == 2 else 2) + (0 if wide_tiles(q.device) else 1)
    names = ("block_m", "block_n", "num_warps", "num_stages")
    return dict(zip(names, _ATTENTION[which, width][column], strict=True))


def head_tiles(h: torch.Tensor, *, backward: bool = False) -> Tiles:
    """For the language-model head over h [R, D]."""
    if h.element_size() == 4:
        return dict(_HEAD_32BIT)
    return dict(_HEAD_BACKWARD if backward else _HEAD)


def gated_linear_tiles(x: torch.Tensor) -> Tiles:
    """For the gated product over x [R, D]."""
    if x.element_size() == 4:
        return dict(_GATED_LINEAR_32BIT)
    return dict(_GATED_LINEAR if wide_tiles(x.device) else _GATED_LINEAR_NARROW)

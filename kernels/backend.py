"""Which implementation runs: plain torch, or Triton. Triton is imported on first use only."""

from __future__ import annotations

import importlib.util
import os
from functools import cache, lru_cache
from typing import Literal

import torch

Backend = Literal["auto", "torch", "native", "triton", "flash"]


@lru_cache(maxsize=1)
def triton_available() -> bool:
    """Whether the `triton` package can be imported (it is optional)."""
    return importlib.util.find_spec("triton") is not None


def triton_serves(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether Triton is there for tensors of this type and device: not for float64, for which
    attention and the head do not compile, nor for a GPU before compute capability 8.0, where
    tensor cores stay unused and tiles of 16 bits spill thousands of registers."""
    served = triton_available() and dtype in (torch.bfloat16, torch.float16, torch.float32)
    return served and not before_ampere(device)


def before_ampere(device: torch.device) -> bool:
    """Whether it is a GPU before compute capability 8.0."""
    return device.type == "cuda" and _capability(device) < (8, 0)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def wide_tiles(device: torch.device) -> bool:
    """Whether a block has the 227 KiB of shared memory of data-centre GPUs since Hopper, for which
    tiles were tuned; other GPUs take tiles that need 99 KiB at most."""
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", 0) >= 227 * 1024


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's CPU interpreter (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def use_triton(backend: Backend, tensor: torch.Tensor) -> bool:
    """Resolve `backend` for work on `tensor`.

    "auto": Triton on CUDA where it is installed and serves the type. "native": the CPU kernels,
    "flash": the package flash-attn, where an operation has them (see there). "triton" on a CPU
    tensor needs TRITON_INTERPRET=1. Raises ValueError for an unknown name or a device Triton cannot
    serve, and ImportError where "triton" is asked for and absent.
    """
    if backend in ("torch", "native"):
        return False
    if backend == "auto":
        return tensor.is_cuda and triton_serves(tensor.dtype, tensor.device)
    if backend != "triton":
        raise ValueError(f"backend={backend!r}: need 'auto', 'torch', 'native' or 'triton'")
    if not triton_available():
        raise ImportError("backend='triton' needs the package triton: pip install 'sacglam[gpu]'")
    if not tensor.is_cuda and not interpreting():
        raise ValueError(
            f"backend='triton' needs CUDA tensors, got {tensor.device}; on the CPU use "
            "backend='torch', or set TRITON_INTERPRET=1 before Triton is imported"
        )
    return True


def last_dim_contiguous(x: torch.Tensor) -> torch.Tensor:
    """`x` itself if its last dimension is dense, else a contiguous copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def kernel_inputs(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors as Triton kernels take them: dense last dimensions, and bfloat16 in float32 where
    interpreted, whose bfloat16 arithmetic is silently wrong."""
    upcast = interpreting()
    dense = (last_dim_contiguous(t) for t in tensors)
    return tuple(t.float() if upcast and t.dtype == torch.bfloat16 else t for t in dense)


def empty_heads_last(heads: int, rows: int, dim: int, like: torch.Tensor) -> torch.Tensor:
    """An uninitialised [heads, rows, dim] view on memory laid out [rows, heads, dim].

    That is the order in which a transformer's projections read and write, so that no copy is
    needed on either side of the attention.
    """
    return like.new_empty(rows, heads, dim).transpose(0, 1)

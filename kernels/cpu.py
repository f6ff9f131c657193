"""The native CPU kernels of `sacglam._C`: when they serve a tensor, and how tensors reach them."""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Any

import torch
from sacglam import _C


def serves(*tensors: torch.Tensor | None) -> bool:
    """Whether the native kernels can compute with these tensors: float32 on the CPU."""
    return all(t is None or (t.device.type == "cpu" and t.dtype is torch.float32) for t in tensors)


def serves_attention(head_dim: int, *tensors: torch.Tensor | None) -> bool:
    """The same for attention, whose heads have a largest width."""
    return serves(*tensors) and 0 < head_dim <= max_head_dim()


def max_head_dim() -> int:
    """The widest head of the attention kernels: it depends on the CPU's vector units."""
    return int(_C.cpu_max_head_dim())


# oneDNN compiles a product in bfloat16 anew for each number of rows, and keeps what it compiled: a
# third of a megabyte for the last 1024, and a quarter of one for ever. Batches have any number of
# rows; their products have one of these few, made up with zeros.
ROW_STEP = 16
ROW_BLOCK = 512


def narrow_rows(rows: torch.Tensor, step: int = ROW_STEP) -> torch.Tensor:
    """rows [R, D] in bfloat16, and rows of zeros up to the next multiple of `step`."""
    more = -len(rows) % step
    if not more:
        return rows.to(torch.bfloat16)
    narrow = rows.new_zeros(len(rows) + more, rows.shape[1], dtype=torch.bfloat16)
    narrow[: len(rows)] = rows
    return narrow


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16 (AVX512-BF16 or AMX); True for
    those that are not known here. Without them torch's take seven times as long as in float32."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asked)


def array(tensor: torch.Tensor | None) -> Any:
    """A NumPy view of the tensor's memory; None stays None."""
    return None if tensor is None else tensor.detach().numpy()


def threads() -> int:
    """How many threads a kernel may use: torch's own number."""
    return torch.get_num_threads()

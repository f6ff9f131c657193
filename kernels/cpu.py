"""The native CPU kernels of `sacglam._C`: when they serve a tensor, and how tensors reach them."""

from __future__ import annotations

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


def array(tensor: torch.Tensor | None) -> Any:
    """A NumPy view of the tensor's memory; None stays None."""
    return None if tensor is None else tensor.detach().numpy()


def threads() -> int:
    """How many threads a kernel may use: torch's own number."""
    return torch.get_num_threads()

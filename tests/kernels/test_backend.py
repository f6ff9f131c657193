"""Which implementation "auto" takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sacglam.kernels import backend


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_takes_triton_where_it_is_installed(dtype: Any, monkeypatch: pytest.MonkeyPatch):
    tensor: Any = SimpleNamespace(is_cuda=True, dtype=dtype)
    for there in (True, False):
        monkeypatch.setattr(backend, "triton_available", lambda there=there: there)
        assert backend.use_triton("auto", tensor) is there
    assert not backend.use_triton("auto", torch.zeros(1, dtype=dtype))


def test_float64_is_computed_by_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "triton_available", lambda: True)
    tensor: Any = SimpleNamespace(is_cuda=True, dtype=torch.float64)
    assert not backend.use_triton("auto", tensor)

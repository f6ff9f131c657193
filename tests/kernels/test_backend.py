"""Which implementation "auto" takes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sacglam.kernels import backend, tiles

GPUS = {  # compute capability, bytes of shared memory that a block may have
    "T4": ((7, 5), 64 << 10),
    "A100": ((8, 0), 163 << 10),
    "RTX 4090": ((8, 9), 99 << 10),
    "H200": ((9, 0), 227 << 10),
    "B200": ((10, 0), 227 << 10),
    "RTX 5090": ((12, 0), 99 << 10),
}


@pytest.fixture(params=GPUS)
def gpu(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a GPU that seems to be there; nothing is computed on it."""
    capability, shared = GPUS[request.param]
    properties = SimpleNamespace(shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(backend, "triton_available", lambda: True)
    remembered = backend._capability, backend.wide_tiles
    for each in remembered:
        each.cache_clear()
    yield request.param
    for each in remembered:
        each.cache_clear()


def tensor_on_gpu(dtype: torch.dtype) -> Any:
    return SimpleNamespace(
        is_cuda=True, device=torch.device("cuda", 0), dtype=dtype, shape=(4, 100, 64),
        element_size=lambda: dtype.itemsize,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_takes_triton_where_it_is_installed_and_has_tensor_cores_for_it(
    dtype: Any, gpu: str, monkeypatch: pytest.MonkeyPatch
):
    tensor = tensor_on_gpu(dtype)
    assert backend.before_ampere(tensor.device) is (gpu == "T4")
    assert not backend.before_ampere(torch.device("cpu"))
    assert backend.use_triton("auto", tensor) is (gpu != "T4")
    monkeypatch.setattr(backend, "triton_available", lambda: False)
    assert not backend.use_triton("auto", tensor)
    assert not backend.use_triton("auto", torch.zeros(1, dtype=dtype))


def test_float64_is_computed_by_torch(gpu: str):
    assert not backend.use_triton("auto", tensor_on_gpu(torch.float64))


def test_tiles_fit_the_gpu(gpu: str):
    wide = gpu in ("H200", "B200")
    tensor = tensor_on_gpu(torch.bfloat16)
    assert tiles.gated_linear_tiles(tensor)["block_n"] == (128 if wide else 64)
    tensor.shape = (4, 100, 256)
    assert tiles.attention_tiles("backward_q", tensor)["block_n"] == (64 if wide else 32)
    tensor.shape = (4, 100, 257)
    with pytest.raises(ValueError, match="head dimension 257: the kernels serve up to 256"):
        tiles.attention_tiles("forward", tensor)

"""An emulated GPU for the tests: tensors that say they lie on CUDA devices and compute on the CPU.

A plugin of pytest, loaded before torch (test_emulated_gpu.py). Within a test `torch.device("cuda")`
works on a machine without one, by these rules of a real one:

- Operations on tensors of different devices raise; so does reading a GPU's tensor as if it lay in
  the CPU's memory (`numpy()`, native extensions).
- A CUDA graph is recorded as the list of operations and kernel launches, with the memory that they
  read and write. Recording computes nothing: what it would have written holds NaN until the first
  replay. A replay runs the list again, whatever Python's variables have become, and leaves NaN in
  what other graphs of its pool have written. An operation that waits for the device raises within
  a recording, and under `torch.cuda.set_sync_debug_mode("error")`.
- Triton kernels run in Triton's interpreter, where their GPU is the current device.

It shows what breaks and what is stale; it says nothing about speed, streams, or the compiled
kernels' arithmetic.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if "torch" in sys.modules:
    raise ImportError("the emulated GPU must be there before torch, which looks for one once")


def _load() -> ctypes.CDLL:
    """device.cpp, compiled (test_emulated_gpu.py does), and first what it needs of torch."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    core = Path(found.origin).parent / "lib" / "libtorch_cpu.so"
    ctypes.CDLL(str(core), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(os.environ["EMULATED_GPU"])


os.environ["TRITON_INTERPRET"] = "1"
_library = _load()

import pytest  # noqa: E402
import torch  # noqa: E402
from emulated_device import Device, Graph, OnGpu, gpu, inner_of, spoil  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

gpu.exchange = _library.emulated_exchange


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return gpu.dispatch(func, args, kwargs or {})


# ---------------------------------------------------------------- torch.cuda's own functions


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return gpu.current() if index is None else index


class _Stream:
    def __init__(self, device: Any = None, *_: Any, **__: Any) -> None:
        self.device = torch.device("cuda", _index(device))

    def wait_stream(self, stream: Any) -> None: ...


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, other: Any) -> float:
        return 1.0


@contextmanager
def _capture(graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
    assert gpu.recording is None
    graph._pool = graph if pool is None else pool
    gpu.recording = graph
    try:
        yield
    finally:
        gpu.recording = None
        for memory, before in graph.before.values():
            memory.copy_(before)
        graph.before.clear()
        spoil(graph.written)
        gpu.graphs.append(graph)


def _set_sync_debug_mode(mode: Any) -> None:
    gpu.refuse_waits = mode in ("error", 2)


def _data_of(x: torch.Tensor) -> torch.Tensor:
    return x.detach() if isinstance(x, OnGpu) else _plain_data.__get__(x)


def _set_data(x: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(x, OnGpu) != isinstance(value, OnGpu):
        made = value.detach().requires_grad_(x.requires_grad)
        made._is_param = True
        torch.utils.swap_tensors(x, made)
        return
    _plain_data.__set__(x, value)
    if isinstance(x, OnGpu):
        x.inner = value.inner


def _data_ptr(x: torch.Tensor) -> int:
    return _plain_pointer(inner_of(x))


def _untyped_storage(x: torch.Tensor) -> torch.UntypedStorage:
    return _plain_storage(inner_of(x))


def _to_list(x: torch.Tensor) -> Any:
    if isinstance(x, OnGpu):
        gpu.wait("tolist")
    return _plain_list(inner_of(x))


_plain_storage = torch._C.TensorBase.untyped_storage
_plain_list = torch._C.TensorBase.tolist
_plain_data = torch._C.TensorBase.data
_plain_pointer = torch._C.TensorBase.data_ptr
_PROPERTIES = SimpleNamespace(
    name="Emulated", major=9, minor=0, total_memory=2**34, multi_processor_count=132,
    shared_memory_per_block_optin=232448, shared_memory_per_block=49152, warp_size=32,
    gcnArchName="", L2_cache_size=2**25,
)  # fmt: skip


def _install() -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    # Tensors' other methods are found on the class, too.
    torch.Tensor.data = property(_data_of, _set_data)  # type: ignore[assignment,misc]
    torch.Tensor.data_ptr = _data_ptr  # type: ignore[assignment,method-assign]
    torch.Tensor.untyped_storage = _untyped_storage  # type: ignore[assignment,method-assign]
    torch.Tensor.tolist = _to_list  # type: ignore[assignment,method-assign]
    replaced: dict[str, Any] = dict(
        _lazy_init=lambda: None,
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: int(_library.emulated_count()),
        current_device=gpu.current,
        set_device=lambda device: gpu.exchange(_index(device)),
        _exchange_device=gpu.exchange,
        _maybe_exchange_device=gpu.exchange,
        get_device_capability=lambda device=None: (9, 0),
        get_device_properties=lambda device=None: _PROPERTIES,
        get_device_name=lambda device=None: _PROPERTIES.name,
        is_bf16_supported=lambda including_emulation=True: True,
        synchronize=lambda *_: gpu.wait("torch.cuda.synchronize"),
        empty_cache=lambda: None,
        max_memory_reserved=lambda device=None: 2**20,
        max_memory_allocated=lambda device=None: 2**20,
        memory_allocated=lambda device=None: 2**20,
        memory_reserved=lambda device=None: 2**20,
        reset_peak_memory_stats=lambda device=None: None,
        mem_get_info=lambda device=None: (2**34, 2**34),
        Stream=_Stream,
        Event=_Event,
        current_stream=lambda device=None: _Stream(device),
        stream=lambda stream: nullcontext(),
        CUDAGraph=Graph,
        graph=_capture,
        get_sync_debug_mode=lambda: 2 if gpu.refuse_waits else 0,
        set_sync_debug_mode=_set_sync_debug_mode,
        manual_seed=lambda seed: None,
        manual_seed_all=lambda seed: None,
        is_current_stream_capturing=lambda: gpu.recording is not None,
    )
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)

    from triton.runtime import interpreter

    run = interpreter.GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        def inner(*args: Any, **kwargs: Any) -> None:
            with _unwatched():
                run(self, *args, **kwargs)

        gpu.launch(inner, args, kwargs)

    interpreter.GridExecutor.__call__ = launch


@contextmanager
def _unwatched() -> Iterator[None]:
    """Without the mode: what Triton's interpreter does is not the device's work."""
    with torch.utils._python_dispatch._disable_current_modes():
        yield


_install()


@pytest.fixture(autouse=True)
def device() -> Iterator[Device]:
    """Two GPUs, of which the first is the current one."""
    gpu.graphs.clear()
    gpu.waits.clear()
    gpu.launches = 0
    gpu.exchange(0)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes them there, then moves them
    try:
        # One thread runs backward passes, too: others have no queue for a device that is none.
        with _Mode(), torch.autograd.set_multithreading_enabled(False):
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(False)

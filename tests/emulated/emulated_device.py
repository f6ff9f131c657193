"""Emulated GPUs' tensors, graphs and rules; see emulation.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
SYNCHRONISING = (
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero",
    "aten::equal", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::bincount", "aten::allclose",
)  # fmt: skip

INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a CUDA device; `inner` holds its numbers on the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=device,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return gpu.dispatch(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            copy = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy._is_param = True
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("a GPU's tensor is not pickled by these tests")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"on {self.device}: {self.inner}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.steps: list[Callable[[], None]] = []
        self.written: list[torch.Tensor] = []  # memory of its own
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._pool = self

    def pool(self) -> Graph:
        return self._pool

    def replay(self) -> None:
        assert gpu.recording is None
        for other in gpu.graphs:
            if other._pool is self._pool:
                spoil(other.written)
        for step in self.steps:
            step()


def spoil(tensors: list[torch.Tensor]) -> None:
    for x in tensors:
        if x.is_floating_point():
            x.fill_(torch.nan)
        elif x.dtype == torch.bool:
            x.logical_not_()
        else:
            x.fill_(torch.iinfo(x.dtype).max)


def _tensors(nested: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(nested) if isinstance(x, torch.Tensor)]


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Device:
    """The emulated devices' state, and what an operation does on them."""

    def __init__(self) -> None:
        self.recording: Graph | None = None
        self.graphs: list[Graph] = []
        self.refuse_waits = False
        self.waits: dict[str, int] = {}
        self.launches = 0
        self.exchange: Callable[[int], int] = lambda index: 0  # the current device, in C++

    def current(self) -> int:
        """The current device."""
        return self.exchange(-1)

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func.name().split(".")[0]
        leaves = _tensors((args, kwargs))
        devices = {x.device for x in leaves if isinstance(x, OnGpu)}
        asked = kwargs.get("device")
        if not devices and (asked is None or torch.device(asked).type != "cuda"):
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
            return func(*args, **kwargs)
        to = self._target(name, args, asked, devices)
        self._check(func, name, args, kwargs, leaves, devices)
        if self._waits(name, args, kwargs, to, leaves):
            self.wait(str(func))
        given = {**kwargs}
        if to.type == "cuda" and asked is not None:
            given["device"] = CPU
        for x in ("pin_memory", "non_blocking"):
            if given.get(x):
                given[x] = False
        inner_args, inner_kwargs = tree_map(inner_of, (args, given))
        found = self._run(func, inner_args, inner_kwargs)
        return self._wrapped(func, args, kwargs, found, to)

    def _target(self, name: str, args: Any, asked: Any, devices: set[torch.device]) -> torch.device:
        if asked is not None:
            device = torch.device(asked)
            if device.type == "cuda" and device.index is None:
                device = torch.device("cuda", self.current())
            return device
        if name == "aten::copy_" or len(devices) != 1:
            return args[0].device if isinstance(args[0], torch.Tensor) else CPU
        return next(iter(devices))

    def _check(
        self, func: Any, name: str, args: Any, kwargs: Any, leaves: Any, devices: Any
    ) -> None:
        """Raise as torch does where devices meet."""
        if name in ("aten::copy_", "aten::_to_copy"):
            return
        on_cpu = [x for x in leaves if not isinstance(x, OnGpu)]
        if name in INDEXING:
            if isinstance(args[0], OnGpu):  # indices may lie on the CPU
                on_cpu = []
                for x in leaves:
                    if not isinstance(x, OnGpu) and x.dim():
                        self.wait(f"{func} with indices on the CPU")
        mixed = [x for x in on_cpu if x.dim()]
        if len(devices) > 1 or (devices and mixed):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{sorted(map(str, devices))} and {[str(x.device) for x in mixed]}, in {func}"
            )

    def _waits(self, name: str, args: Any, kwargs: Any, to: torch.device, leaves: Any) -> bool:
        if name in SYNCHRONISING:
            return True
        if name in INDEXING and any(
            isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)
            for x in tree_leaves(args[1])
        ):
            return True
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            return True
        if name in ("aten::copy_", "aten::_to_copy"):
            source = leaves[-1] if name == "aten::copy_" else leaves[0]
            if source.device.type == to.type:
                return False
            unblocking = kwargs.get("non_blocking") or (
                name == "aten::copy_" and len(args) > 2 and args[2]
            )
            return not unblocking or (self.recording is not None and to.type == "cpu")
        return False

    def wait(self, what: str) -> None:
        """Somebody waits for the device."""
        if self.recording is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        if self.refuse_waits:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")
        self.waits[what] = self.waits.get(what, 0) + 1

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.recording is None:
            return func(*args, **kwargs)
        inputs = _tensors((args, kwargs))
        if func._schema.is_mutable:
            self._keep(_mutated(func, args, kwargs))
        found = func(*args, **kwargs)
        known = {_storage(x) for x in inputs}
        results = _tensors(found)
        fresh = [_storage(x) not in known for x in results]
        if func._schema.is_mutable or any(fresh):

            def step() -> None:
                again = _tensors(func(*args, **kwargs))
                for old, new, own in zip(results, again, fresh, strict=True):
                    if own:
                        old.copy_(new)

            self.recording.steps.append(step)
            self.recording.written += [x for x, own in zip(results, fresh, strict=True) if own]
        return found

    def _keep(self, tensors: list[torch.Tensor]) -> None:
        """Note what tensors hold that were there before: a recording does not change it."""
        assert self.recording is not None
        own = {_storage(x) for x in self.recording.written}
        for x in tensors:
            key = _storage(x)
            if key not in own and key not in self.recording.before:
                whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
                self.recording.before[key] = (whole, whole.clone())

    def launch(self, run: Callable[..., None], args: Any, kwargs: Any) -> None:
        """A Triton kernel: its tensors must lie on the current device."""
        self.launches += 1
        leaves = _tensors((args, kwargs))
        for x in leaves:
            if not isinstance(x, OnGpu) or x.device.index != self.current():
                raise ValueError(
                    "Pointer argument cannot be accessed from Triton (cpu tensor?): one on "
                    f"{x.device}, and the current device is cuda:{self.current()}"
                )
        args, kwargs = tree_map(inner_of, (args, kwargs))
        if self.recording is not None:
            self._keep([inner_of(x) for x in leaves])
            self.recording.steps.append(lambda: run(*args, **kwargs))
        run(*args, **kwargs)

    def _wrapped(self, func: Any, args: Any, kwargs: Any, found: Any, to: torch.device) -> Any:
        returns = func._schema.returns
        if returns and all(_is_written(r) for r in returns):
            given = _mutated(func, args, kwargs)
            return given[0] if len(returns) == 1 else tuple(given[: len(returns)])
        if to.type != "cuda":
            return found
        return tree_map(lambda x: OnGpu(x, to) if isinstance(x, torch.Tensor) else x, found)


def inner_of(x: Any) -> Any:
    return x.inner if isinstance(x, OnGpu) else x


def _is_written(described: Any) -> bool:
    """Of an argument or a result in an operation's schema."""
    return described.alias_info is not None and described.alias_info.is_write


def _mutated(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The arguments that the operation writes to, in the order of its schema."""
    arguments = func._schema.arguments
    named = {**dict(zip((a.name for a in arguments), args, strict=False)), **kwargs}
    return _tensors([named.get(a.name) for a in arguments if _is_written(a)])


gpu = Device()

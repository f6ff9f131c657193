"""Passes over a forest by CUDA graphs, each recorded once for each size of forest; acting by them.

A model of half a billion parameters needs a thousand kernel launches a pass, which take longer than
the work itself for a few prompts. A graph launches them at once. It reads its inputs where they
were when it was recorded, weights too: those change in place, so that a graph goes on with new
ones.
"""

from __future__ import annotations

import gc
import operator
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .device import on_device
from .forest import Forest
from .padding import Sizes, flat_length, forest_over, holds, padded_sizes, write_padded
from .scoring import Scores

if TYPE_CHECKING:
    from .policy import Policy

Replay = Callable[[], object]

LIMIT = 16  # graphs kept


class Capture(Protocol):
    """Records calls."""

    def __call__(self, run: Callable[[], Tensor], /) -> tuple[Replay, Tensor]:
        """Runs a call; what does the same work again, and the result it writes to."""

    def forget(self) -> None:
        """Keep no memory for recordings to come."""


class Releasable(Protocol):
    """Graphs, of one call or several."""

    def release(self) -> None:
        """Forget all graphs, and keep no memory for others."""

    def __len__(self) -> int:
        """Graphs recorded."""


Result = TypeVar("Result")
Kept = TypeVar("Kept")


def with_room(
    compute: Callable[[Kept | None], Result], graphs: Kept | None, policy: Policy
) -> Result:
    """`compute(graphs)`; where the device's memory does not suffice for it, be it for a recording
    or for a plain pass beside graphs, all graphs of the policy are dropped, whoever keeps them, and
    it is `compute(None)`, which must begin anew."""
    try:
        return compute(graphs)
    except torch.OutOfMemoryError:
        if graphs is None and not policy.has_graphs:
            raise
    # Not while the error is handled: it keeps the tensors of the call that failed.
    policy.release_graphs()
    gc.collect()  # a model that is gone, too: its layers refer to themselves (fused.override)
    torch.cuda.empty_cache()
    warnings.warn(
        "the GPU's memory did not suffice beside its CUDA graphs, which were dropped. Recording "
        "them again and again costs time: --optim.micro-batch takes less memory, "
        "--model.cuda-graphs false does without them",
        RuntimeWarning,
        stacklevel=2,
    )
    return compute(None)


class Padding(NamedTuple):
    """How forests are enlarged: arguments of `padded_sizes`."""

    leaves: bool = False
    rows: int | None = None
    parts: int = 4


class _Inputs:
    """Where a graph's inputs are, and the pinned memory from which copies move them there."""

    def __init__(self, sizes: Sizes, numbers: int, device: torch.device) -> None:
        self.sizes = sizes
        self.flat = torch.empty(flat_length(sizes), dtype=torch.int64, device=device)
        self.numbers = torch.empty(numbers, dtype=torch.float64, device=device)
        pinned = device.type == "cuda"
        self._staged = [
            torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=pinned)
            for x in (self.flat, self.numbers)
        ]
        self._copied = _copies_done(device)

    def write(self, forest: Forest, numbers: npt.NDArray[np.float64]) -> None:
        """Waits until what was written before has been copied: of an update in parts, the copy for
        one may still be queued when the next is written."""
        if self._copied is not None:
            self._copied.synchronize()
        flat, staged = self._staged
        write_padded(flat, forest, self.sizes)
        self.flat.copy_(flat, non_blocking=True)
        if len(numbers):
            staged.numpy()[:] = numbers
            self.numbers.copy_(staged, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def _copies_done(device: torch.device) -> Any:
    """An event to record behind copies from pinned memory; None where copies are done at once."""
    return torch.cuda.Event() if device.type == "cuda" else None


class _Recorded(NamedTuple):
    """A graph, its inputs, and the memory of its result."""

    inputs: _Inputs
    replay: Replay
    result: Tensor


_NO_NUMBERS = np.empty(0)


class Graphs:
    """A call over forests, by graphs where they apply.

    A size is recorded the second time it is seen, unless a graph of another size serves. Each time
    that a size has been recorded doubles how often it must be seen before it is recorded again, so
    that sizes that push one another out, or weights that are moved about, cost little.

    Args:
        call: (forest, numbers) to a tensor, on the device: what is recorded. `numbers` float64 is
            what changes from call to call beside the forest.
        model: the model that it runs.
        capture: records calls; CudaCapture on a GPU.
        doing: what the call is for, in a warning.
        reads: tensors that it reads beside the model's parameters and buffers.
        adapter: peft's adapter that the call itself makes the active one, if it does.
        padding: how forests are enlarged.
        numbers: how many numbers go with a forest.
        limit: graphs kept; the one not used for longest is dropped.
    """

    def __init__(
        self,
        call: Callable[[Forest, Tensor], Tensor],
        model: nn.Module,
        capture: Capture,
        *,
        doing: str,
        reads: Iterable[Tensor] = (),
        adapter: str | None = None,
        padding: Padding = Padding(),  # noqa: B008  a constant
        numbers: int = 0,
        limit: int = LIMIT,
    ) -> None:
        self._call, self._model, self._capture, self._doing = call, model, capture, doing
        self._adapter, self._padding, self._limit = adapter, padding, limit
        self._numbers = numbers
        self._reads = list(reads)
        self._look()
        self._device = self._read[0].device
        self._tuner: Any = next((m for m in model.modules() if hasattr(m, "merged_adapters")), None)
        self._recorded: OrderedDict[Sizes, _Recorded] = OrderedDict()
        self._state: Hashable = None
        self._seen: dict[Sizes, int] = {}  # since a size was last recorded
        self._wanted: dict[Sizes, int] = {}  # how often it must be seen
        self._failed = False

    def run(self, forest: Forest, numbers: npt.NDArray[np.float64] = _NO_NUMBERS) -> Tensor | None:
        """The call's result for a forest on the CPU; None where the call itself must run.

        Graphs share memory: the result must be read before another one runs. Nothing waits for the
        device. Raises torch.OutOfMemoryError where a recording does not fit: see `with_room`.
        """
        with on_device(self._device):
            return self._run(forest, numbers)

    def _run(self, forest: Forest, numbers: npt.NDArray[np.float64]) -> Tensor | None:
        if self._failed or forest.ids.device.type != "cpu" or not self._applies():
            return None
        state = self._now()
        if state != self._state:  # a graph would read memory that weights have left
            self.clear()
            self._state = state
        wanted = padded_sizes(forest, **self._padding._asdict())
        sizes = self._serving(forest, wanted)
        if sizes is not None:
            self._recorded.move_to_end(sizes)
            recorded = self._recorded[sizes]
            recorded.inputs.write(forest, numbers)
        else:
            made = self._record(wanted, forest, numbers) if self._due(wanted) else None
            if made is None:
                return None
            recorded = made
        recorded.replay()
        return recorded.result

    def clear(self) -> None:
        """Forget all graphs."""
        self._recorded.clear()

    def release(self) -> None:
        """Forget all graphs, and keep no memory for others."""
        self.clear()
        self._capture.forget()

    def __len__(self) -> int:
        return len(self._recorded)

    def _serving(self, forest: Forest, wanted: Sizes) -> Sizes | None:
        """The recorded size that serves a forest best, if any does."""
        if wanted in self._recorded:
            return wanted
        found = (sizes for sizes in self._recorded if holds(sizes, forest, wanted))
        return min(found, key=lambda sizes: sizes.computed, default=None)

    def _applies(self) -> bool:
        """Whether the call is the one that was or would be recorded."""
        return not (
            self._model.training
            or torch.is_inference_mode_enabled()
            or torch.is_autocast_enabled(self._device.type)
            or (self._tuner is not None and (self._tuner.disable_adapters or self._tuner.merged))
        )

    def _now(self) -> Hashable:
        """What graphs took for granted: where the weights lie, and which adapters are active."""
        present = list(chain.from_iterable(map(dict.values, self._holders)))
        same = len(present) == len(self._held) and not any(
            map(operator.is_not, present, self._held)
        )
        if not same:  # a weight is another tensor, or a module another module
            self._look()
        adapters: Hashable = self._adapter
        if adapters is None and self._tuner is not None:
            adapters = tuple(self._tuner.active_adapters)
        return adapters, tuple(map(Tensor.data_ptr, self._read))

    def _look(self) -> None:
        """Note the tensors that a pass reads, and what the modules hold, to see when that changes:
        to list a model's tensors takes as long as a pass by a graph."""
        modules = self._model.modules()
        dicts = (d for m in modules for d in (m._parameters, m._buffers, m._modules))
        self._holders: list[dict[str, Any]] = [d for d in dicts if d]
        self._held = list(chain.from_iterable(map(dict.values, self._holders)))
        self._read = [*self._model.parameters(), *self._model.buffers(), *self._reads]

    def _due(self, sizes: Sizes) -> bool:
        self._seen[sizes] = self._seen.get(sizes, 0) + 1
        return self._seen[sizes] >= self._wanted.get(sizes, 2)

    def _record(
        self, sizes: Sizes, forest: Forest, numbers: npt.NDArray[np.float64]
    ) -> _Recorded | None:
        self._wanted[sizes] = 2 * self._wanted.get(sizes, 2)
        self._seen[sizes] = 0
        try:
            inputs = _Inputs(sizes, self._numbers, self._device)
            inputs.write(forest, numbers)
            # The forest is made anew, so that its tables of tiles are made by the graph.
            replay, result = self._capture(
                lambda: self._call(forest_over(inputs.flat, sizes), inputs.numbers)
            )
        except Exception as error:  # whatever it is, the call without a graph is right
            if "out of memory" in str(error):  # of torch, or of CUDA itself as a recording ends
                raise torch.OutOfMemoryError(str(error)) from error
            self._failed = True
            self.clear()
            reason = str(error).strip().splitlines() or [""]
            warnings.warn(
                f"no CUDA graph could be recorded ({type(error).__name__}: {reason[0]}): "
                f"{self._doing} goes on without graphs, which is slower for few prompts; "
                "--model.cuda-graphs false does without them from the start",
                RuntimeWarning,
                stacklevel=5,
            )
            return None
        self._recorded[sizes] = made = _Recorded(inputs, replay, result)
        if len(self._recorded) > self._limit:
            self._recorded.popitem(last=False)
        return made


class ActingGraphs:
    """The policy's pass without Q and gradients, by graphs where they apply.

    Args:
        forward: the plain pass, Scores without Q, with V or without.
        made_for: what else `forward` depends on, for whoever keeps the graphs to compare.
        model, capture, reads, adapter, limit: see `Graphs`.
    """

    def __init__(
        self,
        forward: Callable[[Forest], Scores],
        model: nn.Module,
        capture: Capture,
        *,
        reads: Iterable[Tensor] = (),
        adapter: str | None = None,
        made_for: Hashable = None,
        limit: int = LIMIT,
    ) -> None:
        self.made_for = made_for

        def call(forest: Forest, _: Tensor) -> Tensor:
            with torch.no_grad():
                scores = forward(forest)
                planes = [scores.log_prob, scores.log_pi, scores.pi]
                if scores.v is not None:
                    planes.append(scores.v[:, None].expand_as(scores.pi))
                return torch.stack(planes)

        self.graphs = Graphs(
            call, model, capture, doing="acting", reads=reads, adapter=adapter, limit=limit
        )

    def scores(self, forest: Forest) -> Scores | None:
        """The scores of a forest, both on the CPU; None where the plain pass must run.

        Reading them is the only synchronisation.
        """
        result = self.graphs.run(forest)
        if result is None:
            return None
        rows, columns = forest.mask.shape
        log_prob, log_pi, pi, *v = result.to("cpu", copy=True)[:, :rows, :columns].unbind(0)
        scores = Scores(log_prob=log_prob, log_pi=log_pi, pi=pi, q=None, mask=forest.mask)
        return replace(scores, v=v[0][:, 0]) if v else scores

    def release(self) -> None:
        """Forget all graphs, and keep no memory for others."""
        self.graphs.release()

    def __len__(self) -> int:
        return len(self.graphs)


def graphs_serve(policy: Policy) -> bool:
    """Whether a policy may compute by graphs: not on the CPU, by the reference attention, or
    without Triton, whose stand-in reads the trees on the host."""
    return policy.options.cuda_graphs and policy.on_gpu_kernels


def acting_graphs(
    policy: Policy, present: ActingGraphs | None, *, with_value: bool = False
) -> ActingGraphs | None:
    """The graphs of a policy as it is now, `present` if they serve; None where it acts by the plain
    pass. `with_value`: they say V too, of a policy that has it."""
    if not graphs_serve(policy):
        return None
    options, device = policy.options, policy.device
    made_for = (device, options, with_value)
    if present is not None and present.made_for == made_for:
        return present
    own = weakref.proxy(policy)  # which keeps the graphs

    def forward(forest: Forest) -> Scores:
        return own.forward(forest, with_q=with_value)

    return ActingGraphs(
        forward,
        policy.model,
        CudaCapture(device),
        reads=policy.heads.parameters() if with_value else (),
        adapter="default" if options.critic_trunk == "adapter" else None,
        made_for=made_for,
    )


class CudaCapture:
    """Records calls as CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._last: Any = None  # keeps the pool alive when all other graphs are gone

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Raises where the call waits for the device, or does else what no graph can hold."""
        # A recording that fails as it ends would leave its stream the current one.
        present = torch.cuda.stream(torch.cuda.current_stream(self._device))
        with torch.cuda.device(self._device), present:
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    run()  # compiles kernels and allocates workspaces
                    with _refusing_synchronisation():
                        run()
            finally:  # what a call that raised had begun still reads weights and inputs
                torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            pool = None if self._last is None else self._last.pool()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(
                graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = run()
        self._last = graph
        return graph.replay, result

    def forget(self) -> None:
        """The next recording begins another pool; this one goes with its graphs."""
        self._last = None


@contextmanager
def _refusing_synchronisation() -> Iterator[None]:
    """Raise RuntimeError at a call that waits for the device. In a recording the same call would
    leave torch's allocator and generators in the middle of it."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, says torch
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)

"""Acting by CUDA graphs: the pass that scores candidates, recorded once for each size of forest.

A model of half a billion parameters needs a thousand kernel launches a pass, which take longer than
the work itself for a few prompts. A graph launches them at once. It reads its inputs where they
were when it was recorded, weights too: those change in place, so that a graph goes on with new
ones.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .forest import Forest
from .padding import Sizes, flat_length, forest_over, padded_sizes, write_padded
from .scoring import Scores

if TYPE_CHECKING:
    from .policy import Policy

Replay = Callable[[], object]
# Records a call: runs it, and returns what does the same work again, and the result it writes to.
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]

LIMIT = 16  # graphs kept


class _Inputs:
    """Where a graph's inputs are, and the pinned memory from which one copy moves them there."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes = sizes
        self.flat = torch.empty(flat_length(sizes), dtype=torch.int64, device=device)
        self._staging = torch.empty(
            self.flat.shape, dtype=torch.int64, pin_memory=self.flat.is_cuda
        )

    def write(self, forest: Forest) -> None:
        """The staging memory is free: whatever was computed from it has been read."""
        write_padded(self._staging, forest, self.sizes)
        self.flat.copy_(self._staging, non_blocking=True)


class _Recorded(NamedTuple):
    """A graph, its inputs, and the memory of its result, float [3, B, A]."""

    inputs: _Inputs
    replay: Replay
    result: Tensor


class ActingGraphs:
    """The policy's pass without Q and gradients, by graphs where they apply.

    A size is recorded the second time it is seen. Each time that a size has been recorded doubles
    how often it must be seen before it is recorded again, so that sizes that push one another out,
    or weights that are moved about, cost little.

    Args:
        forward: the plain pass, Scores without Q.
        model: whose weights it reads.
        capture: records calls; CudaCapture on a GPU.
        adapter: peft's adapter that `forward` itself makes the active one, if it does.
        made_for: what else `forward` depends on, for whoever keeps the graphs to compare.
        limit: graphs kept; the one not used for longest is dropped.
    """

    def __init__(
        self,
        forward: Callable[[Forest], Scores],
        model: nn.Module,
        capture: Capture,
        *,
        adapter: str | None = None,
        made_for: Hashable = None,
        limit: int = LIMIT,
    ) -> None:
        self._forward, self._model, self._capture = forward, model, capture
        self._adapter, self._limit, self.made_for = adapter, limit, made_for
        self._weights = [*model.parameters(), *model.buffers()]
        self._device = self._weights[0].device
        self._tuner: Any = next((m for m in model.modules() if hasattr(m, "merged_adapters")), None)
        self._recorded: OrderedDict[Sizes, _Recorded] = OrderedDict()
        self._state: Hashable = None
        self._seen: dict[Sizes, int] = {}  # since a size was last recorded
        self._wanted: dict[Sizes, int] = {}  # how often it must be seen
        self._failed = False

    def scores(self, forest: Forest) -> Scores | None:
        """The scores of a forest, both on the CPU; None where the plain pass must run.

        Reading them is the only synchronisation.
        """
        if self._failed or forest.ids.device.type != "cpu" or not self._applies():
            return None
        state = self._now()
        if state != self._state:  # a graph would read memory that weights have left
            self.clear()
            self._state = state
        sizes = padded_sizes(forest)
        recorded = self._recorded.get(sizes)
        if recorded is None:
            if not self._due(sizes):
                return None
            recorded = self._record(sizes, forest)
            if recorded is None:
                return None
        else:
            self._recorded.move_to_end(sizes)
            recorded.inputs.write(forest)
        recorded.replay()
        rows, columns = forest.mask.shape
        # Graphs share memory: the result must be read before another one runs.
        values = recorded.result.to("cpu", copy=True)[:, :rows, :columns]
        log_prob, log_pi, pi = values.unbind(0)
        return Scores(log_prob=log_prob, log_pi=log_pi, pi=pi, q=None, mask=forest.mask)

    def clear(self) -> None:
        """Forget all graphs."""
        self._recorded.clear()

    def __len__(self) -> int:
        return len(self._recorded)

    def _applies(self) -> bool:
        """Whether the pass is the one that was or would be recorded."""
        return not (
            self._model.training
            or torch.is_inference_mode_enabled()
            or torch.is_autocast_enabled(self._device.type)
            or (self._tuner is not None and (self._tuner.disable_adapters or self._tuner.merged))
        )

    def _now(self) -> Hashable:
        """What graphs took for granted: where the weights lie, and which adapters are active."""
        adapters: Hashable = self._adapter
        if adapters is None and self._tuner is not None:
            adapters = tuple(self._tuner.active_adapters)
        return adapters, tuple(map(Tensor.data_ptr, self._weights))

    def _due(self, sizes: Sizes) -> bool:
        self._seen[sizes] = self._seen.get(sizes, 0) + 1
        return self._seen[sizes] >= self._wanted.get(sizes, 2)

    def _record(self, sizes: Sizes, forest: Forest) -> _Recorded | None:
        self._wanted[sizes] = 2 * self._wanted.get(sizes, 2)
        self._seen[sizes] = 0
        try:
            made = self._try_record(sizes, forest)
        except Exception as error:  # whatever it is, the plain pass is right
            self._failed = True
            self.clear()
            reason = str(error).strip().splitlines() or [""]
            warnings.warn(
                f"no CUDA graph could be recorded ({type(error).__name__}: {reason[0]}): acting "
                "goes on without graphs, which is slower for few prompts; --model.cuda-graphs "
                "false does without them from the start",
                RuntimeWarning,
                stacklevel=5,
            )
            return None
        self._recorded[sizes] = made
        if len(self._recorded) > self._limit:
            self._recorded.popitem(last=False)
        return made

    def _try_record(self, sizes: Sizes, forest: Forest) -> _Recorded:
        inputs = _Inputs(sizes, self._device)
        inputs.write(forest)

        def run() -> Tensor:
            # The forest is made anew, so that its tables of tiles are made by the graph.
            scores = self._forward(forest_over(inputs.flat, sizes))
            return torch.stack([scores.log_prob, scores.log_pi, scores.pi])

        with torch.no_grad():
            replay, result = self._capture(run)
        return _Recorded(inputs, replay, result)


def acting_graphs(policy: Policy, present: ActingGraphs | None) -> ActingGraphs | None:
    """The graphs of a policy as it is now, `present` if they serve; None where it acts by the plain
    pass: on the CPU, by the reference attention, or without Triton, whose stand-in reads the trees
    on the host."""
    options, device = policy.options, policy.device
    if not options.cuda_graphs or not policy.on_gpu_kernels:
        return None
    if present is not None and present.made_for == (device, options):
        return present
    return ActingGraphs(
        partial(policy.forward, with_q=False),
        policy.model,
        CudaCapture(device),
        adapter="default" if options.critic_trunk == "adapter" else None,
        made_for=(device, options),
    )


class CudaCapture:
    """Records calls as CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._last: Any = None  # keeps the pool alive when all other graphs are gone

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Raises where the call waits for the device, or does else what no graph can hold."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                run()  # compiles kernels and allocates workspaces
                with _refusing_synchronisation():
                    run()
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

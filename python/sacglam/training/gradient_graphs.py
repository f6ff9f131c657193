"""A gradient by CUDA graphs: an update's pass, there and back, at one launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models.forest import Forest
from ..models.graphs import Capture, Graphs, Padding
from ..models.policy import Policy
from .optimiser import Optimiser


class GradientGraphs:
    """Passes that set the trained parameters' gradients. Graphs copy these to memory that all
    share, since each graph's own is used again by others.

    Sizes are rounded more finely than for acting, since an update takes longer than its launches
    sooner.

    Args:
        policy: what is trained.
        optimiser: that has the gradients.
        capture: records calls; CudaCapture on a GPU.
        leaves: whether the passes read the candidates' last tokens, as Q does.
        reads: tensors that they read beside the model and the heads.
    """

    PARTS = 8  # see models/padding.py, round_up

    def __init__(
        self,
        policy: Policy,
        optimiser: Optimiser,
        capture: Capture,
        *,
        leaves: bool,
        reads: Iterable[Tensor] = (),
    ) -> None:
        self._policy, self._optimiser, self._capture = policy, optimiser, capture
        self._leaves, self._reads = leaves, list(reads)
        self._parameters = list(policy.trainable_parameters().values())
        self._gradient: list[Tensor] = []  # as large as the parameters: made when it is needed
        self._graphs: dict[Hashable, Graphs] = {}
        self._used: dict[Hashable, list[bool]] = {}  # which parameters have a gradient

    def run(
        self,
        kind: Hashable,
        compute: Callable[[Forest, Tensor], Tensor],
        forest: Forest,
        numbers: npt.NDArray[np.float64],
        *,
        add: bool = False,
    ) -> Tensor | None:
        """Set the gradients as `compute(forest, numbers)` does, and return its report; None where
        no graph serves, and nothing is set.

        Args:
            kind: what tells calls apart that need graphs of their own, beside their number of rows.
            compute: sets the gradients, and waits for nothing.
            forest: on the CPU; what `compute` gets has its rows, and more tokens.
            numbers: what changes from call to call beside the forest, as many for each kind.
            add: add to the gradients that are there instead.
        """
        rows = forest.num_rows
        key = (kind, rows)
        if key not in self._graphs:

            def call(forest: Forest, numbers: Tensor) -> Tensor:
                return self._computed(compute, key, forest, numbers)

            self._graphs[key] = self.graphs(call, len(numbers), Padding(self._leaves, rows))
        if not self._gradient:
            self._gradient = [torch.zeros_like(p) for p in self._parameters]
        before = [p.grad if add else None for p in self._parameters]
        self._optimiser.zero_grad()  # a recording computes, and would add to them
        report = self._graphs[key].run(forest, numbers)
        found: list[Tensor | None] = [None] * len(before)
        if report is not None:
            used = self._used[key]
            found = [g if there else None for g, there in zip(self._gradient, used, strict=True)]
        if add and report is not None:  # the next part's graph writes there, too
            report = report.clone()
            found = _sums(before, found)
        for parameter, old, new in zip(self._parameters, before, found, strict=True):
            parameter.grad = old if new is None else new
        return report

    def graphs(
        self, call: Callable[[Forest, Tensor], Tensor], numbers: int, padding: Padding
    ) -> Graphs:
        """Graphs of another call that is part of an update; sizes are rounded as here."""
        policy = self._policy
        return Graphs(
            call, policy.model, self._capture,
            doing="training",
            reads=[*policy.heads.parameters(), *self._reads],
            adapter="default" if policy.options.critic_trunk == "adapter" else None,
            padding=padding._replace(parts=self.PARTS),
            numbers=numbers,
        )  # fmt: skip

    def release(self) -> None:
        """Forget all graphs, and keep no memory for others."""
        for graphs in self._graphs.values():
            graphs.release()
        self._gradient = []

    def __len__(self) -> int:
        """Graphs recorded."""
        return sum(map(len, self._graphs.values()))

    def _computed(
        self,
        compute: Callable[[Forest, Tensor], Tensor],
        key: Hashable,
        forest: Forest,
        numbers: Tensor,
    ) -> Tensor:
        report = compute(forest, numbers)
        there = [p.grad is not None for p in self._parameters]
        self._used[key] = there
        torch._foreach_copy_(
            [g for g, used in zip(self._gradient, there, strict=True) if used],
            [p.grad for p in self._parameters if p.grad is not None],
        )
        self._optimiser.zero_grad()
        return report


def _sums(before: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What was there with what was found added to it, in memory of its own."""
    pairs = list(zip(before, found, strict=True))
    both = [(old, new) for old, new in pairs if old is not None and new is not None]
    if both:
        torch._foreach_add_([old for old, _ in both], [new for _, new in both])
    return [new.clone() if old is None and new is not None else old for old, new in pairs]

"""Shared by the kernel tests: random forests, relative errors, and Triton's CPU interpreter.

Triton's interpreter is chosen when `triton` is first imported, and for the whole process:
`TRITON_INTERPRET=1 pytest tests/kernels` runs the tests that need it, and no others;
`test_interpreted.py` does that for an ordinary run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not INTERPRETING:
        return
    needed = [i for i in items if "interpreter" in getattr(i, "fixturenames", ())]
    config.hook.pytest_deselected(items=[i for i in items if i not in needed])
    items[:] = needed


@dataclass(frozen=True)
class Forest:
    end: torch.Tensor  # int32 [T]
    tree_start: torch.Tensor  # int32 [P + 1]
    pos: torch.Tensor  # int32 [T]
    prefix: int


def _make_forest(
    sizes: Sequence[int], prefix: int = 0, trunk: float = 0.5, seed: int = 0
) -> Forest:
    """Trees of `sizes` tokens in preorder: a chain for the first `trunk` share, then random."""
    rng = np.random.default_rng(seed)
    total = prefix + sum(sizes)
    end, pos, start = [total] * prefix, list(range(prefix)), [prefix]
    for size in sizes:
        begin = len(end)
        parent, path = [-1], [0]
        for i in range(1, size):
            keep = len(path) if i < trunk * size else int(rng.integers(1, len(path) + 1))
            path = path[:keep]
            parent.append(path[-1])
            path.append(i)
        tree_end = [i + 1 for i in range(size)]
        for i in range(size - 1, 0, -1):
            tree_end[parent[i]] = max(tree_end[parent[i]], tree_end[i])
        depth: list[int] = []
        for i in range(size):
            depth.append(0 if i == 0 else depth[parent[i]] + 1)
        end += [begin + e for e in tree_end]
        pos += [prefix + d for d in depth]
        start.append(begin + size)
    as_int = [torch.tensor(x, dtype=torch.int32) for x in (end, start, pos)]
    return Forest(as_int[0], as_int[1], as_int[2], prefix)


@pytest.fixture
def make_forest() -> Callable[..., Forest]:
    return _make_forest


@pytest.fixture
def relative_error() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """|a - b| / |b| in float64; the plain norm where b is zero; NaN never passes a comparison."""

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = a.detach().double(), b.detach().double()
        norm = b.norm()
        return float((a - b).norm() / (norm if norm > 0 else 1.0))

    return error


@pytest.fixture
def interpreter() -> None:
    """Skip unless Triton's interpreter is active."""
    if not HAS_TRITON:
        pytest.skip("triton is not installed (pip install 'sacglam[gpu]')")
    if not INTERPRETING:
        pytest.skip("set TRITON_INTERPRET=1 to run the kernels in Triton's CPU interpreter")


def _allow_loaded_loop_bounds() -> None:
    """Triton 3.6's interpreter turns a loaded scalar (an array of shape [1]) into a loop bound
    with int(), which NumPy 2.4 refuses."""
    from triton.runtime import interpreter as module

    patch = module._patch_lang_tensor

    def patched(tensor, scope):  # type: ignore[no-untyped-def]
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    module._patch_lang_tensor = patched


if HAS_TRITON and INTERPRETING:
    _allow_loaded_loop_bounds()

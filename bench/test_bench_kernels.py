"""The kernels' torch paths on the CPU, beside what they replace (the GPU has `device.py`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sacglam.kernels import (
    attention,
    candidate_softmax,
    candidate_softmax_reference,
    linear_logprob,
    plan_forest,
)

# pytest's importlib mode does not put this folder on the path; the script device.py has it there.
sys.path.append(str(Path(__file__).resolve().parent))
import device_workloads as workloads  # noqa: E402

HEADS, HEAD_DIM, HIDDEN, VOCAB = 8, 64, 512, 32_128  # Flan-T5-small's sizes


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _training(run: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Callable[[], object]:
    grad = torch.randn_like(run())
    return lambda: torch.autograd.grad(run(), leaves, grad)


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_attention(compare, quick, direction):
    pack = workloads.pack(2 if quick else 16, device="cpu")
    plan = plan_forest(pack.end, pack.tree_start, pos=pack.pos)
    leaves = [
        torch.randn(pack.tokens, HEADS, HEAD_DIM).transpose(0, 1).requires_grad_() for _ in range(3)
    ]
    index = torch.arange(pack.tokens)
    seen = (index[None] <= index[:, None]) & (index[:, None] < pack.end[None])
    ours = lambda: attention(*leaves, plan)  # noqa: E731
    dense = lambda: F.scaled_dot_product_attention(  # noqa: E731
        *(x[None] for x in leaves), attn_mask=seen
    )
    methods = {"sacglam": ours, "one dense mask over the pack": dense}
    if direction != "forward":
        methods = {name: _training(run, leaves) for name, run in methods.items()}
    compare(f"attention of {pack.tokens} packed tokens, {direction}", methods)


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_head(compare, quick, peak_bytes, direction):
    pack = workloads.pack(2 if quick else 16, device="cpu")
    rows = pack.head_rows.shape[0]
    h = torch.randn(rows, HIDDEN, requires_grad=True)
    weight = torch.randn(4096 if quick else VOCAB, HIDDEN) * 0.05
    token = torch.randint(len(weight), (pack.edges,))
    row = pack.edge_row.long()
    ours = lambda: linear_logprob(h, weight, row, token)  # noqa: E731
    stock = lambda: torch.log_softmax(h @ weight.T, -1)[row, token]  # noqa: E731
    product = lambda: h.detach() @ weight.T  # noqa: E731
    methods = {"sacglam": ours, "logits materialised": stock}
    if direction != "forward":
        methods = {name: _training(run, [h]) for name, run in methods.items()}
    peaks = {name: peak_bytes(run) for name, run in methods.items()}
    case = f"head, {rows} rows x {len(weight)} tokens, {direction}"
    floor = product if direction == "forward" else lambda: (product(), product())
    compare(case, methods, floor=floor, peak_bytes=peaks)


def test_policy(compare, quick):
    pack = workloads.pack(4 if quick else 64, device="cpu")
    logp = -torch.rand(pack.edges)
    index = (pack.cand_edge_offsets, pack.cand_edges, pack.prompt_offsets)
    compare(
        f"policy of {len(pack.prompt_offsets) - 1} prompts",
        {
            "sacglam": lambda: candidate_softmax(logp, *index),
            "a loop over candidates": lambda: candidate_softmax_reference(logp, *index),
        },
    )

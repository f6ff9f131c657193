"""Where the GPU's time goes: kernels of a pass by their time, and the wall time beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import torch
from device_models import Batch, packed_loss, passes, qwen_model, t5_model, with_lora
from sacglam.models.trunk import make_trunk
from torch.profiler import ProfilerActivity, profile

KERNELS = 30  # rows kept of each pass


def profile_pass(call: Callable[[], None]) -> dict[str, Any]:
    """Milliseconds: of the wall clock without the profiler, of all kernels, and by kernel."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    wall_ms = (time.perf_counter() - begin) * 1e3
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    spent: dict[str, list[float]] = {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times = spent.setdefault(event.name[:120], [0.0, 0])
            times[0] += event.time_range.elapsed_us() / 1e3
            times[1] += 1
    ordered = sorted(spent.items(), key=lambda item: -item[1][0])
    return {
        "wall_ms": wall_ms,
        "gpu_ms": sum(ms for _, (ms, _) in ordered),
        "kernels": [
            {"name": name, "ms": ms, "calls": calls} for name, (ms, calls) in ordered[:KERNELS]
        ],
    }


def profile_models(prompts: int) -> dict[str, Any]:
    """Forward, and forward and backward, of both headline models."""
    found = {}
    for spec, build, names, start in (
        (workloads.QWEN, qwen_model, ("q_proj", "v_proj"), -1),
        (workloads.T5, t5_model, ("q", "v"), 0),
    ):
        model, parameters = with_lora(build(), names)
        trunk = make_trunk(model)
        forest = Batch(spec.vocab, prompts, decoder_start=start).forest
        calls = passes(lambda _, t=trunk, f=forest: packed_loss(t, f), prompts, prompts, parameters)
        for name, call in zip(("forward", "forward+backward"), calls, strict=True):
            case = f"{spec.name}, {prompts} prompts, {name}"
            found[case] = profile_pass(call)
            print(f"{found[case]['gpu_ms']:8.2f} ms of {found[case]['wall_ms']:8.2f}: {case}")
    return found

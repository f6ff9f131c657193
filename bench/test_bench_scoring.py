"""Scoring a batch of prompts x candidates on one CPU thread: ours beside what people run.

Random weights, models built from configurations (Flan-T5-small's dims; a Llama of width 512 with
8 layers), random tokens: 16 ragged prompts of 110 to 130 tokens with 12 candidates each, of which
most share their first tokens ("Go to ...", "Release ..."). Every rival is independent code over a
stock model with the same weights (`scoring_rivals`), and must give the same log-probabilities
before it is timed. The floor is the matrix products that no method can do without, each run once
(`scoring_floor`). Times are CPU times of the one thread that computes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from sacglam.kernels.cpu import multiplies_bfloat16
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent))

from scoring_floor import (  # noqa: E402
    count_tokens,
    executed_flops,
    flops_of,
    products,
    run_of,
)
from scoring_rivals import LAMOREL, NAIVE, RIVALS, Score  # noqa: E402
from scoring_work import (  # noqa: E402
    Work,
    build_work,
    name_of,
    ours,
    ours_with_q,
    sizes_of,
    with_another_candidate,
)

KINDS = ["T5", "Llama"]
CPU = time.thread_time


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def _floor(work: Work, *, leaves: bool = False) -> list[tuple[int, int, int]]:
    config = work.stock.config
    tokens = count_tokens(
        work.prompts, work.candidates, encoder_decoder=config.is_encoder_decoder, leaves=leaves
    )
    return products(config, tokens)


def _agreeing(
    methods: Mapping[str, Callable[[], Tensor]], peak_bytes, *, near: float
) -> dict[str, int | None]:
    """Each method's peak memory; fails where one computes something else: no rival then."""
    peaks, scores = {}, {}
    for name, method in methods.items():
        scores[name] = method().float()  # and what is built at a first call is there
        peaks[name] = peak_bytes(method)
        torch.testing.assert_close(
            scores[name], scores["sacglam"], rtol=near, atol=near,
            msg=lambda text, name=name: f"{name} disagrees with sacglam: {text}",
        )  # fmt: skip
    return peaks


def _compare(compare, peak_bytes, quick, kind: str, prompts: int, rivals: dict[str, Score]) -> None:
    sizes = sizes_of(kind, quick, prompts)
    work = build_work(kind, sizes)
    methods = {
        name: lambda method=method: method(work)
        for name, method in {"sacglam": ours, **rivals}.items()
    }
    floor = _floor(work)
    compare(
        name_of(kind, sizes),
        methods,
        floor=run_of(floor),
        peak_bytes=_agreeing(methods, peak_bytes, near=1e-4),
        flops={name: executed_flops(method) for name, method in methods.items()},
        floor_flops=flops_of(floor),
        rounds=None if quick else 3,  # the slow rivals take seconds a call
        clock=CPU,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_batch(compare, peak_bytes, quick, kind):
    """The workload of 16 prompts; naive would take half a minute a call (see few prompts)."""
    _compare(compare, peak_bytes, quick, kind, 8 if quick else 16, RIVALS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_few_prompts(compare, peak_bytes, quick, kind):
    naive = {"naive, prompt repeated": NAIVE[kind]}
    _compare(compare, peak_bytes, quick, kind, 2, RIVALS[kind] | naive)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(compare, peak_bytes, quick, kind):
    """Both in bfloat16, and both in float32. Few prompts where the CPU has no instructions for it
    (AVX512-BF16 or AMX): torch's products in bfloat16 take several times as long as in float32
    there, in which ours, and the floor, are computed then."""
    instructions = multiplies_bfloat16()
    sizes = sizes_of(kind, quick, (8 if quick else 16) if instructions else 2)
    half, full = build_work(kind, sizes, dtype=torch.bfloat16), build_work(kind, sizes)
    lamorel = LAMOREL[kind]
    methods = {
        "sacglam": lambda: ours(half),
        "lamorel's best mode": lambda: lamorel(half),
        "sacglam, float32": lambda: ours(full),
        "lamorel's best mode, float32": lambda: lamorel(full),
    }
    floor = _floor(half)
    compare(
        f"bfloat16, {name_of(kind, sizes)}",
        methods,
        floor=run_of(floor, torch.bfloat16 if instructions else torch.float32),
        # Near what bfloat16 keeps of sums of up to six log-probabilities about ten each.
        peak_bytes=_agreeing(methods, peak_bytes, near=0.25),
        flops={name: executed_flops(method) for name, method in methods.items()},
        floor_flops=flops_of(floor),
        rounds=None if quick else 3,
        clock=CPU,
    )


@pytest.mark.parametrize("scores", ["policy", "policy and Q"])
@pytest.mark.parametrize("kind", KINDS)
def test_added_candidate(compare, quick, kind, scores):
    """A 13th candidate that shares all but its last token with another. The policy needs no row
    for it, Q one row a prompt."""
    sizes = sizes_of(kind, quick, 8 if quick else 16)
    twelve = build_work(kind, sizes)
    thirteen = with_another_candidate(twelve)
    method = ours if scores == "policy" else ours_with_q
    methods = {"sacglam": lambda: method(thirteen), "without it": lambda: method(twelve)}
    old, new = (values()[..., :12] for values in reversed(methods.values()))
    torch.testing.assert_close(old, new, rtol=1e-4, atol=1e-4)
    compare(
        f"{scores} with an added candidate, {name_of(kind, sizes)}",
        methods,
        flops={name: executed_flops(run) for name, run in methods.items()},
        floor_flops=flops_of(_floor(thirteen, leaves=method is ours_with_q)),
        rounds=None if quick else 9,
        clock=CPU,
    )

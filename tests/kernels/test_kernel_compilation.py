"""What the compiler makes of the kernels for sm_90, without a GPU: no spills, tensor cores used."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Large enough tiles that only tensor cores give their speed; the others move bytes.
_MATRIX = {
    "forward_kernel", "backward_q_kernel", "backward_kv_kernel", "logsumexp_kernel",
    "probability_kernel", "gated_linear_kernel",
}  # fmt: skip


@pytest.fixture(scope="module")
def records():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install 'sacglam[gpu]')")
    if sys.platform != "linux":
        pytest.skip("triton's assembler runs on Linux only")
    script = Path(__file__).with_name("aot_sm90.py")
    # A process of its own, and never the interpreter, which cannot compile.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), "--all"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles(records):
    assert {r["kernel"] for r in records} >= _MATRIX | {
        "combine_kernel", "edge_kernel", "norm_forward_kernel", "norm_backward_kernel",
        "rotary_kernel", "gate_forward_kernel", "gate_backward_kernel",
    }  # fmt: skip
    assert {r["case"] for r in records} >= {"Qwen2.5-0.5B attention", "Flan-T5-base head", "policy"}


def test_no_spills(records):
    wide = "head dimension 256"  # its dK and dV alone fill half the register file: 12 to 65
    spilled = [r for r in records if r["spills"] and r["case"] != wide]
    assert not spilled
    assert all(r["spills"] <= 100 for r in records if r["case"] == wide)


def test_tensor_cores_are_used(records):
    on_slow_path = [
        (r["case"], r["kernel"])
        for r in records
        if r["kernel"] in _MATRIX and r["case"] != "policy" and (r["hgmma"] == 0 or r["hmma"] > 0)
    ]
    assert not on_slow_path


def test_blocks_fit_in_shared_memory(records):
    assert all(r["shared"] <= 232_448 for r in records)  # sm_90: 227 KiB a block

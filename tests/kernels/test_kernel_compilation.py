"""What the compiler makes of the kernels, without a GPU: no spills, tensor cores used, and tiles
that fit into the shared memory of the GPUs that people have."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

# Large enough tiles that only tensor cores give their speed; the others move bytes.
_MATRIX = {
    "forward_kernel", "backward_q_kernel", "backward_kv_kernel", "logsumexp_kernel",
    "probability_kernel", "gated_linear_kernel",
}  # fmt: skip


_KIB = 1024


def _compiled(arch: int, cases: str) -> list[dict[str, Any]]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install 'sacglam[gpu]')")
    if sys.platform != "linux":
        pytest.skip("triton's assembler runs on Linux only")
    script = Path(__file__).with_name("aot.py")
    # A process of its own, and never the interpreter, which cannot compile.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), "--arch", str(arch), "--cases", cases],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def records():
    return _compiled(90, "all")


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
    assert all(r["shared"] <= 227 * _KIB for r in records)


# Ampere and Ada (sm_86 and sm_89 have sm_80's instructions and the less of shared memory), and
# GeForce Blackwell.
@pytest.mark.parametrize("arch", [86, 120])
def test_tiles_of_gpus_with_less_shared_memory(arch):
    records = _compiled(arch, "tiles")
    assert {r["kernel"] for r in records} >= _MATRIX
    assert all(r["shared"] <= 99 * _KIB for r in records)
    # In float32, heads of 256 have more sums than registers, whatever the tile.
    # Triton 3.7, which torch 2.13's CUDA build brings along, has 33 where 3.9 has at most 20.
    of_128 = 20 if Version(version("triton")) >= Version("3.9") else 40
    limits = {"float32, head dimension 256": 200, "float32, head dimension 128": of_128}
    assert not [r for r in records if r["spills"] > limits.get(r["case"], 0)]
    of_16_bits = [r for r in records if r["kernel"] in _MATRIX and "float32" not in r["case"]]
    assert all(r["hmma"] for r in of_16_bits)  # tensor cores


def test_other_tiles_would_not_fit(records):
    """The control: what data-centre GPUs take does not fit into 99 KiB."""
    wide = {r["kernel"] for r in records if r["shared"] > 99 * _KIB}
    assert {"backward_q_kernel", "gated_linear_kernel"} <= wide

"""Compile the kernels ahead of time for a type of GPU and report what the compiler made of them.

    python tests/kernels/aot.py [--arch 90] [--cases all]

It needs triton and no GPU, and TRITON_INTERPRET must not be set.

Prints one JSON object a line: kernel, case, registers, spills (bytes), tensor-core instructions.
The launchers run unchanged on CPU tensors, with a recorder in place of each kernel, so that what is
compiled is what they launch: types, constants, divisibility of strides, warps and stages.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from sacglam.kernels import candidate_softmax_triton as softmax
from sacglam.kernels import forest_attention_triton as attention
from sacglam.kernels import gated_activation_triton as gate
from sacglam.kernels import gated_linear_triton as gated_linear
from sacglam.kernels import linear_logprob_triton as head
from sacglam.kernels import plan_forest, tiles
from sacglam.kernels import rms_norm_triton as rms_norm
from sacglam.kernels import rotary_embedding_triton as rotary
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32",
    torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
# Bytes of shared memory that a block may have: A100, RTX 30, RTX 40, H100, B200, RTX 50.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


class Recorder:
    """Stands in for a jitted kernel and compiles each launch instead of running it."""

    def __init__(self, kernel: Any, arch: int, found: list[dict[str, Any]]) -> None:
        self.kernel, self.arch, self.found = kernel, arch, found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            options = {k: kwargs.pop(k) for k in _OPTIONS if k in kwargs}
            values = dict(zip(self.kernel.arg_names, args, strict=False), **kwargs)
            self.found.append({"kernel": self.kernel.__name__, **self._compile(values, options)})

        return launch

    def _compile(self, values: dict[str, Any], options: dict[str, int]) -> dict[str, Any]:
        signature, constants, attributes = {}, {}, {}
        declared = {p.name for p in self.kernel.params if p.is_constexpr}
        for i, name in enumerate(self.kernel.arg_names):
            value = values[name]
            aligned = False
            if name in declared or (isinstance(value, int) and value == 1):
                signature[name] = "constexpr"
                constants[(i,)] = value
            elif isinstance(value, torch.Tensor):
                signature[name] = _TYPES[value.dtype]
                aligned = True
            elif isinstance(value, int):
                signature[name] = "i32"
                aligned = value % 16 == 0
            else:
                signature[name] = "fp32"
            if aligned:
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", self.arch, 32), options=options)
        return {**options, "shared": compiled.metadata.shared, **_inspect(compiled.asm["cubin"])}


def _inspect(cubin: bytes) -> dict[str, int]:
    """Registers, spill traffic and tensor-core instructions of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
        sass = subprocess.check_output([tool, "--dump-sass", file.name], text=True)
    # Loads and stores of local memory are what a spill is made of.
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),  # type: ignore[index]
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "hgmma": sass.count("HGMMA"),
        "hmma": len(re.findall(r"\bHMMA", sass)),
    }


def _attention_case(
    dim: int, heads: int, kv_heads: int, prefix: int, bias: bool, some: bool = False,
    dtype: torch.dtype = torch.bfloat16, long_trees: bool = False,
) -> None:  # fmt: skip
    tokens = 300
    attention._SKIP_TOKENS = 0 if long_trees else 1024
    end = torch.full((tokens,), tokens, dtype=torch.int32)
    start = torch.tensor([prefix, tokens], dtype=torch.int32)
    plan = plan_forest(end, start, prefix=prefix, pos=end)
    if some:
        plan = plan.only(torch.arange(tokens // 2))
    q = torch.zeros(heads, plan.q_total, dim, dtype=dtype)
    k = torch.zeros(kv_heads, tokens, dim, dtype=dtype)
    table = torch.zeros(heads, 257, dtype=dtype) if bias else None
    out, lse = attention.attention_forward(q, k, k, plan, table, 1.0)
    attention.attention_backward(
        out, q, k, k, out, lse, plan, table, 1.0, need_bias_grad=False
    )  # fmt: skip


def _head_case(rows: int, dim: int, vocab: int) -> None:
    h = torch.zeros(rows, dim, dtype=torch.bfloat16)
    weight = torch.zeros(1, dtype=torch.bfloat16).expand(vocab, dim)
    weight = torch.empty(vocab, dim, dtype=torch.bfloat16) if vocab < 50_000 else weight
    index = torch.zeros(64, dtype=torch.int32)
    lse = head.logsumexp_forward(h, weight)
    head.edge_forward(h, weight, index, index, lse)
    buffer = torch.zeros(rows, 128, dtype=torch.bfloat16)
    head.launch_probabilities(h, weight, lse, lse, buffer, 0, 128)


def _softmax_case() -> None:
    logp, index = torch.zeros(64), torch.zeros(65, dtype=torch.int32)
    log_pi, entropy, scores = softmax.forward(logp, index, index, index, 1.0, False)
    softmax.backward(log_pi, entropy, scores, index, index, index, log_pi, entropy, 64, 1.0, False)


def _layer_case(dim: int, inner: int, heads: int, gelu: bool) -> None:
    """Norm, rotary embedding and feed-forward of one layer."""
    x = torch.zeros(320, dim, dtype=torch.bfloat16)
    weight = torch.zeros(dim, dtype=torch.bfloat16)
    for add in (None, x):
        y, z, rstd = rms_norm.forward(x, add, weight, 1e-6)
        rms_norm.backward(z, weight, rstd, y, add, need_weight=add is not None)
    up = torch.zeros(inner, dim, dtype=torch.bfloat16)
    inner_rows = gated_linear.forward(x, up, up, gelu)
    gate.forward(inner_rows, inner_rows, gelu)
    gate.backward(inner_rows, inner_rows, inner_rows, gelu)
    q = torch.zeros(320, heads, 64, dtype=torch.bfloat16).transpose(0, 1)
    table = torch.zeros(320, 64, dtype=torch.bfloat16)
    rotary.rotate(q, table, table)
    rotary.rotate(q, table, table, transposed=True)


_HEADLINE = {
    "Qwen2.5-0.5B attention": lambda: _attention_case(64, 14, 2, 0, False),
    "Flan-T5-base attention": lambda: _attention_case(64, 12, 12, 0, True),
    "Qwen2.5-0.5B head": lambda: _head_case(1568, 896, 1520),
    "Flan-T5-base head": lambda: _head_case(1568, 768, 1520),
    "policy": _softmax_case,
    "Qwen2.5-0.5B layer": lambda: _layer_case(896, 4864, 14, False),
    "Flan-T5-base layer": lambda: _layer_case(768, 2048, 12, True),
}
_WIDE_HEADS = {
    "head dimension 128": lambda: _attention_case(128, 16, 8, 0, False),
    "head dimension 96": lambda: _attention_case(96, 8, 8, 0, False),
    "head dimension 256": lambda: _attention_case(256, 4, 1, 0, False),
}
CASES = {
    "headline": _HEADLINE,
    "all": _HEADLINE | _WIDE_HEADS | {
        "some queries": lambda: _attention_case(64, 14, 2, 0, False, some=True),
        "shared prefix": lambda: _attention_case(64, 14, 2, 96, False),
    },
    # What differs from one type of GPU to another: the tiles of the kernels that multiply.
    "tiles": _WIDE_HEADS | {
        "Flan-T5-base attention": _HEADLINE["Flan-T5-base attention"],
        "Qwen2.5-0.5B head": _HEADLINE["Qwen2.5-0.5B head"],
        "Qwen2.5-0.5B layer": _HEADLINE["Qwen2.5-0.5B layer"],
        "float32, head dimension 64":
            lambda: _attention_case(64, 12, 12, 0, True, dtype=torch.float32),
        # These take the most shared memory where long trees lie behind a shared prefix.
        "float32, head dimension 128":
            lambda: _attention_case(128, 16, 8, 96, False, dtype=torch.float32, long_trees=True),
        "float32, head dimension 256":
            lambda: _attention_case(256, 4, 1, 96, False, dtype=torch.float32, long_trees=True),
    },
}  # fmt: skip


def report(arch: int, cases: str) -> Iterator[dict[str, Any]]:
    """One record a kernel and case."""
    found: list[dict[str, Any]] = []
    tiles.wide_tiles = lambda device: SHARED[arch] >= 227  # type: ignore[assignment]
    for module in (attention, head, softmax, gated_linear, gate, rms_norm, rotary):
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.JITFunction) and name.endswith("_kernel"):
                setattr(module, name, Recorder(value, arch, found))
    for case, run in CASES[cases].items():
        run()
        yield from ({"case": case, **record} for record in found)
        found.clear()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, default=90, choices=sorted(SHARED))
    parser.add_argument("--cases", default="headline", choices=sorted(CASES))
    arguments = parser.parse_args()
    for record in report(arguments.arch, arguments.cases):
        print(json.dumps(record), flush=True)

"""What the doctor finds, and that nothing it meets makes it fail."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sacglam.report import doctor


def shown(report: dict[str, Any], width: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(doctor.render(report))
    return stream.getvalue()


def test_it_finds_this_installation() -> None:
    report = doctor.collect()
    assert json.loads(json.dumps(report)) == report
    # PyPI's CUDA builds are "2.13.0" there and "2.13.0+cu130" here.
    assert torch.__version__.startswith(report["versions"]["torch"])
    assert report["torch"]["threads"] == torch.get_num_threads()
    assert report["machine"]["cores"] >= 1
    native = importlib.import_module("sacglam._C")
    assert report["native"]["available"] is True
    assert report["native"]["path"] == native.__file__
    text = shown(report)
    assert report["sacglam"]["version"] in text
    assert report["versions"]["torch"] in text
    assert str(native.__file__) in text


def test_what_is_missing_is_named_with_its_use_and_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, *arguments: Any) -> Any:
        if name == "minigrid":
            raise ModuleNotFoundError("No module named 'minigrid'", name="minigrid")
        if name == "triton":
            raise ImportError("libcuda.so.1: cannot open shared object file")
        if name == "sacglam._C":
            raise ImportError("undefined symbol")
        return real(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without)
    report = doctor.collect()
    states = {item["name"]: item["state"] for item in report["optional"]}
    assert states["minigrid"] == "missing"
    assert states["triton"] == "broken"
    text = shown(report)
    assert "for the babyai/... environments" in text
    assert "pip install 'sacglam[babyai]'" in text
    assert "does not load: ImportError: libcuda.so.1" in text
    (problem,) = [p for p in report["problems"] if "_C" in p]
    assert "undefined symbol" in problem
    assert "pip install -e ." in problem
    assert problem in text
    assert "Everything that is needed is there" not in text


def test_a_module_that_lacks_what_it_imports_is_broken_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flash_attn.py").write_text("import no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    item = doctor._Optional("flash_attn", "flash-attn", "x", "y", needs_gpu=True)
    found = doctor._look_for(item, has_gpu=False)
    assert found["state"] == "broken"
    assert "no_such_thing" in found["error"]


def test_gpu_packages_are_not_missed_without_a_gpu() -> None:
    item = doctor._Optional("no_such_module", "no-such-thing", "kernels", "pip", needs_gpu=True)
    assert doctor._look_for(item, has_gpu=False)["state"] == "unused"
    assert doctor._look_for(item, has_gpu=True)["state"] == "missing"


def test_imports_that_print_stay_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud_module.py").write_text("print('Hello from the community')\n")
    monkeypatch.syspath_prepend(tmp_path)
    doctor._look_for(doctor._Optional("loud_module", "loud", "x", "y"), has_gpu=False)
    assert capsys.readouterr().out == ""


def test_too_many_threads_are_a_problem() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    code = (
        "import json, torch; torch.set_num_threads(512)\n"
        "from sacglam.report.doctor import collect; print(json.dumps(collect()['problems']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (problem,) = [p for p in json.loads(done.stdout) if "threads" in p]
    assert f"512 threads on {cores} usable cores" in problem
    assert f"OMP_NUM_THREADS={cores}" in problem


@pytest.mark.parametrize(
    "report", [{}, {"optional": [{}], "machine": {"gpus": [{}]}, "native": {}}]
)
def test_a_partial_report_is_rendered(report: dict[str, Any]) -> None:
    assert "native part" in shown(report)
    assert "Everything" not in shown(report)


def test_environments_are_listed_when_given() -> None:
    assert "playground/small, babyai/GoToLocal" in shown(
        {"environments": ["playground/small", "babyai/GoToLocal"]}
    )


@pytest.mark.parametrize(("has", "words"), [(True, "multiplies"), (False, "no instructions for")])
def test_it_says_whether_the_cpu_multiplies_bfloat16(has: bool, words: str) -> None:
    assert f"{words} bfloat16" in shown({"machine": {"multiplies_bfloat16": has}})
    assert "bfloat16" not in shown({"machine": {}})


def test_gpus_are_described() -> None:
    gpu = {"name": "NVIDIA H200", "memory_bytes": 150_754_820_096, "capability": "9.0"}
    assert "NVIDIA H200, 151 GB, compute capability 9.0" in shown({"machine": {"gpus": [gpu]}})
    assert "torch's own" not in shown({"machine": {"gpus": [gpu]}})
    assert "torch's own" in shown({"machine": {"gpus": [{**gpu, "capability": "7.5"}]}})


def test_the_compiler_is_read_from_the_library(tmp_path: Path) -> None:
    library = tmp_path / "x.so"
    library.write_bytes(b"\x7fELF\0\0GCC: (Debian 12.2.0-14) 12.2.0\0rest")
    assert doctor._compiler(library) == {"GCC": "12.2.0"}
    library.write_bytes(b"\x7fELF\0Debian clang version 14.0.6\0GCC: (Debian 12.2.0-14) 12.2.0\0")
    assert doctor._compiler(library) == {"clang": "14.0.6"}
    assert doctor._compiler(tmp_path / "none.so") == {}


def test_importing_the_reports_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from sacglam.report import curve, doctor, episode, progress, tables\n"
        "heavy = {'torch', 'matplotlib', 'rich', 'yaml', 'transformers'} & set(sys.modules)\n"
        "ours = {m for m in sys.modules if m.startswith('sacglam.')}\n"
        "ours = {m for m in ours if not m.startswith('sacglam.report')}\n"
        "ours -= {'sacglam.errors', 'sacglam.files'}\n"
        "print(sorted(heavy), sorted(ours))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_a_large_family_of_environments_is_one_entry() -> None:
    many = [f"babyai/Level{i}" for i in range(40)]
    text = shown({"environments": ["playground/small", *many]})
    assert "playground/small, babyai/... (40: sacglam.list_envs())" in text
    assert "Level7" not in text

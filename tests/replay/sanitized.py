"""The replay buffer's extension built with sanitizers, and Python scripts run on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
CXX = next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), None)
# The bindings of the replay buffer alone: the kernels' need not be compiled.
MODULE = """
#include <pybind11/pybind11.h>

#include "bindings.hpp"

PYBIND11_MODULE(_C, m) { sacglam::bind_replay(m); }
"""
PRELOAD = {"address,undefined": ("libasan.so", "libstdc++.so.6"), "thread": ("libtsan.so",)}
OPTIONS = {
    # Python keeps memory until it ends: no leak of ours could be told from that.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Python and numpy are not instrumented: what they do is taken as correct.
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:second_deadlock_stack=1",
}


def includes() -> list[str]:
    pybind11 = pytest.importorskip("pybind11")
    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").is_file():  # where `make` puts them, if Debian has none
        python = str(
            Path(sys.prefix, "include", f"python{sys.version_info[0]}.{sys.version_info[1]}")
        )
    if not Path(python, "Python.h").is_file():
        pytest.skip("needs Python.h")
    return [f"-I{python}", f"-I{pybind11.get_include()}"]


def build(folder: Path, sanitizer: str, fault: tuple[str, str] | None = None) -> Path:
    """The extension, with a fault sown into it (old text, new text); skips the test where the
    tools are missing."""
    if CXX is None or not CSRC.is_dir():
        pytest.skip("needs a C++ compiler and the C++ sources")
    old, new = fault or ("", "")
    sown = 0
    for path in [*CSRC.glob("*.hpp"), CSRC / "bind_replay.cpp"]:
        text = path.read_text()
        if fault:
            sown += text.count(old)
            text = text.replace(old, new)
        (folder / path.name).write_text(text)
    assert fault is None or sown == 1, f"{old!r} is there {sown} times: adapt the fault"
    source, target = folder / "module.cpp", folder / "_C.so"
    source.write_text(MODULE)
    command = [
        str(CXX), "-std=c++20", "-O1", "-g1", "-fPIC", "-shared", "-w", "-pthread",
        "-fvisibility=hidden", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer", *includes(), str(source), str(folder / "bind_replay.cpp"),
        "-o", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "cannot find" in done.stderr:
        pytest.skip("the compiler comes without sanitizer libraries")
    assert done.returncode == 0, done.stderr
    return target


def library(name: str) -> str:
    said = subprocess.run([str(CXX), f"-print-file-name={name}"], capture_output=True, text=True)
    path = said.stdout.strip()
    if not os.path.isabs(path):
        pytest.skip(f"the compiler comes without {name}")
    return path


def run(script: Path, sanitizer: str, extension: Path, *args: str) -> str:
    """Run a script that takes --extension; what it printed. A report of the sanitizer, or an exit
    status other than 0, is an AssertionError."""
    preload = ":".join(library(name) for name in PRELOAD[sanitizer])
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": preload, "OMP_NUM_THREADS": "1"}
    # A pool of Python's own would hide overruns of the arrays that it gives.
    environment["PYTHONMALLOC"] = "malloc"
    command = [sys.executable, str(script), "--extension", str(extension), *args]

    def start(prefix: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, *command], env=environment, capture_output=True, text=True, check=False
        )

    done = start([])
    if "unexpected memory mapping" in done.stderr:
        # Older thread sanitizers cannot live with the kernel's address randomisation.
        done = start(["setarch", "-R"])
        if "unexpected memory mapping" in done.stderr or "setarch" in done.stderr:
            pytest.skip("the thread sanitizer cannot run on this kernel")
    for sign in ("ERROR: AddressSanitizer", "WARNING: ThreadSanitizer", "runtime error:"):
        assert sign not in done.stderr, done.stderr[-8000:]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    return done.stdout

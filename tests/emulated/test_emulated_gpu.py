"""Everything beside the kernels that runs on a GPU alone, on an emulated one (emulation.py).

The device must be there before torch is loaded: each file is run by a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch has a CUDA of its own"),
    pytest.mark.timeout(1500),  # a hundred seconds, on a machine that does nothing else
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """device.cpp, compiled."""
    made = tmp_path_factory.mktemp("emulated") / "device.so"
    root = Path(torch.__file__).parent
    subprocess.run(
        ["g++", "-std=c++20", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
        + ["-isystem", str(root / "include"), "-o", str(made)]
        + [str(HERE / "device.cpp"), f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"],
        check=True,
    )
    return made


@pytest.mark.parametrize("name", sorted(p.stem for p in HERE.glob("gpu_*.py")))
def test_on_an_emulated_gpu(name: str, library: Path):
    environment = {
        **os.environ,
        "EMULATED_GPU": str(library),
        "OMP_NUM_THREADS": "1",  # of operations this small, more threads take longer
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    for inherited in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        environment.pop(inherited, None)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "emulation", "-p", "no:cacheprovider"]
        + ["-W", "error::RuntimeWarning:sacglam", str(HERE / f"{name}.py")],
        env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"

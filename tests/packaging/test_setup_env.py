"""tools/setup_env.py: what `make` does on a machine where something is missing.

The environment's Python and pip are shell scripts here that write down what they are asked for.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "setup_env.py"

# Refuses an index of its own, as a machine does that cannot reach it.
PYTHON_WITHOUT_CPU_INDEX = """\
#!/bin/sh
echo "$@" >> "{calls}"
case "$*" in *--index-url*) echo unreachable; exit 1 ;; esac
case "$*" in *get_path*) echo "{headers}" ;; *python%d.%d*) echo python3.11 ;; esac
exit 0
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def setup_env(*arguments: str, path: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path}
    environment.pop("CXX", None)
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
    )


def test_a_missing_compiler_is_named_before_anything_is_made(tmp_path: Path) -> None:
    done = setup_env("--venv", "venv", path=str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert "apt-get install build-essential" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_venv_module_is_named(tmp_path: Path) -> None:
    # Debian's Python without python3-venv has no ensurepip: hide it by running the script in an
    # interpreter whose finder does not see it.
    code = (
        "import importlib.util as u, runpy, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'ensurepip' else find(name)\n"
        f"sys.argv = ['setup_env.py']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_another_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "venv" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    done = setup_env("--venv", "venv", path=os.environ["PATH"], cwd=tmp_path)
    assert done.returncode == 1
    assert "no virtual environment" in done.stderr
    assert mine.read_text() == "years of work"


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="a GPU takes the ordinary index at once")
def test_without_the_cpu_index_the_ordinary_one_is_taken(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "Python.h").write_text("")
    script = PYTHON_WITHOUT_CPU_INDEX.format(calls=calls, headers=headers)
    executable(tmp_path / "venv" / "bin" / "python", script)
    tools = tmp_path / "tools"
    executable(tools / "c++", "#!/bin/sh\n")
    path = f"{tools}:/usr/bin:/bin"
    done = setup_env("--venv", "venv", "--torch", "torch==2.12.0", path=path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [line for line in calls.read_text().splitlines() if line.endswith("torch==2.12.0")]
    assert len(asked) == 2
    assert re.search(r"--timeout \d+ --retries [01] --index-url", asked[0])
    assert "--index-url" not in asked[1]
    assert "several GB" in done.stdout


def test_a_failing_step_shows_the_end_of_its_log(tmp_path: Path) -> None:
    failing = '#!/bin/sh\ncase "$*" in *install*) echo "no space left on device"; exit 1 ;; esac\n'
    executable(tmp_path / "venv" / "bin" / "python", failing)
    executable(tmp_path / "tools" / "c++", "#!/bin/sh\n")
    path = f"{tmp_path / 'tools'}:/usr/bin:/bin"
    done = setup_env("--venv", "venv", path=path, cwd=tmp_path)
    assert done.returncode == 1
    assert "updating pip failed" in done.stderr
    assert "no space left on device" in done.stderr

#!/usr/bin/env python3
"""Make the virtual environment and install sacglam into it, editable, with all that it needs.

`make` runs this with the system's Python: it uses the standard library alone and says in words
what is missing. A step whose work is done takes no time: after an interruption, run it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIN_PYTHON = (3, 10)
# The ordinary index's torch for Linux brings several GB of CUDA libraries; this one has builds
# without.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LOG_LINES_ON_ERROR = 30


class SetupError(Exception):
    """What is missing or failed, and the command that helps."""


def check_system() -> None:
    """Refuse at once, by the name of the Debian package, what would fail minutes later."""
    if sys.version_info < MIN_PYTHON:
        here = ".".join(map(str, sys.version_info[:2]))
        raise SetupError(
            f"Python 3.10 or newer is needed; {sys.executable} is {here}. "
            "With a newer one installed: make PYTHON=python3.11 ..."
        )
    # Debian ships both apart from Python, in one package.
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        raise SetupError("python3-venv is missing: sudo apt-get install python3-venv")
    compiler = (os.environ.get("CXX") or "c++").split()[0]
    if shutil.which(compiler) is None:
        raise SetupError(
            f"no C++ compiler ({compiler}) was found: sudo apt-get install build-essential"
        )


def has_nvidia_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


class Setup:
    """The steps, in order. What commands print goes to a log, and is shown when one fails."""

    def __init__(self, venv: Path, torch: str, extras: str) -> None:
        self.venv = venv if venv.is_absolute() else Path.cwd() / venv
        self.python = self.venv / "bin" / "python"
        self.torch = torch
        self.extras = extras
        self.log = self.venv / "setup.log"

    def run(self, command: list[str], **variables: str) -> bool:
        """Run a command, on a terminal with a clock beside it; False when it failed."""
        clock = sys.stdout.isatty()
        begin = time.monotonic()
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
            )
            try:
                while process.poll() is None:
                    if clock:
                        print(f"\r      {time.monotonic() - begin:3.0f} s", end="", flush=True)
                    try:
                        process.wait(1.0)
                    except subprocess.TimeoutExpired:
                        continue
            finally:
                if process.poll() is None:  # interrupted: leave nothing running
                    process.terminate()
                    process.wait()
                if clock:
                    print("\r" + " " * 14 + "\r", end="", flush=True)
        return process.returncode == 0

    def need(self, command: list[str], what: str, **variables: str) -> None:
        if self.run(command, **variables):
            return
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_ON_ERROR:]
        end = "\n    ".join(lines)
        raise SetupError(f"{what} failed; the end of {self.log}:\n    {end}")

    def pip(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "pip", "--no-input", *arguments]

    def output(self, code: str) -> str:
        return subprocess.check_output([str(self.python), "-c", code], text=True).strip()

    def make_venv(self) -> None:
        check = f"import sys, pip; sys.exit(sys.version_info[:2] < {MIN_PYTHON})"
        try:
            works = subprocess.run([str(self.python), "-c", check], stderr=subprocess.DEVNULL)
            if works.returncode == 0:
                return
        except OSError:
            pass  # no such program: there is none yet, or its Python was removed
        if self.venv.exists():
            ours = (self.venv / "pyvenv.cfg").exists() or (self.venv / "setup.log").exists()
            if not ours and any(self.venv.iterdir()):
                raise SetupError(f"{self.venv} is no virtual environment: move it away")
            shutil.rmtree(self.venv)
        self.venv.mkdir(parents=True)
        self.need([sys.executable, "-m", "venv", str(self.venv)], "python3 -m venv")

    def update_pip(self) -> None:
        self.need(self.pip("install", "pip>=24"), "updating pip")

    def install_torch(self) -> None:
        # Without its dependencies: a later step takes those from the ordinary index.
        install = self.pip("install", "--no-deps")
        if not has_nvidia_gpu():
            quick = ["--timeout", "10", "--retries", "1", "--index-url", CPU_INDEX]
            if self.run([*install, *quick, self.torch]):
                return
            print(
                f"      {CPU_INDEX} cannot be reached or has no {self.torch}:\n"
                "      taking the ordinary build, several GB with its CUDA libraries",
                flush=True,
            )
        self.need([*install, self.torch], f"installing {self.torch}")

    def provide_python_headers(self) -> None:
        """Give the venv a Python.h where the system has none.

        Debian keeps it in python3-dev. The package is unpacked into the venv, not installed: that
        takes no root and leaves the system alone.
        """
        include = Path(self.output("import sysconfig; print(sysconfig.get_path('include'))"))
        version = self.output("import sys; print('python%d.%d' % sys.version_info[:2])")
        target = self.venv / "include" / version
        if any((folder / "Python.h").exists() for folder in (include, target)):
            return
        missing = SetupError(f"{include}/Python.h is missing: sudo apt-get install python3-dev")
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise missing
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            if not self.download_deb(f"lib{version}-dev", scratch):
                raise missing
            (deb,) = scratch.glob("*.deb")
            unpacked = scratch / "unpacked"
            self.need(["dpkg-deb", "-x", str(deb), str(unpacked)], f"unpacking {deb.name}")
            headers = unpacked / "usr" / "include"
            # Debian's pyconfig.h only includes the one of the architecture: put that in its place.
            (config,) = headers.glob(f"*-linux-*/{version}/pyconfig.h")
            shutil.copy(config, headers / version / "pyconfig.h")
            shutil.copytree(headers / version, target, dirs_exist_ok=True)

    def download_deb(self, package: str, folder: Path) -> bool:
        """`apt-get download`, after an update into lists of our own if the system has none."""
        if self.run(["sh", "-c", 'cd "$0" && apt-get download "$1"', str(folder), package]):
            return True
        for part in ("lists/partial", "archives/partial"):
            (folder / part).mkdir(parents=True)
        script = 'cd "$0" && apt-get $2 update && apt-get $2 download "$1"'
        own = f"-o Dir::State::Lists={folder}/lists -o Dir::Cache={folder}"
        return self.run(["sh", "-c", script, str(folder), package, own])

    def build_requirements(self) -> list[str]:
        code = (
            "import sys\n"
            "try: import tomllib\n"
            "except ImportError: from pip._vendor import tomli as tomllib\n"
            "with open('pyproject.toml', 'rb') as f: toml = tomllib.load(f)\n"
            "print('\\n'.join(toml['build-system']['requires']))"
        )
        command = [str(self.python), "-c", code]
        return subprocess.check_output(command, cwd=ROOT, text=True).split("\n")[:-1]

    def install_package(self) -> None:
        self.need(self.pip("install", *self.build_requirements()), "installing the build tools")
        # Not isolated, and with a build folder that stays: the next build compiles only what
        # changed.
        self.need(
            self.pip("install", "--no-build-isolation", "--editable", f".[{self.extras}]"),
            "installing sacglam",
            SACGLAM_BUILD_DIR=str(ROOT / "build" / "native"),
        )
        check = "import sacglam._C, sacglam.kernels"
        self.need([str(self.python), "-c", check], "importing what was installed")

    def steps(self) -> None:
        gpu = has_nvidia_gpu()
        torch = f"{self.torch} ({'with CUDA, several GB' if gpu else 'CPU build, about 200 MB'})"
        steps = (
            ("virtual environment", self.make_venv),
            ("pip", self.update_pip),
            (torch, self.install_torch),
            ("Python's headers", self.provide_python_headers),
            ("libraries, and sacglam itself, compiled here", self.install_package),
        )
        for number, (title, step) in enumerate(steps, start=1):
            print(f"[{number}/{len(steps)}] {title}", flush=True)
            step()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="the environment's folder")
    parser.add_argument("--torch", default="torch==2.13.0", help="torch, as pip names it")
    parser.add_argument("--extras", default="dev", help="extras of pyproject.toml to install")
    options = parser.parse_args()
    begin = time.monotonic()
    try:
        check_system()
        if (options.venv / "bin" / "python").exists():
            print(f"Bringing {options.venv} up to date", flush=True)
        else:
            print(f"Setting up {options.venv}, once: a few minutes", flush=True)
        Setup(options.venv, options.torch, options.extras).steps()
    except SetupError as error:
        print(f"\nsetup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"Ready after {time.monotonic() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

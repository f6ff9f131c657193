"""Builds the native extension `sacglam._C` with CMake; everything else is in pyproject.toml.

Environment variables, all optional:
    SACGLAM_BUILD_DIR   keep CMake's build folder here, so that the next build is incremental
    SACGLAM_BUILD_TYPE  Release (default), RelWithDebInfo or Debug
    SACGLAM_WERROR      ON: treat warnings as errors
    SACGLAM_SANITIZE    address,undefined or thread
    CMAKE_ARGS          more arguments for CMake's configuration
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def find_tool(module: str, folder: str, program: str) -> str:
    """The program that a Python package brings, or else the one on PATH."""
    try:
        candidate = Path(getattr(__import__(module), folder)) / program
        if candidate.is_file():
            return str(candidate)
    except (ImportError, AttributeError):
        pass  # not installed as a Python package: the system's may do
    found = shutil.which(program)
    if found is None:
        sys.exit(f"sacglam: {program} is needed to compile sacglam._C: pip install {program}")
    return found


def python_headers() -> Path:
    """The folder of Python.h: the interpreter's own, or the one that `make` put into the venv."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [Path(sysconfig.get_path("include")), Path(sys.prefix, "include", version)]
    for candidate in candidates:
        if (candidate / "Python.h").is_file():
            return candidate
    sys.exit(
        f"sacglam: Python.h is needed to compile sacglam._C and is not in {candidates[0]}: "
        "sudo apt-get install python3-dev"
    )


class CMakeBuild(build_ext):
    """Configure and build CMakeLists.txt, and put the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        cmake = find_tool("cmake", "CMAKE_BIN_DIR", "cmake")
        ninja = find_tool("ninja", "BIN_DIR", "ninja")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(os.environ.get("SACGLAM_BUILD_DIR") or self.build_temp).resolve()
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPython_INCLUDE_DIR={python_headers()}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('SACGLAM_BUILD_TYPE', 'Release')}",
            f"-DSACGLAM_WERROR={os.environ.get('SACGLAM_WERROR', 'OFF')}",
            f"-DSACGLAM_SANITIZE={os.environ.get('SACGLAM_SANITIZE', '')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        self.drop_stale(build, [*configure, sys.version, platform.platform()])
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel"], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: processes may be running the module that is replaced.
        fresh = target.with_name(target.name + ".new")
        shutil.copy2(build / target.name, fresh)
        os.replace(fresh, target)

    @staticmethod
    def drop_stale(build: Path, settings: list[str]) -> None:
        """Empty a build folder that was configured otherwise.

        pip leaves build/ behind, and CMake's cache keeps the first interpreter, ninja and source
        folder that it saw, some of them in an isolated environment that no longer exists.
        """
        fingerprint = build / "sacglam-settings.txt"
        text = "\n".join(settings) + "\n"
        if not fingerprint.exists() or fingerprint.read_text() != text:
            if (build / "CMakeCache.txt").exists():
                shutil.rmtree(build)
            build.mkdir(parents=True, exist_ok=True)
            fingerprint.write_text(text)


class CleanBuildPy(build_py):
    """Start from an empty build/lib: setuptools would pack modules deleted since the last build."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    packages=[
        *find_packages("python"),
        "sacglam.kernels",
        *(f"sacglam.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"": "python", "sacglam.kernels": "kernels"},
    package_data={"sacglam": ["py.typed", "*.pyi"]},
    ext_modules=[Extension("sacglam._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": CleanBuildPy},
)

"""Builds the native extension `sacglam._C` with CMake; everything else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure and build CMakeLists.txt, and put the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        cache = build / "CMakeCache.txt"
        # pip leaves build/ behind: a cache made for another interpreter or source folder would
        # be reused silently.
        if cache.exists():
            text = cache.read_text(errors="replace")
            if sys.executable not in text or str(ROOT) not in text:
                cache.unlink()
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('SACGLAM_BUILD_TYPE', 'Release')}",
            f"-DSACGLAM_WERROR={os.environ.get('SACGLAM_WERROR', 'OFF')}",
            f"-DSACGLAM_SANITIZE={os.environ.get('SACGLAM_SANITIZE', '')}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel"], check=True)


setup(
    packages=[*find_packages("python"), "sacglam.kernels"],
    package_dir={"": "python", "sacglam.kernels": "kernels"},
    package_data={"sacglam": ["py.typed"]},
    ext_modules=[Extension("sacglam._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

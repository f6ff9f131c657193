"""sdist, wheel and the native build, made for real from a copy of the repository.

The C++ of the copy is replaced by a module without content: what is tested here is the packaging,
and compiling the real sources would take most of the time. `make package` builds those.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "python",
    "csrc",
    "kernels",
    "bench",
    "tests",
    "tools",
    "docs",
    "setup.py",
    "pyproject.toml",
    "CMakeLists.txt",
    "MANIFEST.in",
    "Makefile",
    "LICENSE",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", ".*_cache")
EMPTY_MODULE = """\
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr,
                             nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__C() {
  PyObject* self = PyModule_Create(&module);
  PyModule_AddIntConstant(self, "empty", 1);
  return self;
}
"""
NATIVE = f"sacglam/_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def copy_repository(target: Path) -> Path:
    target.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=LEFT_OUT)
        elif source.exists():
            shutil.copy(source, target / name)
    return target


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository, in a folder with a space in its name, quick to compile."""
    folder = copy_repository(tmp_path / "a copy")
    shutil.rmtree(folder / "csrc")
    (folder / "csrc").mkdir()
    (folder / "csrc" / "module.cpp").write_text(EMPTY_MODULE)
    return folder


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build_wheel(folder: Path, target: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target]
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=folder)
    (wheel,) = target.glob("sacglam-*.whl")
    return wheel


def python_modules(folder: Path) -> set[str]:
    """The path in a wheel of every Python file of the package."""
    package = {
        f"sacglam/{path.relative_to(folder / 'python' / 'sacglam').as_posix()}"
        for path in (folder / "python" / "sacglam").rglob("*.py")
    }
    kernels = {
        f"sacglam/kernels/{path.relative_to(folder / 'kernels').as_posix()}"
        for path in (folder / "kernels").rglob("*.py")
    }
    return package | kernels


def version() -> str:
    text = (ROOT / "python" / "sacglam" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert match, "the version is a literal in sacglam/__init__.py: setup reads it from there"
    return match[1]


def test_the_sdist_holds_all_that_a_build_needs(tmp_path: Path) -> None:
    folder = copy_repository(tmp_path / "repository")
    (folder / "python" / "sacglam" / "_C.so").write_bytes(b"an editable install leaves this")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", tmp_path, cwd=folder)
    (sdist,) = tmp_path.glob("sacglam-*.tar.gz")
    assert sdist.name == f"sacglam-{version()}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        path.relative_to(folder).as_posix()
        for name in ("python", "csrc", "kernels", "tests", "bench", "tools")
        for path in (folder / name).rglob("*")
        if path.suffix in {".py", ".cpp", ".hpp", ".pyi", ".typed"}
    }
    top = {"CMakeLists.txt", "LICENSE", "README.md", "setup.py", "pyproject.toml", "Makefile"}
    assert {*sources, *top} - names == set()
    assert [name for name in names if name.endswith((".so", ".pyc")) or ".venv" in name] == []


def test_the_wheel_holds_every_module_and_no_old_one(copy: Path, tmp_path: Path) -> None:
    # Both are what an earlier build leaves in build/: a module deleted since, and a cache of
    # CMake made in another folder with a ninja that is gone, which CMake would refuse.
    platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    stale = copy / "build" / f"lib.{platform}" / "sacglam" / "deleted.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    cache = copy / "build" / f"temp.{platform}" / "CMakeCache.txt"
    cache.parent.mkdir(parents=True)
    cache.write_text(
        "CMAKE_HOME_DIRECTORY:INTERNAL=/nowhere\n"
        "CMAKE_MAKE_PROGRAM:FILEPATH=/nowhere/ninja\n"
        "CMAKE_GENERATOR:INTERNAL=Unix Makefiles\n"
    )
    wheel = build_wheel(copy, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        header = HeaderParser().parsestr(archive.read(metadata).decode())
        licenses = [n for n in archive.namelist() if n.endswith("licenses/LICENSE")]
        license_text = archive.read(licenses[0]).decode()
    stubs = {n for n in names if n.endswith((".pyi", "py.typed"))}
    assert names - stubs == {*python_modules(copy), NATIVE}
    assert "sacglam/py.typed" in stubs
    assert header["Version"] == version()
    assert header["License-Expression"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in license_text
    assert "END OF TERMS AND CONDITIONS" in license_text

    # Unpacked elsewhere, it is the package; the copy and the repository are not asked.
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); "
        "import sacglam, sacglam._C as native; print(native.empty, native.__file__)"
    )
    printed = run(sys.executable, "-I", "-c", code, cwd=tmp_path)
    assert printed.split(maxsplit=1) == ["1", f"{site / NATIVE}\n"]


def test_a_second_build_compiles_only_what_changed(copy: Path) -> None:
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", "lib"]
    kept = {"SACGLAM_BUILD_DIR": str(copy / "kept")}
    assert "Building CXX object" in run(*build, cwd=copy, **kept)
    assert "Building CXX object" not in run(*build, cwd=copy, **kept)
    # Other settings: the folder is made anew.
    assert "Building CXX object" in run(*build, cwd=copy, **kept, SACGLAM_WERROR="ON")


def test_warnings_are_errors_when_asked(copy: Path) -> None:
    source = copy / "csrc" / "module.cpp"
    source.write_text(source.read_text() + "int narrowed(double x) { return x; }\n")
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", "lib"]
    run(*build, cwd=copy)
    with pytest.raises(AssertionError, match="Wconversion|float-conversion"):
        run(*build, cwd=copy, SACGLAM_WERROR="ON")


def test_the_installed_version_is_that_of_the_source() -> None:
    code = (
        "import importlib.metadata as m, sacglam; print(m.version('sacglam'), sacglam.__version__)"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).split() == [version(), version()]

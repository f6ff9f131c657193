"""Format the sources in place, or with --check say what is not: ruff for Python, clang-format
for C++."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP_FOLDERS = ("csrc", "tests", "bench")


def cpp_sources() -> list[str]:
    found = [
        path
        for folder in CPP_FOLDERS
        for suffix in ("*.cpp", "*.hpp")
        for path in (ROOT / folder).rglob(suffix)
    ]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def commands(check: bool) -> list[list[str]]:
    ruff = [sys.executable, "-m", "ruff"]
    clang_format = [str(Path(sys.executable).parent / "clang-format")]
    if check:
        return [
            [*ruff, "check", "."],
            [*ruff, "format", "--check", "."],
            [*clang_format, "--dry-run", "--Werror", *cpp_sources()],
        ]
    return [
        [*ruff, "check", "--fix", "."],
        [*ruff, "format", "."],
        [*clang_format, "-i", *cpp_sources()],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    failed = False
    for command in commands(check):
        shown = [part for part in command if not part.endswith((".cpp", ".hpp"))]
        print("$", " ".join([Path(shown[0]).name, *shown[1:]]), flush=True)
        failed |= subprocess.run(command, cwd=ROOT).returncode != 0
    if failed:
        print("style: `make format` repairs most of this", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

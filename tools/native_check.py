"""Build sacglam._C and the C++ tests apart from the installed ones, with warnings as errors, and
run the C++ tests. With --sanitize, the tests run under the compiler's sanitizers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import cmake

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", default="", help="address,undefined or thread")
    sanitize: str = parser.parse_args().sanitize
    name = "native-check" + ("-" + sanitize.replace(",", "-") if sanitize else "")
    build = ROOT / "build" / name
    environment = {
        **os.environ,
        "SACGLAM_BUILD_DIR": str(build),
        "SACGLAM_WERROR": "ON",
        "SACGLAM_SANITIZE": sanitize,
        "CMAKE_ARGS": "-DSACGLAM_TESTS=ON",
    }
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(build / "lib")]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode != 0:
        return 1
    if not any((ROOT / "csrc").glob("*_test.cpp")):
        return 0
    ctest = str(Path(cmake.CMAKE_BIN_DIR) / "ctest")
    run_tests = [ctest, "--test-dir", str(build), "--output-on-failure", "--timeout", "300"]
    return subprocess.run(run_tests, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())

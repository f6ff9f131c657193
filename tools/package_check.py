"""Build the sdist, the wheel from that sdist, and use the wheel from a fresh virtual environment
outside the repository: what a user gets must not lean on anything that lies here."""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Runs in the fresh environment: every module comes from it and not from this repository.
USE = """
import importlib.metadata, sys
import sacglam, sacglam._C, sacglam.kernels
for module in (sacglam, sacglam._C, sacglam.kernels):
    assert module.__file__.startswith(sys.prefix), module.__file__
assert importlib.metadata.version("sacglam") == sacglam.__version__
print("sacglam", sacglam.__version__, "from", sacglam.__file__)
"""


def run(command: list[str], folder: Path) -> str:
    """Run a command and return what it printed; end here, showing it, when it fails."""
    done = subprocess.run(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode != 0:
        sys.exit(f"package: {' '.join(command)} failed:\n{done.stdout}")
    return done.stdout.strip()


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="sacglam-package-") as scratch:
        folder = Path(scratch)
        dist = folder / "dist"
        # Not isolated: this environment has the build tools already.
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)]
        print(run(build, folder).splitlines()[-1], flush=True)
        (wheel,) = dist.glob("sacglam-*.whl")

        fresh = folder / "venv"
        venv.create(fresh, symlinks=True)
        python = str(fresh / "bin" / "python")
        pip = [sys.executable, "-m", "pip", "--python", python]
        run([*pip, "install", "--no-deps", str(wheel)], folder)
        # The dependencies are borrowed from this environment, not downloaded again. Their folder
        # comes last on sys.path, and the .pth files in it, which hold the hook of this
        # environment's editable sacglam, are not read.
        site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
        Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

        print(run([python, "-c", USE], folder))
        print(run([str(fresh / "bin" / "sacglam"), "--version"], folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())

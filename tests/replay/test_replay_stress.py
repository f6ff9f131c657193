"""The C++ stress test under the sanitizers, and against faults sown into the native code.

SACGLAM_STRESS_SECONDS sets how long each run lasts (default 4; hours are fine).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SECONDS = os.environ.get("SACGLAM_STRESS_SECONDS", "4")
DELAY_PERMILLE = "20"
LONG = os.environ.get("SACGLAM_STRESS", "0") not in ("", "0")
CXX = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)

pytestmark = [
    pytest.mark.skipif(CXX is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="needs the C++ sources"),
]


def build(folder: Path, *flags: str, source: Path = CSRC, test: str = "stress") -> Path:
    binary = folder / "stress"
    command = [str(CXX), "-std=c++20", "-O1", "-g", "-pthread", "-w", *flags,
               str(source / f"replay_{test}_test.cpp"), "-o", str(binary)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "cannot find" in done.stderr:
        pytest.skip("the compiler comes without sanitizer libraries")
    assert done.returncode == 0, done.stderr
    return binary


def run(binary: Path, seconds: str = SECONDS) -> subprocess.CompletedProcess[str]:
    command = [str(binary), seconds, DELAY_PERMILLE, str(binary.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr:
        # Older thread sanitizers cannot live with the kernel's address randomisation.
        done = subprocess.run(
            ["setarch", "-R", *command], capture_output=True, text=True, check=False
        )
        if "unexpected memory mapping" in done.stderr or "setarch" in done.stderr:
            pytest.skip("the thread sanitizer cannot run on this kernel")
    return done


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_row_is_wrong_and_no_sanitizer_complains(tmp_path, sanitizer):
    binary = build(
        tmp_path, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"
    )
    done = run(binary)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("wrong 0")
    rows = int(done.stdout.split("rows ")[1].split()[0])
    assert rows > 1000


@pytest.mark.parametrize(
    "sanitizer",
    [
        "",
        pytest.param(
            "address,undefined", marks=pytest.mark.skipif(not LONG, reason="by make stress")
        ),
    ],
)
def test_producers_that_die_at_any_step_leave_every_sample_valid(tmp_path, sanitizer):
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
    binary = build(tmp_path, *flags, test="shared")
    deaths = 1000 if LONG and not sanitizer else 60
    done = subprocess.run([str(binary), str(deaths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("wrong 0")


MUTANTS = {
    "readers do not check the head": (
        "replay_ring.hpp",
        "return position >= Sync::load_relaxed(ring_->head_);",
        "return true;",
    ),
    "the tail is published before the words": (
        "replay_ring.hpp",
        "std::uint64_t words[kWords];\n    std::memcpy(words, &value, sizeof value);",
        "Sync::store_release(tail_, next_ + 1);\n"
        "    std::uint64_t words[kWords];\n    std::memcpy(words, &value, sizeof value);",
    ),
    "an episode is not checked again after it was read": (
        "replay_sampler.hpp",
        "if (!now_.episodes.still_live(a.draw.id)) return false;",
        "",
    ),
    "memory is freed under the readers": (
        "replay_ring.hpp",
        "if (readers_[side].load(std::memory_order_acquire) == 0) free_too.swap(waiting_);",
        "free_too.swap(waiting_);",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_sown_fault_is_found(tmp_path, mutant):
    """The stress test can fail: each of these breaks one step of the protocol."""
    file, old, new = MUTANTS[mutant]
    source = tmp_path / "csrc"
    source.mkdir()
    for path in [*CSRC.glob("replay*.hpp"), *CSRC.glob("replay*_test.cpp")]:
        text = path.read_text()
        if path.name == file:
            assert text.count(old) == 1, f"{file} changed: adapt the mutant"
            text = text.replace(old, new)
        (source / path.name).write_text(text)
    flags = ("-fsanitize=address",) if "freed" in mutant else ()
    assert run(build(tmp_path, *flags, source=source), "60").returncode != 0

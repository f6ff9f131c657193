"""The lock-free protocols under two model checkers, and against faults sown into them.

Relacy explores the production templates (the ring that samplers read, the segments of the shared
log) under the language's memory model (which neither a stress test on x86 nor the thread
sanitizer can); Spin explores where processes may die. Debian has both:
relacy-dev, spin. SACGLAM_STRESS=1 explores further.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).with_name("models")
CSRC = Path(__file__).resolve().parents[2] / "csrc"
LONG = os.environ.get("SACGLAM_STRESS", "0") not in ("", "0")
CXX = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)

needs_relacy = pytest.mark.skipif(
    CXX is None or not Path("/usr/include/relacy/relacy.hpp").is_file(),
    reason="needs a C++ compiler and Relacy: apt-get install relacy-dev",
)
needs_spin = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("cc") is None,
    reason="needs a C compiler and Spin: apt-get install spin",
)


def relacy(folder: Path, subject: str, old: str = "", new: str = "") -> int:
    """Explore replay_<subject>.hpp with `old` replaced; the exit status, 0 when every order is
    sound, 1 when one is not."""
    file = f"replay_{subject}.hpp"
    for path in CSRC.glob("replay_*.hpp"):
        text = path.read_text()
        if path.name == file and old:
            assert text.count(old) == 1, f"{path.name} changed: adapt the mutant"
            text = text.replace(old, new)
        (folder / path.name).write_text(text)
    binary = folder / subject
    # Relacy replaces the plain operator delete alone; the sized one would bypass it.
    command = [str(CXX), "-std=c++20", "-O2" if LONG else "-O0", "-w", "-fpermissive",
               "-fno-sized-deallocation", "-pthread", "-I", str(folder),
               str(MODELS / f"relacy_{subject}.cpp"), "-o", str(binary)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bound = "5" if LONG else "3"
    return subprocess.run([str(binary), bound], capture_output=True, check=False).returncode


@needs_relacy
@pytest.mark.parametrize("subject", ["segment", "ring"])
def test_every_order_is_sound(tmp_path, subject):
    assert relacy(tmp_path, subject) == 0


SEGMENT_MUTANTS = {
    "no release fence of the writer": ("Sync::fence_release();  // W2", ""),
    "no acquire fence of the reader": ("Sync::fence_acquire(); ", ""),
    "relaxed publication": (
        "Sync::store_release(head_.fill, Fill::pack(ticket, count));  // W4",
        "Sync::store_relaxed(head_.fill, Fill::pack(ticket, count));",
    ),
    "data before the generation": (
        "if (!Sync::compare_exchange(head_.control",
        "Sync::store_relaxed(words_[0], ticket * 10);\n"
        "    if (!Sync::compare_exchange(head_.control",
    ),
}
RING_MUTANTS = {
    "no release fence of the writer": ("{ Sync::fence_release(); }", "{}"),
    "no acquire fence of the reader": ("Sync::fence_acquire(); ", ""),
    "relaxed publication": (
        "void publish() { Sync::store_release(tail_, next_); }",
        "void publish() { Sync::store_relaxed(tail_, next_); }",
    ),
    # The ring's generation is its head.
    "data before the generation": (
        "{ Sync::store_release(head_, position); }",
        "{\n    Sync::store_relaxed(\n"
        "        owned_->words[((position - 1) & owned_->mask) * kWords], std::uint64_t{0});\n"
        "    Sync::store_release(head_, position);\n  }",
    ),
    "a larger block is published before its contents": (
        "Sync::store_release(block_,",
        "Sync::store_relaxed(block_,",
    ),
    # What came after the reader's view may be in a larger block than the one it looks at.
    "a position beyond the view is read": (
        "return still_live(position) && position < tail_;",
        "return still_live(position);",
    ),
    "the tail is not acquired": (
        "tail() const { return Sync::load_acquire(tail_); }",
        "tail() const { return Sync::load_relaxed(tail_); }",
    ),
}


@needs_relacy
@pytest.mark.parametrize(
    ("subject", "mutant"),
    [("segment", name) for name in SEGMENT_MUTANTS] + [("ring", name) for name in RING_MUTANTS],
)
def test_relacy_finds_a_sown_ordering_fault(tmp_path, subject, mutant):
    mutants = {"segment": SEGMENT_MUTANTS, "ring": RING_MUTANTS}[subject]
    assert relacy(tmp_path, subject, *mutants[mutant]) == 1


def spin(folder: Path, mutant: int, lives: int, tickets: int) -> str:
    """What the exhaustive search says."""
    model = ["spin", f"-DMUTANT={mutant}", f"-DLIVES={lives}", f"-DTICKETS={tickets}", "-a",
             str(MODELS / "crash.pml")]  # fmt: skip
    build = ["cc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=4000", "-o", "pan", "pan.c"]
    for command in (model, build):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    search = subprocess.run(
        ["./pan", "-m100000"], cwd=folder, capture_output=True, text=True, check=False
    )
    return search.stdout


@needs_spin
def test_no_death_anywhere_breaks_the_protocol(tmp_path):
    said = spin(tmp_path, 0, *((3, 3) if LONG else (2, 4)))
    assert "errors: 0" in said
    assert "Search not completed" not in said


CRASH_MUTANTS = {
    "a slot is taken over before its segments are sealed": (1, 3, 3),
    "the owner is not looked at again before a seal": (2, 3, 4),
    "the reader does not look at the ticket again": (3, 2, 4),
    "a claim does not compare": (4, 3, 3),
}


@needs_spin
@pytest.mark.parametrize("mutant", CRASH_MUTANTS)
def test_spin_finds_a_sown_fault_of_the_crash_protocol(tmp_path, mutant):
    assert "errors: 1" in spin(tmp_path, *CRASH_MUTANTS[mutant])

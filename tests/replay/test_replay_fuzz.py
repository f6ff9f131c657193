"""The replay buffer's Python face under hostile input, on damaged shared memory and under threads,
also with sanitizers.

The short form takes the installed extension. SACGLAM_STRESS=1 builds others, with the address and
undefined-behaviour sanitizers and with the thread sanitizer, and runs SACGLAM_STRESS_SECONDS each.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONG = os.environ.get("SACGLAM_STRESS", "0") not in ("", "0")
SECONDS = os.environ.get("SACGLAM_STRESS_SECONDS", "60")
_spec = importlib.util.spec_from_file_location("sanitized", HERE / "sanitized.py")
sanitized = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sanitized)

stress = pytest.mark.skipif(not LONG, reason="make stress: builds an extension with sanitizers")


def plain(script: str, *args: str) -> str:
    command = [sys.executable, str(HERE / script), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    return done.stdout


def test_hostile_calls_and_damaged_files_end_in_typed_errors():
    assert "wrong 0" in plain("fuzz_replay.py", "--seconds", "5")


def test_damaged_shared_memory_ends_in_typed_errors():
    assert "wrong 0" in plain("damage_replay.py", "--seconds", "5")


def test_threads_of_python_see_whole_rows():
    assert "wrong 0" in plain("threads_replay.py", "--seconds", "4")


@stress
def test_the_address_sanitizer_finds_nothing_in_hostile_calls_and_memory(tmp_path):
    kind = "address,undefined"
    extension = sanitized.build(tmp_path, kind)
    # Other seeds each day would find more, and fail where nothing has changed.
    for script in ("fuzz_replay.py", "damage_replay.py"):
        said = sanitized.run(HERE / script, kind, extension,
                             "--seconds", SECONDS, "--seed", "1000000")  # fmt: skip
        assert "wrong 0" in said
    said = sanitized.run(HERE / "threads_replay.py", kind, extension, "--seconds", "10")
    assert "wrong 0" in said


FAULTS = {
    # sanitizer, script, (old, new)
    "words are stored without atomics": (
        "thread",
        "threads_replay.py",
        (
            "Sync::store_relaxed(place[i], words[i]);",
            "reinterpret_cast<volatile std::uint64_t*>(place)[i] = words[i];",
        ),
    ),
    "a table is looked up before the lock is there, while load() replaces it": (
        "address,undefined",
        "threads_replay.py",
        (
            "const std::scoped_lock lock(writers(commit_), intern_);\n"
            "    const std::uint64_t episode = ready_to_intern(owned_->tables.*table, ids);",
            "const InternTable& early = owned_->tables.*table;\n"
            "    const std::scoped_lock lock(writers(commit_), intern_);\n"
            "    const std::uint64_t episode = ready_to_intern(early, ids);",
        ),
    ),
    "out arrays need not be long enough": (
        "address,undefined",
        "fuzz_replay.py",
        ("if (static_cast<std::size_t>(a.size()) < need) {", "if (false) {"),
    ),
    "the difference of any two offsets is taken": (
        "address,undefined",
        "fuzz_replay.py",
        ("if (first < 0 || last < first) return true;", ""),
    ),
    "where a text lies in shared memory is not looked at": (
        "address,undefined",
        "damage_replay.py",
        ("if (first >= end || Span::units_of(size, narrow) > end - first)", "if (entry == 0)"),
    ),
}


@stress
@pytest.mark.parametrize("fault", FAULTS)
def test_a_sanitizer_finds_a_sown_fault_under_python(tmp_path, fault):
    kind, script, change = FAULTS[fault]
    extension = sanitized.build(tmp_path, kind, change)
    # Or the script does, where so much memory is asked for that there is none.
    with pytest.raises(AssertionError, match=r"Sanitizer|runtime error|round [0-9]+ failed"):
        sanitized.run(HERE / script, kind, extension, "--seconds", "60")


@stress
def test_the_thread_sanitizer_finds_nothing_under_python(tmp_path):
    extension = sanitized.build(tmp_path, "thread")
    said = sanitized.run(HERE / "threads_replay.py", "thread", extension, "--seconds", SECONDS)
    assert "wrong 0" in said

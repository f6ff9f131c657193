"""Threads that wait for cores: counted from what Linux says of them, and warned of once."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from sacglam import Trainer
from sacglam.training.contention import TASKS, Contention


def write(tasks: Path, thread: int, ran: int, waited: int) -> None:
    (tasks / str(thread)).mkdir(exist_ok=True)
    (tasks / str(thread) / "schedstat").write_text(f"{ran} {waited} 7\n")


def test_what_threads_waited_since_the_last_look(tmp_path: Path):
    write(tmp_path, 1, 1000, 500)
    write(tmp_path, 2, 9000, 9000)
    contention = Contention(tmp_path)
    assert contention.waited() == 0.0
    write(tmp_path, 1, 1300, 600)
    (tmp_path / "2" / "schedstat").unlink()  # it ended
    write(tmp_path, 3, 100, 300)  # it began
    assert contention.waited() == 400 / 800
    assert contention.waited() == 0.0


def test_threads_that_hardly_run_are_left_out(tmp_path: Path):
    write(tmp_path, 1, 0, 0)
    write(tmp_path, 2, 0, 0)
    contention = Contention(tmp_path)
    write(tmp_path, 1, 1000, 10)
    write(tmp_path, 2, 5, 700)
    assert contention.waited() == 10 / 1010


@pytest.mark.parametrize("content", ["", "1 2", "a b c"])
def test_a_system_that_does_not_tell_knows_of_no_waiting(tmp_path: Path, content: str):
    assert Contention(tmp_path / "none").waited() == 0.0
    write(tmp_path, 1, 1, 1)
    (tmp_path / "1" / "schedstat").write_text(content)
    assert Contention(tmp_path).waited() == 0.0


def test_it_is_said_once_and_only_of_several_threads(tmp_path: Path):
    write(tmp_path, 1, 0, 0)
    contention = Contention(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, 1, 100, 100)
        contention.look(threads=1)
        write(tmp_path, 1, 200, 105)
        contention.look(threads=4)
    write(tmp_path, 1, 250, 155)
    with pytest.warns(RuntimeWarning, match=r"waiting for cores 50% .* 4 threads .* --threads 2"):
        contention.look(threads=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, 1, 300, 255)
        contention.look(threads=4)


# Elsewhere the system counts nothing that could be noticed; the tests above cover that case.
@pytest.mark.skipif(not any(TASKS.glob("*/schedstat")), reason="Linux with schedstat alone")
def test_a_core_that_is_shared_is_noticed():
    script = """
import os, subprocess, sys, time
from sacglam.training.contention import Contention
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    contention = Contention()
    begin = time.monotonic()
    while time.monotonic() - begin < 1.5:
        pass
    print(contention.waited())
finally:
    busy.kill()
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 0.15 < float(out.stdout) < 1.0


def test_a_run_looks_at_each_log_line(monkeypatch: pytest.MonkeyPatch, quick_config):
    looked = []
    monkeypatch.setattr(Contention, "look", lambda self, threads: looked.append(threads))
    Trainer(quick_config("looks", log_interval=16)).train()
    assert len(looked) >= 2

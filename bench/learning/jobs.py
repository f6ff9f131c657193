"""Runs of a study as processes of one thread each; what was finished or begun is not lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from sacglam.config import TrainConfig
from sacglam.errors import RunFolderError
from sacglam.training.checkpoint import list_checkpoints

from .studies import Overrides, Study

_POLL_S = 0.5


@dataclass(frozen=True)
class Job:
    """One run: a method with a seed, in its folder."""

    method: str
    seed: int
    folder: Path
    config: TrainConfig

    @property
    def name(self) -> str:
        return f"{self.method}, seed {self.seed}"

    @property
    def done(self) -> bool:
        return (self.folder / "eval.json").is_file()


def make_jobs(study: Study, out: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All runs, seed by seed, so that a study that is stopped has every method to show.

    Raises:
        RunFolderError: a folder holds a run with other settings.
    """
    jobs = []
    for seed in seeds:
        for method in methods:
            folder = out / slug(method) / f"seed-{seed}"
            own = {"seed": seed, "out": str(folder), "threads": 1, "device": "cpu"}
            config = TrainConfig().with_overrides({**study.methods[method], **own})
            job = Job(method, seed, folder, config)
            _check_settings(job, study.methods[method])
            jobs.append(job)
    return jobs


def slug(name: str) -> str:
    """A method's name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def run_jobs(
    jobs: Sequence[Job],
    *,
    parallel: int,
    budget_s: float | None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run what is not done, `parallel` at a time, until all is or the budget is spent.

    Ctrl-C, or the end of the budget, is passed on: each run saves a checkpoint and is resumed by
    the next call. A run that fails is reported and the others go on.

    Returns:
        names of the runs that are not done.
    """
    waiting = [job for job in jobs if not job.done]
    say(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them done before")
    running: dict[subprocess.Popen[bytes], Job] = {}
    started = time.monotonic()
    try:
        while waiting or running:
            if budget_s is not None and time.monotonic() - started > budget_s:
                say(f"the budget of {budget_s / 3600:g} h is spent")
                break
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running[_start(job, say)] = job
            for process in [p for p in running if p.poll() is not None]:
                _report(running.pop(process), process.returncode, len(waiting), say)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        say("stopping: each run saves a checkpoint")
    finally:
        _stop(running, say)
    return [job.name for job in jobs if not job.done]


def _start(job: Job, say: Callable[[str], None]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sacglam", "train"]
    log = job.folder.with_suffix(".log")
    if list_checkpoints(job.folder):
        say(f"resume {job.name}")
        command += ["--resume", str(job.folder)]
    else:
        say(f"start  {job.name}")
        shutil.rmtree(job.folder, ignore_errors=True)  # stopped before its first checkpoint
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        settings = job.folder.with_suffix(".yaml")
        job.config.save(settings)
        command += ["--config", str(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("ab") as file:
        # A session of its own: Ctrl-C reaches it through `_stop` alone, once.
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _report(job: Job, code: int, left: int, say: Callable[[str], None]) -> None:
    if job.done:
        result = json.loads((job.folder / "eval.json").read_text())
        say(
            f"done   {job.name}: {100 * result['success_mean']:.1f} % after "
            f"{result['env_steps']} steps, {result['cpu_s']:.0f} CPU seconds; {left} waiting"
        )
        return
    log = job.folder.with_suffix(".log")
    lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    say(f"FAILED {job.name} (status {code}): {lines[-1]}; see {log}")


def _stop(running: dict[subprocess.Popen[bytes], Job], say: Callable[[str], None]) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process, job in running.items():
        process.wait()
        if not job.done:
            say(f"saved  {job.name}" if list_checkpoints(job.folder) else f"lost   {job.name}")


def _check_settings(job: Job, wanted: Overrides) -> None:
    path = job.folder / "config.yaml"
    if not path.is_file():
        return
    values = yaml.safe_load(path.read_text())
    for name, value in wanted.items():
        found: Any = values
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != value:
            raise RunFolderError(
                f"{job.folder} holds a run with {name} = {found}, but this study has {value}: "
                "choose another --out, or move that folder away"
            )

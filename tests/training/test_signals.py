"""Ctrl-C, SIGTERM and SIGHUP end a run in good order, wherever they come."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sacglam import Callback, Trainer
from sacglam.training.checkpoint import latest_checkpoint
from sacglam.training.signals import stopping

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    """Those of a program in the foreground, however the tests were started."""
    before = [signal.getsignal(n) for n in SIGNALS]
    for number, usual in zip(
        SIGNALS, (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL), strict=True
    ):
        signal.signal(number, usual)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


class Send(Callback):
    """Sends a signal to this process when a condition first holds."""

    def __init__(self, number: int = signal.SIGTERM, **at: int) -> None:
        self._number, self._at, self.interrupts = number, at, 0

    def _when(self, event: str, value: int) -> None:
        if self._at.get(event) == value:
            del self._at[event]
            signal.raise_signal(self._number)

    def on_progress(self, env_steps: int, updates: int) -> None:
        self._when("env_steps", env_steps)

    def on_evaluation(self, kind: str, done: int, episodes: int) -> None:
        self._when(kind, done)

    def on_interrupt(self) -> None:
        self.interrupts += 1


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_the_first_signal_saves_and_handlers_are_put_back(quick_config: Any, number: int):
    before = [signal.getsignal(n) for n in SIGNALS]
    send = Send(number, env_steps=200)
    result = Trainer(quick_config(), callbacks=[send]).train()
    assert (result.interrupted, result.env_steps, send.interrupts) == (True, 200, 1)
    assert latest_checkpoint(result.out).name.endswith("200")
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_later_signals_of_a_scheduler_change_nothing_but_ctrl_c_ends_at_once():
    asked = []
    with stopping(lambda: asked.append(1)):
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert asked == [1]


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stopping(lambda: pytest.fail("asked to stop")):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_that_a_background_job_ignores_still_stops_it():
    asked = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping(lambda: asked.append(1)):
        signal.raise_signal(signal.SIGINT)
    assert asked == [1]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_thread_trains_without_signals(quick_config: Any):
    results: list[Any] = []
    config = quick_config(total_steps=40, **{"eval.episodes": 4})
    thread = threading.Thread(target=lambda: results.append(Trainer(config).train()))
    thread.start()
    thread.join()
    assert not results[0].interrupted


def test_before_the_first_step_it_is_saved_as_well(quick_config: Any):
    stopped = Trainer(quick_config("parts"), callbacks=[Send(policy=3)]).train()
    assert (stopped.interrupted, stopped.env_steps) == (True, 0)
    assert not (stopped.out / "baselines.json").exists()
    whole = Trainer(quick_config("whole")).train()
    resumed = Trainer.resume(stopped.out).train()
    assert resumed.evaluation is not None
    assert whole.evaluation is not None
    for name in ("success", "length_mean", "untrained", "baseline_random", "expert"):
        assert resumed.evaluation[name] == whole.evaluation[name]


def test_an_evaluation_between_is_left_and_the_run_goes_on_as_it_would(quick_config: Any):
    options = {"eval.interval": 100, "eval.interval_episodes": 12}

    class SendLater(Send):
        def on_evaluation(self, kind: str, done: int, episodes: int) -> None:
            if (self.out / "metrics.jsonl").exists():  # not while the untrained one is measured
                super().on_evaluation(kind, done, episodes)

    config = quick_config("parts", **options)
    send = SendLater(signal.SIGHUP, policy=2)
    send.out = Path(config.out)
    stopped = Trainer(config, callbacks=[send]).train()
    assert (stopped.interrupted, stopped.env_steps) == (True, 100)
    lines = (stopped.out / "metrics.jsonl").read_text().splitlines()
    assert [("eval" in json.loads(line)) for line in lines] == [False]
    whole = Trainer(quick_config("whole", **options)).train()
    resumed = Trainer.resume(stopped.out).train()
    assert whole.evaluation is not None
    assert resumed.evaluation is not None
    assert resumed.evaluation["success"] == whole.evaluation["success"]
    evaluated = [json.loads(line) for line in (resumed.out / "metrics.jsonl").open()]
    expected = [json.loads(line) for line in (whole.out / "metrics.jsonl").open()]
    assert [line.get("critic_loss") for line in evaluated[1:]] == [
        line.get("critic_loss") for line in expected[1:]
    ]
    assert [line["eval"] for line in evaluated[1:]] == [line["eval"] for line in expected[1:]]


def test_the_final_evaluation_can_be_left_and_made_later(quick_config: Any):
    class SendAtEnd(Send):
        def on_evaluation(self, kind: str, done: int, episodes: int) -> None:
            if trainer.env_steps == trainer.config.total_steps:
                super().on_evaluation(kind, done, episodes)

    trainer = Trainer(quick_config(), callbacks=[SendAtEnd(policy=5)])
    stopped = trainer.train()
    assert (stopped.interrupted, stopped.env_steps) == (True, 400)
    assert not (stopped.out / "eval.json").exists()
    resumed = Trainer.resume(stopped.out).train()
    assert resumed.evaluation is not None
    assert resumed.evaluation["episodes"] == 12


def test_the_same_trainer_goes_on_where_it_was_stopped(quick_config: Any):
    whole = Trainer(quick_config("whole")).train()
    trainer = Trainer(quick_config("parts"), callbacks=[Send(env_steps=200)])
    assert trainer.train().env_steps == 200
    result = trainer.train()
    assert not result.interrupted
    assert whole.evaluation is not None
    assert result.evaluation is not None
    assert result.evaluation["success"] == whole.evaluation["success"]
    losses = [
        [json.loads(line).get("critic_loss") for line in (run.out / "metrics.jsonl").open()]
        for run in (whole, result)
    ]
    assert losses[0] == losses[1]


def test_workers_that_are_signalled_too_do_not_spoil_it(quick_config: Any):
    class SendToAll(Send):
        def _when(self, event: str, value: int) -> None:
            if self._at.get(event) == value:
                for worker in trainer._envs._workers:
                    worker._process.terminate()
            super()._when(event, value)

    config = quick_config(**{"env.processes": 2})
    trainer = Trainer(config, callbacks=[SendToAll(env_steps=200)])
    stopped = trainer.train()
    trainer.close()
    assert (stopped.interrupted, stopped.env_steps) == (True, 200)
    resumed = Trainer.resume(stopped.out)
    assert not resumed.train().interrupted
    resumed.close()


@pytest.mark.timeout(300)
def test_a_scheduler_ends_a_run_of_the_command_line(tmp_path: Path):
    command = [
        *(sys.executable, "-m", "sacglam", "train", "--out", str(tmp_path / "run")),
        *("--total-steps", "1000000", "--eval.episodes", "8", "--log-interval", "100"),
        *("--learning-starts", "64", "--optim.batch-size", "8", "--env.num-envs", "4"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        said = [run.stdout.readline()]  # the first log line: it trains
        run.terminate()
        said += run.stdout.read().splitlines(keepends=True)
        status = run.wait()
    text = "".join(said)
    assert status == 130, text
    assert "stopping after this step or update, then saving" in text
    assert f"sacglam train --resume {tmp_path / 'run'}" in text
    assert "Traceback" not in text
    assert latest_checkpoint(tmp_path / "run") is not None

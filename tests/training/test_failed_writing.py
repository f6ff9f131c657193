"""A run whose files cannot be written, or that is killed beside them, goes on as if it had not."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from sacglam import Callback, Trainer
from sacglam.errors import RunFolderError
from sacglam.training.checkpoint import latest_checkpoint
from sacglam.training.metrics import MetricsWriter

TIMES = ("wall_s", "cpu_s", "env_steps_per_s", "updates_per_s")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def _full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("late", [False, True], ids=["the-line", "tensorboard"])
def test_a_line_that_cannot_be_written_is_written_when_the_run_goes_on(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch, late: bool
):
    whole = Trainer(quick_config("whole")).train()
    write = MetricsWriter.write

    def fail(self: MetricsWriter, metrics: Any) -> None:
        if metrics["env_steps"] != 200:
            return write(self, metrics)
        if late:
            write(self, metrics)
        raise _full()

    with monkeypatch.context() as patched:
        patched.setattr(MetricsWriter, "write", fail)
        config = quick_config("parts")
        with pytest.raises(OSError, match="No space left") as caught:
            Trainer(config).train()
    assert "sacglam train --resume" in caught.value.__notes__[0]
    assert latest_checkpoint(config.out).name == "step-000000000200"
    assert _metrics(Trainer.resume(config.out).train().out) == _metrics(whole.out)


def test_closing_a_full_log_hides_neither_the_error_nor_that_the_run_was_saved(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    class Full:
        name = "metrics.jsonl"

        def write(self, text: str) -> None:
            pass

        def flush(self) -> None:
            raise _full()

        def close(self) -> None:
            self.flush()

    begin = MetricsWriter.__init__

    def begin_full(self: MetricsWriter, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        self._file.close()
        self._file = Full()  # type: ignore[assignment]

    monkeypatch.setattr(MetricsWriter, "__init__", begin_full)
    with pytest.raises(OSError, match=r"No space left .*metrics\.jsonl") as caught:
        Trainer(quick_config()).train()
    assert "The run was saved in" in caught.value.__notes__[0]


def test_a_run_stopped_between_updates_and_killed_later_has_each_line_once(quick_config: Any):
    """The line of the step after which it was stopped was not written when it was saved."""

    class StopAt(Callback):
        def on_progress(self, env_steps: int, updates: int) -> None:
            if updates == 98:  # of 100 that are due after 200 steps
                signal.raise_signal(signal.SIGINT)

    class KillAt(Callback):
        def on_log(self, metrics: Any) -> None:
            if metrics["env_steps"] == 300:
                raise KeyboardInterrupt  # nothing is saved, as where the process is killed

    whole = Trainer(quick_config("whole", steps_per_update=1.0)).train()
    config = quick_config("parts", steps_per_update=1.0)
    stopped = Trainer(config, callbacks=[StopAt()]).train()
    assert (stopped.env_steps, stopped.updates) == (200, 98)
    with pytest.raises(KeyboardInterrupt):
        Trainer.resume(stopped.out, callbacks=[KillAt()]).train()
    assert _metrics(Trainer.resume(stopped.out).train().out) == _metrics(whole.out)


def test_a_log_that_a_power_cut_has_damaged_does_not_keep_the_run_from_going_on(quick_config: Any):
    first = Trainer(quick_config()).train()
    before = _metrics(first.out)
    with (first.out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"env_steps": 400, "lr": \xff\xfe}\n' + bytes(64))
    longer = Trainer.resume(first.out, total_steps=500).train()
    assert _metrics(longer.out)[:4] == before
    assert b"\xff\xfe" in (longer.out / "metrics.discarded.jsonl").read_bytes()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_to_is_refused_with_what_to_do(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch, code: int
):
    trainer = Trainer(quick_config())

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(code, "no", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunFolderError, match=r"cannot write to .*--out"):
        trainer.train()

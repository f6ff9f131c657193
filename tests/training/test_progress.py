"""What a training shows while it runs."""

from __future__ import annotations

from typing import Any

import pytest
from sacglam import Callback, Trainer
from sacglam.report.progress import ProgressDisplay
from sacglam.training import progress


def test_it_is_shown_only_where_it_is_asked_for(
    quick_config: Any, capsys: pytest.CaptureFixture[str]
):
    trainer = Trainer(quick_config("run", total_steps=180, learning_starts=60, log_interval=60))
    trainer.train(until=60)
    assert capsys.readouterr().out == ""
    trainer.train(until=120, progress=True)
    [line] = capsys.readouterr().out.splitlines()
    assert "120/180 steps (66 %" in line
    assert "success" in line
    trainer.train()
    assert capsys.readouterr().out == ""
    assert trainer.callbacks == []


def test_an_error_ends_the_display_too(quick_config: Any, capsys: pytest.CaptureFixture[str]):
    class Fails(Callback):
        def on_log(self, metrics: Any) -> None:
            raise ZeroDivisionError

    fails = Fails()
    trainer = Trainer(quick_config("run", total_steps=60, log_interval=60), callbacks=[fails])
    with pytest.raises(ZeroDivisionError):
        trainer.train(progress=True)
    assert trainer.callbacks == [fails]


def test_the_clock_of_a_resumed_run_goes_on(quick_config: Any, monkeypatch: pytest.MonkeyPatch):
    before: list[float] = []

    class Display(ProgressDisplay):
        def __init__(self, total_steps: int, *, before_s: float, **options: Any) -> None:
            before.append(before_s)
            super().__init__(total_steps, before_s=before_s, **options)

    monkeypatch.setattr(progress, "ProgressDisplay", Display)
    config = quick_config("run", total_steps=120, learning_starts=60)
    out = Trainer(config).train(progress=True).out
    seconds = Trainer.resume(out).clock.wall_s
    Trainer.resume(out, total_steps=180).train(progress=True)
    assert before == [0.0, seconds]
    assert seconds > 0.0

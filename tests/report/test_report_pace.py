"""The estimate of the time that is left."""

from __future__ import annotations

import pytest
from sacglam.report.pace import Pace


def test_there_is_no_estimate_before_something_was_measured() -> None:
    pace = Pace()
    assert pace.seconds is None
    pace.step(16, 0, now=5.0)
    assert pace.seconds is None


def test_between_rows_it_counts_from_the_first_update_on() -> None:
    pace = Pace()
    for k in range(1, 5):
        pace.step(16 * k, 0, now=0.1 * k)  # before learning starts: fast
    pace.row({"env_steps": 64, "updates": 0, "env_steps_per_s": 160.0}, now=0.4)
    assert pace.seconds is None
    pace.step(64, 1, now=5.4)
    assert pace.seconds is None
    pace.step(80, 1, now=6.0)
    pace.step(80, 4, now=21.4)
    assert pace.seconds == pytest.approx(1.0)


def test_a_row_that_began_before_the_first_update_does_not_count() -> None:
    pace = Pace()
    pace.step(496, 1, now=2.0)
    pace.step(512, 5, now=34.0)
    pace.row({"env_steps": 512, "updates": 5, "env_steps_per_s": 15.0}, now=34.0)
    assert pace.seconds == pytest.approx(2.0)
    pace.row({"env_steps": 1024, "updates": 133, "env_steps_per_s": 0.5}, now=1058.0)
    assert pace.seconds == pytest.approx(2.0)
    pace.row({"env_steps": 1536, "updates": 261, "env_steps_per_s": 0.25}, now=3106.0)
    assert pace.seconds == pytest.approx(0.7 * 2.0 + 0.3 * 4.0)


def test_evaluations_are_left_out() -> None:
    pace = Pace()
    pace.step(16, 1, now=0.0)
    pace.step(32, 5, now=16.0)
    pace.pause()
    assert pace.seconds == pytest.approx(1.0)
    pace.step(48, 5, now=1000.0)
    assert pace.seconds == pytest.approx(1.0)
    pace.step(64, 9, now=1032.0)
    assert pace.seconds == pytest.approx(2.0)


def test_missing_figures_are_made_of_what_there_is() -> None:
    pace = Pace()
    pace.row({}, now=0.0)
    pace.row({"env_steps": 100, "updates": 1}, now=10.0)
    assert pace.seconds is None
    pace.row({"env_steps": 200}, now=20.0)
    assert pace.seconds == pytest.approx(0.1)


def test_a_lesson_of_ppo_counts_with_the_steps_that_it_is_of() -> None:
    pace = Pace()
    now, updates = 0.0, 0
    for env_steps in range(16, 2560, 16):
        now += 1.0
        pace.step(env_steps, updates, now)
        if env_steps % 640 == 0:  # a lesson of 40 updates, which takes as long as its rollout
            for _ in range(40):
                now, updates = now + 1.0, updates + 1
                pace.step(env_steps, updates, now)
        if env_steps >= 1280:
            assert pace.seconds == pytest.approx(80 / 640)
        else:
            assert not updates or pace.seconds is None

"""Which seconds count as training."""

from __future__ import annotations

import time

from sacglam.training.clock import Clock


def _work(seconds: float) -> None:
    """Keep this process computing for so many CPU seconds."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def test_pauses_are_left_out_and_earlier_parts_count():
    clock = Clock()
    _work(0.01)
    assert (clock.wall_s, clock.cpu_s) == (0.0, 0.0)  # it has not been started
    clock.add(100.0, 50.0)
    clock.start()
    _work(0.02)
    with clock.paused():
        before = clock.cpu_s
        _work(0.2)
        assert clock.cpu_s == before
    assert before >= 50.02
    _work(0.01)
    assert 50.03 <= clock.cpu_s
    assert clock.wall_s >= 100.03 - 1e-3
    assert set(clock.seconds()) == {"wall_s", "cpu_s"}
    assert clock.cpu_s - before < 0.2  # the pause is not in it


def test_what_lies_between_stop_and_start_is_left_out():
    clock = Clock()
    clock.start()
    clock.stop()
    before = clock.cpu_s
    with clock.paused():
        pass
    _work(0.1)
    clock.start()
    assert clock.cpu_s - before < 0.1

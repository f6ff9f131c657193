"""The progress display: lines when piped, a live display on a terminal, harmless always."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from sacglam.report.evaluating import EvaluationDisplay
from sacglam.report.progress import ProgressDisplay

Row = Callable[..., dict[str, Any]]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_one_line_per_interval_when_piped(metrics_row: Row) -> None:
    stream = io.StringIO()
    with ProgressDisplay(12000, before_s=125.0, stream=stream) as display:
        assert not display.interactive
        display.message("run folder runs/demo")
        display.update(metrics_row(6000))
        display.update(metrics_row(6500, evaluated=True))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "run folder runs/demo"
    assert lines[1] == (
        "[2:05] 6000/12000 steps (50 %, 2:04 left) | success 74 %: Grasp 99 %, Grow plant 50 % | "
        "48.2 steps/s, 12.1 updates/s | critic 0.0123 | entropy 1.21"
    )
    assert "| eval 82 % |" in lines[2]
    assert len(lines) == 3
    assert "\x1b" not in stream.getvalue()


def test_missing_and_damaged_figures_are_tolerated() -> None:
    stream = io.StringIO()
    with ProgressDisplay(100, stream=stream) as display:
        display.update({})
        display.update({"env_steps": None, "success": 3, "eval": None, "alpha": "x"})
        display.update({"env_steps": 50, "critic_loss": float("nan"), "success": {"A": None}})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "-/100 steps (0 %, - left)" in lines[0]
    assert "50/100 steps (50 %" in lines[2]
    assert "critic -" in lines[2]


def test_many_families_do_not_flood_the_line() -> None:
    stream = io.StringIO()
    with ProgressDisplay(100, stream=stream) as display:
        display.update({"env_steps": 1, "success": {f"family {i}": 0.5 for i in range(40)}})
    assert "family 5 50 %, 34 more |" in stream.getvalue()
    assert "family 6" not in stream.getvalue()


def test_time_left_follows_the_rate_of_a_resumed_run() -> None:
    stream = io.StringIO()
    with ProgressDisplay(20000, before_s=7200.0, stream=stream) as display:
        display.update({"env_steps": 15000, "wall_s": 7201.0, "env_steps_per_s": 10.0})
    # 5000 steps at 10 a second, whatever was slow before.
    assert "[2:00:00] 15000/20000 steps (75 %, 8:20 left)" in stream.getvalue()


def test_time_left_forgets_the_pace_before_the_first_update() -> None:
    stream = io.StringIO()
    with ProgressDisplay(64000, stream=stream) as display:
        for steps, rate, updates in ((512, 635.0, 1), (1000, 50.0, 62), (1500, 40.0, 125)):
            display.update({"env_steps": steps, "env_steps_per_s": rate, "updates": updates})
    left = re.findall(r"%, ([0-9:]+) left", stream.getvalue())
    # 63 000 steps at 50 a second; then 62 500 at 46.5 a second: seconds, not speeds, are averaged.
    assert left == ["1:40", "21:00", "22:24"]


class Clock:
    """A time that tests set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def test_a_slow_run_says_every_minute_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), Clock(monkeypatch)
    with ProgressDisplay(1000, stream=stream) as display:
        for episodes in range(0, 301, 10):
            display.evaluating("policy", episodes, 300)
            clock.now += 3.0
        for k in range(1, 11):  # 16 steps and 4 updates in 20 seconds
            display.progress(16 * k, 4 * (k - 1))
            for update in range(1, 5):
                clock.now += 5.0
                display.progress(16 * k, 4 * (k - 1) + update)
        display.update({"env_steps": 160, "updates": 40, "wall_s": 200.0, "env_steps_per_s": 0.8})
    assert stream.getvalue().splitlines() == [
        "[1:00] evaluating the policy: 200/300 episodes",
        # From an update after a step to one after a later step: 20 s for 16 steps.
        "[2:03] 32/1000 steps (3 %, 20:10 left) | 6 updates",
        "[3:03] 80/1000 steps (8 %, 19:10 left) | 18 updates",
        "[4:03] 128/1000 steps (12 %, 18:10 left) | 30 updates",
        "[4:53] 160/1000 steps (16 %, 17:30 left) | success - | 0.8 steps/s, - updates/s "
        "| critic - | entropy -",
    ]


def test_the_live_display_moves_between_log_intervals() -> None:
    stream = Terminal()
    with ProgressDisplay(1000, stream=stream, interactive=True) as display:
        display.evaluating("random", 30, 300)
        time.sleep(0.8)  # it draws twice a second
        display.evaluating("random", 300, 300)
        display.progress(96, 24)
    text = plain(stream.getvalue())
    assert "evaluating" in text
    assert "random actions: 30 / 300 episodes" in text
    last = text[text.rindex("training") :]
    assert "9 %  96 / 1 000 steps" in last
    assert "24 updates" in last
    assert "evaluating" not in last


def test_an_evaluation_that_was_left_is_not_shown_any_more(metrics_row: Row) -> None:
    stream = Terminal()
    with ProgressDisplay(12000, stream=stream, interactive=True) as display:
        display.evaluating("policy", 1, 8)
        display.update(metrics_row(6000))
    text = plain(stream.getvalue())
    assert "evaluating" not in text[text.rindex("training") :]


def test_an_evaluation_alone_leaves_nothing_on_the_terminal() -> None:
    stream = Terminal()
    with EvaluationDisplay(stream=stream, interactive=True) as display:
        display.evaluating("expert", 7, 20)
        time.sleep(0.8)  # likewise
    assert "the expert: 7 / 20 episodes" in plain(stream.getvalue())
    after = stream.getvalue().rpartition("episodes")[2]
    assert after.replace("\x1b[?25h", "") == "\n\r\x1b[1A\x1b[2K"  # up, and that line cleared


def test_an_evaluation_alone_says_every_minute_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, clock = io.StringIO(), Clock(monkeypatch)
    with EvaluationDisplay(stream=stream) as display:
        for episodes in range(0, 101, 10):
            display.evaluating("policy", episodes, 100)
            clock.now += 11.0
    assert stream.getvalue() == "evaluating the policy: 60/100 episodes\n"


def test_the_live_display_shows_every_figure(metrics_row: Row) -> None:
    stream = Terminal()
    with ProgressDisplay(12000, stream=stream, interactive=True) as display:
        for steps in range(500, 6501, 500):
            display.update(metrics_row(steps, evaluated=steps == 6000))
        display.message("something [bold]happened[/bold]")
    text = plain(stream.getvalue())
    for part in (
        "54 %  6 500 / 12 000 steps", "Grasp", "Grow plant", "mean", "99 %", "65 %",
        "48.2 steps/s   12.1 updates/s   1 625 updates   433 episodes",
        "critic 0.0123   actor -0.31   gradient norm 1.23",
        "alpha 0.005   entropy 1.21   mean Q 0.62", "74 % mean success over 100 episodes",
        "at step 6 000", "something [bold]happened[/bold]",
    ):  # fmt: skip
        assert part in text, part
    assert re.search(r"Grow plant +█+[▏▎▍▌▋▊▉]? +65 %  ▁+▂", text)


def test_the_live_display_starts_before_the_first_figures() -> None:
    stream = Terminal()
    with ProgressDisplay(100, stream=stream, interactive=True):
        pass
    assert "first figures come with the first log interval" in plain(stream.getvalue())


def test_a_terminal_without_block_characters(metrics_row: Row) -> None:
    class Ascii(Terminal):
        encoding = "ascii"

    stream = Ascii()
    with ProgressDisplay(12000, stream=stream, interactive=True) as display:
        display.update(metrics_row(6000))
    assert stream.getvalue().isascii()
    assert "##########.........." in stream.getvalue()


@pytest.mark.parametrize("interactive", [False, True])
def test_a_broken_stream_never_reaches_the_training(
    interactive: bool, capsys: pytest.CaptureFixture[str], metrics_row: Row
) -> None:
    class Broken(Terminal):
        broken = False

        def write(self, text: str) -> int:
            if self.broken:
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

    stream = Broken()
    with ProgressDisplay(12000, stream=stream, interactive=interactive) as display:
        display.update(metrics_row(500))
        stream.broken = True
        display.update(metrics_row(1000))
        display.update(metrics_row(1500))
        display.message("unheard")
    assert capsys.readouterr().err.count("progress display stopped") == 1
    assert sys.stdout.write("restored\n")
    assert "restored" in capsys.readouterr().out  # nothing is redirected any more


def test_a_closed_stream_is_survived(capsys: pytest.CaptureFixture[str], metrics_row: Row) -> None:
    stream = io.StringIO()
    with ProgressDisplay(12000, stream=stream) as display:
        stream.close()
        display.update(metrics_row(500))
    assert "the work goes on" in capsys.readouterr().err


def test_text_that_the_stream_cannot_encode() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with ProgressDisplay(100, stream=stream) as display:
        display.message("größer")
    assert raw.getvalue() == b"gr\\xf6\\xdfer\n"


def test_exceptions_of_the_training_pass_through(
    metrics_row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")  # a dumb terminal has no cursor to hide
    stream = Terminal()

    def train() -> None:
        with ProgressDisplay(12000, stream=stream, interactive=True) as display:
            display.update(metrics_row(500))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")


# A shell starts its background jobs with Ctrl-C ignored, which children inherit.
CHILD = """
import signal, sys, time
from sacglam.report.progress import ProgressDisplay
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with ProgressDisplay(1000) as display:
        display.update({"env_steps": 500, "success": {"Grasp": 0.5}})
        print("a library prints")
        sys.stderr.write("READY\\n")
        while True:  # a signal that comes just before a sleep does not shorten it
            time.sleep(0.05)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.timeout(120)
def test_ctrl_c_restores_a_real_terminal() -> None:
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=side, stdout=side, stderr=side, env=environment
    )
    os.close(side)
    try:
        seen = read_until(main, "READY")
        assert "\x1b[?25l" in seen  # the cursor is hidden: it is the live display
        child.send_signal(signal.SIGINT)
        seen += read_until(main, None)
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
        child.wait()
        os.close(main)
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    # Nothing is drawn over what comes after.
    assert plain(seen[seen.rindex("\x1b[?25h") :]).strip() == "interrupted"
    assert "a library prints" in plain(seen)


def read_until(terminal: int, mark: str | None) -> str:
    """What appears on the terminal until `mark` does, or until it is closed."""
    seen = b""
    while mark is None or mark.encode() not in seen:
        if not select.select([terminal], [], [], 60)[0]:
            raise TimeoutError(f"no {mark!r} in {seen!r}")
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux: the other side was closed
            part = b""
        if not part:
            break
        seen += part
    return seen.decode()

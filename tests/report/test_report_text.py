"""Bars, sparklines, numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacglam.report import text


@given(fraction=st.none() | st.floats(-1, 2), width=st.integers(1, 60), plain=st.booleans())
def test_a_bar_has_exactly_its_width(fraction: float | None, width: int, plain: bool) -> None:
    drawn = text.bar(fraction, width, ascii_only=plain)
    assert len(drawn) == width
    assert drawn.isascii() == plain or fraction is None or fraction < 0.1
    if fraction is not None and fraction >= 1:
        assert drawn == ("#" if plain else "█") * width


def test_a_bar_grows_by_eighths() -> None:
    assert [text.bar(n / 16, 2) for n in (0, 1, 8, 9, 16)] == ["  ", "▏ ", "█ ", "█▏", "██"]


def test_a_sparkline_spans_the_scale_and_shows_gaps() -> None:
    assert text.sparkline([0.0, None, 0.5, 1.0, 7.0]) == "▁ ▅██"
    assert text.sparkline([0.0, 1.0], ascii_only=True) == "_#"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("3", None),
        (float("nan"), None),
        (np.float32(0.5), 0.5),
        (True, 1.0),
        ([], None),
    ],
)
def test_number(value: Any, expected: float | None) -> None:
    assert text.number(value) == expected


@pytest.mark.parametrize(
    ("call", "value", "expected"),
    [
        (text.duration, 151.4, "2:31"),
        (text.duration, 59.7, "1:00"),
        (text.duration, 3723, "1:02:03"),
        (text.duration, 90_000, "1 d 1:00"),
        (text.duration_words, 251.3, "4 min 11 s"),
        (text.duration_words, 42, "42 s"),
        (text.roughly, None, "-"),
        (text.roughly, 251.3, "4 min 11 s"),
        (text.roughly, 1103, "18 min"),
        (text.roughly, 3598, "1 h 0 min"),
        (text.roughly, 78600, "21 h 50 min"),
        (text.roughly, 190000, "2 d 5 h"),
        (text.duration_words, 3723, "1 h 2 min"),
        (text.size, 999, "999 B"),
        (text.size, 12_582_912, "12.6 MB"),
        (text.size, 141e9, "141 GB"),
        (text.seconds, 3.28e-6, "3.28 us"),
        (text.seconds, 2.5, "2.5 s"),
        (text.seconds, 4e-10, "0.4 ns"),
        (text.compact, 0.0123, "0.0123"),
        (text.compact, 1.2e-5, "1.2e-05"),
        (text.compact, 48.21, "48.2"),
        (text.compact, 1234.5, "1234"),
        (text.compact, -0.0, "0"),
        (text.count, 12000, "12 000"),
        (text.percent, 0.874, "87 %"),
    ],
)
def test_units(call: Any, value: float, expected: str) -> None:
    assert call(value) == expected
    assert call(None) == "-"

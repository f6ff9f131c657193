"""Letters that the figures' own font lacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from sacglam.report.drawing import STYLE, fitting, save
from sacglam.report.tables import plain_table
from sacglam.report.text import columns_of

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(name, letters, style=): a font whose letters are squares becomes the only one beside
    those that matplotlib brings."""
    manager = font_manager.fontManager
    brought = Path(font_manager.findfont("DejaVu Sans")).parent
    kept = [entry for entry in manager.ttflist if Path(entry.fname).parent == brought]
    monkeypatch.setattr(manager, "ttflist", kept)

    def make(name: str, letters: str, style: str = "Regular") -> None:
        from fontTools.fontBuilder import FontBuilder
        from fontTools.pens.ttGlyphPen import TTGlyphPen

        glyphs = [".notdef", *(f"uni{ord(c):04X}" for c in letters)]
        pen = TTGlyphPen(None)
        pen.moveTo((100, 0))
        for corner in ((100, 800), (900, 800), (900, 0)):
            pen.lineTo(corner)
        pen.closePath()
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(glyphs)
        builder.setupCharacterMap({ord(c): g for c, g in zip(letters, glyphs[1:], strict=True)})
        square = pen.glyph()
        builder.setupGlyf(dict.fromkeys(glyphs, square))
        builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": name, "styleName": style, "psName": name})
        builder.setupOS2(sTypoAscender=800)
        builder.setupPost()
        path = tmp_path / f"{name}-{style}.ttf"
        builder.save(path)
        manager.addfont(path)

    return make


def _draw(path: Path, *texts: str) -> list[str]:
    """Saves a figure with these titles; the warnings."""
    figure = Figure(figsize=(2, 1 + len(texts)))
    for axes, text in zip(figure.subplots(len(texts), squeeze=False).flat, texts, strict=True):
        axes.set_title(text)
    with warnings.catch_warnings(record=True) as caught, matplotlib.rc_context(STYLE):
        warnings.simplefilter("always")
        save(figure, path)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_installed_fonts_are_taken_for_what_the_own_one_lacks(
    install: Install, tmp_path: Path, suffix: str
):
    install("Chinese", "拿起红苹果打开门")
    install("Thai", "กขค")
    assert _draw(tmp_path / f"a.{suffix}", "Grasp 拿起", "กข x", "plain") == []
    pdf = tmp_path / "b.pdf"
    _draw(pdf, "Grasp 拿起")
    assert b"+Chinese" in pdf.read_bytes()
    assert b"+Thai" not in pdf.read_bytes()


def test_letters_without_a_font_are_named_once(install: Install, tmp_path: Path):
    install("Chinese", "拿起")
    found = _draw(tmp_path / "a.png", "拿起猫", "狗猫")
    ours = [text for text in found if text.startswith("no installed font has '狗猫'")]
    assert len(ours) == 1
    assert "fonts-noto-cjk" in ours[0]
    assert (tmp_path / "a.png").stat().st_size
    assert found == ours


def test_texts_that_the_own_font_has_read_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[Any] = []
    own = font_manager.get_font

    def get_font(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return own(path, *args, **kwargs)

    monkeypatch.setattr(font_manager, "get_font", get_font)
    assert _draw(tmp_path / "a.png", "Größe – 90 % \n of α") == []
    assert {Path(str(p)).name for p in opened} <= {"DejaVuSans.ttf"}


def test_a_damaged_font_is_passed_over(install: Install, tmp_path: Path):
    install("Chinese", "拿起")
    install("Damaged", "拿起红苹果")
    (tmp_path / "Damaged-Regular.ttf").write_bytes(b"no font")
    assert _draw(tmp_path / "a.png", "拿起") == []


def test_tables_and_headings_count_columns():
    assert columns_of("拿起 a") == 6
    lines = plain_table(["goal", "x"], [["拿起", "1"], ["Grasp", "2"]])
    assert lines == ["goal   x", "-----  -", "拿起   1", "Grasp  2"]
    assert fitting("拿起红苹果", 44) == "拿起红苹果"
    assert fitting("拿起红苹果了", 44) == "拿起红..."
    assert fitting("abcdefghijk", 44) == "abcdefg..."

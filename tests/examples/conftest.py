"""The folder of examples, from which they are imported."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))

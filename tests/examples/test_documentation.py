"""Every Python block of docs/ runs, in order, page by page; every command line is one of ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from sacglam.cli.bench import list_suites
from sacglam.cli.main import build_parser
from sacglam.config import TrainConfig
from sacglam.training import ppo_objective, sac_objective
from sacglam.training.metrics import Meter

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
RUNNABLE = ("environments.md", "models.md", "runs.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def commands() -> list[tuple[str, str]]:
    return [
        (page.name, line)
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("sacglam ")
    ]


@pytest.mark.parametrize("name", RUNNABLE)
def test_python_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    names: dict[str, object] = {"__name__": "documentation"}
    code = blocks(ROOT / "docs" / name, "python")
    assert code
    for number, block in enumerate(code):
        exec(compile(block, f"{name}, Python block {number + 1}", "exec"), names)


def test_commands_parse():
    found = commands()
    assert {line.split()[1] for _, line in found} >= {"train", "eval", "play", "plot", "bench"}
    for page, line in found:
        arguments = build_parser().parse_args(shlex.split(line, comments=True)[1:])
        assert arguments.run, page


def test_named_flags_and_fields_exist():
    """Flags named in prose and tables, such as `--critic.trunk adapter`."""
    for page in PAGES:
        for flag, value in re.findall(r"`--([a-z_.-]+\.[a-z_-]+) ([^`|]+)`", page.read_text()):
            build_parser().parse_args(["train", f"--{flag}", value])
        for key in re.findall(r'"((?:env|model|sac|optim|eval|lora)\.\w+)":', page.read_text()):
            section, field = key.split(".")
            assert hasattr(getattr(TrainConfig(), section), field), f"{page.name}: {key}"


def test_metrics_have_their_names_in_the_table():
    page = (ROOT / "docs" / "runs.md").read_text()
    table = page.partition("## Metrics")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", table))
    logged = {*sac_objective.STATISTICS, *ppo_objective.STATISTICS, *Meter().line()}
    assert logged <= named, logged - named


def test_documented_suites_exist():
    suites = {*list_suites(ROOT / "bench"), "all"}
    assert {line.split()[2] for _, line in commands() if line.split()[1] == "bench"} <= suites

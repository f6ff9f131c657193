"""One line a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from sacglam.cli.main import main
from sacglam.errors import ConfigError, RunFolderError
from sacglam.report.comparison import compare_runs


def test_runs_are_compared_by_what_sets_them_apart(make_run: Any, evaluation: Any, tmp_path: Path):
    folders = [make_run("a"), make_run("b", seed=1), make_run("c", her_ratio=0.5)]
    success = {"Grasp": 0.5, "Grow plant": 1.0}
    for folder in folders[:2]:
        found = {**evaluation(), "success": success, "success_mean": 0.75, "env_steps": 12040}
        (folder / "eval.json").write_text(json.dumps(found))
    (folders[2] / "eval.json").unlink(missing_ok=True)
    text = compare_runs(folders, tmp_path / "runs.csv")
    head, _, *lines = text.splitlines()
    assert len(lines) == 3
    for name in ("run", "seed", "replay.her_ratio", "env_steps", "success", "Grasp"):
        assert name in head.split()
    assert "total_steps" not in head
    assert lines[0].split()[:2] == ["a", "0"]
    assert "75.0" in lines[0]
    assert "12 040" in lines[0]

    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [row["run"] for row in rows] == ["a", "b", "c"]
    assert [row["seed"] for row in rows] == ["0", "1", "0"]
    assert rows[2]["replay.her_ratio"] == "0.5" != rows[0]["replay.her_ratio"]
    assert float(rows[0]["success"]) == 0.75
    assert float(rows[0]["Grasp low"]) < 0.5 < float(rows[0]["Grasp high"])
    assert rows[2]["success"] == rows[2]["Grasp"] == ""


def test_the_steps_to_a_level_are_those_of_the_first_evaluation_that_reaches_it(make_run: Any):
    folder = make_run("a")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line, mean in zip(lines, (0.2, 0.6, 0.4, 0.85), strict=False):
        line["eval"] = {"success_mean": mean}
    for line in lines[4:]:
        line.pop("eval", None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = compare_runs([folder], folder / "runs.csv")
    [row] = csv.DictReader((folder / "runs.csv").open())
    assert int(row["steps to 50 %"]) == lines[1]["env_steps"]
    assert int(row["steps to 80 %"]) == lines[3]["env_steps"]
    assert row["steps to 90 %"] == ""
    assert "steps to 80 %" in text
    assert "steps to 90 %" not in text  # of none


def test_the_command_line(make_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = make_run("a")
    assert main(["table", str(folder), "--csv", str(tmp_path / "x.csv")]) == 0
    assert capsys.readouterr().out.startswith("run ")
    assert (tmp_path / "x.csv").is_file()
    with pytest.raises(RunFolderError):
        compare_runs([tmp_path / "nothing"])


def test_one_folder_and_none(make_run: Any):
    folder = make_run("a")
    assert compare_runs(str(folder)) == compare_runs([folder])
    with pytest.raises(ConfigError, match="no run to compare"):
        compare_runs([])

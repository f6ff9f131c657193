"""A run's files that a full disk, a crash or a hand has damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sacglam import Trainer, evaluate_run, load_policy, play_episodes
from sacglam.errors import CheckpointError, RunFolderError
from sacglam.files import write_json
from sacglam.training import reevaluation
from sacglam.training.checkpoint import latest_checkpoint

DEEP = "[" * 100_000


@pytest.fixture
def out(quick_config: Any) -> Path:
    return Trainer(quick_config(total_steps=20, **{"eval.episodes": 2})).train().out


@pytest.mark.parametrize("text", ["", "{", "[]", DEEP], ids=["empty", "cut", "list", "deep"])
def test_damaged_baselines_do_not_lose_an_evaluation(out: Path, text: str):
    (out / "baselines.json").write_text(text)
    with pytest.warns(RuntimeWarning, match=r"baselines\.json is damaged"):
        assert "untrained" not in evaluate_run(out, episodes=1)
    trainer = Trainer.resume(out, total_steps=40)
    with pytest.warns(RuntimeWarning, match=r"baselines\.json is damaged"):
        trainer.train()
    assert json.loads((out / "eval.json").read_text())["env_steps"] == 40


def test_an_empty_configuration_is_not_that_of_the_defaults(out: Path):
    (out / "config.yaml").write_text("")
    for use in (Trainer.resume, evaluate_run, play_episodes):
        with pytest.raises(RunFolderError, match=r"config\.yaml is damaged: it is empty"):
            use(out)


def test_a_folder_that_is_not_there_is_said_to_be_none(tmp_path: Path):
    with pytest.raises(RunFolderError, match="nowhere is not a run: there is no such folder"):
        evaluate_run(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"no run to resume: there is no config\.yaml in it"):
        Trainer.resume(tmp_path)


def test_a_damaged_tokenizer_is_not_looked_for_beside_the_model(out: Path):
    (latest_checkpoint(out) / "policy" / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        load_policy(out)
    assert "lacks" not in str(caught.value)


def test_a_state_that_is_nested_too_deeply(out: Path):
    (latest_checkpoint(out) / "state.json").write_text(DEEP)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        evaluate_run(out)


@pytest.mark.parametrize("tail", [b'{"env_steps": \xff', DEEP.encode(), b"1" * 5000], ids=len)
def test_lines_that_no_run_wrote_are_put_aside(out: Path, tail: bytes):
    with (out / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    Trainer.resume(out, total_steps=40).train()
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert all("env_steps" in json.loads(line) for line in lines)
    assert (out / "metrics.discarded.jsonl").stat().st_size >= len(tail)


def test_a_result_that_is_not_saved_names_no_file(out: Path, monkeypatch: pytest.MonkeyPatch):
    def read_only(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reevaluation, "write_json", read_only)
    with pytest.warns(RuntimeWarning, match="not saved: .*Permission denied"):
        assert evaluate_run(out)["file"] is None
    monkeypatch.setattr(reevaluation, "write_json", write_json)
    assert evaluate_run(out)["file"] == "eval.json"

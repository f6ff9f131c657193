"""A run's folder: what may begin in it, and that it can be moved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from sacglam import Trainer, load_policy
from sacglam.errors import ConfigError, RunFolderError

BRIEF = {"total_steps": 120, "eval.episodes": 2}


def test_a_run_that_never_began_leaves_nothing(quick_config: Any):
    config = quick_config(**BRIEF, **{"lora.r": 4, "lora.target_modules": ["nope"]})
    with pytest.raises(ConfigError, match=r"lora\.target_modules"):
        Trainer(config)
    assert not Path(config.out).exists()
    mended = config.with_overrides({"lora.target_modules": ["q_proj"]})
    Trainer(mended)
    assert Trainer(mended).train().evaluation is not None


def test_an_environment_that_fails_at_first_leaves_the_folder_free(quick_config: Any):
    from sacglam.envs.playground import PRESETS, PlaygroundText

    class Failing(PlaygroundText):
        fails = False

        def reset(self, **options: Any) -> Any:
            if self.fails:
                raise ConnectionError
            return super().reset(**options)

    def make() -> Failing:
        return Failing(**PRESETS["playground/small"])

    config = quick_config(**BRIEF)
    trainer = Trainer(config, env=make)
    Failing.fails = True
    with pytest.raises(ConnectionError):
        trainer.train()
    Failing.fails = False
    assert Trainer(config, env=make).train().evaluation is not None


def test_the_first_of_two_trainers_has_the_folder(quick_config: Any):
    config = quick_config(**BRIEF)
    late, first = Trainer(config), Trainer(config)
    first.train()
    before = (first.out / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match="already holds a run"):
        late.train()
    with pytest.raises(RunFolderError, match="already holds a run"):
        Trainer(config)
    assert (first.out / "metrics.jsonl").read_bytes() == before


def test_other_files_are_not_ours(quick_config: Any):
    config = quick_config()
    (Path(config.out) / "model").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="not an empty folder"):
        Trainer(config)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_run_of_a_tiny_model_can_be_moved(quick_config: Any, tmp_path: Path, rank: int):
    run = Trainer(quick_config(**BRIEF, **{"lora.r": rank})).train()
    assert (run.out / "model" / "config.json").is_file()
    assert not any(str(run.out) in file.read_text() for file in run.out.rglob("policy/**/*.json"))
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(run.out, moved)
    shutil.rmtree(run.out)
    prompt, actions = "Goal: Grasp red table\nAction:", ["Grasp", "Release all"]
    mine, theirs = (p.score([prompt], [actions])[0] for p in (run.policy, load_policy(moved)))
    assert mine.log_pi.tolist() == theirs.log_pi.tolist()
    assert Trainer.resume(moved, total_steps=160).train().updates > run.updates

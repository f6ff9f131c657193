"""A run's folder: what may begin in it, and that it can be moved."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Callback, Trainer, evaluate_run, load_policy, play_episodes
from sacglam.errors import CheckpointError, ConfigError, RunFolderError, SacglamError
from sacglam.training import evaluation, playing, setup
from safetensors import SafetensorError
from transformers import PreTrainedModel

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


def test_a_folder_in_which_a_run_is_under_way_is_called_so(quick_config: Any):
    """Also before its first checkpoint: it is not called dead, with the advice to delete it."""
    seen: list[str] = []

    class Look(Callback):
        def on_log(self, metrics: Any) -> None:
            for call in (
                lambda: Trainer(config),
                lambda: Trainer.resume(config.out),
                lambda: load_policy(config.out),
            ):
                with pytest.raises(SacglamError) as refused:
                    call()
                seen.append(str(refused.value))

    config = quick_config(**BRIEF)
    Trainer(config, callbacks=[Look()]).train()
    assert len(seen) == 3
    assert "another process is training in" in seen[0]
    for message in seen[1:]:
        assert "no complete checkpoint yet: its run is under way" in message


def test_policies_made_and_loaded_in_threads_are_the_same(quick_config: Any):
    def weights(policy: Any) -> bytes:
        named = policy.trainable_parameters()
        return b"".join(p.detach().numpy().tobytes() for p in named.values())

    def make(k: int) -> bytes:
        return weights(Trainer(quick_config(f"thread{k}", **BRIEF)).policy)

    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, range(8)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(set(made)) == 1
    out = Trainer(quick_config(**BRIEF)).train().out
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: weights(load_policy(out)), range(8)))
    assert len(set(loaded)) == 1
    assert loaded[0] != made[0]


def test_a_result_can_go_to_another_process(quick_config: Any):
    result = Trainer(quick_config(**BRIEF)).train()
    again = pickle.loads(pickle.dumps(result))
    assert (again.out, again.env_steps, again.evaluation) == (
        result.out, result.env_steps, result.evaluation,
    )  # fmt: skip
    for mine, theirs in zip(
        result.policy.trainable_parameters().values(),
        again.policy.trainable_parameters().values(),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_a_disk_that_is_full_at_the_start_leaves_the_folder_free(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    def full(self: Any, folder: Path, **_: Any) -> None:
        Path(folder).mkdir()
        (Path(folder) / "part").write_text("x")
        raise SafetensorError("No space left on device (os error 28)")

    config = quick_config(**BRIEF)
    trainer = Trainer(config)
    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(CheckpointError, match=r"cannot be written to .*/model .*No space"):
            trainer.train()
    assert Trainer(config).train().evaluation is not None


def test_what_others_may_read_of_a_run_includes_its_weights(quick_config: Any):
    """safetensors makes its files for their owner alone."""
    before = os.umask(0o022)
    try:
        run = Trainer(quick_config(**BRIEF, **{"lora.r": 4})).train()
    finally:
        os.umask(before)
    files = [path for path in run.out.rglob("*") if path.suffix in (".safetensors", ".json")]
    assert len([path for path in files if path.suffix == ".safetensors"]) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_what_a_checkpoint_needs_is_on_the_disk_before_it_appears(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    """Also the base model of its adapters, which lies beside it: after a power cut it is there."""
    synced: set[int] = set()
    fsync, rename = os.fsync, Path.rename

    def noted(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def checked(self: Path, target: Path) -> Path:
        if Path(target).parent.name == "checkpoints":
            run = Path(target).parents[1]
            needed = [p for p in [*self.rglob("*"), *(run / "model").rglob("*")] if p.is_file()]
            assert len(needed) > 8
            assert [p for p in needed if p.stat().st_ino not in synced] == []
            moved.append(target)
        return rename(self, target)

    moved: list[Path] = []
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", checked)
    Trainer(quick_config(**BRIEF, **{"lora.r": 4})).train()
    assert moved


@pytest.mark.parametrize("call", [evaluate_run, play_episodes])
def test_an_evaluation_that_fails_leaves_no_processes(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch, call: Any
):
    made: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        made.append(make_envs(*args, **options))
        return made[-1]

    with Trainer(quick_config(**BRIEF, **{"env.processes": 1})) as trainer:
        trainer.train()
    make_envs = setup.make_envs
    monkeypatch.setattr(setup, "make_envs", make)
    monkeypatch.setattr(playing, "_scores", _fail)
    monkeypatch.setattr(evaluation, "evaluate", _fail)
    with pytest.raises(ConnectionError):
        call(trainer.out)
    assert [envs._workers for envs in made] == [[]]


def _fail(*_: Any, **__: Any) -> None:
    raise ConnectionError


def test_an_evaluation_is_of_one_checkpoint_though_the_run_goes_on(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    out = Trainer(quick_config(**BRIEF)).train().out
    make_envs = setup.make_envs

    def make_later(*args: Any) -> Any:  # when the policy has been loaded
        monkeypatch.undo()
        Trainer.resume(out, total_steps=160).train()
        return make_envs(*args)

    monkeypatch.setattr(setup, "make_envs", make_later)
    assert evaluate_run(out)["env_steps"] == 120


def test_a_result_says_what_the_run_came_to(quick_config: Any):
    config = quick_config(**BRIEF)
    with Trainer(config) as trainer:
        paused = repr(trainer.train(until=1))
        done = trainer.train()
    assert paused.startswith(f"TrainResult({str(config.out)!r}, ")
    assert paused.endswith(" s: paused)")
    rates = ", ".join(f"{k} {100 * v:.1f} %" for k, v in done.evaluation["success"].items())
    assert f"{done.env_steps:,} environment steps, {done.updates:,} updates" in repr(done)
    assert repr(done).endswith(f"s: success {rates})")
    assert "\n" not in repr(done)

"""A run's folder: what may begin in it, and that it can be moved."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Callback, Trainer, load_policy
from sacglam.errors import CheckpointError, ConfigError, RunFolderError, SacglamError
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

"""Files that are not what was written are refused by name; what is half deleted is nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Trainer, evaluate_run, load_policy
from sacglam.errors import CheckpointError, UnknownModelError
from sacglam.models import saved
from sacglam.training import checkpoint
from sacglam.training.checkpoint import latest_checkpoint, list_checkpoints
from transformers import PreTrainedTokenizerFast

BRIEF = {"total_steps": 120, "eval.episodes": 2}


def _flip(path: Path, at: int) -> bytes:
    """Turns over a bit of a file; its content before."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[at] ^= 1
    path.write_bytes(changed)
    return before


@pytest.mark.parametrize(("algo", "rank"), [("sac", 0), ("sac", 4), ("ppo", 0)])
def test_a_bit_of_any_file_of_a_checkpoint_is_missed(quick_config: Any, algo: str, rank: int):
    config = quick_config(**BRIEF, **{"algo": algo, "lora.r": rank, "checkpoint_interval": 60})
    newest = latest_checkpoint(Trainer(config).train().out)
    files = [path for path in newest.rglob("*") if path.is_file() and path.suffix != ".md"]
    assert len(files) > 8
    advice = f"delete {newest} to go on from step-000000000060$"
    for path in files:
        for at in (0, path.stat().st_size // 2, path.stat().st_size - 2):
            before = _flip(path, at)
            with pytest.raises(CheckpointError, match=f"{path}.*{advice}"):
                Trainer.resume(config.out)
            path.write_bytes(before)
        path.unlink()
        if path.name != "state.json":
            with pytest.raises(CheckpointError, match=str(path)):
                Trainer.resume(config.out)
        path.write_bytes(before)
    assert Trainer.resume(config.out).train().env_steps == 120


@pytest.mark.parametrize("at", [0, 2**20 - 1, 2**20, 2**21 + 5])
def test_a_bit_of_a_large_file_is_missed(tmp_path: Path, at: int):
    with checkpoint.writing(tmp_path, 7) as writer:
        writer.tensors("large", {"x": torch.zeros(2**20)})
        folder = writer.commit({})
    checkpoint.verify(folder)
    _flip(folder / "large.safetensors", at)
    with pytest.raises(CheckpointError, match=r"large\.safetensors is damaged"):
        checkpoint.verify(folder)
    checkpoint.verify(folder, "policy/")


def test_a_checkpoint_whose_folder_cannot_be_made_is_one_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(CheckpointError, match="step-000000000007 cannot be written"):
        with checkpoint.writing(tmp_path, 7):
            pass
    assert (tmp_path / "checkpoints").read_text() == "no folder"


def test_a_damaged_policy_is_not_evaluated_and_one_beside_damage_is(quick_config: Any):
    out = Trainer(quick_config(**BRIEF)).train().out
    newest = latest_checkpoint(out)
    _flip(newest / "replay.bin", 100)
    assert evaluate_run(out)["env_steps"] == 120
    _flip(newest / "policy" / "heads.safetensors", -1)
    for call in (evaluate_run, load_policy):
        with pytest.raises(CheckpointError, match=r"heads\.safetensors is damaged"):
            call(out)


def test_a_checkpoint_of_a_version_without_checksums_is_read(quick_config: Any):
    out = Trainer(quick_config(**BRIEF)).train().out
    file = latest_checkpoint(out) / "state.json"
    state = json.loads(file.read_text())
    del state["checksums"]
    file.write_text(json.dumps(state))
    assert Trainer.resume(out, total_steps=160).train().env_steps == 160


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tokenizer.json", '"vocab"', '"vocal"'),
        ("tokenizer_config.json", "{", "[{"),
        ("config.json", '"hidden_size": 32', '"hidden_size": 33'),
        ("config.json", '"dtype": "float32"', '"dtype": "float33"'),
    ],
)
def test_whatever_a_library_raises_for_a_damaged_model_it_is_named(
    quick_config: Any, name: str, old: str, new: str
):
    """tokenizers raises a bare Exception, huggingface_hub errors of its own."""
    run = Trainer(quick_config(**BRIEF)).train().out
    model = run / "model"
    policy = run.parent / "policy"
    shutil.copytree(latest_checkpoint(run) / "policy", policy)
    for folder in (model, policy / "model", policy / "tokenizer"):
        file = folder / name
        if file.exists():
            assert old in file.read_text()
            file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(UnknownModelError, match=f"no model could be loaded from '{model}'"):
        load_policy(model)
    with pytest.raises(CheckpointError, match=f"{policy} is not a complete saved policy"):
        load_policy(policy)


def test_a_gpu_that_is_full_is_not_called_a_damaged_policy(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    out = Trainer(quick_config(**BRIEF)).train().out
    monkeypatch.setattr(saved, "load_language_model", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_policy(out)


def test_a_tokenizer_that_cannot_be_written_is_a_checkpoint_that_cannot(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise Exception("No space left on device (os error 28)")  # noqa: TRY002

    out = Trainer(quick_config(**BRIEF)).train().out
    before = [path.name for path in (out / "checkpoints").iterdir()]
    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left"):
        Trainer.resume(out, total_steps=160).train()
    assert [path.name for path in (out / "checkpoints").iterdir()] == before


def test_a_checkpoint_whose_deletion_was_killed_is_none_and_goes_with_the_next(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    rmtree = shutil.rmtree

    def killed(folder: Path, **options: Any) -> None:
        if Path(folder).exists() and "step-" in str(folder):
            (Path(folder) / "replay.bin").unlink()
            raise SystemExit
        rmtree(folder, **options)

    out = Trainer(quick_config(**BRIEF, keep_checkpoints=1)).train().out
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            Trainer.resume(out, total_steps=160).train()
    assert [path.name for path in list_checkpoints(out)] == ["step-000000000160"]
    assert Trainer.resume(out, total_steps=200).train().env_steps == 200
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000000000200"]

"""The command line from end to end: train, eval, play, plot, and how errors end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sacglam
from sacglam.cli.main import main
from sacglam.errors import RunFolderError
from sacglam.report.runs import read_run

QUICK = (
    "--env.num-envs 4 --model.hidden-size 32 --optim.batch-size 8 --total-steps 300 "
    "--learning-starts 100 --log-interval 100 --eval.episodes 12"
).split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--env", "playground/small", "--out", str(out), *QUICK]) == 0
    return out


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"sacglam {sacglam.__version__}\n"


def test_the_package_runs_as_the_command():
    asked = [sys.executable, "-m", "sacglam"]
    found = subprocess.run([*asked, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == f"sacglam {sacglam.__version__}\n"
    assert subprocess.run([*asked, "table", "nowhere"], capture_output=True).returncode == 2


def test_help_says_where_a_plot_goes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["plot", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "curve.png in the run's folder" in shown
    assert "curves.png in the current folder" in shown


def test_the_run_folder(run: Path):
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "eval.json", "curve.png", "checkpoints"} <= names
    assert any((run / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["env_steps"] for line in lines] == [100, 200, 300]
    wanted = {"env_steps", "updates", "wall_s", "success", "critic_loss", "actor_loss", "alpha",
              "entropy", "q_mean", "env_steps_per_s", "updates_per_s"}  # fmt: skip
    assert wanted <= set(lines[-1])
    result = json.loads((run / "eval.json").read_text())
    assert result["episodes"] == 12
    assert set(result["success"]) == {"Grasp", "Grow plant"}
    assert result["expert"]["success_mean"] == 1.0
    assert {"baseline_random", "untrained", "wall_s", "success_mean"} <= set(result)
    assert not list(run.rglob("*.pkl")) + list(run.rglob("*.pt")) + list(run.rglob("*.bin.tmp"))


def test_eval_play_plot(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    final = json.loads((run / "eval.json").read_text())
    for flags, name in (
        (["--episodes", "8"], "eval-8episodes.json"),
        (["--split", "test"], "eval-test.json"),
        (["--seed", "7", "--sample"], "eval-seed7-sampled.json"),
        (["--temperature", "2"], "eval-sampled-temperature2.json"),
    ):
        assert main(["eval", str(run), *flags]) == 0
        assert f"saved in {run / name}" in capsys.readouterr().out
        found = json.loads((run / name).read_text())
        assert found["episodes"] == (8 if "8" in flags else 12)
        assert "untrained" not in found or flags[0] == "--episodes"
    assert json.loads((run / "eval.json").read_text()) == final
    assert (final["seed"], final["split"], final["greedy"]) == (0, "train", True)
    assert found["temperature"] == 2.0
    assert main(["eval", str(run)]) == 0
    again = json.loads((run / "eval.json").read_text())
    assert again["success"] == final["success"]
    assert again["untrained"] == final["untrained"]
    assert main(["eval", str(run), "--temperature", "0"]) == 2
    assert "temperature is 0.0; it must be above 0" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["play", str(run), "--goal", "Grasp any water"]) == 0
    shown = capsys.readouterr().out
    assert "Grasp any water" in shown
    assert "Inventory (0/2): empty" in shown
    assert "%" in shown
    assert main(["plot", str(run), "--out", str(tmp_path / "curve.pdf")]) == 0
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--env", "playground/smal"], "playground/small"),
        (["train", "--sac.gamma", "1.5"], "sac.gamma is 1.5"),
        (["train", "--replay.her-strategy", "fture"], "future, final"),
        (["train", "--optim.batch-size", "many"], "must be of type int"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--preset", "magelan"], "paper, magellan, glam"),
        (["train", "--algo", "dqn"], "sac, ppo"),
        (["train", "--resume", "nowhere"], "no run to resume"),
        (["eval", "nowhere"], "not a run"),
        (["play", "nowhere"], "not a run"),
        (["plot", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_end_with_one_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("sacglam: ")
    assert "Traceback" not in error


def test_a_run_is_not_overwritten_and_keeps_its_configuration(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    before = (run / "config.yaml").read_bytes()
    assert main(["train", "--out", str(run), "--total-steps", "10"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--sac.alpha", "0.5"]) == 2
    assert "sac.alpha cannot be changed" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_file_and_flags_mix_and_flags_win(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("sac: {alpha: 0.5, gamma: 0.7}\nseed: 3\n")
    out = tmp_path / "run"
    flags = ["--config", str(tmp_path / "mine.yaml"), "--sac.gamma", "0.6", "--out", str(out)]
    assert main(["train", *flags, *QUICK]) == 0
    config = sacglam.TrainConfig.load(out / "config.yaml")
    assert (config.sac.alpha, config.sac.gamma, config.seed) == (0.5, 0.6, 3)


def test_presets_files_and_flags_mix(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("sac: {gamma: 0.7, n_step: 2}\n")
    out = tmp_path / "run"
    flags = ["--preset", "magellan", "--config", str(tmp_path / "mine.yaml"), "--sac.gamma", "0.6"]
    assert main(["train", *flags, "--critic.layers", "[16]", "--out", str(out), *QUICK]) == 0
    config = sacglam.TrainConfig.load(out / "config.yaml")
    assert (config.sac.gamma, config.sac.n_step, config.sac.target_rate) == (0.6, 2, 0.005)
    assert config.critic.kind == "reencode"
    assert main(["train", "--resume", str(out), "--preset", "paper"]) == 2


@pytest.mark.parametrize("error", ["BrokenPipeError", "FileNotFoundError", "SystemExit"])
def test_an_error_of_an_environment_is_shown_whole(tmp_path: Path, error: str):
    """Not as an error of ours, or not at all."""
    (tmp_path / "game.py").write_text(
        f"""
from sacglam.envs.playground import PRESETS, PlaygroundText

class Game(PlaygroundText):
    steps = 0

    def __init__(self):
        super().__init__(**PRESETS["playground/small"])

    def step(self, action):
        Game.steps += 1
        if Game.steps == 1000:
            raise {error}("the game has ended")
        return super().step(action)
"""
    )
    command = [sys.executable, "-m", "sacglam", "train", "--env", "game:Game", *QUICK]
    command += ["--out", "run", "--total-steps", "2000", "--eval.episodes", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the game has ended" in done.stderr
    assert (tmp_path / "run" / "checkpoints").is_dir()
    if error != "SystemExit":
        assert 'game.py", line' in done.stderr
        assert "sacglam train --resume run" in done.stderr


def test_a_flag_that_nobody_knows_has_its_neighbours_named(capsys: pytest.CaptureFixture[str]):
    for flag, near in (("--sac.gama", "--sac.gamma"), ("--total-step=5", "--total-steps")):
        with pytest.raises(SystemExit) as end:
            main(["train", flag, "0.9"])
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert f"unrecognized arguments: {flag} 0.9; did you mean " in said
        assert near in said.partition("did you mean")[2]
    with pytest.raises(SystemExit):
        main(["plot", "x", "--sac.gama", "0.9"])
    assert "did you mean" not in capsys.readouterr().err


def test_every_field_says_what_it_is():
    from sacglam.cli.flags import _comments
    from sacglam.config import field_types

    assert set(_comments()) == set(field_types(sacglam.TrainConfig))


def test_commands_that_are_proposed_can_be_copied(run: Path, tmp_path: Path):
    copied = tmp_path / "my first run"
    shutil.copytree(run, copied)
    with pytest.raises(RunFolderError, match=f"--resume '{copied}'`"):
        sacglam.Trainer(sacglam.TrainConfig().with_overrides({"out": copied}))
    (copied / "eval.json").write_text("{")
    with pytest.raises(RunFolderError, match=f"sacglam eval '{copied}'`"):
        read_run(copied)


def test_a_terminal_of_another_encoding_shows_what_it_can(run: Path, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    text = (copied / "eval.json").read_text().replace("Grow plant", "Crème brûlée")
    (copied / "eval.json").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "sacglam", "table", str(copied)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"Cr\xe8me br\xfbl\xe9e" in ended.stdout


def test_a_figure_without_letters_says_so_in_one_line(run: Path, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    text = (copied / "metrics.jsonl").read_text()
    # Of the private use area: no font has it.
    (copied / "metrics.jsonl").write_text(text.replace("Grasp", "Grasp \U0010fffd"))
    command = [sys.executable, "-m", "sacglam", "plot", str(copied)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(copied / "curve.png")]
    [line] = done.stderr.splitlines()
    assert line.startswith("sacglam: warning: no installed font has")

"""A small study from first run to figure: resumed where it was, finished runs left alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacglam import Callback, TrainConfig, Trainer
from sacglam.errors import RunFolderError

from bench.learning import __main__ as command
from bench.learning import studies
from bench.learning.curves import Curve, read_curve, steps_to, summarise
from bench.learning.jobs import make_jobs, run_jobs, slug

TINY: dict[str, Any] = {
    "env.num_envs": 4,
    "model.hidden_size": 16,
    "optim.batch_size": 4,
    "prompt.instruction": "",
    "total_steps": 160,
    "learning_starts": 40,
    "log_interval": 40,
    "eval.interval": 40,
    "eval.interval_episodes": 4,
    "eval.episodes": 4,
}


@pytest.fixture(autouse=True)
def study(monkeypatch: pytest.MonkeyPatch) -> studies.Study:
    methods = {"SAC + HER": TINY, "PPO": {**TINY, "algo": "ppo", "ppo.rollout": 10}}
    found = studies.Study("A small study", methods, [3])
    monkeypatch.setattr(command, "STUDIES", {"tiny": found})
    return found


class _StopAt(Callback):
    def on_log(self, metrics: Any) -> None:
        if metrics["env_steps"] == 80:
            signal.raise_signal(signal.SIGINT)


def test_a_study_goes_on_where_it_was(
    study: studies.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first, second = make_jobs(study, tmp_path, list(study.methods), [3])
    assert Trainer(first.config, callbacks=[_StopAt()]).train().interrupted
    half = (first.folder / "metrics.jsonl").read_text()
    arguments = ["tiny", "--out", str(tmp_path), "--methods", "SAC + HER"]
    assert command.main(arguments) == 0
    assert "resume SAC + HER, seed 3" in capsys.readouterr().out
    assert (first.folder / "metrics.jsonl").read_text().startswith(half)
    before = (first.folder / "eval.json").stat().st_mtime_ns

    assert command.main(["tiny", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2 runs, 1 of them done before" in shown
    assert (first.folder / "eval.json").stat().st_mtime_ns == before
    assert second.done
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.md").read_text() in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["methods"]) == {"SAC + HER", "PPO"}
    assert {"machine", "versions", "command", "commit"} <= set(results)
    for found in results["methods"].values():
        assert found["runs"]["3"]["env_steps"] == [0, 40, 80, 120, 160]
        assert found["final"]["env_steps"] == 160
        assert found["final"]["cpu_s"] > 0
    assert str(tmp_path) not in json.dumps(results["methods"])


def test_runs_of_another_machine_are_not_run_again(
    study: studies.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    there, here = tmp_path / "there", tmp_path / "here"
    assert command.main(["tiny", "--out", str(there), "--methods", "PPO"]) == 0
    held = there / "results.json"
    arguments = ["tiny", "--out", str(here), "--known", str(held)]
    assert command.main([*arguments, "--seeds", "3"]) == 0
    assert "1 runs, 0 of them done before" in capsys.readouterr().out
    earlier, results = (json.loads((f / "results.json").read_text()) for f in (there, here))
    assert results["methods"]["PPO"] == earlier["methods"]["PPO"]
    assert list(results["methods"]) == ["SAC + HER", "PPO"]
    assert not (here / "ppo").exists()
    assert [o["commit"] for o in results["known"]] == [earlier["commit"]]

    for broken in ("{}", "no json", held.read_text().replace('"ppo.rollout": 10', '"x": 1')):
        held.write_text(broken)
        assert command.main(arguments) == 2
        assert str(held) in capsys.readouterr().err


def test_the_end_of_the_budget_starts_nothing(study: studies.Study, tmp_path: Path):
    jobs = make_jobs(study, tmp_path, list(study.methods), [0, 1])
    assert [job.name for job in jobs] == [
        *("SAC + HER, seed 0", "PPO, seed 0", "SAC + HER, seed 1", "PPO, seed 1")
    ]
    said: list[str] = []
    assert len(run_jobs(jobs, parallel=2, budget_s=-1.0, say=said.append)) == 4
    assert not any("start" in line for line in said)


def test_a_run_with_other_settings_is_refused(study: studies.Study, tmp_path: Path):
    folder = tmp_path / slug("SAC + HER") / "seed-3"
    folder.mkdir(parents=True)
    TrainConfig().with_overrides({**TINY, "total_steps": 161}).save(folder / "config.yaml")
    with pytest.raises(RunFolderError, match="total_steps = 161, but this study has 160"):
        make_jobs(study, tmp_path, ["SAC + HER"], [3])


def test_a_failing_run_is_reported_and_the_others_go_on(study: studies.Study, tmp_path: Path):
    jobs = make_jobs(study, tmp_path, ["PPO"], [0, 1])
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / "checkpoints" / "step-000000000040").mkdir(parents=True)
    state = jobs[0].folder / "checkpoints" / "step-000000000040" / "state.json"
    state.write_text("{")  # a damaged checkpoint, and no config.yaml
    said: list[str] = []
    assert run_jobs(jobs, parallel=2, budget_s=None, say=said.append) == ["PPO, seed 0"]
    assert any(line.startswith("FAILED PPO, seed 0") and "RunFolderError" in line for line in said)
    assert jobs[1].done


def _curve(steps: list[float], success: list[float]) -> Curve:
    at = {"env_steps": np.array(steps), "cpu_s": np.array(steps) / 10}
    return Curve(at, np.array(success), {})


def test_curves_are_joined_over_what_all_runs_cover():
    curves = [
        _curve([0, 100, 200, 300], [0.0, 0.5, 1.0, 1.0]),
        _curve([0, 100, 200], [0.2, 0.3, 0.6]),
    ]
    found = summarise(curves, "env_steps")
    assert found.x.tolist() == [0, 100, 200]
    assert found.mean.tolist() == pytest.approx([0.1, 0.4, 0.8])
    assert found.low.tolist() == pytest.approx([0.0, 0.3, 0.6])
    assert found.high.tolist() == pytest.approx([0.2, 0.5, 1.0])
    over_time = summarise(curves, "cpu_s", points=5)
    assert over_time.x.tolist() == [0, 5, 10, 15, 20]
    assert over_time.mean[1] == pytest.approx((0.25 + 0.25) / 2)


def test_steps_to_a_success():
    curve = _curve([0, 100, 200, 300], [0.0, 0.5, 0.4, 0.9])
    assert steps_to(curve, 0.5) == 100
    assert steps_to(curve, 0.8, "cpu_s") == 30
    assert steps_to(curve, 0.95) is None


def test_a_run_without_evaluations_has_no_curve(tmp_path: Path):
    assert read_curve(tmp_path) is None


def test_every_study_can_be_configured():
    for name, study in studies.STUDIES.items():
        assert len(study.seeds) >= (1 if name == "ppo" else 3)  # that one is a search
        for fields in study.methods.values():
            config = TrainConfig().with_overrides(fields)
            assert config.total_steps % config.eval.interval == 0  # the last point is the end
        for methods in study.panels.values():
            assert set(methods) <= set(study.methods)

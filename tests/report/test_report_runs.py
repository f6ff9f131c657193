"""Reading run folders, and which runs belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sacglam.errors import RunFolderError
from sacglam.report.grouping import common_setting, group_runs
from sacglam.report.runs import read_run

MakeRun = Callable[..., Path]


def test_a_run_is_read_whole(make_run: MakeRun) -> None:
    run = read_run(make_run())
    assert [row["env_steps"] for row in run.metrics] == list(range(500, 12001, 500))
    assert run.families() == ["Grasp", "Grow plant"]
    assert run.config["model"] == {"id": "tiny-t5"}
    assert run.evaluation is not None
    assert run.evaluation["episodes"] == 300
    assert run.damaged_lines == 0


@pytest.mark.parametrize(
    "tail", ['{"env_steps": 125', '{"env_steps": 12500, "succ', "\x00\x00", "[]"]
)
def test_a_damaged_last_line_is_skipped(make_run: MakeRun, tail: str) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(tail)
    run = read_run(folder)
    assert run.damaged_lines == 1
    assert run.metrics[-1]["env_steps"] == 12000
    assert len(run.metrics) == 24


@pytest.mark.parametrize("line", ["[" * 100_000, '{"env_steps": ' + "1" * 5000], ids=len)
def test_lines_that_json_chokes_on_are_skipped(make_run: MakeRun, line: str) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as log:
        log.write(f"\n{line}\n")
    assert read_run(run).damaged_lines == 1


def test_what_a_resumed_run_did_again_replaces_what_it_logged_before(make_run: MakeRun) -> None:
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as log:
        for steps in (9000, 9500):
            log.write(json.dumps({"env_steps": steps, "success": {"Grasp": 0.5}}) + "\n")
    run = read_run(folder)
    assert [row["env_steps"] for row in run.metrics[-3:]] == [8500, 9000, 9500]
    assert run.metrics[-2]["success"] == {"Grasp": 0.5}


def test_a_missing_folder_names_near_ones(make_run: MakeRun) -> None:
    folder = make_run("demo")
    with pytest.raises(RunFolderError, match=r"no run's folder at .*dmeo.*near: .*demo"):
        read_run(folder.with_name("dmeo"))


def test_a_folder_above_runs_names_them(make_run: MakeRun) -> None:
    folder = make_run("demo")
    with pytest.raises(RunFolderError, match=r"not a run's folder.*runs below it: .*demo"):
        read_run(folder.parent)


def test_a_run_without_a_log_interval_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="no log interval yet"):
        read_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\nnot json\n')
    with pytest.raises(RunFolderError, match=r"not a log of sacglam.*2 unreadable"):
        read_run(tmp_path)


def test_damaged_files_say_what_to_do(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "eval.json").write_text('{"success": ')
    with pytest.raises(RunFolderError, match=r"eval\.json.*damaged.*sacglam eval"):
        read_run(folder)
    (folder / "eval.json").unlink()
    (folder / "config.yaml").write_text("env: [")
    with pytest.raises(RunFolderError, match=r"config\.yaml.*YAML"):
        read_run(folder)


def test_everything_but_the_metrics_may_be_missing(make_run: MakeRun) -> None:
    run = read_run(make_run(config=False, evaluated=False))
    assert run.config == {}
    assert run.evaluation is None


def test_seeds_are_grouped_and_settings_name_what_differs(make_run: MakeRun) -> None:
    runs = [
        read_run(make_run(f"{ratio}-{seed}", seed=seed, her_ratio=ratio, total=total))
        for ratio, seed, total in ((0.8, 0, 12000), (0.0, 0, 12000), (0.8, 1, 9000), (0.8, 2, 500))
    ]
    groups = group_runs(runs)
    assert [(g.label, len(g.runs)) for g in groups] == [
        ("replay.her_ratio=0.8, 3 seeds", 3),
        ("replay.her_ratio=0.0, seed 0", 1),
    ]
    assert common_setting(runs) == "playground/small, tiny-t5"


def test_models_speak_for_themselves(make_run: MakeRun) -> None:
    runs = [read_run(make_run("a")), read_run(make_run("b", model="models/flan-t5-small/"))]
    assert [g.label for g in group_runs(runs)] == ["tiny-t5, seed 0", "flan-t5-small, seed 0"]
    assert common_setting(runs) == "playground/small"


def test_the_algorithm_comes_first_and_what_it_does_not_use_is_left_out(make_run: MakeRun) -> None:
    made = iter("abcde")

    def group_labels(*settings: dict[str, object]) -> list[str]:
        name = next(made)
        runs = [
            read_run(make_run(f"{name}{seed}", seed=seed, settings=setting))
            for seed, setting in enumerate(settings)
        ]
        return [group.label for group in group_runs(runs)]

    unused_by_ppo = {
        "sac.gamma": 0.9, "replay.her_strategy": "none", "critic.kind": "reencode",
        "critic.heads": 1, "critic.layers": [8], "critic.huber": 1.0, "optim.batch_size": 32,
        "optim.actor_weight": 2.0, "learning_starts": 7, "steps_per_update": 9.0,
        "critic_warmup": 3,
    }  # fmt: skip
    sac, ppo = {"sac.gamma": 0.95, "algo": "sac"}, {"sac.gamma": 0.95, "algo": "ppo"}
    assert group_labels(sac, {**ppo, **unused_by_ppo}) == ["algo=sac, seed 0", "algo=ppo, seed 1"]
    assert group_labels(ppo, {**ppo, **unused_by_ppo}) == ["b0, 2 seeds"]
    assert group_labels(sac, {**sac, "ppo.clip": 0.1}) == ["c0, 2 seeds"]
    assert group_labels(ppo, {**ppo, "ppo.clip": 0.1}) == [
        "ppo.clip=unset, seed 0", "ppo.clip=0.1, seed 1",
    ]  # fmt: skip
    assert group_labels(
        sac, {**sac, "sac.gamma": 0.8}, {**ppo, "sac.gamma": 0.5}, {**ppo, "optim.lr": 0.1}
    ) == [
        "algo=sac, sac.gamma=0.95, optim.lr=unset, seed 0",
        "algo=sac, sac.gamma=0.8, optim.lr=unset, seed 1",
        "algo=ppo, optim.lr=unset, seed 2",
        "algo=ppo, optim.lr=0.1, seed 3",
    ]


def test_how_often_a_run_is_evaluated_does_not_set_seeds_apart(make_run: MakeRun) -> None:
    settings = [
        {"eval.interval": 100, "eval.episodes": 8, "eval.interval_episodes": 8},
        {"eval.interval": 200, "eval.episodes": 16, "eval.interval_episodes": 4},
        {"eval.greedy": False},
        {"eval.temperature": 0.5},
    ]
    runs = [
        read_run(make_run(f"s{seed}", seed=seed, settings=setting))
        for seed, setting in enumerate(settings)
    ]
    assert [len(group.runs) for group in group_runs(runs)] == [2, 1, 1]


def test_the_same_run_twice_is_not_two_seeds(make_run: MakeRun) -> None:
    groups = group_runs([read_run(make_run("a")), read_run(make_run("b"))])
    assert [g.label for g in groups] == ["a, 2 runs"]


def test_runs_without_configuration_stay_alone(make_run: MakeRun) -> None:
    runs = [read_run(make_run(name, config=False)) for name in ("a", "b")]
    assert [g.label for g in group_runs(runs)] == ["a, 1 run", "b, 1 run"]

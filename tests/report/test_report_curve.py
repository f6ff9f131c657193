"""Learning curves: what is drawn, from which run, into which file."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from sacglam.errors import ConfigError, RunFolderError
from sacglam.report import curve
from sacglam.report.curve import plot_runs
from sacglam.report.drawing import looks_by_name

MakeRun = Callable[..., Path]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    seen: list[Figure] = []
    save = curve.save

    def keep(figure: Figure, path: Path) -> None:
        seen.append(figure)
        save(figure, path)

    monkeypatch.setattr(curve, "save", keep)
    return seen


def labels(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts() if text.get_text().strip()]


def line_through(figure: Figure, y: float, *, panel: int = 0, points: int = 3) -> list[Any]:
    """Lines of a panel with at least `points` points that end at `y` percent."""
    return [
        line
        for line in figure.axes[panel].lines
        if len(line.get_xdata()) >= points and np.isclose(line.get_ydata()[-1], y)
    ]


def test_one_run_draws_every_family_and_its_references(
    make_run: MakeRun, figures: list[Figure]
) -> None:
    folder = make_run()
    assert plot_runs(folder) == folder / "curve.png"
    assert imread(folder / "curve.png").shape[1] > 1000
    (figure,) = figures
    (axes,) = figure.axes
    assert set(labels(figure)) == {
        "Grasp", "Grow plant", "random agent", "expert", "final evaluation, 95 % CI",
    }  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "environment steps", "success in training (%)",
    )  # fmt: skip
    assert axes.get_title(loc="left") == "playground/small, tiny-t5, seed 0"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (grasp,) = line_through(figure, 100 * rows[-1]["success"]["Grasp"])
    assert list(grasp.get_xdata()) == [row["env_steps"] for row in rows]
    np.testing.assert_allclose(grasp.get_ydata(), [100 * row["success"]["Grasp"] for row in rows])
    levels = {round(float(line.get_ydata()[0]), 6) for line in axes.lines if line.is_dashed()}
    assert levels == {14.0, 2.0, 100.0}
    low, high = axes.get_ylim()
    assert low <= 0
    assert high >= 100


def finals(figure: Figure, last: int) -> list[tuple[float, float]]:
    """The vertical lines beyond the last step."""
    return [
        tuple(line.get_ydata())
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1] > last
    ]


def test_the_final_evaluation_has_its_interval(make_run: MakeRun, figures: list[Figure]) -> None:
    plot_runs(make_run())
    bars = finals(figures[0], 12000)
    # 94 of 100, and 98.7 % of 200: eval.json counts each family's episodes.
    assert any(low == pytest.approx(87.5, abs=0.1) and high == pytest.approx(97.2, abs=0.1)
               for low, high in bars)  # fmt: skip
    assert len(bars) == 2


def test_evaluations_while_training_are_marked(make_run: MakeRun, figures: list[Figure]) -> None:
    plot_runs(make_run(evaluated=False))
    plot_runs(_with_evals(make_run))
    without, marked = figures
    assert "evaluation" not in labels(without)
    assert without.axes[0].get_ylabel() == "success in training (%)"
    assert marked.axes[0].get_ylabel() == "success (%)"  # the legend names both
    assert {"evaluation", "training episodes"} <= set(labels(marked))
    assert "random agent" not in labels(marked)  # no eval.json, no reference


def _with_evals(make_run: MakeRun) -> Path:
    folder = make_run("evals", evaluated=False)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[3::4]:
        row["eval"] = {"success": row["success"], "success_mean": 0.5, "episodes": 100}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_seeds_become_mean_and_range(
    make_run: MakeRun, figures: list[Figure], tmp_path: Path
) -> None:
    folders = [make_run(f"s{i}", seed=i, late=late) for i, late in enumerate((5000, 6000, 9000))]
    plot_runs(folders, tmp_path / "seeds.png")
    (figure,) = figures
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "playground/small, tiny-t5, 3 seeds"
    assert "range over seeds" in labels(figure)
    success = np.array(
        [
            [100 * json.loads(line)["success"]["Grow plant"] for line in log.splitlines()]
            for log in ((folder / "metrics.jsonl").read_text() for folder in folders)
        ]
    )  # [runs, intervals]
    (mean,) = line_through(figure, success.mean(axis=0)[-1])
    np.testing.assert_allclose(mean.get_ydata(), success.mean(axis=0))
    bands = [band.get_paths()[0].vertices for band in axes.collections]
    middle = 6000
    heights = [set(np.round(v[v[:, 0] == middle, 1], 6)) for v in bands]
    at = middle // 500 - 1
    assert {round(success[:, at].min(), 6), round(success[:, at].max(), 6)} in heights


def test_final_evaluations_of_seeds_are_their_mean_and_range(
    make_run: MakeRun, evaluation: Any, figures: list[Figure], tmp_path: Path
) -> None:
    folders = [make_run(f"s{i}", seed=i, evaluated=i < 3) for i in range(4)]  # one under way
    other = make_run("other", her_ratio=0.5)
    for folder, rate in zip(folders, (0.5, 0.75, 1.0), strict=False):
        success = {"Grasp": rate, "Grow plant": 0.9}
        (folder / "eval.json").write_text(json.dumps({**evaluation(), "success": success}))
    plot_runs(folders, tmp_path / "seeds.png")
    plot_runs([*folders, other], tmp_path / "both.png")
    seeds, both = figures
    assert "final evaluation, mean and range" in labels(seeds)
    assert "final evaluation, 95 % CI" not in labels(seeds)
    assert finals(seeds, 12000) == [(50.0, 100.0), (90.0, 90.0)]
    dots = [line for line in seeds.axes[0].lines if len(line.get_xdata()) == 1]
    assert [float(dot.get_ydata()[0]) for dot in dots] == [75.0, pytest.approx(90.0)]
    assert {"final evaluation, mean and range", "final evaluation, 95 % CI"} < set(labels(both))
    assert finals(both, 12000)[0] == (50.0, 100.0)
    assert len(finals(both, 12000)) == 2


def test_an_evaluation_before_the_run_went_on_is_not_its_final_one(
    make_run: MakeRun, evaluation: Any, figures: list[Figure], tmp_path: Path
) -> None:
    run = make_run("longer")
    for at, there in ((12000, True), (6000, False)):
        (run / "eval.json").write_text(json.dumps({**evaluation(), "env_steps": at}))
        plot_runs([run], tmp_path / "out.png")
        assert ("final evaluation, 95 % CI" in labels(figures[-1])) is there


def test_what_does_not_change_the_learning_does_not_set_seeds_apart(
    make_run: MakeRun, figures: list[Figure], tmp_path: Path
) -> None:
    plain, other = make_run("s0", seed=0), make_run("s1", seed=1)
    with (other / "config.yaml").open("a") as config:
        config.write("checkpoint_minutes: 5\nkeep_checkpoints: 4\ndevice: cpu\n")
        config.write("optim: {micro_batch: 8}\n")
    plot_runs([plain, other], tmp_path / "seeds.png")
    (figure,) = figures
    assert figure.axes[0].get_title(loc="left") == "playground/small, tiny-t5, 2 seeds"


def test_a_seed_that_stopped_early_does_not_bend_the_mean(
    make_run: MakeRun, figures: list[Figure], tmp_path: Path
) -> None:
    folders = [make_run("long"), make_run("short", seed=1, total=4000)]
    plot_runs(folders, tmp_path / "out.png")
    lines = [line.get_xdata() for line in figures[0].axes[0].lines if len(line.get_xdata()) > 2]
    spans = {(float(x[0]), float(x[-1])) for x in lines}
    assert spans == {(500, 4000), (4000, 12000)}  # the mean, then what the longer run did alone


def test_configurations_get_a_panel_per_family(
    make_run: MakeRun, figures: list[Figure], tmp_path: Path
) -> None:
    folders = [
        make_run(f"{ratio}-{seed}", seed=seed, her_ratio=ratio, late=6000 if ratio else 11000)
        for ratio in (0.8, 0.0)
        for seed in (0, 1)
    ]
    plot_runs(folders, tmp_path / "out.png")
    (figure,) = figures
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Grasp", "Grow plant"]
    assert {"replay.her_ratio=0.8, 2 seeds", "replay.her_ratio=0.0, 2 seeds"} <= set(labels(figure))
    with_her, without = (
        [line for line in figure.axes[1].lines if len(line.get_xdata()) > 3][i] for i in (0, 1)
    )
    assert with_her.get_color() != without.get_color()
    assert with_her.get_ydata()[14] > 80 > 20 > without.get_ydata()[14]


def drawn(figure: Figure, *, panel: int = 0) -> list[tuple[list[float], list[float]]]:
    """The lines of a panel that are neither a reference nor a final evaluation."""
    lines = [line for line in figure.axes[panel].lines if len(set(line.get_xdata())) > 1]
    curves = [line for line in lines if list(line.get_xdata()) != [0, 1]]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in curves]


def test_configurations_are_compared_by_evaluations_where_all_have_them(
    make_run: MakeRun, figures: list[Figure], tmp_path: Path
) -> None:
    runs = [
        make_run(f"{ratio}-{seed}", seed=seed, her_ratio=ratio, evals_every=every)
        for ratio, seed, every in ((0.8, 0, 2000), (0.8, 1, 2000), (0.0, 0, 4000), (0.5, 0, 12000))
    ]
    plot_runs(runs[:3], tmp_path / "evaluations.png")
    plot_runs(runs, tmp_path / "training.png")  # the last one has a single evaluation
    evaluations, training = figures
    assert evaluations.axes[0].get_ylabel() == "success in\nevaluations (%)"
    assert training.axes[0].get_ylabel() == "success in\ntraining (%)"
    row = json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert [steps for steps, _ in drawn(evaluations)] == [
        list(range(2000, 12001, 2000)), [4000, 8000, 12000],
    ]  # fmt: skip
    assert [len(steps) for steps, _ in drawn(training)] == [24, 24, 24]
    for _, success in drawn(evaluations):
        assert success[-1] == pytest.approx(50 * row["success"]["Grasp"])
    for _, success in drawn(training):
        assert success[-1] == pytest.approx(100 * row["success"]["Grasp"])


def test_seeds_may_be_evaluated_at_other_steps(
    make_run: MakeRun, figures: list[Figure], tmp_path: Path
) -> None:
    runs = [
        make_run(f"s{seed}", seed=seed, total=total, evals_every=every,
                 settings={"eval.interval": every})
        for seed, total, every in ((0, 12000, 3000), (1, 12000, 4000), (2, 2000, 1000))
    ]  # fmt: skip
    plot_runs(runs[:2], tmp_path / "both.png")
    plot_runs([runs[0], runs[2]], tmp_path / "apart.png")
    both, apart = figures
    assert both.axes[0].get_title(loc="left") == "playground/small, tiny-t5, 2 seeds"
    assert [4000, 6000, 8000, 9000, 12000] in [steps for steps, _ in drawn(both)]
    assert "evaluation" not in labels(apart)  # no step that the evaluations of both cover
    assert apart.axes[0].get_ylabel() == "success in training (%)"


def test_training_beside_evaluations_is_pale_also_of_seeds(
    make_run: MakeRun, figures: list[Figure], tmp_path: Path
) -> None:
    plot_runs([make_run(f"s{i}", seed=i, evals_every=4000) for i in (0, 1)], tmp_path / "out.png")
    by_points = {len(line.get_xdata()): line for line in figures[0].axes[0].lines}
    assert by_points[24].get_alpha() < 1
    assert by_points[3].get_alpha() is None


def test_training_begins_once_as_many_episodes_ended_as_there_are_environments(
    make_run: MakeRun, figures: list[Figure]
) -> None:
    # An episode takes 15 steps: 500 // 15 = 33 have ended at the first line, 66 at the second.
    for environments, first in ((33, 500), (34, 1000), (100_000, 500)):  # of the last, all lines
        plot_runs(make_run(f"{environments}", settings={"env.num_envs": environments}))
        assert [steps[0] for steps, _ in drawn(figures[-1])] == [first, first]


def test_families_have_the_same_colours_whichever_was_seen_first(
    make_run: MakeRun, figures: list[Figure]
) -> None:
    for name in ("a", "b"):
        folder = make_run(name)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        del rows[0]["success"]["Grow plant" if name == "a" else "Grasp"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        plot_runs(folder)
    colours = [
        {line.get_label(): line.get_color() for line in figure.legends[0].get_lines()}
        for figure in figures
    ]
    assert colours[0]["Grasp"] == colours[1]["Grasp"] != colours[0]["Grow plant"]


def test_families_have_the_same_colours_whatever_else_is_drawn(
    make_run: MakeRun, figures: list[Figure]
) -> None:
    for name in ("both", "plants"):
        folder = make_run(name)
        if name == "plants":
            for file in ("metrics.jsonl", "eval.json"):
                text = (folder / file).read_text()
                text = re.sub(r'"Grasp": [0-9.e-]+, ', "", text)
                (folder / file).write_text(text)
        plot_runs(folder)
    colours = [
        {line.get_label(): line.get_color() for line in figure.legends[0].get_lines()}
        for figure in figures
    ]
    assert "Grasp" not in colours[1]
    assert colours[0]["Grow plant"] == colours[1]["Grow plant"]


def test_looks_go_by_the_name_and_are_never_shared() -> None:
    names = [f"family {i}" for i in range(14)]
    looks = looks_by_name(names)
    assert len({(look["color"], str(look["linestyle"])) for look in looks.values()}) == 14
    assert looks == looks_by_name(reversed(names))
    few = looks_by_name(["Grasp", "Grow plant", "Grow herbivore", "Grow carnivore", "Sequential"])
    assert all(looks_by_name([name])[name] == look for name, look in few.items())


def test_long_and_odd_names_are_shown_within_the_figure(
    make_run: MakeRun, figures: list[Figure]
) -> None:
    long = "Please bring me the large blue chair from the room behind the second door, " * 3
    for i, (ratio, argument) in enumerate([(0.5, "a" * 99), (0.8, "a" * 98 + "b")]):
        folder = make_run(f"{i}", her_ratio=ratio, settings={"env.kwargs": {"argument": argument}})
        for file in ("metrics.jsonl", "eval.json"):
            text = (folder / file).read_text()
            text = text.replace("Grasp", long).replace("Grow plant", r"_ for $5 or $\\frac")
            (folder / file).write_text(text)
    plot_runs(tmp := folder, tmp / "one.png")
    plot_runs([folder.parent / "0", folder], tmp / "two.png")
    for figure in figures:
        figure.draw_without_rendering()
        width = figure.bbox.width
        texts = [*figure.legends[0].get_texts(), *(a.title for a in figure.axes)]
        texts += [axes._left_title for axes in figure.axes]
        for text in texts:
            box = text.get_window_extent()
            assert box.x0 >= 0, text
            assert box.x1 <= width, text
    assert any(r"for $5 or $\frac" in label for label in labels(figures[0]))
    configurations = [label for label in labels(figures[1]) if "argument" in label]
    assert len(set(configurations)) == 2


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_the_suffix_picks_the_format_and_files_are_reproducible(
    make_run: MakeRun, tmp_path: Path, suffix: str, start: bytes
) -> None:
    folder = make_run()
    paths = [plot_runs([folder], tmp_path / f"{name}.{suffix}") for name in "ab"]
    contents = [path.read_bytes() for path in paths]
    assert contents[0].startswith(start)
    assert contents[0] == contents[1]


def test_several_runs_go_into_the_working_directory(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [make_run("a"), make_run("b", seed=1)]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert plot_runs(folders) == Path("curves.png")
    assert (tmp_path / "here" / "curves.png").is_file()
    assert not (folders[0] / "curve.png").exists()


def test_errors_leave_what_is_there(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    (folder / "curve.png").write_text("an earlier picture")
    with pytest.raises(ConfigError, match=r"must end in \.png, \.pdf, \.svg"):
        plot_runs(folder, tmp_path / "curve.bmp")
    with pytest.raises(ConfigError, match="give one or more folders"):
        plot_runs([])
    with pytest.raises(RunFolderError, match="no run's folder"):
        plot_runs([folder, tmp_path / "nothing"])

    def fail(self: Figure, *_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_runs(folder)
    assert (folder / "curve.png").read_text() == "an earlier picture"
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml", "curve.png", "eval.json", "metrics.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"env_steps": 0},
        {"env_steps": 500, "success_mean": 0.5},
        {"env_steps": 500, "success": {"A": None}},
        {"env_steps": 500, "success": {f"family {i}": 0.1 for i in range(20)}},
    ],
)
def test_sparse_metrics_still_make_a_picture(tmp_path: Path, row: dict[str, Any]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert plot_runs(tmp_path / "a").stat().st_size > 1000
    both = plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "both.png")
    assert both.stat().st_size > 1000


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_of_a_run_that_may_only_be_read_the_picture_goes_elsewhere(make_run, monkeypatch, code):
    """Root may write to any folder, so that the refusal is made here."""
    run, opened = make_run(), Path.open

    def refuse(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode and self.parent == run:
            raise OSError(code, os.strerror(code), str(self))
        return opened(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunFolderError, match=r"cannot write .*run/curve\.png .*--out"):
        plot_runs(run)
    assert plot_runs(run, run.parent / "here.png").stat().st_size > 10_000

"""The figures of a study as JSON and as a table."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sacglam.cli.bench import find_bench_dir, git_state
from sacglam.errors import CheckpointError
from sacglam.files import write_text
from sacglam.report.doctor import collect

from .curves import AXES, Curve, read_curve, steps_to, summarise
from .intervals import bootstrap_interval, interquartile_mean
from .jobs import Job
from .studies import Study

THRESHOLDS = (0.5, 0.8, 0.9)
_ORIGIN = ("command", "machine", "versions", "commit", "dirty", "created")


class Run(NamedTuple):
    """What is known of one run: its curve, its final evaluation if it is finished, and the CPU that
    it ran on: seconds of different ones do not compare."""

    curve: Curve
    final: Mapping[str, Any] | None
    cpu: str


Runs = dict[str, dict[int, Run]]  # method -> seed -> run


def read_runs(jobs: Sequence[Job]) -> Runs:
    """All runs that have a curve, finished or not."""
    found: Runs = {}
    cpu = collect()["machine"]["cpu"]
    for job in jobs:
        curve = read_curve(job.folder)
        if curve is not None:
            final = json.loads((job.folder / "eval.json").read_text()) if job.done else None
            found.setdefault(job.method, {})[job.seed] = Run(curve, final, cpu)
    return found


def read_known(path: Path, study: Study) -> tuple[Runs, list[dict[str, Any]]]:
    """The finished runs that a results.json holds, made perhaps on another machine, and where and
    how they were made, those too that it took over itself.

    Raises:
        CheckpointError: the file is no results.json of this study, or its runs had other settings.
    """
    try:
        held = json.loads(path.read_text())
        cpu = held["machine"]["cpu"]  # unless the run says otherwise
        found: Runs = {}
        for method, of in held["methods"].items():
            if method not in study.methods:
                raise CheckpointError(f"{path} holds a method {method!r} that the study lacks")
            if of["settings"] != dict(study.methods[method]):
                raise CheckpointError(f"{path}: {method!r} was run with other settings")
            runs = {int(seed): _known_run(run, cpu) for seed, run in of["runs"].items()}
            found[method] = {s: r for s, r in runs.items() if r.final is not None}
        origins = [*held.get("known", []), {name: held.get(name) for name in _ORIGIN}]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no results of a study: {error!r}") from error
    return found, origins


def _known_run(run: Mapping[str, Any], cpu: str) -> Run:
    at = {axis: np.array(run[axis], dtype=np.float64) for axis in AXES}
    families = {f: np.array(v, dtype=np.float64) for f, v in run["success"].items()}
    return Run(
        Curve(at, np.array(run["success_mean"]), families), run["final"], run.get("cpu", cpu)
    )


def joined(known: Runs, runs: Runs) -> Runs:
    """Both, by method and seed; where a run is in both, the second's."""
    methods = [*dict.fromkeys([*known, *runs])]
    return {m: dict(sorted((known.get(m, {}) | runs.get(m, {})).items())) for m in methods}


def collect_results(
    name: str, study: Study, runs: Runs, command: str, known: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Everything that the study found, with what is needed to judge and to repeat it; `known` is
    the origin of runs that were made elsewhere."""
    installation = collect()
    cpus = Counter(run.cpu for of in runs.values() for run in of.values())
    usual = cpus.most_common(1)[0][0] if cpus else ""
    return {
        "study": name,
        "title": study.title,
        "command": command,
        "machine": installation["machine"],
        "versions": {k: v for k, v in installation["versions"].items() if v},
        **git_state(find_bench_dir()),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **({"known": list(known)} if known else {}),
        "methods": {
            method: {
                "settings": dict(study.methods[method]),
                "curves": _summaries(list(runs[method].values()), usual),
                "final": _final([r.final for r in runs[method].values() if r.final is not None]),
                "runs": {str(seed): _run(run) for seed, run in runs[method].items()},
            }
            for method in study.methods
            if runs.get(method)
        },
    }


def _summaries(runs: Sequence[Run], usual: str) -> dict[str, Any]:
    """By axis; over seconds only if all runs were made on the study's usual CPU."""
    comparable = all(run.cpu == usual for run in runs)
    found = {}
    for axis in AXES if comparable else ("env_steps",):
        s = summarise([run.curve for run in runs], axis)
        found[axis] = {
            name: [round(float(v), 5) for v in values]
            for name, values in (("x", s.x), ("iqm", s.mean), ("low", s.low), ("high", s.high))
        }
    return found


def _final(done: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Interquartile mean over the runs' final evaluations, mean of the families and each."""
    if not done:
        return None

    def over_runs(scores: Sequence[float]) -> dict[str, Any]:
        table = [[score] for score in scores]  # [runs, 1]
        low, high = bootstrap_interval(table)
        return {
            "iqm": float(interquartile_mean(table)), "low": float(low), "high": float(high),
            "runs": list(scores),
        }  # fmt: skip

    return {
        "success_mean": over_runs([e["success_mean"] for e in done]),
        "success": {f: over_runs([e["success"][f] for e in done]) for f in done[0]["success"]},
        "episodes": done[0]["episodes"],
        "env_steps": done[0]["env_steps"],
        "updates": statistics.fmean(e["updates"] for e in done),
        "wall_s": statistics.fmean(e["wall_s"] for e in done),
        "cpu_s": statistics.fmean(e["cpu_s"] for e in done),
    }


def _run(run: Run) -> dict[str, Any]:
    curve = run.curve
    kept = ("success_mean", "success", "episodes", "env_steps", "updates", "wall_s", "cpu_s")
    return {
        "cpu": run.cpu,
        **{axis: curve.at[axis].tolist() for axis in AXES},
        "success_mean": curve.success.tolist(),
        "success": {family: values.tolist() for family, values in curve.families.items()},
        "steps_to": {f"{t:g}": steps_to(curve, t) for t in THRESHOLDS},
        "cpu_s_to": {f"{t:g}": steps_to(curve, t, "cpu_s") for t in THRESHOLDS},
        "final": None if run.final is None else {name: run.final[name] for name in kept},
    }


def write_results(results: Mapping[str, Any], out: Path) -> None:
    """results.json and table.md."""
    out.mkdir(parents=True, exist_ok=True)
    # A list of numbers on one line: the file is read by people too.
    text = re.sub(
        r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), json.dumps(results, indent=1)
    )
    write_text(out / "results.json", text + "\n")
    write_text(out / "table.md", table(results) + "\n")


def table(results: Mapping[str, Any]) -> str:
    """Steps to each threshold, the median over runs, and the final success, in Markdown."""
    reach = [f"steps to {100 * t:.0f} %" for t in THRESHOLDS]
    head = ["method", "runs", *reach, "CPU s to 80 %", "success at the end", "steps", "CPU s"]
    lines = [_line(head), "|" + "---|" * len(head)]
    for method, found in results["methods"].items():
        runs = list(found["runs"].values())
        cells = [_median([r["steps_to"][f"{t:g}"] for r in runs]) for t in THRESHOLDS]
        comparable = "cpu_s" in found["curves"]
        cells.append(_median([r["cpu_s_to"]["0.8"] for r in runs]) if comparable else "other CPU")
        final = found["final"]
        if final is None:
            cells += ["under way", "", ""]
        else:
            mean = final["success_mean"]
            cells += [
                f"{100 * mean['iqm']:.1f} [{100 * mean['low']:.1f}, {100 * mean['high']:.1f}]",
                f"{final['env_steps']}",
                f"{final['cpu_s']:.0f}" if comparable else "other CPU",
            ]
        lines.append(_line([method, str(len(runs)), *cells]))
    lines += [
        "",
        "Steps and CPU seconds: median over runs [least, most] until the first evaluation that "
        "good, with how many runs came there where not all did. Success in %: interquartile mean "
        "of the final evaluations [95 % stratified bootstrap interval].",
    ]
    return "\n".join(lines)


def _median(values: Sequence[float | None]) -> str:
    reached = [value for value in values if value is not None]
    if not reached:
        return "never"
    share = f", {len(reached)} of {len(values)}" if len(reached) < len(values) else ""
    # A run that never came there counts as later than all that did.
    ordered = [*sorted(reached), *[float("inf")] * (len(values) - len(reached))]
    middle = statistics.median_high(ordered)
    median = "never" if middle == float("inf") else f"{middle:.0f}"
    return f"{median} [{min(reached):.0f}, {max(reached):.0f}]{share}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

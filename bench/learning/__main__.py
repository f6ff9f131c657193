"""python -m bench.learning STUDY: run what is missing of a study, then draw what there is."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sacglam.errors import SacglamError

from .figure import draw
from .jobs import make_jobs, run_jobs
from .results import (
    collect_results,
    joined,
    read_known,
    read_runs,
    table,
    write_results,
)
from .studies import STUDIES, Study


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m bench.learning", description=__doc__)
    found.add_argument("study", choices=[*STUDIES], help="which study")
    found.add_argument("--out", type=Path, default=None, help="folder [runs/studies/STUDY]")
    found.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    found.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="other seeds")
    found.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time [1]")
    found.add_argument("--hours", type=float, help="stop and save when this time has passed")
    found.add_argument("--steps", type=int, help="environment steps of every run, to try it out")
    found.add_argument(
        "--known", type=Path, metavar="FILE",
        help="a results.json of earlier runs: they are not run again, and drawn with the others",
    )  # fmt: skip
    found.add_argument("--draw", action="store_true", help="run nothing, draw what there is")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; 0 if all its runs are done, 1 if some are left, 2 for an error."""
    arguments = parser().parse_args(argv)
    study = shortened(STUDIES[arguments.study], arguments.steps)
    out = arguments.out or Path("runs/studies") / arguments.study
    methods = arguments.methods or [*study.methods]
    unknown = [name for name in methods if name not in study.methods]
    if unknown:
        print(f"no method {unknown}; the study has {[*study.methods]}", file=sys.stderr)
        return 2
    if arguments.jobs < 1:
        print(f"--jobs is {arguments.jobs}; give at least 1", file=sys.stderr)
        return 2
    try:
        known, origins = {}, []
        if arguments.known is not None:
            known, origins = read_known(arguments.known, study)
        jobs = [
            job
            for job in make_jobs(study, out, methods, arguments.seeds or [*study.seeds])
            if job.seed not in known.get(job.method, {})
        ]
        left = [job.name for job in jobs if not job.done]
        if not arguments.draw:
            budget = None if arguments.hours is None else 3600 * arguments.hours
            left = run_jobs(jobs, parallel=arguments.jobs, budget_s=budget, say=_say)
    except SacglamError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    command = ["python", "-m", "bench.learning", *(sys.argv[1:] if argv is None else argv)]
    runs = joined(known, read_runs(jobs))
    results = collect_results(arguments.study, study, runs, shlex.join(command), origins)
    if results["methods"]:
        write_results(results, out)
        draw(results, study, out / "figure.png")
        print(f"\n{table(results)}\n\nwritten to {out}: results.json, table.md, figure.png")
    if left:
        print(f"{len(left)} of {len(jobs)} runs are not done; the same command goes on with them")
    return 1 if left else 0


def shortened(study: Study, steps: int | None) -> Study:
    """The study with another length of all runs, and about ten evaluations in each."""
    if steps is None:
        return study
    changes = {
        "total_steps": steps,
        "eval.interval": max(1, steps // 10),
        "checkpoint_interval": max(1, steps // 4),
    }
    return dataclasses.replace(
        study, methods={name: {**fields, **changes} for name, fields in study.methods.items()}
    )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""`sacglam bench`: run the suites of bench/ and put their figures into one table and one JSON."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import ConfigError, MissingDependencyError
from ..files import write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

OURS = "sacglam"
_PREFIX = "test_bench_"
_QUICK_LIMIT_S = 55.0  # then the suite is interrupted, as by Ctrl-C: what it has measured is kept
_GRACE_S = 4.0  # to write the results, before it is killed


def run_bench(
    suite: str,
    quick: bool = False,
    json_path: str | None = None,
    *,
    bench_dir: str | os.PathLike[str] | None = None,
    stream: IO[str] | None = None,
) -> int:
    """Run benchmark suites and print a table of their rows.

    Args:
        suite: a suite (`replay` is `bench/test_bench_replay.py`) or "all".
        quick: small sizes and few rounds; each suite ends within 60 s.
        json_path: also write the rows there, with the machine and the versions (bench/README.md).
        bench_dir: folder of the suites; by default the one of the checkout sacglam runs from, or
            of the checkout in the working directory.
        stream: where the table goes, standard output by default. pytest writes to stderr.

    Returns:
        0, or 1 when a benchmark failed or broke the convention; the other rows are still reported.

    Raises:
        MissingDependencyError: no bench/ folder, or pytest-benchmark is not installed.
        ConfigError: no such suite, or `json_path` cannot be written.
    """
    folder = find_bench_dir() if bench_dir is None else Path(bench_dir)
    suites = _select(suite, folder)
    missing = [m for m in ("pytest", "pytest_benchmark") if importlib.util.find_spec(m) is None]
    if missing:
        raise MissingDependencyError(
            f"benchmarks need {' and '.join(missing).replace('_', '-')}: "
            "`pip install 'sacglam[bench]'`"
        )
    target = _writable(json_path) if json_path is not None else None
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    versions: dict[str, str] = {}
    for name in suites:
        report, failure = _run_suite(folder, name, quick)
        if failure is not None:
            problems.append(failure)
        found, complaints = rows_of(name, report)
        rows += found
        problems += complaints
        versions |= report.get("versions", {})
    result = _document(rows, versions, suite, quick, folder)
    if target is not None:
        write_text(target, json.dumps(result, indent=1) + "\n")
    _print(result, problems, target, stream)
    return 1 if problems else 0


def find_bench_dir() -> Path:
    """The bench/ folder of the checkout.

    Raises:
        MissingDependencyError: sacglam was installed from a wheel, which does not hold it.
    """
    import sacglam

    checkouts = [Path.cwd()]
    if sacglam.__file__ is not None:
        checkouts.insert(0, Path(sacglam.__file__).resolve().parents[2])
    for checkout in checkouts:
        project = checkout / "pyproject.toml"
        ours = project.is_file() and 'name = "sacglam"' in project.read_text(errors="replace")
        if ours and (checkout / "bench" / "conftest.py").is_file():
            return checkout / "bench"
    raise MissingDependencyError(
        "the benchmarks are not part of an installed package: clone the repository, install it "
        "with `pip install -e '.[bench]'`, and run `sacglam bench` in the checkout"
    )


def list_suites(bench_dir: Path) -> list[str]:
    """Names of the suites in a bench/ folder."""
    return sorted(p.stem.removeprefix(_PREFIX) for p in bench_dir.glob(f"{_PREFIX}*.py"))


def rows_of(suite: str, report: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Turn pytest-benchmark's JSON into rows, our method first in each case; and say which
    benchmarks broke the convention of bench/README.md."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    floors: dict[str, dict[str, float]] = {}
    for bench in report.get("benchmarks", []):
        info = bench.get("extra_info") or {}
        case, method = info.get("case"), info.get("method")
        if not case or not method:
            problems.append(
                f"{bench.get('fullname', '?')} sets no case and method in benchmark.extra_info "
                "(bench/README.md says how)"
            )
            continue
        for least in ("floor_s", "floor_flops"):
            if info.get(least):
                floors.setdefault(case, {})[least] = float(info[least])
        measured = {
            method: {
                "median_s": float(bench["stats"]["median"]),
                "ratio_to_sacglam": 1.0 if method == OURS else None,
                "peak_bytes": info.get("peak_bytes"),
                "flops": info.get("flops"),
                "full_speed_s": info.get("full_speed_s"),
                "full_speed_share": info.get("full_speed_share"),
            },
            **(info.get("rivals") or {}),
        }
        for name, figures in measured.items():
            if any(row["case"] == case and row["method"] == name for row in rows):
                problems.append(f"case {case!r} of suite {suite!r} measures {name!r} twice")
                continue
            rows.append({"suite": suite, "case": case, "method": name, **figures})
    ours = {row["case"]: row["median_s"] for row in rows if row["method"] == OURS}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    finished = [_finish(row, ours.get(row["case"]), floors.get(row["case"], {})) for row in rows]
    finished.sort(key=lambda row: (cases.index(row["case"]), row["method"] != OURS))
    return finished, problems


def _finish(
    row: dict[str, Any], ours_s: float | None, floor: Mapping[str, float]
) -> dict[str, Any]:
    ratio, flops = row.get("ratio_to_sacglam"), row.get("flops")
    floor_s, floor_flops = floor.get("floor_s"), floor.get("floor_flops")
    if ratio is None and ours_s:
        ratio = row["median_s"] / ours_s
    return {
        "suite": row["suite"],
        "case": row["case"],
        "method": row["method"],
        "median_s": row["median_s"],
        "ratio_to_sacglam": ratio,
        "floor_ratio": row["median_s"] / floor_s if floor_s else None,
        "peak_bytes": row.get("peak_bytes"),
        "flops": flops,
        "flops_ratio": flops / floor_flops if flops and floor_flops else None,
        "full_speed_s": row.get("full_speed_s"),
        "full_speed_share": row.get("full_speed_share"),
    }


def _select(suite: str, folder: Path) -> list[str]:
    known = list_suites(folder)
    if not known:
        raise MissingDependencyError(
            f"{str(folder)!r} holds no suite (a file named {_PREFIX}<suite>.py)"
        )
    if suite == "all":
        return known
    if suite in known:
        return [suite]
    close = difflib.get_close_matches(suite, known, n=3)
    hint = f"; near: {', '.join(close)}" if close else ""
    raise ConfigError(f"no suite {suite!r}{hint}. Suites: {', '.join(known)}, or all")


def _run_suite(folder: Path, suite: str, quick: bool) -> tuple[dict[str, Any], str | None]:
    """Run one suite in a process of its own; its report, and what went wrong."""
    path = folder / f"{_PREFIX}{suite}.py"
    # In a worker of pytest-xdist, pytest-benchmark would measure nothing.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    environment["SACGLAM_BENCH_QUICK"] = "1" if quick else "0"
    with tempfile.TemporaryDirectory(prefix="sacglam-bench-") as scratch:
        report = Path(scratch) / "report.json"
        command = [
            sys.executable, "-m", "pytest", str(path), "--rootdir", str(folder.parent),
            "--import-mode=importlib", "-p", "no:cacheprovider", "-q", "--no-header", "-rfEs",
            "--benchmark-quiet", "--benchmark-json", str(report),
        ]  # fmt: skip
        # stdout=2: what pytest says goes to stderr, the table alone to stdout.
        process = subprocess.Popen(command, env=environment, stdout=2, cwd=folder.parent)
        failure = None
        try:
            code = process.wait(timeout=_QUICK_LIMIT_S if quick else None)
        except subprocess.TimeoutExpired:
            code = _interrupt(process)
            failure = f"suite {suite!r} was stopped after {_QUICK_LIMIT_S:.0f} s (quick mode)"
        except BaseException:  # Ctrl-C reaches pytest as well; do not leave it behind
            _interrupt(process)
            raise
        found: dict[str, Any] = {}
        try:
            found = json.loads(report.read_text() or "{}")
        except FileNotFoundError:
            # Nothing was measured: every benchmark was skipped, or pytest did not get there.
            # pytest-benchmark below 5.3 leaves an empty file.
            pass
        except json.JSONDecodeError as error:
            failure = failure or f"suite {suite!r}: its results are damaged ({error})"
    if failure is None and code != 0:
        reason = {1: "a benchmark failed", 5: "it holds no benchmark"}
        failure = f"suite {suite!r}: {reason.get(code, f'pytest ended with status {code}')}"
    return found, failure


def _interrupt(process: subprocess.Popen[bytes]) -> int:
    """End pytest as Ctrl-C does, so that it writes what it has; kill it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _document(
    rows: list[dict[str, Any]], versions: dict[str, str], suite: str, quick: bool, folder: Path
) -> dict[str, Any]:
    from ..report.doctor import collect

    installation = collect()
    known = {name: value for name, value in installation["versions"].items() if value}
    command = ["sacglam", "bench", suite, *(["--quick"] if quick else [])]
    return {
        "machine": installation["machine"],
        "versions": {**versions, **known},
        **git_state(folder),
        "command": shlex.join(command),
        "quick": quick,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows": rows,
    }


def git_state(folder: Path) -> dict[str, Any]:
    """ "commit" of the checkout that holds `folder`, and "dirty", whether its files were changed
    since; None outside of a checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if commit is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says about the checkout that holds `folder`, or None outside of one."""
    if not (folder.parent / ".git").exists():
        return None  # another repository further up is not ours
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder.parent, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _writable(json_path: str) -> Path:
    """Refuse a path that cannot be written before measuring, not after."""
    path = Path(json_path)
    if path.is_dir():
        raise ConfigError(f"--json is {json_path!r}, a folder: give the name of a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--json is {json_path!r}: its folder is missing or not writable")
    return path


def _print(
    result: Mapping[str, Any], problems: list[str], target: Path | None, stream: IO[str] | None
) -> None:
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if result["rows"]:
        console.print(bench_table(result["rows"]))
    else:
        console.print("nothing was measured")
    for problem in problems:
        console.print(f"problem: {problem}", markup=False, style="red", soft_wrap=True)
    if target is not None:
        console.print(f"written to {target}", markup=False, soft_wrap=True)


def bench_table(rows: list[dict[str, Any]]) -> RenderableType:
    """Rows of the JSON as a table; nothing is printed."""
    from rich.table import Table
    from rich.text import Text

    from ..report.text import compact, seconds, size

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("suite", "case", "method"):
        table.add_column(heading, overflow="fold")
    counted = any(row["flops_ratio"] for row in rows)
    for heading in ("median", "ratio", "x floor", *(["x FLOPs"] if counted else []), "peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    before: tuple[str, str] | None = None
    for row in rows:
        where = (row["suite"], row["case"])
        suite, case = ("", "") if where == before else where
        if before is not None and before[0] == row["suite"]:
            suite = ""
        before = where
        table.add_row(
            Text(suite),
            Text(case),
            Text(row["method"], style="bold" if row["method"] == OURS else ""),
            seconds(row["median_s"]),
            compact(row["ratio_to_sacglam"]),
            compact(row["floor_ratio"]),
            *([compact(row["flops_ratio"])] if counted else []),
            size(row["peak_bytes"]),
        )
        if row["full_speed_s"]:
            share = f"in {row['full_speed_share']:.0%}, at full speed"
            table.add_row("", "", share, seconds(row["full_speed_s"]), style="dim")
    return table

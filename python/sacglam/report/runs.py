"""Read a run's folder: config.yaml, metrics.jsonl, eval.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from ..files import read_json, shell_word
from .text import number


@dataclass(frozen=True)
class Run:
    """What a folder says about its run."""

    folder: Path
    config: dict[str, Any]  # {} where config.yaml is missing
    metrics: list[dict[str, Any]]  # by increasing env_steps, at least one
    evaluation: dict[str, Any] | None  # eval.json, when the run has been evaluated
    damaged_lines: int  # lines of metrics.jsonl that could not be read

    @property
    def final(self) -> dict[str, Any] | None:
        """The evaluation, unless the run went on after it."""
        known = self.evaluation or {}
        at = number(known.get("env_steps"))
        return None if at is not None and at < self.metrics[-1]["env_steps"] else known or None

    @property
    def evaluations(self) -> int:
        """How often the run has been evaluated while training."""
        return sum(isinstance(row.get("eval"), dict) for row in self.metrics)

    def settled(self) -> list[dict[str, Any]]:
        """The metrics from when as many episodes have ended as there are environments: of those
        under way, short ones end first, and these are mostly successes. All, where fewer than two
        log lines would be left."""
        env = self.config.get("env")
        least = (number(env.get("num_envs")) if isinstance(env, dict) else None) or 0
        rows = [row for row in self.metrics if (number(row.get("episodes")) or 0) >= least]
        return rows if len(rows) > 1 else self.metrics

    def families(self) -> list[str]:
        """Every goal family with a success rate, in order of first appearance."""
        seen: dict[str, None] = {}
        for row in self.metrics:
            for source in (row, row.get("eval")):
                if isinstance(source, dict) and isinstance(source.get("success"), dict):
                    seen.update(dict.fromkeys(map(str, source["success"])))
        return list(seen)


def read_run(folder: str | PathLike[str]) -> Run:
    """Read the run in `folder`.

    Lines of metrics.jsonl that a killed process left half-written are skipped and counted. Where
    env_steps goes back, the run was resumed from an older checkpoint: what was logged after that
    checkpoint is superseded and dropped.

    Raises:
        RunFolderError: no such folder, not a run's folder, no log interval yet, or a damaged
            config.yaml or eval.json.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunFolderError(
            f"no run's folder at {str(path)!r}{_nearby(path.parent, path.name)}: give the folder "
            f"that was passed to `sacglam train --out`"
        )
    log = path / "metrics.jsonl"
    if not log.is_file():
        raise RunFolderError(
            f"{str(path)!r} is not a run's folder: it holds no metrics.jsonl"
            f"{_inside(path)}: give the folder that was passed to `sacglam train --out`"
        )
    metrics, damaged = _read_metrics(log)
    if not metrics:
        problem = "holds no log interval yet" if damaged == 0 else "is not a log of sacglam"
        raise RunFolderError(
            f"{str(log)!r} {problem} ({damaged} unreadable lines): wait for the first log "
            f"interval of the run, or continue it with `sacglam train --resume "
            f"{shell_word(path)}`"
        )
    return Run(path, _read_config(path), metrics, _read_evaluation(path), damaged)


def _read_metrics(log: Path) -> tuple[list[dict[str, Any]], int]:
    rows: list[dict[str, Any]] = []
    damaged = 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            damaged += 1
            continue
        steps = number(row.get("env_steps")) if isinstance(row, dict) else None
        if steps is None:
            damaged += 1
            continue
        while rows and rows[-1]["env_steps"] >= steps:
            rows.pop()
        rows.append(row)
    return rows, damaged


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{str(path)!r} cannot be read as YAML: {error}") from error
    return config if isinstance(config, dict) else {}


def _read_evaluation(folder: Path) -> dict[str, Any] | None:
    path = folder / "eval.json"
    if not path.is_file():
        return None
    try:
        evaluation = read_json(path)
    except ValueError as error:
        raise RunFolderError(
            f"{str(path)!r} is damaged ({error}): evaluate again with `sacglam eval "
            f"{shell_word(folder)}`"
        ) from error
    return evaluation if isinstance(evaluation, dict) else None


def _nearby(parent: Path, name: str) -> str:
    import difflib

    if not parent.is_dir():
        return ""
    runs = [p.parent.name for p in parent.glob("*/metrics.jsonl")]
    close = difflib.get_close_matches(name, runs, n=3, cutoff=0.5)
    return f" (near: {', '.join(str(parent / match) for match in close)})" if close else ""


def _inside(folder: Path) -> str:
    runs = sorted(str(p.parent) for p in folder.glob("*/metrics.jsonl"))
    if not runs:
        return ""
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f", but there are runs below it: {', '.join(runs[:3])}{more}"

"""Which runs are repetitions of each other, and what sets the others apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .runs import Run

# What may differ between runs that are repetitions of each other: nothing here changes what an
# environment step teaches.
_REPETITION_KEYS = {
    "seed", "out", "device", "threads", "total_steps", "log_interval", "checkpoint_interval",
    "checkpoint_minutes", "keep_checkpoints", "env.processes", "optim.micro_batch",
    "eval.interval", "eval.episodes", "eval.interval_episodes",
}  # fmt: skip

# Fields, or sections of them, that an algorithm does not use (docs/algorithms.md).
_UNUSED = {
    "sac": ("ppo",),
    "ppo": (
        "sac", "replay", "critic.kind", "critic.heads", "critic.layers", "critic.huber",
        "optim.batch_size", "optim.actor_weight", "learning_starts", "steps_per_update",
        "critic_warmup",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    label: str
    runs: list[Run]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs that differ by their seed alone together; name each group by what sets it apart, the
    algorithm first. Fields that a run's algorithm does not use count for neither.

    Runs without a config.yaml stay alone and are named after their folder.
    """
    keyed: dict[Any, list[Run]] = {}
    settings: list[dict[str, str]] = []
    for position, run in enumerate(runs):
        same = taught(run)
        key = tuple(sorted(same.items())) if same else position
        if key not in keyed:
            settings.append(same)
        keyed.setdefault(key, []).append(run)
    apart = names_apart(settings)
    groups = []
    for members, setting in zip(keyed.values(), settings, strict=True):
        label = _apart_label(apart, setting) or _folder_name(members[0])
        groups.append(Group(f"{label}, {seeds_label(members)}", members))
    return groups


def taught(run: Run) -> dict[str, str]:
    """The fields of a run's configuration that say what it learns from, and how: those that are
    set, that its algorithm uses, and that repetitions have in common."""
    flat = _flatten(run.config)
    return {
        name: value
        for name, value in flat.items()
        # A field that is null is as one that an older configuration does not have.
        if name not in _REPETITION_KEYS and value != "None" and _uses(flat, name)
    }


def names_apart(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The fields that are not the same in all of them, the algorithm first."""
    names = list(dict.fromkeys(name for setting in settings for name in setting))
    names.sort(key=lambda name: name != "algo")
    return [n for n in names if len({s.get(n) for s in settings if _uses(s, n)}) > 1]


def _uses(setting: Mapping[str, str], name: str) -> bool:
    """Whether the algorithm of a flat configuration uses the field."""
    unused = _UNUSED.get(setting.get("algo", "sac"), ())
    return not any(name == field or name.startswith(f"{field}.") for field in unused)


def _apart_label(apart: list[str], setting: Mapping[str, str]) -> str:
    parts = []
    for name in apart:
        if not _uses(setting, name):
            continue
        value = setting.get(name, "unset")
        # Environments and models speak for themselves; the rest reads like the flag it is.
        section = name.removesuffix(".id")
        if section in ("env", "model"):
            parts.append(_short(section, value))
        else:
            parts.append(f"{name}={_brief(value)}")
    if len(parts) > 3:
        more = len(parts) - 3
        parts = [*parts[:3], f"{more} more {'differences' if more > 1 else 'difference'}"]
    return ", ".join(parts)


def _brief(value: str) -> str:
    """A value for a legend: both ends of a long one, which may differ in either."""
    return value if len(value) <= 30 else f"{value[:14]}...{value[-13:]}"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _setting(run: Run, name: str) -> str | None:
    """A field of the configuration, or the `id` of a section."""
    flat = _flatten(run.config)
    return flat.get(f"{name}.id", flat.get(name))


def seeds_label(runs: Sequence[Run]) -> str:
    """What names the runs of a group: their seed, or their number where there are several."""
    if len(runs) > 1:
        seeds = {_setting(run, "seed") for run in runs}
        return f"{len(runs)} {'seeds' if len(seeds) == len(runs) else 'runs'}"
    seed = _setting(runs[0], "seed")
    return "1 run" if seed is None else f"seed {seed}"


def _folder_name(run: Run) -> str:
    return run.folder.resolve().name


def common_setting(runs: Sequence[Run]) -> str:
    """The environment and the model, where all runs have them in common."""
    parts = []
    for name in ("env", "model"):
        values = {_setting(run, name) for run in runs}
        if len(values) == 1 and (value := values.pop()) is not None:
            parts.append(_short(name, value))
    return ", ".join(parts)


def _short(section: str, value: str) -> str:
    """An environment's id, or of a model, which may be a folder, the last part."""
    return value.rstrip("/").rpartition("/")[2] if section == "model" else value

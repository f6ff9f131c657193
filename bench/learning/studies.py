"""The named studies: which settings are compared, on what, for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sacglam.training.demo import SETTINGS

Overrides = Mapping[str, Any]

# The demo's settings, for every method that is not about one of them.
SMALL: Overrides = {
    **SETTINGS,
    "checkpoint_interval": 10_000,
    "keep_checkpoints": 1,
    "eval.interval": 1000,
    "eval.interval_episodes": 100,
    "eval.episodes": 300,
}
SAC: Overrides = {**SMALL, "total_steps": 16_000}
# The base of the study "ppo", which one other setting beats a little (docs/settings.md).
PPO: Overrides = {
    **SMALL,
    "algo": "ppo",
    "ppo.gamma": 0.9,
    "ppo.gae_lambda": 0.95,
    "total_steps": 40_000,
    "eval.interval": 2000,
}
ZOO: Overrides = {
    **SMALL,
    "env.id": "playground/zoo",
    "sac.gamma": 0.9,
    "sac.subgoals": 0.5,
    "replay.capacity": 5000,
    "total_steps": 30_000,
    "eval.interval": 2500,
    "eval.interval_episodes": 200,
    "eval.episodes": 400,
}
# Half as long: where methods still differ.
ABLATED: Overrides = {**SAC, "total_steps": 8000}
# Half as long again: to reencode takes five times as long.
T5: Overrides = {**SAC, "total_steps": 4000, "model.id": "tiny-t5"}


@dataclass(frozen=True)
class Study:
    """Methods compared on the same environment.

    Attributes:
        title: what the figure shows.
        methods: name in the figure -> fields of `TrainConfig`, all that are not defaults.
        seeds: of each method.
        panels: heading -> methods drawn together; empty: all in one.
    """

    title: str
    methods: Mapping[str, Overrides]
    seeds: Sequence[int]
    panels: Mapping[str, Sequence[str]] = field(default_factory=dict)


def _ablations() -> Study:
    base = "default"
    groups: dict[str, dict[str, Overrides]] = {
        "Q functions": {"single Q": {"critic.heads": 1}},
        "n-step": {"n = 1": {"sac.n_step": 1}, "n = 5": {"sac.n_step": 5}},
        "update ratio": {
            "one update per 2 steps": {"steps_per_update": 2.0},
            "one update per 8 steps": {"steps_per_update": 8.0},
        },
        "hindsight ratio": {
            "ratio 0.25": {"replay.her_ratio": 0.25},
            "ratio 0.75": {"replay.her_ratio": 0.75},
        },
        "goals of any episode": {
            "none": {"replay.her_random": 0.0},
            "none, ratio 0.25": {"replay.her_random": 0.0, "replay.her_ratio": 0.25},
            "a quarter": {"replay.her_random": 0.25},
        },
        "capacity": {
            "1000 steps": {"replay.capacity": 1000},
            "10000 steps": {"replay.capacity": 10_000},
            "all": {"replay.capacity": 100_000},
        },
        "exploration": {
            "explore 0": {"sac.explore": 0.0},
            "explore 0.1": {"sac.explore": 0.1},
            "subgoals 0.5": {"sac.subgoals": 0.5},
        },
        "hindsight strategy": {
            name: {"replay.her_strategy": name} for name in ("final", "episode", "random")
        },
        "hindsight balance": {"by event": {"replay.her_balance": "events"}},
        "sampling": {
            "by episode": {"replay.sampling": "episodes"},
            "prioritised": {"replay.sampling": "prioritised"},
        },
        "temperature": {
            "alpha 0.003": {"sac.alpha": 0.003},
            "alpha 0.03": {"sac.alpha": 0.03},
            "alpha learned": {"sac.learn_alpha": True},
        },
        "score": {"raw logit": {"policy.score": "raw_logit"}},
        "policy at s'": {"the current one": {"sac.target_policy": False}},
    }
    methods: dict[str, Overrides] = {base: ABLATED}
    panels: dict[str, list[str]] = {}
    for heading, group in groups.items():
        methods.update({name: {**ABLATED, **changes} for name, changes in group.items()})
        panels[heading] = [base, *group]
    return Study("Ablations, playground/small", methods, range(3), panels)


def _ppo_search() -> Study:
    changes: dict[str, Overrides] = {
        "base": {},
        "GLAM": {"ppo.gamma": 0.99, "ppo.gae_lambda": 0.99},
        "gamma 0.8": {"ppo.gamma": 0.8},
        "lambda 0.8": {"ppo.gae_lambda": 0.8},
        "entropy 0.03": {"ppo.entropy_weight": 0.03},
        "entropy 0.1": {"ppo.entropy_weight": 0.1},
        "lr 5e-4": {"optim.lr": 5e-4},
        "lr 3e-3": {"optim.lr": 3e-3},
        "mean score": {"policy.reduce": "mean"},
        "rollout 10": {"ppo.rollout": 10},
        "minibatch 256": {"ppo.minibatch": 256},
        "8 epochs": {"ppo.epochs": 8},
    }
    methods = {name: {**PPO, **change} for name, change in changes.items()}
    return Study("PPO's settings, playground/small", methods, range(1))


STUDIES: Mapping[str, Study] = {
    "small": Study(
        "Playground-Text (small)",
        {
            "SAC + HER": SAC,
            "SAC + HER, twice the updates": {**ABLATED, "steps_per_update": 2.0},
            "SAC": {**SAC, "replay.her_strategy": "none"},
            "PPO": PPO,
        },
        range(5),
    ),
    "zoo": Study(
        "Playground-Text (zoo)",
        {
            "SAC + HER": ZOO,
            "SAC": {**ZOO, "replay.her_strategy": "none"},
            "SAC + HER, no subgoals": {**ZOO, "sac.subgoals": 0.0},
            # What the paper calls SAC: neither of the two ways of using other goals.
            "SAC, no subgoals": {**ZOO, "replay.her_strategy": "none", "sac.subgoals": 0.0},
        },
        range(3),
    ),
    "ppo": _ppo_search(),
    "ablations": _ablations(),
    "critic": Study(
        "Where the critic reads, encoder-decoder",
        {"leaf": T5, "reencode": {**T5, "critic.kind": "reencode"}},
        range(3),
    ),
}

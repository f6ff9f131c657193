"""Settings by name, published or our own: fields of `TrainConfig` that differ from its defaults.

They say how the agent learns, not what: environment, model and length of the run are free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# The code of SAC-GLAM's authors for MAGELLAN (arXiv 2502.07709). Its faults are not repeated: the
# targets' action sets, time limits and duplicate candidates are right here. entropy_share = 0
# stands for its target entropy, which makes alpha only fall.
_MAGELLAN: dict[str, Any] = {
    "prompt.instruction": "",
    "policy.score": "raw_logit",
    "policy.reduce": "sum",
    "critic.kind": "reencode",
    "critic.heads": 1,
    "critic.layers": [1024, 1024],
    "sac.gamma": 0.99,
    "sac.n_step": 3,
    "sac.explore": 0.0,
    "sac.target_policy": False,
    "sac.alpha": math.exp(-3.0),
    "sac.learn_alpha": True,
    "sac.entropy_share": 0.0,
    "sac.alpha_lr": 1e-3,
    "sac.target_rate": 0.005,
    "replay.capacity": 500_000,
    "replay.her_strategy": "none",
    "optim.lr": 1e-4,
    "optim.grad_clip": math.inf,
    "optim.batch_size": 256,
    "optim.warmup_updates": 0,
    "optim.final_lr": 1.0,
    "env.num_envs": 32,
    "steps_per_update": 64.0,
    "critic_warmup": 10,
}

# SAC-GLAM (arXiv 2410.12481): scores are log-probabilities, and goals are relabeled in hindsight,
# with the ratio of HER's paper. For what we do not have from its text, its authors' code stands in.
_PAPER: dict[str, Any] = {
    **_MAGELLAN,
    "policy.score": "logprob",
    "replay.her_strategy": "future",
    "replay.her_ratio": 0.8,
    "replay.her_random": 0.0,
    "replay.her_balance": "events",
}

# GLAM (arXiv 2302.02662): PPO, with what its paper lists.
_GLAM: dict[str, Any] = {
    "algo": "ppo",
    "policy.score": "logprob",
    "policy.reduce": "sum",
    "env.num_envs": 32,
    "ppo.gamma": 0.99,
    "ppo.gae_lambda": 0.99,
    "ppo.rollout": 40,
    "ppo.epochs": 4,
    "ppo.minibatch": 64,
    "ppo.clip": 0.2,
    "ppo.entropy_weight": 0.01,
    "ppo.value_weight": 0.5,
    "ppo.value_layers": [1024, 1024, 1024],
    "optim.lr": 1e-6,
    "optim.grad_clip": 0.5,
    "optim.warmup_updates": 0,
    "optim.final_lr": 1.0,
    "lora.r": 0,
}

# Ours, found on babyai/GoToLocal with tiny-t5 (docs/settings.md). Several steps in one return would
# make any action before an achievement look good, once the goal is what was achieved.
_BABYAI: dict[str, Any] = {
    "model.heads": 8,
    "prompt.history": 0,
    "sac.n_step": 1,
    "sac.alpha": 0.005,
    "sac.explore": 0.3,
    "sac.target_rate": 0.03,
    "replay.her_ratio": 0.8,
    "replay.her_random": 0.25,
    "optim.lr": 7e-4,
    "steps_per_update": 8.0,
    "eval.greedy": False,
    "eval.temperature": 2.0,  # one who does not remember goes to and fro otherwise
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": _PAPER,
    "magellan": _MAGELLAN,
    "glam": _GLAM,
    "babyai": _BABYAI,
}

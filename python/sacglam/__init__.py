"""sacglam: a fast trainer for SAC-GLAM, soft actor-critic with hindsight relabeling for
language-model agents.

    from sacglam import TrainConfig, Trainer, load_policy

Names are imported on first use, so that `import sacglam` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import TrainConfig as TrainConfig
    from .envs import check_env as check_env
    from .envs import list_envs as list_envs
    from .envs import make_env as make_env
    from .envs import register_env as register_env
    from .errors import SacglamError as SacglamError
    from .models.forest import Forest as Forest
    from .models.options import PolicyOptions as PolicyOptions
    from .models.policy import CandidateScore as CandidateScore
    from .models.policy import Policy as Policy
    from .models.scoring import Scores as Scores
    from .replay import ReplayBuffer as ReplayBuffer
    from .text import PromptTemplate as PromptTemplate
    from .training.callbacks import Callback as Callback
    from .training.check import TrainingCheck as TrainingCheck
    from .training.check import check_training as check_training
    from .training.episode import EpisodeResult as EpisodeResult
    from .training.playing import play_episodes as play_episodes
    from .training.policies import load_policy as load_policy
    from .training.reevaluation import evaluate_run as evaluate_run
    from .training.result import TrainResult as TrainResult
    from .training.trainer import Trainer as Trainer

_WHERE = {
    "Callback": "training.callbacks",
    "CandidateScore": "models.policy",
    "EpisodeResult": "training.episode",
    "Forest": "models.forest",
    "Policy": "models.policy",
    "PolicyOptions": "models.options",
    "PromptTemplate": "text",
    "ReplayBuffer": "replay",
    "SacglamError": "errors",
    "Scores": "models.scoring",
    "TrainConfig": "config",
    "TrainResult": "training.result",
    "Trainer": "training.trainer",
    "TrainingCheck": "training.check",
    "check_env": "envs",
    "check_training": "training.check",
    "evaluate_run": "training.reevaluation",
    "list_envs": "envs",
    "load_policy": "training.policies",
    "make_env": "envs",
    "play_episodes": "training.playing",
    "register_env": "envs",
}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sacglam' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

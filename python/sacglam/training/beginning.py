"""Training that begins with the weights of another run, for other goals, environments or rates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..errors import ConfigError
from ..models.device import usable
from ..models.policy import Policy
from ..models.tiny import TINY
from .policies import load_policy


def begun_from(
    config: TrainConfig, model: tuple[Any, Any] | None
) -> tuple[TrainConfig, Policy | None]:
    """The policy of `init_from`, and the configuration with what follows from it; None without.

    Fields that are left open are those of that run: its adapters, its score and its learning rate.

    Raises:
        ConfigError: a model is given, too, or its score is another one.
        CheckpointError, UnknownModelError: there is no policy.
    """
    if config.init_from is None:
        return config, None
    if model is not None:
        raise ConfigError("a model and init_from are given, and both are what training begins with")
    device = usable(config.device)
    source = Path(config.init_from)
    begun = load_policy(source, device=device, trust_remote_code=config.model.trust_remote_code)
    options = begun.options
    for name in ("score", "reduce", "temperature"):
        asked, has = getattr(config.policy, name), getattr(options, name)
        if asked not in (None, has):
            raise ConfigError(
                f"policy.{name} is {asked!r}, but {source} was trained with {has!r}: its choices "
                f"would be others from the first step on; set policy.{name} to {has!r}"
            )
    found: dict[str, Any] = {"device": device, "policy.reduce": options.reduce}
    if config.lora.r is None and not begun.is_lora:
        found["lora.r"] = 0
    if (source / "config.yaml").is_file():
        before = TrainConfig.load(source / "config.yaml")
        if config.optim.lr is None:
            found["optim.lr"] = before.optim.lr
        if config.model.id in TINY and before.model.id not in TINY:
            found["model.id"] = before.model.id
    return config.with_overrides(found), begun


def keep_heads(policy: Policy, begun: Policy) -> None:
    """Give a policy the Q heads (or V) of the one that it began with, where they are alike."""
    if policy.options.critic == begun.options.critic:
        heads = begun.heads.state_dict()
        own = policy.heads.state_dict()
        if {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in heads.items()}:
            policy.heads.load_state_dict(heads)
            return
    warnings.warn(
        "the critic's heads begin anew: those of init_from are of another kind or shape",
        RuntimeWarning,
        stacklevel=2,
    )

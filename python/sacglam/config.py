"""The configuration of a run: nested frozen dataclasses, one comment a field with unit and source.

"paper" is SAC-GLAM (arXiv 2410.12481) or, where it is silent, its authors' code; "GLAM" is PPO-GLAM
(arXiv 2302.02662); "ours" was found by experiment (docs/settings.md).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .files import write_text
from .presets import PRESETS


@dataclass(frozen=True)
class EnvConfig:
    id: str = "playground/small"  # registered environment; `sacglam doctor` lists them
    kwargs: dict[str, Any] = field(default_factory=dict)  # for the environment's constructor
    num_envs: int = 16  # environments stepped together, one scoring pass for all
    processes: int = 0  # worker processes; 0 steps in this process (ours: fastest above 1k steps/s)
    split: str = "train"  # which goals are trained on, for environments that split them
    max_steps: int | None = None  # time limit of every episode [steps]; null: the environment's own


@dataclass(frozen=True)
class ModelConfig:
    id: str = "tiny-llama"  # hub id, local folder, or tiny-t5 / tiny-llama
    dtype: str | None = None  # float32 (null), bfloat16, float64; null: a given model's own
    attn: str = "fast"  # fast, or reference: the simplest code that is right
    cuda_graphs: bool = True  # on a GPU, launch a whole pass at once
    trust_remote_code: bool = False  # run code that comes with the model
    hidden_size: int = 64  # tiny models only
    layers: int = 2  # tiny models only
    heads: int = 4  # tiny models only
    feed_forward: int = 128  # tiny models only


@dataclass(frozen=True)
class LoraConfig:
    r: int | None = None  # rank; 0 trains the whole model; null: 0 for tiny models, else 16 (paper)
    alpha: int = 32  # scaling (paper)
    target_modules: list[str] | None = None  # null: q and v (paper), as peft; or [all-linear]


@dataclass(frozen=True)
class PromptConfig:
    history: int | None = None  # earlier steps shown; null: what the environment asks for
    list_actions: bool = False  # write the admissible actions into the prompt
    instruction: str | None = None  # first line; null: the environment's own
    chat: bool = False  # as a user's message, by the tokenizer's chat template


@dataclass(frozen=True)
class PolicyConfig:
    score: str = "logprob"  # or raw_logit, the sum of raw logits (the authors' code)
    reduce: str | None = None  # sum over the tokens (GLAM) or mean; null: mean for tiny models
    temperature: float = 1.0  # tau of the softmax over candidates


@dataclass(frozen=True)
class CriticConfig:
    kind: str = "leaf"  # Q at the action's last token; reencode: both encoded afresh (paper)
    trunk: str = "shared"  # or adapter: a LoRA adapter of its own
    gradient: bool = True  # whether its gradient enters a shared trunk
    heads: int = 2  # Q functions; 2: twin (SAC), 1: the authors' code
    layers: list[int] = field(default_factory=lambda: [128])  # hidden widths of the Q heads
    huber: float | None = None  # Huber threshold; null: squared error


@dataclass(frozen=True)
class SacConfig:
    gamma: float = 0.9  # discount per step (ours; paper 0.99)
    n_step: int = 3  # steps of the return (paper)
    explore: float = 0.1  # share of uniformly random actions while collecting (ours; paper 0)
    subgoals: float = 0.0  # share of episodes that first pursue another goal within reach (ours)
    alpha: float = 0.01  # temperature, its first value if learned (ours)
    learn_alpha: bool = False  # drive the entropy toward entropy_share * log K
    entropy_share: float = 0.3  # c in c log K
    alpha_lr: float = 1e-3  # learning rate of log alpha (paper)
    target_rate: float = 0.02  # EMA rate of the target per update (ours; paper 0.005)
    target_policy: bool = True  # pi at s' from the target parameters: one pass less (ours)
    prior: bool = False  # KL to the frozen model's own policy instead of entropy (LINVIT)


@dataclass(frozen=True)
class PpoConfig:
    gamma: float = 0.99  # discount per step (GLAM)
    gae_lambda: float = 0.99  # lambda of the advantages (GLAM)
    rollout: int = 40  # steps of each environment between updates (GLAM)
    epochs: int = 4  # passes over a rollout (GLAM)
    minibatch: int = 64  # transitions an update (GLAM)
    clip: float = 0.2  # largest change of the probability ratio that pays (GLAM)
    entropy_weight: float = 0.01  # factor of the entropy bonus (GLAM)
    value_weight: float = 0.5  # factor of the value's loss (GLAM)
    value_layers: list[int] = field(default_factory=lambda: [128])  # hidden widths of the V head
    normalise: bool = True  # advantages to mean 0 and deviation 1, by minibatch
    target_kl: float | None = None  # no further epoch once the policy moved so far [nats]


@dataclass(frozen=True)
class ReplayConfig:
    capacity: int = 200_000  # steps
    capacity_bytes: int | None = None  # of steps and their texts; null: no limit, texts are kept
    her_strategy: str = "future"  # future, final, episode, random, none
    her_ratio: float = 0.5  # share of relabeled rows (ours; HER paper 0.8)
    her_random: float = 0.5  # share of the relabeled rows with a goal of any episode
    her_balance: str = "goals"  # each goal an equal share (ours), or events
    her_reward: float = 1.0  # for reaching a goal in hindsight: what the environment pays
    sampling: str = "transitions"  # uniform over them, over episodes, or prioritised by TD error
    priority_exponent: float = 0.6  # alpha of prioritised replay (Schaul et al. 2016)
    priority_beta: float = 0.4  # of its importance weights at first, rising to 1 (likewise)


@dataclass(frozen=True)
class OptimConfig:
    lr: float | None = None  # AdamW; null: 1.5e-3 for tiny models (ours), else 1e-4 (paper)
    head_lr: float | None = None  # Q heads; null: lr
    weight_decay: float = 0.0  # AdamW
    grad_clip: float = 1.0  # largest gradient norm
    batch_size: int = 64  # transitions an update
    micro_batch: int = 0  # rows of an update in one pass, for less memory; 0: all (ours)
    warmup_updates: int = 100  # linear warm-up of the learning rate
    final_lr: float = 0.1  # share of the learning rate left at the end, falling linearly (ours)
    actor_weight: float = 1.0  # factor of the actor's loss beside the critic's (shared trunk)


@dataclass(frozen=True)
class EvalConfig:
    interval: int = 0  # environment steps between evaluations while training; 0: only at the end
    episodes: int = 300  # episodes of the final evaluation
    interval_episodes: int = 100  # episodes of those while training
    greedy: bool = True  # the most probable action, or sample
    temperature: float = 1.0  # of sampled actions: drawn from pi^(1 / temperature)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run. Validated on construction; raises ConfigError."""

    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    sac: SacConfig = field(default_factory=SacConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    algo: str = "sac"  # sac, or ppo: the on-policy baseline (PPO-GLAM)
    total_steps: int = 20_000  # environment steps, all environments together
    learning_starts: int = 500  # environment steps before the first update
    steps_per_update: float = 4.0  # environment steps per gradient update
    critic_warmup: int = 0  # first updates that train the critic only (authors' code: 10)
    log_interval: int = 500  # environment steps between lines of metrics.jsonl
    checkpoint_interval: int = 10_000  # environment steps between checkpoints
    checkpoint_minutes: float = 15.0  # and at most so long between two; 0: steps alone decide
    keep_checkpoints: int = 2  # older ones are deleted
    init_from: str | None = None  # a run or saved policy whose weights training begins with
    seed: int = 0  # of weights, episodes, actions and draws
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU, or where a given model is
    threads: int = 0  # torch's CPU threads, of the whole process; 0: torch's choice
    out: str = "runs/run"  # the run's folder

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(TrainConfig).items():
            object.__setattr__(self, name, coerce(name, getattr(self, name), kind))
        _validate(self)

    def updates_due(self, env_steps: int) -> int:
        """How many updates SAC makes in its first `env_steps` environment steps."""
        return max(0, int((env_steps - self.learning_starts) / self.steps_per_update))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain types, as written to config.yaml."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TrainConfig:
        """From nested plain types; unknown names raise ConfigError with near matches."""
        _refuse_unknown(TrainConfig, values, "")
        return TrainConfig(**values)

    @staticmethod
    def preset(name: str) -> TrainConfig:
        """The defaults with published settings in their place: a name of `presets.PRESETS`."""
        if name not in PRESETS:
            raise ConfigError(f"no preset is named {name!r}; choose one of {', '.join(PRESETS)}")
        return TrainConfig().with_overrides(PRESETS[name])

    def merged(self, values: Mapping[str, Any]) -> TrainConfig:
        """A copy with what `values`, nested plain types, hold instead; raises as `from_dict`."""
        return TrainConfig.from_dict(_merged(TrainConfig, self.to_dict(), values))

    def save(self, path: str | Path) -> None:
        """Write YAML; raises ConfigError if `env.kwargs` holds what YAML cannot."""
        import yaml

        try:
            text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"env.kwargs cannot be written to {path}: {error}. Give texts, numbers, lists and "
                "mappings, and make the rest in a function: Trainer(config, env=lambda: MyEnv(...))"
            ) from error
        write_text(Path(path), text)

    @staticmethod
    def load(path: str | Path) -> TrainConfig:
        """Read YAML written by `save` or by hand (missing fields keep their defaults)."""
        return TrainConfig.from_dict(read_yaml(path))

    def with_overrides(self, overrides: Mapping[str, Any]) -> TrainConfig:
        """A copy with dotted names replaced, e.g. {"sac.alpha": 0.02}."""
        values = self.to_dict()
        for name, value in overrides.items():
            *groups, last = name.split(".")
            target: Any = values
            for group in groups:
                target = target.get(group)
                if not isinstance(target, dict):
                    raise _unknown(name)
            target[last] = value
        return TrainConfig.from_dict(values)


# Of what is no text of UTF-8, no date (2026-13-45), too long a number, or nested too deeply.
NOT_A_VALUE = (ValueError, RecursionError)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping; raises ConfigError."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, *NOT_A_VALUE) as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of fields")
    return _nested(values)


def _nested(values: Mapping[Any, Any]) -> dict[str, Any]:
    """With {"sac.alpha": 0.1} as {"sac": {"alpha": 0.1}}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        group, dot, field = str(name).partition(".")
        if dot and isinstance(found.setdefault(group, {}), dict):
            found[group][field] = value
        elif isinstance(value, Mapping) and isinstance(found.get(group), dict):
            found[group] |= value
        else:
            found[group] = value
    return found


def field_types(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted field names of a configuration class and their types."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            found.update(field_types(typing.cast(type, kind), f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = kind
    return found


def _merged(cls: Any, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a configuration class, changed group by group and field by field."""
    hints = typing.get_type_hints(cls)
    found = dict(values)
    for name, change in changes.items():
        group = hints.get(name)
        if dataclasses.is_dataclass(group) and isinstance(change, Mapping):
            found[name] = _merged(group, values[name], change)
        else:
            found[name] = change
    return found


def near_fields(name: str) -> list[str]:
    """The dotted fields whose names are most like one that nobody knows, at most three."""
    return difflib.get_close_matches(name, field_types(TrainConfig), 3, 0.5)


def _unknown(name: str) -> ConfigError:
    near = near_fields(name)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"unknown configuration field {name}{hint}")


def _refuse_unknown(cls: Any, values: Any, prefix: str) -> None:
    if not isinstance(values, Mapping):
        name = prefix.rstrip(".") or "the configuration"
        raise ConfigError(f"{name} is {values!r}; it must be a mapping of fields")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise _unknown(f"{prefix}{name}")


def coerce(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type; raises ConfigError if it is not one."""
    if getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        value = value.item()
    if dataclasses.is_dataclass(kind):  # a group of fields
        values = vars(value) if isinstance(value, typing.cast(type, kind)) else value
        _refuse_unknown(kind, values, f"{name}.")
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(
            **{field: coerce(f"{name}.{field}", v, hints[field]) for field, v in values.items()}
        )
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return coerce(name, value, next(k for k in options if k is not type(None)))
    if origin is list and isinstance(value, list | tuple):
        return [coerce(name, v, options[0]) for v in value]
    if origin is dict and isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{name} names an argument {key!r}; names are texts")
        return {k: v.item() if getattr(v, "ndim", None) == 0 else v for k, v in value.items()}
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as a text
        except (ValueError, OverflowError):
            pass
    if kind is int and isinstance(value, float) and value.is_integer():  # 2e4
        return int(value)
    if kind is int and isinstance(value, str) and _WHOLE.fullmatch(value):  # YAML reads 2e4 as text
        return int(float(value))
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    wanted = getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{name} is {value!r} ({type(value).__name__}); it must be of type {wanted}")


_WHOLE = re.compile(r"[1-9][0-9]*e[0-9]")
_CHOICES = {
    "algo": ("sac", "ppo"),
    "env.split": ("train", "test"),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.attn": ("fast", "reference"),
    "policy.score": ("logprob", "raw_logit"),
    "policy.reduce": ("sum", "mean"),
    "critic.kind": ("leaf", "reencode"),
    "critic.trunk": ("shared", "adapter"),
    "replay.her_strategy": ("future", "final", "episode", "random", "none"),
    "replay.her_balance": ("goals", "events"),
    "replay.sampling": ("transitions", "episodes", "prioritised"),
}
# name: (smallest, largest, whether the smallest itself is allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "env.num_envs": (1, 65536, True),
    "env.processes": (0, 1024, True),
    "env.max_steps": (1, 1 << 40, True),
    "model.hidden_size": (4, 65536, True),
    "model.layers": (1, 1024, True),
    "model.heads": (1, 1024, True),
    "model.feed_forward": (1, 1 << 20, True),
    "lora.r": (0, 4096, True),
    "lora.alpha": (1, 1 << 20, True),
    "prompt.history": (0, 1024, True),
    "policy.temperature": (0, 1e6, False),
    "critic.heads": (1, 64, True),
    "critic.huber": (0, float("inf"), False),
    "sac.gamma": (0, 1, True),
    "sac.n_step": (1, 1024, True),
    "sac.explore": (0, 1, True),
    "sac.subgoals": (0, 1, True),
    "sac.alpha": (0, 1e6, True),
    "sac.entropy_share": (0, 1, True),
    "sac.alpha_lr": (0, 10, True),
    "sac.target_rate": (0, 1, False),
    "ppo.gamma": (0, 1, True),
    "ppo.gae_lambda": (0, 1, True),
    "ppo.rollout": (1, 1 << 30, True),
    "ppo.epochs": (1, 1 << 20, True),
    "ppo.minibatch": (1, 1 << 20, True),
    "ppo.clip": (0, float("inf"), False),
    "ppo.entropy_weight": (0, 1e6, True),
    "ppo.value_weight": (0, 1e6, True),
    "ppo.target_kl": (0, 1e6, False),
    "replay.capacity": (1, 1 << 40, True),
    "replay.capacity_bytes": (4096, 1 << 50, True),
    "replay.her_ratio": (0, 1, True),
    "replay.her_random": (0, 1, True),
    "replay.her_reward": (-1e6, 1e6, True),
    "replay.priority_exponent": (0, 10, True),
    "replay.priority_beta": (0, 1, True),
    "optim.lr": (0, 10, False),
    "optim.head_lr": (0, 10, False),
    "optim.weight_decay": (0, 10, True),
    "optim.grad_clip": (0, float("inf"), False),
    "optim.batch_size": (1, 1 << 20, True),
    "optim.micro_batch": (0, 1 << 20, True),
    "optim.warmup_updates": (0, 1 << 40, True),
    "optim.final_lr": (0, 1, True),
    "optim.actor_weight": (0, 1e6, False),
    "eval.interval": (0, 1 << 60, True),
    "eval.episodes": (1, 1 << 40, True),
    "eval.temperature": (0, 1e6, False),
    "eval.interval_episodes": (1, 1 << 40, True),
    "total_steps": (1, 1 << 60, True),
    "learning_starts": (0, 1 << 60, True),
    "steps_per_update": (0, 1e9, False),
    "critic_warmup": (0, 1 << 60, True),
    "log_interval": (1, 1 << 60, True),
    "checkpoint_interval": (1, 1 << 60, True),
    "checkpoint_minutes": (0, 1e9, True),
    "keep_checkpoints": (1, 1 << 30, True),
    "seed": (0, (1 << 63) - 1, True),
    "threads": (0, 4096, True),
}  # fmt: skip


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _validate(config: TrainConfig) -> None:
    for name, allowed in _CHOICES.items():
        value = _get(config, name)
        if value is not None and value not in allowed:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
    for name, (low, high, closed) in _RANGES.items():
        value = _get(config, name)
        if value is None:
            continue
        if not (low <= value <= high) or (value == low and not closed):
            least = "at least" if closed else "above"
            raise ConfigError(f"{name} is {value}; it must be {least} {low:g} and at most {high:g}")
    if config.model.hidden_size % config.model.heads:
        raise ConfigError(
            f"model.hidden_size {config.model.hidden_size} must be a multiple of model.heads "
            f"{config.model.heads}"
        )
    for name in ("critic.layers", "ppo.value_layers"):
        if any(width < 1 for width in _get(config, name)):
            raise ConfigError(f"{name} is {_get(config, name)}; widths must be at least 1")
    if config.lora.r == 0 and (config.critic.trunk == "adapter" or config.sac.prior):
        what = "critic.trunk = adapter" if config.critic.trunk == "adapter" else "sac.prior"
        raise ConfigError(f"{what} needs LoRA adapters on a frozen base: set lora.r above 0")
    if config.sac.prior and config.sac.learn_alpha:
        raise ConfigError(
            "sac.prior and sac.learn_alpha exclude each other: alpha would weigh the KL to the "
            "prior, but be driven toward an entropy. Set sac.learn_alpha to false and "
            "choose sac.alpha, or leave sac.prior off"
        )

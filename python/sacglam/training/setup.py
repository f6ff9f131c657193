"""From a configuration (and, if given, a user's own objects) to environments and a policy."""

from __future__ import annotations

import copy
import dataclasses
import random
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..config import EnvConfig, LoraConfig, TrainConfig
from ..envs import make_env
from ..envs.protocol import (
    validate_encoding,
    validate_reset,
    validate_step,
    validate_vocabulary,
)
from ..envs.registry import GIVEN, checked
from ..envs.vector import LONG_EPISODE, VectorEnv, find
from ..errors import ConfigError
from ..models.base import anywhere, base_of, found_name, without_progress_bars
from ..models.device import is_missing, usable
from ..models.given import own_dtype, own_lora, prepare
from ..models.loading import ONE_AT_A_TIME, LoraOptions, load_language_model
from ..models.options import PolicyOptions
from ..models.policy import Policy
from ..models.seeding import seeded
from ..models.tiny import TINY, save_tiny_model
from ..models.trunk import refuse_spread
from ..text import PromptTemplate, chat_frame
from .same_environment import is_another
from .seeds import HEADS, derive

EnvFactory = Callable[[], Any]

COLLECTING_S = 60.0  # time for collecting an environment's words [s]
_FEW = 5  # episodes that are played for them in any case


def env_factory(config: TrainConfig, env: Any = None) -> EnvFactory:
    """A function that makes one environment.

    Args:
        config: names the environment if `env` is None.
        env: a user's environment (copied for every place), or a function that makes one.
    """
    kwargs = config.env.kwargs
    if env is None:
        return lambda: make_env(config.env.id, **kwargs)
    if isinstance(env, type) or not hasattr(env, "reset"):
        if not callable(env):
            raise ConfigError(
                f"env is {env!r}; give an environment, or a function that makes one. The name of "
                "one goes into the configuration: env.id"
            )
        return lambda: checked(env(**kwargs), "env")
    if kwargs:
        raise ConfigError(
            f"env.kwargs is {kwargs!r}, but the environment is made already; give its class, or a "
            "function that makes one"
        )

    def duplicate() -> Any:
        try:
            return copy.deepcopy(env)
        except Exception as error:  # whatever a user's __deepcopy__ or __reduce__ may raise
            raise ConfigError(
                f"the environment {type(env).__name__} cannot be copied ({error}); pass a function "
                "without arguments that makes one, e.g. Trainer(config, env=lambda: MyEnv())"
            ) from error

    return duplicate


def make_envs(config: TrainConfig, env: Any = None, count: int | None = None) -> Any:
    """The environments of a run, stepped together in this process or in workers.

    Args:
        config: the run's configuration; `env.processes` workers, 0 for none.
        env: as for `env_factory`; for workers it must be a function of an importable module.
        count: how many; by default `env.num_envs`.
    """
    count = count or config.env.num_envs
    if config.env.processes:
        from ..envs.process_vector import ProcessVectorEnv

        spec = (config.env.id if env is None else env, config.env.kwargs)
        return ProcessVectorEnv(
            [spec] * count,
            workers=min(config.env.processes, count),
            max_steps=config.env.max_steps,
        )
    factory = env_factory(config, env)
    return VectorEnv([factory() for _ in range(count)], max_steps=config.env.max_steps)


def attribute(env: Any, name: str, default: Any = None) -> Any:
    """An optional attribute of an environment, also through wrappers."""
    try:
        return find(env, name)
    except AttributeError:
        return default


def computing(config: TrainConfig, device: str | None, threads: int | None) -> str:
    """Where a run's policy computes after it was trained: where it is asked for, or where it was
    trained, if that is there. Sets torch's CPU threads likewise. Raises ConfigError."""
    if threads is not None:
        config = config.with_overrides({"threads": threads})  # refuses what torch would crash with
    if config.threads:
        torch.set_num_threads(config.threads)
    if device is None:
        device = "cpu" if is_missing(config.device) else config.device
    return usable(device)


def reset_options(env: Any, split: str) -> dict[str, Any]:
    """Options for `reset`: the split, for environments that know one.

    Raises:
        ConfigError: goals are asked for that the environment does not hold back.
    """
    goals = attribute(env, f"{split}_goals")
    if split != "train" and not goals:
        raise ConfigError(
            f"the split is {split!r}, but {type(env).__name__} has no {split}_goals: ask for "
            "'train' (env.split, eval --split), or give it a list of goals that it holds back"
        )
    return {"split": split} if goals is not None else {}


def named(config: TrainConfig, env: Any) -> TrainConfig:
    """With the name of a user's environment, unless the configuration names one that makes it."""
    named = config.env.id
    if env is None or named.startswith(GIVEN):
        return config
    own = name_of(env)
    if named == EnvConfig().id:
        return config.with_overrides({"env.id": own})
    if named == own or not is_another(
        lambda: make_env(named, **config.env.kwargs), env_factory(config, env)
    ):
        return config
    warnings.warn(
        f"env.id {named!r} makes another environment than the one that is given, which is trained "
        "in: `sacglam eval` and `play` will not find it again (evaluate_run, play_episodes and "
        "Trainer.resume take env=...). For them to find it, put its arguments into env.kwargs",
        RuntimeWarning,
        stacklevel=3,
    )
    return config.with_overrides({"env.id": f"{GIVEN}{named}"})


def name_of(env: Any) -> str:
    """The id under which `sacglam eval` and `play` find a user's environment again; one that
    `make_env` refuses where it would be another one, or cannot be found."""
    made = not isinstance(env, type) and hasattr(env, "reset")
    kind = type(env) if made else env
    module = getattr(kind, "__module__", type(kind).__module__)
    name = f"{module}:{getattr(kind, '__qualname__', type(kind).__qualname__)}"
    importable = module != "__main__" and "<" not in name
    return name if importable and (not made or _is_as_by_default(env)) else f"{GIVEN}{name}"


def _is_as_by_default(env: Any) -> bool:
    """Whether its class without arguments makes the same. If that cannot be told, it does not."""
    try:
        return bool(vars(env) == vars(type(env)()))
    except Exception:  # whatever a user's constructor or comparison may raise
        return False


def resolve(config: TrainConfig, env: Any, model: tuple[Any, Any] | None = None) -> TrainConfig:
    """Replace every "null: decided later" field by what it becomes for this environment, and for a
    user's (model, tokenizer)."""
    history, instruction = attribute(env, "history", 0), attribute(env, "instruction") or ""
    if not isinstance(history, int) or isinstance(history, bool) or history < 0:
        raise ConfigError(
            f"the environment's attribute `history` is {history!r}; it is the number of earlier "
            "steps in a prompt: set prompt.history, or give the attribute another name"
        )
    if not isinstance(instruction, str):
        raise ConfigError(
            f"the environment's attribute `instruction` is {instruction!r}; it is a text that "
            "begins every prompt: set prompt.instruction, or give the attribute another name"
        )
    validate_encoding([instruction])
    prompt = dataclasses.replace(
        config.prompt,
        history=config.prompt.history if config.prompt.history is not None else history,
        instruction=config.prompt.instruction
        if config.prompt.instruction is not None
        else instruction,
    )
    given = None if model is None else model[0]
    identity, dtype, lora = config.model.id, config.model.dtype, config.lora
    if given is not None:
        base = base_of(given)
        refuse_spread(base)  # before its device is asked for
        if identity in TINY:
            identity = base.config.name_or_path or type(base).__name__
        own = own_lora(given, lora.r)
        if own is not None:
            modules = own.target_modules
            lora = LoraConfig(own.r, own.alpha, None if modules is None else list(modules))
        dtype = dtype or own_dtype(given)
    tiny = given is None and identity in TINY
    rank = lora.r
    if rank is None:
        rank = 0 if tiny else 16
    rate = config.optim.lr
    if rate is None:
        rate = 1.5e-3 if tiny else 1e-4
    # Untrained, every token costs log V: a sum makes the shortest action nearly certain.
    reduce = config.policy.reduce or ("mean" if tiny else "sum")
    device = config.device
    if device == "auto" and given is not None:
        device = str(next(given.parameters()).device)
    device = usable(device)
    _warn_of_no_update(config)
    return dataclasses.replace(
        config,
        prompt=prompt,
        model=dataclasses.replace(config.model, id=identity, dtype=dtype or "float32"),
        lora=dataclasses.replace(lora, r=rank),
        optim=dataclasses.replace(config.optim, lr=rate),
        policy=dataclasses.replace(config.policy, reduce=reduce),
        device=device,
    )


def _warn_of_no_update(config: TrainConfig) -> None:
    """Such a run is of use to see what acting does, and can be resumed with more steps."""
    envs = config.env.num_envs
    steps = -(-config.total_steps // envs) * envs  # the last one is made in every environment
    rollout = config.ppo.rollout * envs
    if config.algo == "ppo" and steps < rollout:
        advice = f"a rollout takes {rollout}; raise total_steps, or lower ppo.rollout"
    elif config.algo == "sac" and config.updates_due(steps) == 0:
        first = config.learning_starts + config.steps_per_update
        advice = f"the first is due after {first:g}; raise total_steps, or lower learning_starts"
    else:
        return
    warnings.warn(
        f"this run of {steps} environment steps makes no update: {advice}",
        UserWarning,
        stacklevel=1,  # one place, so that it is said once
    )


def make_policy(config: TrainConfig, env: Any, model: tuple[Any, Any] | None = None) -> Policy:
    """The untrained policy of a resolved configuration, around a user's (model, tokenizer) if
    given."""
    lora, name = config.lora, config.model.id
    options: dict[str, Any] = {
        "lora": LoraOptions(lora.r, lora.alpha, lora.target_modules) if lora.r else None,
        "critic_adapter": config.critic.trunk == "adapter",
        "dtype": config.model.dtype,
        "device": config.device,
    }
    tiny = model is None and name in TINY
    quiet = without_progress_bars() if tiny else nullcontext()  # there is nothing to wait for
    with ONE_AT_A_TIME, TemporaryDirectory() as folder, quiet:
        if tiny:
            _save_tiny(config, env, folder)
        with seeded(derive(config.seed, HEADS)):  # fresh adapters and Q heads
            if model is not None:
                loaded = prepare(model[0], **options), model[1]
            else:
                options["trust_remote_code"] = config.model.trust_remote_code
                loaded = load_language_model(folder if tiny else name, **options)
            # Only adapters need to find their base again.
            if tiny or not lora.r:
                name = ""
            elif model is not None:
                name = found_name(loaded[0], name)
                if any((folder / "config.yaml").is_file() for folder in Path(name).parents):
                    name = ""  # in a run, which will be moved or deleted
            else:
                name = anywhere(name)
            return wrap_model(config, *loaded, name)


def _save_tiny(config: TrainConfig, env: Any, folder: str) -> None:
    template = make_template(config, None)
    words = vocabulary(env, config.env.max_steps)
    save_tiny_model(
        config.model.id,
        [*template.segments("", ""), template.actions_label, ",", *words],
        folder,
        seed=config.seed,
        hidden_size=config.model.hidden_size,
        layers=config.model.layers,
        heads=config.model.heads,
        feed_forward=config.model.feed_forward,
    )


def wrap_model(config: TrainConfig, model: Any, tokenizer: Any, name: str = "") -> Policy:
    """A policy around a model that is already loaded."""
    sac = config.algo == "sac"
    return Policy(
        model,
        tokenizer,
        template=make_template(config, tokenizer),
        options=PolicyOptions(
            score=config.policy.score,
            reduce=config.policy.reduce or "sum",
            temperature=config.policy.temperature,
            critic=config.critic.kind if sac else "value",
            critic_trunk=config.critic.trunk,
            critic_gradient=config.critic.gradient,
            q_heads=config.critic.heads if sac else 1,
            q_layers=tuple(config.critic.layers if sac else config.ppo.value_layers),
            attn=config.model.attn,
            cuda_graphs=config.model.cuda_graphs,
        ),
        name=name,
    )


def make_template(config: TrainConfig, tokenizer: Any) -> PromptTemplate:
    """The prompt template of a resolved configuration.

    Raises:
        ConfigError: `prompt.chat` is true, and the tokenizer has no chat template that can be used.
    """
    before, after = chat_frame(tokenizer) if config.prompt.chat else ("", "")
    return PromptTemplate(
        instruction=config.prompt.instruction or "",
        history=config.prompt.history or 0,
        list_actions=config.prompt.list_actions,
        before=before,
        after=after,
    )


def vocabulary(env: Any, max_steps: int | None = None) -> list[str]:
    """Texts holding every word of an environment: its own list, or what random episodes show.

    Args:
        env: the environment.
        max_steps: `env.max_steps`, the longest that an episode may be.

    Raises:
        EnvironmentProtocolError: the environment breaks a rule of the protocol, which is named.
    """
    own = attribute(env, "vocabulary")
    if own is not None:
        return validate_vocabulary(own)
    warnings.warn(
        "the environment has no `vocabulary`: the tiny model's words are collected from 50 to 200 "
        f"random episodes, for about {COLLECTING_S:g} s at most, and a word that only occurs later "
        "becomes unknown. Give it an attribute `vocabulary`, a list of texts that together hold "
        "every word.",
        RuntimeWarning,
        stacklevel=2,
    )
    chance = random.Random(0)
    texts: dict[str, None] = {}
    words: set[str] = set()
    nothing_new = 0  # episodes since the last one with another word
    begin = time.monotonic()

    def see(observation: str, info: Mapping[str, Any]) -> None:
        seen = [observation, info["goal"], *info["possible_actions"], *info["achieved_goals"]]
        texts.update(dict.fromkeys(seen))
        words.update(word for text in seen for word in text.split())

    def play(seed: int, until: float) -> None:
        observation, info = validate_reset(env.reset(seed=seed))
        see(observation, info)
        goal = info["goal"]
        for number in range(1, (max_steps or LONG_EPISODE) + 1):
            result = env.step(chance.choice(info["possible_actions"]))
            step = validate_step(result, step=number, goal=goal)
            info = step.info
            see(step.obs, info)
            if step.terminated or step.truncated or time.monotonic() > until:
                break

    for k in range(200):
        known = len(words)
        # The first few get a share of the time each, so that several goals are seen.
        play(k, begin + COLLECTING_S * min(1.0, (k + 1) / _FEW))
        nothing_new = nothing_new + 1 if len(words) == known else 0
        if nothing_new == 50:
            break
        if k + 1 >= _FEW and time.monotonic() > begin + COLLECTING_S:
            warnings.warn(
                f"the environment is slow: its words were collected from {k + 1} episodes alone, "
                "and a run of the same seed may collect others. Give it an attribute `vocabulary`, "
                "a list of texts that together hold every word.",
                RuntimeWarning,
                stacklevel=2,
            )
            break
    return list(texts)

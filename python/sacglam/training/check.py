"""Before a long run: do environment, tokenizer and scores hold, and how long will it take?"""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import TrainConfig
from ..envs import check_env
from ..envs.vector import close
from ..errors import DeviceMemoryError
from ..models.loading import load_language_model
from ..models.policy import Policy
from ..models.scoring import Scores
from ..models.stock import Ids, stock_scores
from ..models.tiny import TINY
from ..text.codec import TokenisationWarning
from . import setup
from .beginning import begun_from
from .collector import ReplayCollector
from .parts import smaller_part
from .trainer import Trainer

_STATES = 64  # in which prompts and actions are measured
_PAIRS = 48  # prompts with candidates that the stock model scores, at least one prompt's
_TIMED = 3  # times that a step and an update are measured
_PATIENCE = 30.0  # seconds after which what was measured once is not measured again
_FILLED = 4096  # steps of random actions, at most, until a batch is in the replay buffer

# A prompt's ids, and the actions that its state admits.
State = tuple[Ids, list[str]]


@dataclass(frozen=True)
class Agreement:
    """Scores in one pass beside the stock model's, one candidate at a time.

    Attributes:
        prompts, candidates: how many were compared.
        score_error: largest difference of a candidate's score.
        pi_error: largest difference of a candidate's probability.
        holds: whether both are what rounding explains in the model's dtype.
        pass_s, stock_s: seconds that each took.
    """

    prompts: int
    candidates: int
    score_error: float
    pi_error: float
    holds: bool
    pass_s: float
    stock_s: float


@dataclass(frozen=True)
class TrainingCheck:
    """What `check_training` found.

    Attributes:
        config: the run's, every default resolved.
        prompt_tokens, actions, action_tokens: (median, most): of a prompt, of the admissible
            actions of a state, of an action.
        achieving: share of the steps of random play that achieved a goal; None without hindsight.
        tokenizer_warning: where segments do not tokenise as the whole prompt does; else "".
        parameters, trained: how many the policy has, and how many of them are trained.
        agreement: None if there was no memory for a second copy of the model.
        step_s: seconds of a step in all environments.
        update_s: seconds of a gradient update.
        updates: that the run will make.
        memory_bytes: the most that was taken: on the GPU, or by the process.
        training_s, evaluation_s: estimates for the whole run.
    """

    config: TrainConfig
    prompt_tokens: tuple[int, int]
    actions: tuple[int, int]
    action_tokens: tuple[int, int]
    achieving: float | None
    tokenizer_warning: str
    parameters: int
    trained: int
    agreement: Agreement | None
    step_s: float
    update_s: float
    updates: int
    memory_bytes: int
    training_s: float
    evaluation_s: float


def check_training(
    config: TrainConfig,
    *,
    env: Any = None,
    model: tuple[Any, Any] | None = None,
    tell: Callable[[str], None] = lambda stage: None,
) -> TrainingCheck:
    """Try what a run would do, in a folder that is deleted; `config.out` is not touched.

    The environment is held against the protocol, scores against the stock model's, and steps and
    updates of the run's size are timed. The stock model is a second copy in memory.

    Args:
        config, env, model: as for `Trainer`.
        tell: called with what is done next, in words.

    Raises:
        EnvironmentProtocolError: the environment breaks the protocol.
        DeviceMemoryError: an update does not fit in the GPU's memory.
        ConfigError, UnknownEnvironmentError, UnknownModelError, UnsupportedModelError: see there.
    """
    config, begun = begun_from(config, model)
    if begun is not None:
        model, config = (begun.model, begun.tokenizer), config.with_overrides({"init_from": None})
    config = setup.named(config, env)
    tell("playing the environment")
    probe = setup.env_factory(config, env)()
    check_env(probe, max_steps=config.env.max_steps)
    config = setup.resolve(config, probe, model)
    close(probe)
    stock = None if model is None or begun is not None else model[0]
    model = None if model is None else (copy.deepcopy(model[0]), model[1])
    with tempfile.TemporaryDirectory() as folder:
        tell("loading the model")
        with _tokenisation_warnings() as said:
            trainer = Trainer(_shortened(config, Path(folder) / "run"), env=env, model=model)
        with closing(trainer):
            tried, policy, collector = trainer.config, trainer.policy, trainer.algorithm.collector
            if tried.model.id in TINY:
                policy.save_base(Path(tried.out) / "model")  # as it is before updates
            collector.start()
            seen, achieving = _look_around(trainer)
            length = trainer.evaluate(tried.env.num_envs, "random")["length_mean"]
            compared = _some(seen)
            ours, pass_s = _pass(policy, compared)  # before updates change it
            tell("timing steps")
            step_s = _seconds(_calls(collector.step), tried.device)
            updates = _count_updates(config)
            tell("timing updates")
            update_s = _update_seconds(trainer) if updates else 0.0
            memory_bytes = _memory(tried.device)
            tell("scoring with the stock model, one action at a time")
            agreement = _agreement(policy, tried, stock, compared, ours, pass_s)
    steps = config.total_steps / config.env.num_envs
    action = policy.codec.action
    return TrainingCheck(
        config=config,
        prompt_tokens=_middle(len(ids) for ids, _ in seen),
        actions=_middle(len(actions) for _, actions in seen),
        action_tokens=_middle(len(action(a)) for _, actions in seen for a in actions),
        achieving=achieving,
        tokenizer_warning=said[0] if said else "",
        parameters=sum(p.numel() for p in policy.model.parameters()),
        trained=sum(p.numel() for p in policy.trainable_parameters().values()),
        agreement=agreement,
        step_s=step_s,
        update_s=update_s,
        updates=updates,
        memory_bytes=memory_bytes,
        training_s=steps * step_s + updates * update_s,
        evaluation_s=_evaluated(config) * length / config.env.num_envs * step_s,
    )


def _shortened(config: TrainConfig, out: Path) -> TrainConfig:
    """The same sizes, with an update as soon as there is a batch."""
    changed: dict[str, Any] = {"out": str(out), "critic_warmup": 0}
    if config.algo == "ppo":
        enough = -(-config.ppo.minibatch // config.env.num_envs)
        changed |= {"ppo.rollout": min(enough, config.ppo.rollout), "ppo.target_kl": None}
    return config.with_overrides(changed)


@contextmanager
def _tokenisation_warnings() -> Iterator[list[str]]:
    """Collects them, and lets all others pass."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TokenisationWarning)
        yield said
    for w in caught:
        if issubclass(w.category, TokenisationWarning):
            said.append(str(w.message))
        else:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def _look_around(trainer: Trainer) -> tuple[list[State], float | None]:
    """States of random play, and the share of steps in it that achieved a goal; afterwards the
    replay buffer, if there is one, holds a batch."""
    rng = np.random.default_rng(trainer.config.seed)
    collector, codec = trainer.algorithm.collector, trainer.policy.codec
    replay = collector if isinstance(collector, ReplayCollector) else None
    wanted = trainer.config.optim.batch_size
    seen: list[State] = []
    steps = achieving = 0
    while len(seen) < _STATES or (replay and len(replay.buffer) < wanted and steps < _FILLED):
        episodes = [*collector.episodes]
        if len(seen) < _STATES:
            ids = codec.prompts((e.aim, e.observation, e.history, e.actions) for e in episodes)
            seen += zip(ids, [e.actions for e in episodes], strict=True)
        if replay is None:  # a rollout keeps what the policy thought of its actions
            collector.step()
        else:
            collector.apply({i: int(rng.integers(len(e.actions))) for i, e in enumerate(episodes)})
            achieving += sum(1 for e in episodes if e.achieved[-1])
        steps += len(episodes)
    if replay is not None and len(replay.buffer) < wanted:
        replay.cut()  # episodes are longer than one has patience for
    relabels = replay is not None and trainer.config.replay.her_strategy != "none"
    return seen, achieving / steps if relabels else None


def _some(seen: list[State]) -> list[State]:
    """A few of all those that were seen."""
    chosen: list[State] = []
    for k in np.random.default_rng(0).permutation(len(seen)).tolist():
        if not chosen or sum(len(actions) for _, actions in [*chosen, seen[k]]) <= _PAIRS:
            chosen.append(seen[k])
    return chosen


def _calls(call: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield call()


def _update_seconds(trainer: Trainer) -> float:
    try:
        return _seconds(_updates(trainer), trainer.config.device)
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"{str(error).splitlines()[0]} An update can be computed in smaller parts, with the "
            f"same result: try --optim.micro-batch {smaller_part(trainer.config)}"
        ) from error


def _updates(trainer: Trainer) -> Iterator[Any]:
    """Updates of the run's algorithm, without end; what PPO must act for is made between them."""
    due = trainer.config.total_steps if trainer.config.algo == "ppo" else 1 << 40
    while True:
        yield from trainer.algorithm.learn(due)
        trainer.algorithm.collector.step()


def _seconds(work: Iterator[Any], device: str) -> float:
    """Median time of an item of `work`, the first not counted unless one takes long."""
    unmeasured = 8 if device.startswith("cuda") else 1  # recordings of CUDA graphs are made there
    begin = time.perf_counter()
    times: list[float] = []
    since = begin
    for _ in islice(work, unmeasured + _TIMED):
        now = time.perf_counter()
        times.append(now - since)
        since = now
        if now - begin > _PATIENCE:
            break
    return statistics.median(times[unmeasured:] or times[-1:])


def _memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved(device)  # with what graphs keep
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@torch.no_grad()
def _pass(policy: Policy, states: list[State]) -> tuple[Scores, float]:
    """Scores of all candidates in one pass, and its seconds."""
    ids = np.concatenate([ids for ids, _ in states])
    offsets = np.cumsum([0, *(len(ids) for ids, _ in states)], dtype=np.int64)
    sets = [policy.candidate_set(actions) for _, actions in states]
    for _ in range(2):  # what is made once is made in the first
        begin = time.perf_counter()
        scores = policy.forward(policy.pack(ids, offsets, sets, leaves=False), with_q=False).cpu()
        seconds = time.perf_counter() - begin
    return scores, seconds


def _agreement(
    policy: Policy,
    config: TrainConfig,
    stock: Any,
    states: list[State],
    ours: Scores,
    pass_s: float,
) -> Agreement | None:
    action = policy.codec.action
    try:
        model = _stock_model(policy, config) if stock is None else stock
        with _scoring_on(policy.device, model):
            begin = time.perf_counter()
            theirs = [
                stock_scores(model, ids, [action(a) for a in actions], policy.options)
                for ids, actions in states
            ]
            stock_s = time.perf_counter() - begin
    except (torch.OutOfMemoryError, MemoryError):
        return None
    score_error = pi_error = relative = 0.0
    for b, stock_score in enumerate(theirs):
        count, expected = len(stock_score), stock_score.double()
        difference = (ours.log_prob[b, :count].double() - expected).abs()
        pi = (expected / policy.options.temperature).softmax(-1)
        score_error = max(score_error, difference.max().item())
        relative = max(relative, (difference / expected.abs().clamp_min(1.0)).max().item())
        pi_error = max(pi_error, (ours.pi[b, :count].double() - pi).abs().max().item())
    narrow = policy.dtype.itemsize == 2
    holds = relative < (0.05 if narrow else 1e-4) and pi_error < (0.1 if narrow else 1e-3)
    candidates = sum(len(actions) for _, actions in states)
    return Agreement(len(states), candidates, score_error, pi_error, holds, pass_s, stock_s)


@contextmanager
def _scoring_on(device: torch.device, model: Any) -> Iterator[None]:
    """The model is on the device and without dropout in here; then as it was, for its user."""
    at = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.to(device).eval()
        yield
    finally:
        model.to(at)
        for module, training in modes:
            module.training = training


def _stock_model(policy: Policy, config: TrainConfig) -> Any:
    name: str | Path = config.model.id
    if name in TINY:
        name = (Path(config.out) / "model").resolve()
    beside = Path(name).parent / "tokenizer"  # as in a saved policy
    model, _ = load_language_model(
        name,
        tokenizer_folder=beside if beside.is_dir() else None,
        dtype=config.model.dtype or "float32",
        device=policy.device,
        trust_remote_code=config.model.trust_remote_code,
    )
    return model


def _count_updates(config: TrainConfig) -> int:
    if config.algo == "ppo":
        steps = config.ppo.rollout * config.env.num_envs
        per_epoch = -(-steps // config.ppo.minibatch)
        return config.total_steps // steps * config.ppo.epochs * per_epoch
    return config.updates_due(config.total_steps)


def _evaluated(config: TrainConfig) -> int:
    """Episodes that a run's evaluations play by the policy."""
    between = config.total_steps // config.eval.interval if config.eval.interval else 0
    return 2 * config.eval.episodes + between * config.eval.interval_episodes


def _middle(values: Any) -> tuple[int, int]:
    """(median, most)"""
    found = sorted(values)
    return found[len(found) // 2], found[-1]

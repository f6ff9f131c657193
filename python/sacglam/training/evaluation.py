"""Success of a policy, of random choice and of the environment's expert on fresh episodes."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import EvalConfig
from ..envs.vector import VectorEnv
from ..errors import EnvironmentProtocolError
from ..files import read_json
from ..models.policy import Policy
from .episode import Episode, EpisodeResult, choose_actions
from .seeds import EVAL_EPISODES, RANDOM_POLICY, derive, episode_seed, generator

Chooser = Callable[[Sequence[int], Sequence[Episode]], list[int]]


def policy_chooser(policy: Policy, config: EvalConfig, seed: int) -> Chooser:
    """Actions of a policy, chosen as the configuration says; sampling has a generator of its own,
    seeded."""
    noise = generator(seed, EVAL_EPISODES)

    def choose(_: Sequence[int], episodes: Sequence[Episode]) -> list[int]:
        return choose_actions(
            policy,
            episodes,
            greedy=config.greedy,
            temperature=config.temperature,
            generator=noise,
        )

    return choose


def settings(config: EvalConfig, split: str, seed: int) -> dict[str, Any]:
    """What an evaluation was made with, as in eval.json."""
    temperature = None if config.greedy else config.temperature
    return {"split": split, "seed": seed, "greedy": config.greedy, "temperature": temperature}


def random_chooser(seed: int) -> Chooser:
    """Uniform among the admissible actions."""
    rng = np.random.default_rng(derive(seed, RANDOM_POLICY))
    return lambda _, episodes: [int(rng.integers(len(e.actions))) for e in episodes]


def expert_chooser(envs: VectorEnv) -> Chooser:
    """What each environment's own expert would do."""

    def chosen(i: int, episode: Episode) -> int:
        action = envs.call(i, "expert_action")
        if action not in episode.actions:
            raise EnvironmentProtocolError(
                f"expert_action() is {action!r}, which is not among the {len(episode.actions)} "
                f"possible actions of {episode.observation!r}"
            )
        return episode.actions.index(action)

    return lambda indices, episodes: [chosen(i, e) for i, e in zip(indices, episodes, strict=True)]


def evaluate(
    envs: VectorEnv,
    choose: Chooser,
    *,
    episodes: int,
    seed: int,
    reset_options: Mapping[str, Any] | None = None,
    on_progress: Callable[[int], None] = lambda ended: None,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Success per goal family over exactly `episodes` episodes with seeds of their own stream.

    `on_progress` is told how many of them ended, first 0; `on_step` is called before each step.

    Returns:
        {"episodes", "success": {family: rate}, "success_mean", "count": {family: episodes},
        "length_mean"}; `success_mean` is the mean over families.
    """
    options = dict(reset_options or {}) or None
    results: list[EpisodeResult | None] = [None] * episodes
    waiting = iter(range(episodes))
    active: dict[int, Episode] = {}
    ended = 0

    def begin(i: int) -> None:
        number = next(waiting, None)
        active.pop(i, None)
        if number is not None:
            episode = Episode(number, episode_seed(seed, EVAL_EPISODES, number))
            episode.begin(*envs.reset(i, seed=episode.seed, options=options))
            active[i] = episode

    on_progress(ended)
    for i in range(min(envs.num_envs, episodes)):
        begin(i)
    while active:
        on_step()
        indices = sorted(active)
        chosen = choose(indices, [active[i] for i in indices])
        actions = {i: active[i].actions[k] for i, k in zip(indices, chosen, strict=True)}
        for i, step in envs.step(actions).items():
            episode = active[i]
            episode.advance(actions[i], step)
            if step.terminated or step.truncated:
                results[episode.number] = episode.result(step.terminated)
                ended += 1
                on_progress(ended)
                begin(i)
    return summarise([r for r in results if r is not None])


def read_baselines(run: Path) -> dict[str, Any]:
    """What was measured before training; nothing, with a warning, where that is damaged."""
    file = run / "baselines.json"
    try:
        found = read_json(file) if file.is_file() else {}
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except ValueError as error:
        warnings.warn(f"{file} is damaged: {error}", RuntimeWarning, stacklevel=2)
        return {}
    return found


def summarise(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Success rates of a list of episodes, as in eval.json."""
    won: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        won[result.family].append(result.success)
    success = {family: sum(w) / len(w) for family, w in sorted(won.items())}
    return {
        "episodes": len(results),
        "success": success,
        "success_mean": sum(success.values()) / len(success) if success else 0.0,
        "count": {family: len(w) for family, w in sorted(won.items())},
        "length_mean": sum(r.length for r in results) / max(len(results), 1),
    }

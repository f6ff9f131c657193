"""An episode of a trained agent, shown step by step."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..envs.vector import close
from ..report.episode import render_outcome, render_step
from . import setup
from .checks import refuse_out_of_range
from .episode import Episode, pack_episodes
from .policies import load_policy
from .run_folder import load_run_config
from .seeds import EVAL_EPISODES, episode_seed, generator


def play_episodes(
    folder: str | Path,
    console: Any = None,
    *,
    episodes: int = 1,
    goal: str | None = None,
    seed: int | None = None,
    greedy: bool | None = None,
    env: Any = None,
    device: str | None = None,
    threads: int | None = None,
) -> None:
    """Print episodes: goal, observation, every candidate with probability and Q, choice, reward.

    Args:
        folder: a run.
        console: a `rich.console.Console`; by default one on standard output.
        episodes: how many.
        goal: ask the environment for this goal.
        seed: of the first episode; by default the run's.
        greedy: the most probable action, or sample; by default as the run is evaluated.
        env: as for `Trainer`, if the run had a user's own environment.
        device, threads: as for `evaluate_run`.

    Raises:
        ConfigError: `episodes`, `seed` or `threads` is out of range; torch cannot compute on
            `device`; the environment has no such `goal`.
        RunFolderError, CheckpointError: the folder is no run, or has no complete checkpoint.
    """
    from rich.console import Console

    console = console or Console()
    refuse_out_of_range(episodes, seed)
    config = load_run_config(folder)
    policy = load_policy(
        folder,
        device=setup.computing(config, device, threads),
        trust_remote_code=config.model.trust_remote_code,
    )
    greedy = config.eval.greedy if greedy is None else greedy
    seed = config.seed if seed is None else seed
    envs = setup.make_envs(config, env, count=1)
    probe = setup.env_factory(config, env)()
    options = setup.reset_options(probe, config.env.split)
    if goal is not None:
        options["goal"] = goal
    noise = generator(seed, EVAL_EPISODES)
    with ExitStack() as opened:  # closed also where an environment raises
        opened.callback(close, probe)
        opened.callback(envs.close)
        for number in range(episodes):
            episode = Episode(number, episode_seed(seed, EVAL_EPISODES, number))
            episode.begin(*envs.reset(0, seed=episode.seed, options=options or None))
            terminated = truncated = False
            while not (terminated or truncated):
                pi, q = _scores(policy, episode)
                drawn = pi.log().div(config.eval.temperature).softmax(-1)
                chosen = int(
                    pi.argmax() if greedy else torch.multinomial(drawn, 1, generator=noise)
                )
                observation, candidates = episode.observation, episode.actions
                action = candidates[chosen]
                step = envs.step({0: action})[0]
                console.print(
                    render_step(
                        console,
                        step=len(episode.rewards),
                        goal=episode.goal,
                        observation=observation,
                        candidates=candidates,
                        probabilities=pi,
                        q_values=q,
                        chosen=chosen,
                        reward=step.reward,
                        achieved=step.info["achieved_goals"],
                    )
                )
                episode.advance(action, step)
                terminated, truncated = step.terminated, step.truncated
            result = episode.result(terminated)
            console.print(
                render_outcome(
                    console,
                    goal=result.goal,
                    success=result.success,
                    steps=result.length,
                    total_reward=result.episode_return,
                    truncated=truncated,
                )
            )


def _scores(policy: Any, episode: Episode) -> tuple[torch.Tensor, torch.Tensor | None]:
    """pi and the minimum of Q over the candidates, each float [K]; no Q for a policy of PPO."""
    forest = pack_episodes(policy, [episode], leaves=True)
    with torch.no_grad():
        scores = policy.forward(forest)
    q = None if scores.q is None else scores.q.min(0).values[0].float().cpu()
    return scores.pi[0].float().cpu(), q

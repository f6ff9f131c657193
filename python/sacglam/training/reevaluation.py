"""Evaluating a run after its training, as it was evaluated itself or otherwise."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..config import EvalConfig, TrainConfig
from ..envs.vector import close
from ..errors import ConfigError
from ..files import write_json
from . import evaluation, setup
from .callbacks import Callback
from .checkpoint import latest_checkpoint, read_state, verify
from .checks import refuse_out_of_range
from .policies import load_policy
from .run_folder import load_run_config


def evaluate_run(
    folder: str | Path,
    *,
    episodes: int | None = None,
    split: str | None = None,
    seed: int | None = None,
    greedy: bool | None = None,
    temperature: float | None = None,
    env: Any = None,
    device: str | None = None,
    threads: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run on fresh episodes; updates eval.json, or a file
    beside it where something is another than the run says; "file" in the result is its name, or
    None where it could not be written (somebody else's run; then with a warning).

    Args:
        folder: the run.
        episodes: how many; by default the run's `eval.episodes`.
        split: goals of "train" or "test"; by default the run's own.
        seed: of the episodes; by default the run's seed.
        greedy: whether to take the most probable action; by default the run's `eval.greedy`.
        temperature: of sampled actions; by default the run's `eval.temperature`. Not for greedy.
        env: as for `Trainer`, if the run had a user's own environment.
        device: where the policy computes; by default where it was trained, if that is there.
        threads: torch's CPU threads; by default the run's.
        callbacks: their `on_evaluation` is told how far it is.

    Raises:
        ConfigError: `split` is "test", and the environment holds no goals back; `episodes`,
            `seed`, `temperature` or `threads` is out of range; torch cannot compute on `device`.
        RunFolderError, CheckpointError: the folder is no run, or has no complete checkpoint.
    """
    folder = Path(folder)
    config = load_run_config(folder)
    refuse_out_of_range(episodes, seed)
    how = _chosen(config.eval, greedy, temperature)
    probe = setup.env_factory(config, env)()
    wanted = split or config.env.split
    options = setup.reset_options(probe, wanted)
    newest = latest_checkpoint(folder)  # a run under way soon has another
    state = read_state(newest)
    verify(newest, "policy/")
    policy = load_policy(
        newest / "policy",
        device=setup.computing(config, device, threads),
        trust_remote_code=config.model.trust_remote_code,
    )
    envs = setup.make_envs(config, env)
    seed = config.seed if seed is None else seed
    count = episodes or config.eval.episodes

    def measure(kind: str, chooser: evaluation.Chooser) -> dict[str, Any]:
        def tell(done: int) -> None:
            for callback in callbacks:
                callback.on_evaluation(kind, done, count)

        return evaluation.evaluate(
            envs, chooser, episodes=count, seed=seed, reset_options=options, on_progress=tell
        )

    with ExitStack() as opened:  # closed also where an environment or a callback raises
        opened.callback(close, probe)
        opened.callback(envs.close)
        result = {
            "env_steps": state["env_steps"],
            "updates": state["updates"],
            "wall_s": round(state["wall_s"], 3),
            "cpu_s": round(state["cpu_s"], 3),
            **evaluation.settings(how, wanted, seed),
            **measure("policy", evaluation.policy_chooser(policy, how, seed)),
            "baseline_random": measure("random", evaluation.random_chooser(seed)),
            "expert": None,
        }
        if setup.attribute(probe, "expert_action") is not None:
            result["expert"] = measure("expert", evaluation.expert_chooser(envs))
    file = _evaluation_file(folder, config, result)
    result["file"] = file.name
    if (wanted, seed, how) == (config.env.split, config.seed, config.eval):
        untrained = evaluation.read_baselines(folder).get("untrained")
        if isinstance(untrained, dict) and untrained.get("episodes") == count:
            result["untrained"] = untrained
    try:
        write_json(file, result)
    except OSError as error:
        result["file"] = None
        warnings.warn(f"the result is not saved: {error}", RuntimeWarning, stacklevel=2)
    return result


def _evaluation_file(folder: Path, config: TrainConfig, result: Mapping[str, Any]) -> Path:
    """Where an evaluation is written: eval.json where it is the run's own (its split, seed,
    episodes, choice of actions) or the first; else a file named after what is another."""
    parts = []
    if result["split"] != config.env.split:
        parts.append(str(result["split"]))
    if result["seed"] != config.seed:
        parts.append(f"seed{result['seed']}")
    if result["greedy"] != config.eval.greedy:
        parts.append("greedy" if result["greedy"] else "sampled")
    if not result["greedy"] and result["temperature"] != config.eval.temperature:
        parts.append(f"temperature{result['temperature']:g}")
    first = not parts and not (folder / "eval.json").is_file()
    if result["episodes"] != config.eval.episodes and not first:
        parts.append(f"{result['episodes']}episodes")
    return folder / ("-".join(["eval", *parts]) + ".json")


def _chosen(config: EvalConfig, greedy: bool | None, temperature: float | None) -> EvalConfig:
    """How actions are chosen: as the run says, but for what is asked for."""
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it must be above 0")
    if temperature is not None and greedy:
        raise ConfigError("greedy actions have no temperature; ask for one of the two")
    if temperature is not None:
        greedy = False
    return dataclasses.replace(
        config,
        greedy=config.greedy if greedy is None else greedy,
        temperature=config.temperature if temperature is None else temperature,
    )

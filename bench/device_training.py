"""Training on the GPU: that updates by CUDA graphs are the plain ones, that an agent learns there,
and what an update and a step of acting cost."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import device_checkout  # noqa: F401  first: it makes sacglam importable
import device_workloads as workloads
import numpy as np
import torch
from device_checks import relative
from device_kernels import Record
from device_models import t5_model, with_lora
from sacglam.training.ppo import PpoAlgorithm

# Fills the buffer, or most of a rollout. Environments step together, and pass the last step.
FILLED = {
    "total_steps": 600, "learning_starts": 600, "steps_per_update": 1e9, "eval.episodes": 1,
}  # fmt: skip
PPO = {"algo": "ppo", "ppo.rollout": 40, "env.num_envs": 16}


def _config(out: str, **changes: Any) -> Any:
    from sacglam import TrainConfig
    from sacglam.training.demo import SETTINGS

    fixed = {"device": workloads.DEVICE, "out": out, "eval.interval": 0, "eval.episodes": 60}
    return TrainConfig().with_overrides({**SETTINGS, **fixed, **changes})


def _filled(changes: Mapping[str, Any], model: Callable[[], Any] | None = None) -> Any:
    """A trainer whose buffer is filled."""
    from sacglam import Trainer

    with tempfile.TemporaryDirectory() as folder:
        config = _config(f"{folder}/run", **{**FILLED, **changes})
        trainer = Trainer(config, model=None if model is None else model())
        trainer.train()
    return trainer


def _by_graphs(policy: Any, wanted: bool) -> None:
    policy.options = replace(policy.options, cuda_graphs=wanted)


UPDATES: dict[str, dict[str, Any]] = {
    "tiny-llama": {},
    "tiny-t5": {"model.id": "tiny-t5"},
    "tiny-t5, reencoding": {"model.id": "tiny-t5", "critic.kind": "reencode"},
    "LoRA, the critic's adapter": {
        "lora.r": 8, "critic.trunk": "adapter", "sac.target_policy": False, "critic_warmup": 8,
    },
    "tiny-llama, in parts": {"optim.micro_batch": 8},
    "tiny-llama, PPO": PPO,
    "tiny-t5, PPO": {**PPO, "model.id": "tiny-t5"},
    "tiny-llama, PPO, in parts": {**PPO, "optim.micro_batch": 8},
}  # fmt: skip


def check_updates(report: Callable[..., None], name: str, updates: int = 24) -> None:
    """The same batches, by graphs and plainly: losses of every update, and the parameters after."""
    changes = UPDATES[name]
    if "algo" in changes:
        _check_ppo(report, name, changes, updates)
        return
    plain, _ = _updated(changes, updates, by_graphs=False)
    graphed, graphs = _updated(changes, updates, by_graphs=True)
    case = f"{name}, float32, {updates} updates, {graphs} graphs"
    report("updates", case, _differences(plain, graphed, graphs), 1e-2)


def _differences(
    plain: Mapping[str, torch.Tensor], graphed: Mapping[str, torch.Tensor], graphs: int
) -> dict[str, float]:
    found = {part: relative(graphed[part], plain[part]) for part in plain}
    return {**found, "no graph": float(graphs == 0)}


def _check_ppo(
    report: Callable[..., None], name: str, changes: Mapping[str, Any], updates: int
) -> None:
    """The same minibatches of two sizes, by graphs and plainly; and acting with V afterwards."""
    from sacglam.training.episode import prompts_of

    left = []
    for by_graphs in (False, True):
        trainer = _filled(changes)
        algorithm, policy = trainer.algorithm, trainer.policy
        algorithm.config = algorithm.config.with_overrides({"ppo.rollout": 30})  # that is there
        _by_graphs(policy, by_graphs)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "no CUDA graph", RuntimeWarning)
            found = list(islice(algorithm.learn(600), updates))
            prompts = prompts_of(policy, algorithm.collector.episodes)
            forest = policy.pack(*prompts, device="cpu")
            scores = [policy.acting_scores(forest, with_value=True) for _ in range(3)]
        left.append(_left(policy, found, ("critic_loss", "actor_loss", "grad_norm")))
    graphs = 0 if algorithm._graphs is None else len(algorithm._graphs)
    case = f"{name}, float32, {updates} updates, {graphs} graphs"
    report("updates", case, _differences(left[0], left[1], graphs), 1e-2)
    with torch.no_grad():
        want = policy.forward(forest.to(policy.device)).cpu()
    by_graph = None if policy._value_graphs is None else policy._value_graphs.scores(forest)
    errors = {"no graph": float(by_graph is None)}
    for got in (scores[-1], scores[0]):
        errors["log pi"] = max(errors.get("log pi", 0.0), relative(got.log_pi, want.log_pi))
        errors["V"] = max(errors.get("V", 0.0), relative(got.v, want.v))
    report("graphs", f"acting with V, {name}, float32", errors, 1e-4)


def _updated(
    changes: Mapping[str, Any], updates: int, *, by_graphs: bool
) -> tuple[dict[str, torch.Tensor], int]:
    """What updates leave: losses, norms and parameters; and how many graphs were recorded."""
    trainer = _filled(changes)
    learner = trainer.algorithm.learner
    _by_graphs(trainer.policy, by_graphs)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "no CUDA graph", RuntimeWarning)
        found = [learner.update() for _ in range(updates)]
    left = _left(trainer.policy, found, ("critic_loss", "grad_norm"))
    return left, 0 if learner._graphs is None else len(learner._graphs)


def _left(
    policy: Any, updates: list[dict[str, float]], metrics: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """Some metrics of every update, and the parameters after the last."""
    found = {name: torch.tensor([u[name] for u in updates]) for name in metrics}
    parameters = policy.trainable_parameters().values()
    return {**found, "parameters": torch.cat([p.detach().flatten() for p in parameters])}


def check_training(report: Callable[..., None], steps: int = 5000, least: float = 0.5) -> None:
    """A quarter of the demo: interrupted, resumed, and then better than `least`; in both dtypes."""
    from sacglam import Trainer

    for dtype in ("float32", "bfloat16"):
        changes = {"total_steps": steps // 2, "model.dtype": dtype}
        with tempfile.TemporaryDirectory() as folder:
            config = _config(f"{folder}/run", **changes)
            Trainer(config).train()
            longer = config.with_overrides({"total_steps": steps})
            result = Trainer(longer, resume=True).train()
            assert result.evaluation is not None
            success = result.evaluation["success_mean"]
        case = f"playground/small, tiny-llama, {dtype}, {steps} steps: success {success:.3f}"
        report("training", case, {f"below {least}": max(0.0, least - success)}, 0.0)
        print(f"{case}, {result.wall_s:.1f} s")


# A Llama of Qwen2.5-0.5B's width and depth, over the environment's words alone.
WIDE = {
    "model.hidden_size": 896, "model.layers": 24, "model.heads": 14, "model.feed_forward": 4864,
    "model.dtype": "bfloat16", "lora.r": 16,
}  # fmt: skip


# What Flan-T5-base is trained with in MAGELLAN's code, but for where Q is read.
MAGELLAN = {
    "env.id": "playground/full", "env.num_envs": 32, "optim.batch_size": 256,
    "learning_starts": 2000, "total_steps": 2000, "lora.r": 16, "sac.target_policy": False,
    "critic.layers": [1024, 1024], "critic.heads": 1, "policy.reduce": "sum",
}  # fmt: skip


def flan_t5_base() -> tuple[Any, Any]:
    """Flan-T5-base's sizes, random weights in bfloat16 and LoRA, on the words of the world."""
    from sacglam import make_env
    from sacglam.models.tiny import build_tokenizer

    model, _ = with_lora(t5_model(), ("q", "v"))
    texts = make_env("playground/full").vocabulary
    return model, build_tokenizer([*texts, "Goal: You see Action :"])


# Changes, and what makes the model if the configuration does not.
TRAINING: dict[str, tuple[dict[str, Any], Callable[[], Any] | None]] = {
    "tiny-llama, float32": ({}, None),
    "d 896, 24 layers, LoRA, bf16": (WIDE, None),
    "Flan-T5-base, playground/full, LoRA, bf16": (MAGELLAN, flan_t5_base),
    "Flan-T5-base, playground/full, LoRA, bf16, reencoding": (
        {**MAGELLAN, "critic.kind": "reencode"}, flan_t5_base,
    ),
    "tiny-llama, float32, PPO": (PPO, None),
}  # fmt: skip


def time_training(record: Record, name: str) -> None:
    """A batch of 64 and 16 environments of `playground/small`, or MAGELLAN's settings."""
    from sacglam.training.parts import update_rows

    trainer = _filled(*TRAINING[name])
    algorithm, config = trainer.algorithm, trainer.config
    update = _ppo_updates(algorithm) if config.algo == "ppo" else algorithm.learner.update
    for case, call in (
        (f"update of {update_rows(config)}", update),
        (f"acting step of {config.env.num_envs}", algorithm.collector.step),
    ):
        run = partial(_timed, trainer.policy, call)
        for _ in range(24):  # batches differ in size: those that occur are recorded by then
            run(True)
        methods = {"sacglam": partial(run, True), "without CUDA graphs": partial(run, False)}
        record("training", f"{name}: {case}", methods, None, slow=True)


def _ppo_updates(algorithm: PpoAlgorithm) -> Callable[[], object]:
    """Updates from one rollout, over and over."""
    from sacglam.training.ppo_graphs import ppo_graphs

    options = algorithm.config.ppo
    experience = algorithm.collector.take(options.gamma, options.gae_lambda)

    def minibatches() -> Iterator[Any]:
        rng = np.random.default_rng(0)
        while True:
            order = rng.permutation(len(experience))
            yield from experience.minibatches(
                order, options.minibatch, normalise=options.normalise, device="cpu"
            )

    source = minibatches()

    def update() -> None:
        algorithm._graphs = ppo_graphs(algorithm.objective, algorithm._graphs)
        algorithm._update(next(source), 0.0)

    return update


def _timed(policy: Any, call: Callable[[], object], by_graphs: bool) -> None:
    _by_graphs(policy, by_graphs)
    call()

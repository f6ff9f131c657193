"""Updates by graphs are the plain updates: the same run, number for number."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Trainer
from sacglam.training import learner as learner_module
from sacglam.training.update_graphs import UpdateGraphs, update_graphs

sys.path.append(str(Path(__file__).resolve().parents[1]))

from recording import Recording  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "t5": {"model.id": "tiny-t5"},
    "LoRA, the critic's adapter, a prior": {
        "lora.r": 4, "critic.trunk": "adapter", "sac.prior": True,
    },
    "the actor later, alpha learned, priorities": {
        "critic_warmup": 30, "sac.learn_alpha": True, "replay.sampling": "prioritised",
    },
    "the critic's adapter alone at first": {
        "lora.r": 4, "critic.trunk": "adapter", "critic_warmup": 30, "optim.weight_decay": 0.1,
    },
    "the online policy at s', batch of 24": {
        "sac.target_policy": False, "optim.batch_size": 24, "critic.gradient": False,
    },
}  # fmt: skip


def run(config: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    trainer = Trainer(config)
    trainer.train()
    lines = (trainer.out / "metrics.jsonl").read_text().splitlines()
    return trainer, [json.loads(line) for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_the_same_run(case: str, quick_config: Any, monkeypatch: pytest.MonkeyPatch):
    changes = {"model.dtype": "float64", "total_steps": 300, "eval.episodes": 1, **CASES[case]}
    plain, wanted = run(quick_config("plain", **changes))
    made: list[UpdateGraphs] = []

    def by_graphs(objective: Any, present: UpdateGraphs | None) -> UpdateGraphs:
        if present is None:
            made.append(UpdateGraphs(objective, Recording(objective.policy.model)))
        return made[-1]

    served: list[bool] = []
    bootstrap, gradient = UpdateGraphs.bootstrap, UpdateGraphs.gradient

    def counted_bootstrap(self: UpdateGraphs, *args: Any) -> bool:
        served.append(bootstrap(self, *args))
        return served[-1]

    def counted_gradient(self: UpdateGraphs, *args: Any, **kwargs: Any) -> Any:
        found = gradient(self, *args, **kwargs)
        served.append(found is not None)
        return found

    monkeypatch.setattr(UpdateGraphs, "bootstrap", counted_bootstrap)
    monkeypatch.setattr(UpdateGraphs, "gradient", counted_gradient)
    monkeypatch.setattr(learner_module, "update_graphs", by_graphs)
    graphed, found = run(quick_config("graphed", **changes))

    assert len(made) == 1
    assert len(served) > 50
    assert sum(served) > 0.7 * len(served)
    others = graphed.policy.trainable_parameters()
    for name, parameter in plain.policy.trainable_parameters().items():
        torch.testing.assert_close(others[name], parameter, rtol=1e-7, atol=1e-9)
    learning = [(line, want) for line, want in zip(found, wanted, strict=True) if want["updates"]]
    assert len(learning) > 1
    for line, want in learning:
        for name in ("critic_loss", "actor_loss", "grad_norm", "entropy", "td_error", "alpha"):
            assert line[name] == pytest.approx(want[name], rel=1e-6), name


def test_the_cpu_knows_no_graphs(quick_config: Any):
    trainer = Trainer(quick_config(**{"total_steps": 120}))
    trainer.train()
    learner = trainer.algorithm.learner
    assert learner.updates > 0
    assert learner._graphs is None
    assert update_graphs(learner.objective, None) is None

"""Updates by graphs are the plain updates: the same run, number for number."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sacglam import Policy, Trainer
from sacglam.models import policy as policy_module
from sacglam.models.graphs import ActingGraphs
from sacglam.training import learner as learner_module
from sacglam.training import ppo as ppo_module
from sacglam.training.ppo_graphs import PpoGraphs, ppo_graphs
from sacglam.training.ppo_objective import PpoObjective
from sacglam.training.sac_graphs import SacGraphs, sac_graphs
from sacglam.training.sac_objective import SacObjective
from sacglam.training.subgoals import Subgoals

sys.path.append(str(Path(__file__).resolve().parents[1]))

from recording import Recording  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "t5": {"model.id": "tiny-t5"},
    "t5, reencoding": {"model.id": "tiny-t5", "critic.kind": "reencode"},
    "t5, reencoding by the critic's adapter, the online policy at s'": {
        "model.id": "tiny-t5", "critic.kind": "reencode", "lora.r": 4, "critic.trunk": "adapter",
        "sac.target_policy": False,
    },
    "LoRA, the critic's adapter, a prior": {
        "lora.r": 4, "critic.trunk": "adapter", "sac.prior": True,
    },
    "the actor later, alpha learned, priorities": {
        "critic_warmup": 12, "sac.learn_alpha": True, "replay.sampling": "prioritised",
    },
    "the critic's adapter alone at first": {
        "lora.r": 4, "critic.trunk": "adapter", "critic_warmup": 12, "optim.weight_decay": 0.1,
    },
    "the online policy at s', batch of 24": {
        "sac.target_policy": False, "optim.batch_size": 24, "critic.gradient": False,
    },
    "in parts": {"optim.micro_batch": 4},
    "in unequal parts, the critic's adapter alone at first": {
        "optim.micro_batch": 3, "lora.r": 4, "critic.trunk": "adapter", "critic_warmup": 12,
    },
    "in parts, t5, reencoding": {
        "optim.micro_batch": 4, "model.id": "tiny-t5", "critic.kind": "reencode",
    },
}  # fmt: skip


def run(config: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    trainer = Trainer(config)
    trainer.train()
    lines = (trainer.out / "metrics.jsonl").read_text().splitlines()
    return trainer, [json.loads(line) for line in lines]


def counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, served: list[bool]) -> None:
    """Note of each call of a method whether a graph served."""
    method = getattr(owner, name)

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = method(self, *args, **kwargs)
        served.append(found is not None and found is not False)
        return found

    monkeypatch.setattr(owner, name, noted)


def assert_same_run(
    plain: tuple[Trainer, list[dict[str, Any]]],
    graphed: tuple[Trainer, list[dict[str, Any]]],
    names: tuple[str, ...],
) -> None:
    """Parameters, and what the metrics say under these names."""
    others = graphed[0].policy.trainable_parameters()
    for name, parameter in plain[0].policy.trainable_parameters().items():
        torch.testing.assert_close(others[name], parameter, rtol=1e-7, atol=1e-9)
    lines = zip(graphed[1], plain[1], strict=True)
    learning = [(line, want) for line, want in lines if want["updates"]]
    assert len(learning) > 1
    for line, want in learning:
        for name in names:
            assert line[name] == pytest.approx(want[name], rel=1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_the_same_run(case: str, quick_config: Any, monkeypatch: pytest.MonkeyPatch):
    changes = {
        "model.dtype": "float64", "total_steps": 220, "log_interval": 50, "eval.episodes": 1,
        **CASES[case],
    }  # fmt: skip
    plain = run(quick_config("plain", **changes))
    made: list[SacGraphs] = []

    def by_graphs(objective: Any, present: SacGraphs | None) -> SacGraphs:
        if present is None:
            made.append(SacGraphs(objective, Recording(objective.policy.model)))
        return made[-1]

    served: list[bool] = []
    counted(monkeypatch, SacGraphs, "bootstrap", served)
    counted(monkeypatch, SacGraphs, "gradient", served)
    monkeypatch.setattr(learner_module, "sac_graphs", by_graphs)
    graphed = run(quick_config("graphed", **changes))

    assert len(made) == 1
    assert len(served) > 40
    assert sum(served) > 0.7 * len(served)
    names = ("critic_loss", "actor_loss", "grad_norm", "entropy", "td_error", "alpha")
    assert_same_run(plain, graphed, names)


PPO_CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "t5, a critic's adapter": {"model.id": "tiny-t5", "lora.r": 4, "critic.trunk": "adapter"},
    "minibatches of two sizes, raw advantages": {
        "ppo.minibatch": 30, "ppo.normalise": False, "critic.gradient": False,
    },
    "in parts": {"optim.micro_batch": 10},
}  # fmt: skip


@pytest.mark.parametrize("case", PPO_CASES)
def test_the_same_run_of_ppo(case: str, quick_config: Any, monkeypatch: pytest.MonkeyPatch):
    changes = {
        "algo": "ppo", "model.dtype": "float64", "total_steps": 300, "eval.episodes": 1,
        "ppo.rollout": 25, "ppo.minibatch": 25, **PPO_CASES[case],
    }  # fmt: skip
    plain = run(quick_config("plain", **changes))
    made: list[PpoGraphs] = []
    acting: list[ActingGraphs] = []

    def by_graphs(objective: Any, present: PpoGraphs | None) -> PpoGraphs:
        if present is None:
            made.append(PpoGraphs(objective, Recording(objective.policy.model)))
        return made[-1]

    def acting_by_graphs(policy: Any, present: Any, *, with_value: bool = False) -> Any:
        if not with_value:
            return None  # evaluation
        if present is None:
            acting.append(ActingGraphs(policy.forward, policy.model, Recording(policy.model)))
        return acting[-1]

    served: list[bool] = []
    acted: list[bool] = []
    counted(monkeypatch, PpoGraphs, "gradient", served)
    counted(monkeypatch, ActingGraphs, "scores", acted)
    monkeypatch.setattr(ppo_module, "ppo_graphs", by_graphs)
    monkeypatch.setattr(policy_module, "acting_graphs", acting_by_graphs)
    graphed = run(quick_config("graphed", **changes))

    assert len(made) == len(acting) == 1
    for calls in (served, acted):
        assert len(calls) > 20
        assert sum(calls) > 0.7 * len(calls)
    names = ("critic_loss", "actor_loss", "grad_norm", "entropy", "v_mean", "kl")
    assert_same_run(plain, graphed, names)


def full_beside_graphs(
    monkeypatch: pytest.MonkeyPatch, objective: Any, graphs: list[Any], left: int
) -> None:
    """The plain pass number `left` beside graphs runs out of memory when its gradient is set."""
    gradient = objective.gradient

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        report = gradient(self, *args, **kwargs)
        if graphs and len(graphs[0]) and not graphs[0].recording.running:
            left -= 1
            if left == 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return report

    monkeypatch.setattr(objective, "gradient", failing)


IN_PARTS = {"critic_warmup": 20, "optim.micro_batch": 3}
PPO_IN_PARTS = {
    "algo": "ppo", "ppo.rollout": 25, "ppo.minibatch": 30, "optim.micro_batch": 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "where"),
    [({}, "recording"), (IN_PARTS, 2), (PPO_IN_PARTS, "recording"), (PPO_IN_PARTS, 1)],
    ids=["recording", "a plain pass in parts", "recording for ppo", "a plain pass of ppo in parts"],
)
@pytest.mark.filterwarnings("ignore:the GPU's memory did not suffice:RuntimeWarning")
def test_graphs_that_leave_no_room_are_dropped(
    options: dict[str, Any], where: str | int, quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    """`where`: in the second recording, or in which of the plain passes beside graphs."""
    changes = {"model.dtype": "float64", "total_steps": 300, "eval.episodes": 1, **options}
    plain = run(quick_config("plain", **changes))
    made: list[Any] = []
    kind, objective = (PpoGraphs, PpoObjective) if "algo" in options else (SacGraphs, SacObjective)

    def by_graphs(objective: Any, present: Any) -> Any:
        if present is None:
            recording = Recording(objective.policy.model, 2 if where == "recording" else 0)
            made.append(kind(objective, recording))
            made[-1].recording = recording
        return made[-1]

    dropped: list[int] = []
    release = kind.release

    def released(self: Any) -> None:
        dropped.append(len(self))
        release(self)
        assert len(self) == 0
        assert not self._gradients._gradient  # as large as the parameters

    monkeypatch.setattr(kind, "release", released)
    monkeypatch.setattr(learner_module, "sac_graphs", by_graphs)
    monkeypatch.setattr(ppo_module, "ppo_graphs", by_graphs)
    if isinstance(where, int):
        full_beside_graphs(monkeypatch, objective, made, where)
    graphed = run(quick_config("graphed", **changes))

    assert len(dropped) == 1
    assert dropped[0] > 0
    assert made[0].recording.forgot
    assert len(made[0]) > 0  # others are recorded
    assert_same_run(plain, graphed, ("critic_loss", "actor_loss", "grad_norm", "entropy"))


@pytest.mark.parametrize("who", ["acting", "subgoals"])
def test_other_passes_have_the_room_of_updates(
    who: str, quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    """Graphs of updates stay between them, when evaluations and subgoals need the memory."""
    made: list[SacGraphs] = []

    def by_graphs(objective: Any, present: SacGraphs | None) -> SacGraphs:
        if present is None:
            made.append(SacGraphs(objective, Recording(objective.policy.model)))
        return made[-1]

    monkeypatch.setattr(learner_module, "sac_graphs", by_graphs)
    trainer = Trainer(quick_config("run", **{"total_steps": 200, "eval.episodes": 1}))
    trainer.train()
    graphs, policy = made[0], trainer.policy
    forest = policy.pack_texts(["Goal"], [["grasp", "go to"]], device="cpu")
    subgoals = Subgoals(policy, 1.0, torch.Generator())
    episodes = trainer.algorithm.collector.episodes
    calls = {"acting": lambda: policy.acting_scores(forest).log_pi}
    calls["subgoals"] = lambda: subgoals._values(episodes)
    want = calls[who]()
    assert policy.has_graphs
    forward = Policy.forward

    def full(self: Policy, *args: Any, **kwargs: Any) -> Any:
        if len(graphs):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "forward", full)
    with pytest.warns(RuntimeWarning, match="the GPU's memory did not suffice"):
        torch.testing.assert_close(calls[who](), want)
    assert not policy.has_graphs
    trainer.algorithm.learner.update()  # goes on
    monkeypatch.setattr(Policy, "forward", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):  # of nothing that could be dropped
        copy.deepcopy(policy).acting_scores(forest)


def out_of_memory(self: Policy, *args: Any, **kwargs: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_the_cpu_knows_no_graphs(quick_config: Any):
    trainer = Trainer(quick_config("sac", **{"total_steps": 120}))
    trainer.train()
    learner = trainer.algorithm.learner
    assert learner.updates > 0
    assert learner._graphs is None
    assert sac_graphs(learner.objective, None) is None

    trainer = Trainer(quick_config("ppo", algo="ppo", **{"total_steps": 120, "ppo.rollout": 20}))
    trainer.train()
    assert trainer.algorithm.updates > 0
    assert trainer.algorithm._graphs is None
    assert ppo_graphs(trainer.algorithm.objective, None) is None

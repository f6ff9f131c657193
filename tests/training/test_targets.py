"""The targets that the real learner regresses on, for hand-made episodes, by plain Python: varying
K, time limits, termination, and hindsight goals first reached inside the n steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sacglam import Trainer
from sacglam.training import sac_objective as objective_module
from sacglam.training.sac import SacAlgorithm

GAMMA, ALPHA = 0.8, 0.3


class Nowhere:
    """Only says which words there are; the episodes below are made by hand."""

    vocabulary = ("place 0 1 2 3 4 5 6", "reach the end", "left right wait jump see start middle")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        info = {"goal": "reach the end", "possible_actions": ["wait"], "achieved_goals": []}
        return "place 0", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return *self.reset()[:1], 0.0, False, True, self.reset()[1]


@dataclass
class Story:
    """T transitions; one more place and action list than there are transitions."""

    goal: str
    places: list[str]
    actions: list[list[str]]
    chosen: list[int]
    rewards: list[float]
    achieved: list[list[str]]
    terminated: bool


STORIES = [
    Story(
        "reach the end",
        [f"place {k}" for k in (0, 1, 2, 3, 4)],
        [["left", "right"], ["wait"], ["left", "right", "wait", "jump"], ["jump"], ["wait"]],
        [1, 0, 3, 0],
        [0.0, 0.25, 0.0, 1.0],
        [[], ["see start"], ["see middle"], ["reach the end", "see middle"]],
        terminated=True,
    ),
    Story(
        "see middle",
        [f"place {k}" for k in (5, 6, 5, 0)],
        [["right", "jump", "wait"], ["left", "right"], ["wait"], ["left", "jump"]],
        [2, 1, 0],
        [0.0, 0.0, 0.5],
        [["see start"], [], ["see start"]],
        terminated=False,  # a time limit cut it
    ),
]


@pytest.fixture(params=["online policy", "target policy"])
def algorithm(request: pytest.FixtureRequest, quick_config: Any) -> SacAlgorithm:
    config = quick_config(
        "targets",
        **{
            "model.dtype": "float64",
            "sac.gamma": GAMMA,
            "sac.alpha": ALPHA,
            "sac.n_step": 3,
            "sac.target_policy": request.param == "target policy",
            "sac.target_rate": 0.3,
            "replay.her_ratio": 0.6,
            "optim.batch_size": 64,
            "optim.lr": 1e-2,
            "optim.warmup_updates": 0,
        },
    )
    found = Trainer(config, env=Nowhere).algorithm
    assert isinstance(found, SacAlgorithm)
    for story in STORIES:
        lengths = [0, *map(len, story.achieved)]
        found.buffer.add_episode(
            goal=found.texts.goal(story.goal),
            observations=np.array([found.texts.observation(p) for p in story.places], np.int32),
            candidates=np.array([found.texts.candidates(a) for a in story.actions], np.int32),
            actions=np.array(story.chosen, np.int32),
            rewards=np.array(story.rewards, np.float32),
            terminated=story.terminated,
            truncated=not story.terminated,
            achieved_offsets=np.cumsum(lengths, dtype=np.int32),
            achieved=np.array(
                [found.texts.goal(g) for goals in story.achieved for g in goals], np.int32
            ),
        )
    return found


def _backup(story: Story, t: int, goal: str, relabeled: bool) -> tuple[float, int, bool]:
    """Discounted rewards, m, and whether the state after m steps is terminal."""
    total, m = 0.0, 0
    while m < 3 and t + m < len(story.chosen):
        hit = goal in story.achieved[t + m]
        total += GAMMA**m * (float(hit) if relabeled else story.rewards[t + m])
        m += 1
        if relabeled and hit:
            return total, m, True
    over = t + m == len(story.chosen) and story.terminated and not relabeled
    return total, m, over


def test_targets_of_hand_made_episodes(algorithm: SacAlgorithm, monkeypatch: pytest.MonkeyPatch):
    learner, policy = algorithm.learner, algorithm.learner.policy
    template = policy.codec.template
    for _ in range(4):
        learner.update()  # target and online parameters differ from here on
    seen: dict[str, Any] = {}

    def keep(name: str, function: Any) -> Any:
        def kept(*args: Any, **kwargs: Any) -> Any:
            seen[name] = function(*args, **kwargs)
            return seen[name]

        return kept

    monkeypatch.setattr(algorithm.buffer, "sample", keep("batch", algorithm.buffer.sample))
    monkeypatch.setattr(
        objective_module.sac, "td_target", keep("y", objective_module.sac.td_target)
    )
    names = ("reach the end", "see start", "see middle")
    goals = {algorithm.texts.goal(name): name for name in names}

    def soft_value(goal: str, place: str, actions: list[str]) -> float:
        prompt = "".join(template.segments(goal, place))
        with learner.target.applied():
            target = policy.score([prompt], [actions])[0]
        own = target if algorithm.config.sac.target_policy else policy.score([prompt], [actions])[0]
        assert target.q is not None
        pairs = zip(own.log_pi, target.q, strict=True)
        return sum(float(np.exp(lp) * (q - ALPHA * lp)) for lp, q in pairs)

    # Before the update changes the parameters, what each row's V is.
    values = {
        (e, t, g): soft_value(g, story.places[t], story.actions[t])
        for e, story in enumerate(STORIES)
        for t in range(len(story.places))
        for g in goals.values()
    }
    learner.update()
    batch, kinds = seen["batch"], set()
    for row in range(len(batch.action)):
        e, t = int(batch.episode[row]), int(batch.step[row])
        goal, relabeled = goals[int(batch.goal[row])], bool(batch.relabeled[row])
        total, m, over = _backup(STORIES[e], t, goal, relabeled)
        y = total + (0.0 if over else GAMMA**m * values[e, t + m, goal])
        assert seen["y"][row].item() == pytest.approx(y, abs=2e-6), (e, t, goal, relabeled)
        assert int(batch.action[row]) == STORIES[e].chosen[t]
        kinds.add((e, over, m, relabeled))
    # Terminated and cut, whole and cut-short returns, hits within one, two and three steps.
    assert {(0, True, 1, False), (1, False, 1, False), (1, False, 3, False)} <= kinds
    assert {m for _, over, m, relabeled in kinds if relabeled and over} == {1, 2, 3}
    assert torch.isfinite(seen["y"]).all()

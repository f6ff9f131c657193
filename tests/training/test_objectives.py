"""What an update of each algorithm minimises and does, from the equations written out row by row:
weights, factors, the prior, statistics, and what reaches priorities, temperature and target."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sacglam import Policy, Trainer
from sacglam.training import learner as learner_module
from sacglam.training.ppo_objective import STATISTICS as PPO_STATISTICS
from sacglam.training.ppo_objective import Rows as PpoRows
from sacglam.training.sac_objective import STATISTICS, Rows
from torch import Tensor

ALPHA, CLIP = 0.3, 0.2
ACTIONS = [["left", "right"], ["wait"], ["left", "right", "wait", "jump"], ["jump", "left"]]


class Places:
    """A walk of four steps, whose actions vary in number."""

    vocabulary = ("place 0 1 2 3", "left right wait jump", "reach the end")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self._at = 0
        return self._seen()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._at += 1
        text, info = self._seen()
        achieved = ["reach the end"] if action == "right" else []
        won = bool(achieved) and self._at > 1
        cut = not won and self._at == 3
        return text, float(won), won, cut, {**info, "achieved_goals": achieved}

    def _seen(self) -> tuple[str, dict[str, Any]]:
        info = {"goal": "reach the end", "possible_actions": ACTIONS[self._at]}
        return f"place {self._at}", {**info, "achieved_goals": []}


def _trainer(quick_config: Any, **options: Any) -> Trainer:
    common = {"model.dtype": "float64", "optim.grad_clip": 1e9, "optim.warmup_updates": 0}
    return Trainer(quick_config(**{**common, **options}), env=Places)


def _move(policy: Policy) -> None:
    """Away from the start, where adapters and biases are 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))


def _pack(policy: Policy) -> Any:
    prompts = ["".join(policy.codec.template.segments("reach the end", f"place {k}"))
               for k in range(4)]  # fmt: skip
    return policy.pack_texts(prompts, ACTIONS, leaves=True)


def _gradients(policy: Policy) -> dict[str, Tensor]:
    named = policy.trainable_parameters().items()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}


def _norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))


@pytest.mark.parametrize(
    ("options", "with_actor"),
    [
        ({"optim.actor_weight": 0.7}, True),
        ({"optim.actor_weight": 0.7}, False),
        ({"critic.huber": 0.2}, True),
        ({"sac.prior": True, "lora.r": 2}, True),
    ],
    ids=["actor's weight", "critic alone", "huber", "prior"],
)
def test_sac_minimises_its_losses(quick_config: Any, options: dict[str, Any], with_actor: bool):
    objective = _trainer(quick_config, **options).algorithm.learner.objective
    policy, huber = objective.policy, options.get("critic.huber")
    _move(policy)
    forest = _pack(policy)
    returns, discounts, weights = [0.5, 0.0, 1.0, -0.2], [0.8, 0.0, 0.64, 0.8], [1.0, 0.3, 0.6, 0.9]
    values, chosen, order = [0.4, -0.1, 0.9, 0.2], [1, 0, 3, 0], [2, 0, 3, 1]
    objective.value[torch.tensor(order)] = torch.tensor(values)
    kind = {"dtype": torch.float64}
    rows = Rows(*(torch.tensor(x, **kind) for x in (returns, discounts, weights)),
                torch.tensor(chosen), torch.tensor(order))  # fmt: skip
    found = objective.gradient(forest, rows, ALPHA, with_actor=with_actor)
    gradients = _gradients(policy)

    scores = policy.forward(forest)
    prior = policy.prior(forest).log_pi if "sac.prior" in options else None
    critic, actor, targets, errors, q_of_chosen = 0.0, 0.0, [], [], []
    for b, actions in enumerate(ACTIONS):
        y = returns[b] + discounts[b] * float(objective.value[order[b]])
        gaps = [scores.q[i, b, chosen[b]] - y for i in range(2)]
        for gap in gaps:
            far = huber is not None and abs(gap.item()) > huber
            square = huber * (2 * gap.abs() - huber) if far else gap**2
            critic = critic + weights[b] * square / 4
        for a in range(len(actions)):
            log_ratio = scores.log_pi[b, a] - (0.0 if prior is None else float(prior[b, a]))
            q = scores.q[:, b, a].min().item()
            term = scores.log_pi[b, a].exp() * (ALPHA * log_ratio - q)
            actor = actor + weights[b] * term / 4
        targets.append(y)
        errors.append(sum(abs(gap.item()) for gap in gaps) / 2)
        q_of_chosen.append(scores.q[:, b, chosen[b]].min().item())
    for parameter in policy.trainable_parameters().values():
        parameter.grad = None
    factor = options.get("optim.actor_weight", 1.0) if with_actor else 0.0
    (critic + factor * actor).backward()
    expected = _gradients(policy)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-9)
    assert _norm(expected) > 0.01
    entropy = [
        -sum(p * math.log(p) for p in scores.pi[b, : len(ACTIONS[b])].tolist()) for b in range(4)
    ]
    told = dict(zip(STATISTICS, found.tolist(), strict=False))
    assert told == pytest.approx(
        {
            "critic_loss": critic.item(), "actor_loss": actor.item(), "grad_norm": _norm(expected),
            "grad_clipped": 0.0, "entropy": sum(entropy) / 4, "q_mean": sum(q_of_chosen) / 4,
            "target_mean": sum(targets) / 4, "td_error": sum(errors) / 4,
        }
    )  # fmt: skip
    assert found[len(STATISTICS) :].tolist() == pytest.approx(errors + entropy)


@pytest.mark.parametrize("target_policy", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"sac.prior": True, "lora.r": 2}], ids=["entropy", "prior"]
)
def test_values_are_those_of_the_target_critic(
    quick_config: Any, options: dict[str, Any], target_policy: bool
):
    trainer = _trainer(quick_config, **{**options, "sac.target_policy": target_policy})
    learner = trainer.algorithm.learner
    policy, objective = learner.policy, learner.objective
    _move(policy)  # and not the target
    forest, order = _pack(policy), [5, 0, 3, 1]
    objective.value.fill_(7.0)
    objective.bootstrap(forest, torch.tensor(order), ALPHA)
    assert not objective.value.requires_grad
    with torch.no_grad():
        online = policy.forward(forest)
        prior = policy.prior(forest).log_pi if options else torch.zeros_like(online.log_pi)
        with learner.target.applied():
            target = policy.forward(forest)
    own = target if target_policy else online
    expected = [7.0] * len(objective.value)
    for b, row in enumerate(order):
        expected[row] = sum(
            own.pi[b, a].item()
            * (target.q[:, b, a].min() - ALPHA * (own.log_pi[b, a] - prior[b, a])).item()
            for a in range(len(ACTIONS[b]))
        )
    assert objective.value.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert not torch.allclose(online.q, target.q)


def test_ppo_minimises_its_losses(quick_config: Any):
    weights = {"ppo.entropy_weight": 0.3, "ppo.value_weight": 0.7, "ppo.clip": CLIP}
    objective = _trainer(quick_config, algo="ppo", **weights).algorithm.objective
    policy = objective.policy
    _move(policy)
    forest = _pack(policy)
    chosen, advantage, returns = [1, 0, 3, 1], [1.5, -0.5, -2.0, 0.7], [0.5, 0.1, 1.0, -0.3]
    ratios = [1.5, 1.0, 1.1, 0.6]  # pi / pi_old: clipped where the advantage is positive and beyond
    with torch.no_grad():
        log_pi = policy.forward(forest).log_pi
    old = [float(log_pi[b, chosen[b]]) - math.log(ratios[b]) for b in range(4)]
    rows = PpoRows(torch.tensor(chosen), *(torch.tensor(x, dtype=torch.float64)
                                           for x in (old, advantage, returns)))  # fmt: skip
    found = objective.gradient(forest, rows)
    gradients = _gradients(policy)

    scores = policy.forward(forest)
    actor, critic, entropy = 0.0, 0.0, 0.0
    for b, actions in enumerate(ACTIONS):
        ratio = (scores.log_pi[b, chosen[b]] - old[b]).exp()
        clipped = min(max(ratio.item(), 1 - CLIP), 1 + CLIP)
        plain = ratio * advantage[b]
        actor = actor - (plain if plain.item() <= clipped * advantage[b] else
                         clipped * advantage[b]) / 4  # fmt: skip
        critic = critic + (scores.v[b] - returns[b]) ** 2 / 4
        for a in range(len(actions)):
            entropy = entropy - scores.log_pi[b, a].exp() * scores.log_pi[b, a] / 4
    for parameter in policy.trainable_parameters().values():
        parameter.grad = None
    (actor + 0.7 * critic - 0.3 * entropy).backward()
    expected = _gradients(policy)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-6, atol=1e-9)
    told = dict(zip(PPO_STATISTICS, found.tolist(), strict=True))
    assert told == pytest.approx(
        {
            "critic_loss": critic.item(), "actor_loss": actor.item(), "entropy": entropy.item(),
            "grad_norm": _norm(expected), "grad_clipped": 0.0, "v_mean": scores.v.mean().item(),
            "return_mean": sum(returns) / 4, "ratio_clipped": 2 / 4,
            "kl": sum(r - 1 - math.log(r) for r in ratios) / 4,
        }
    )  # fmt: skip


def test_an_update_sets_priorities_temperature_and_target(
    quick_config: Any, monkeypatch: pytest.MonkeyPatch
):
    tau = 0.3
    trainer = _trainer(
        quick_config,
        **{
            "sac.learn_alpha": True, "sac.alpha": ALPHA, "sac.entropy_share": 0.6,
            "sac.alpha_lr": 0.01, "sac.target_rate": tau, "replay.sampling": "prioritised",
            "optim.lr": 1e-2, "total_steps": 120,
        },
    )  # fmt: skip
    trainer.train()
    learner = trainer.algorithm.learner
    policy = learner.policy
    seen = SimpleNamespace(parts=[])

    def keep(where: Any, name: str, note: Any) -> None:
        function = getattr(where, name)

        def kept(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            note(result, *args)
            return result

        monkeypatch.setattr(where, name, kept)

    keep(learner.buffer, "sample", lambda batch, *_: setattr(seen, "batch", batch))
    keep(learner.buffer, "update_priorities", lambda _, *given: setattr(seen, "given", given))
    keep(learner.objective, "gradient", lambda _, *given: seen.parts.append(given))
    keep(learner_module.sac, "temperature_loss", lambda _, *given: setattr(seen, "heat", given))
    before = {n: p.detach().clone() for n, p in policy.trainable_parameters().items()}
    average = {n: x.clone() for n, x in learner.target.state_dict().items()}
    start = learner.log_alpha.item()
    alpha = learner.alpha
    metrics = learner.update()

    after = {n: p.detach().clone() for n, p in policy.trainable_parameters().items()}
    for name, value in learner.target.state_dict().items():
        wanted = (1 - tau) * average[name] + tau * after[name]
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    [(forest, rows, used, *_)] = seen.parts
    assert used == alpha == metrics["alpha"] == pytest.approx(math.exp(start))
    torch.testing.assert_close(rows.weight, torch.from_numpy(seen.batch.weight))
    y = rows.n_step_return + rows.discount * learner.objective.value[rows.row]
    with torch.no_grad():  # by the parameters that the update began with
        for name, parameter in policy.trainable_parameters().items():
            parameter.copy_(before[name])
        scores = policy.forward(forest)
    places = torch.arange(len(y))
    errors = [abs(scores.q[i, places, rows.action] - y) for i in range(2)]
    keys, priorities = seen.given
    assert (keys == seen.batch.key).all()
    assert priorities.tolist() == pytest.approx(((errors[0] + errors[1]) / 2).tolist(), rel=1e-5)

    heat, entropy, count, share = seen.heat
    counts = scores.mask.sum(-1)
    entropies = -(scores.pi * scores.log_pi).sum(-1)
    assert heat is learner.log_alpha
    assert count.tolist() == counts.tolist()
    assert share == 0.6
    assert entropy.tolist() == pytest.approx(entropies.tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("share", "sign"), [(0.0, -1.0), (1.0, 1.0)])
def test_the_temperature_steps_by_its_own_rate(quick_config: Any, share: float, sign: float):
    options = {"sac.learn_alpha": True, "sac.entropy_share": share, "sac.alpha": ALPHA}
    trainer = _trainer(quick_config, **{**options, "sac.alpha_lr": 0.02})
    algorithm: Any = trainer.algorithm
    _move(trainer.policy)  # no longer uniform: its entropy is below log K
    algorithm.collector.start()
    for _ in range(8):
        algorithm.collector.step()
    learner = algorithm.learner
    assert learner.alpha == pytest.approx(ALPHA)
    learner.update()  # the first step of Adam is its rate
    assert learner.log_alpha.item() == pytest.approx(math.log(ALPHA) + sign * 0.02, abs=1e-5)
    assert learner.alpha == pytest.approx(ALPHA * math.exp(sign * 0.02), rel=1e-5)

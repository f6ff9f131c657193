"""On-policy experience: what PPO acted on since its last update."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._C import CandidateSet
from ..algorithms import ppo
from ..envs.vector import Transition, VectorEnv
from ..models.critics import candidates_of
from ..models.forest import Forest
from ..models.policy import Policy
from ..models.scoring import Scores
from .collector import Collector
from .episode import Episode, prompts_of
from .parts import row_parts
from .ppo_objective import Rows

Ids = npt.NDArray[np.int32]


@dataclass
class Rollout:
    """T steps of N environments; row t N + i is step t of environment i. Lists grow by N a step.

    Attributes:
        prompts: token ids of each row's prompt; sets: its candidate set.
        action: index of the candidate taken; log_prob: its log-probability then; value: V then.
        reward: what the step paid; ended: whether it was the last of its episode.
        last: rows cut by a time limit, and the prompt and candidate set they were cut before.
    """

    prompts: list[Ids] = field(default_factory=list)
    sets: list[CandidateSet] = field(default_factory=list)
    action: list[int] = field(default_factory=list)
    log_prob: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    last: dict[int, tuple[Ids, CandidateSet]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.reward)

    # --- saving -------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for a checkpoint."""
        cut = list(self.last.values())
        return {
            **_packed("prompts", self.prompts),
            **_packed("last_prompts", [ids for ids, _ in cut]),
            "last_rows": _on_host(list(self.last), dtype=torch.int64),
            **_packed_sets("sets", self.sets),
            **_packed_sets("last_sets", [s for _, s in cut]),
            "action": _on_host(self.action, dtype=torch.int64),
            "log_prob": _on_host(self.log_prob, dtype=torch.float64),
            "value": _on_host(self.value, dtype=torch.float64),
            "reward": _on_host(self.reward, dtype=torch.float64),
            "ended": _on_host(self.ended, dtype=torch.bool),
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Rollout:
        """The inverse of `tensors`; KeyError if one is missing."""
        rows, sets = tensors["last_rows"].tolist(), _unpacked_sets("last_sets", tensors)
        cut = zip(_unpacked("last_prompts", tensors), sets, strict=True)
        names = ("action", "log_prob", "value", "reward", "ended")
        return Rollout(
            prompts=_unpacked("prompts", tensors),
            sets=_unpacked_sets("sets", tensors),
            last=dict(zip(rows, cut, strict=True)),
            **{name: tensors[name].tolist() for name in names},
        )


class Minibatch(NamedTuple):
    """B rows of a rollout."""

    forest: Forest
    rows: Rows  # on the CPU


class RolloutCollector(Collector):
    """Acts with one scoring pass a step, which also says V, and keeps every step.

    Args:
        envs, seed, reset_options: as for `Collector`.
        policy: what acts; its heads say V.
        generator: for sampling actions.
    """

    def __init__(
        self,
        envs: VectorEnv,
        policy: Policy,
        *,
        seed: int,
        generator: torch.Generator,
        reset_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(envs, seed=seed, reset_options=reset_options)
        self.policy, self.generator = policy, generator
        self.rollout = Rollout()
        self._acted = Rollout()  # of a step that the environments have not yet answered

    def _choose(self) -> list[int]:
        ids, offsets, sets = prompts_of(self.policy, self._episodes)
        scores = self._scores(ids, offsets, sets)  # on the CPU, where the generator is
        assert scores.v is not None
        chosen = torch.multinomial(scores.pi, 1, generator=self.generator)  # [N, 1]
        taken = scores.log_pi.gather(-1, chosen).squeeze(-1)  # [N]
        action = chosen.squeeze(-1).tolist()
        self._acted = Rollout(
            np.split(ids, offsets[1:-1]), sets, action, taken.tolist(), scores.v.tolist()
        )
        return action

    def _arrived(self, steps: Sequence[Transition]) -> None:
        acted, self._acted = self._acted, Rollout()
        for name in ("prompts", "sets", "action", "log_prob", "value"):
            getattr(self.rollout, name).extend(getattr(acted, name))

    def _stepped(self, i: int, episode: Episode, chosen: int, step: Transition) -> None:
        rollout = self.rollout
        if step.truncated and not step.terminated:
            ids, _, sets = prompts_of(self.policy, [episode])
            rollout.last[len(rollout)] = (ids, sets[0])
        rollout.reward.append(float(step.reward))
        rollout.ended.append(step.terminated or step.truncated)

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        # Playing the episodes again records their steps anew.
        rollout, self.rollout = self.rollout, Rollout()
        super().restore(state)
        self.rollout = rollout
        if not len(rollout):
            return
        first = len(rollout) - len(state)
        for row, (saved, episode) in enumerate(zip(state, self._episodes, strict=True), first):
            if episode.number != saved["number"]:  # it could not be played again
                # The state after its last step is lost: the one before stands for it.
                rollout.ended[row] = True
                rollout.last[row] = rollout.prompts[row], rollout.sets[row]

    def take(self, gamma: float, lam: float) -> Experience:
        """The rollout with its advantages; a new one begins."""
        rollout, self.rollout = self.rollout, Rollout()
        shape = (-1, self.envs.num_envs)

        reward = _on_host(rollout.reward, dtype=torch.float64).reshape(shape)  # [T, N]
        value = _on_host(rollout.value, dtype=torch.float64).reshape(shape)
        ended = _on_host(rollout.ended).reshape(shape)
        next_value = torch.zeros_like(value)
        next_value[:-1] = value[1:]
        next_value[ended] = 0.0
        rows = list(rollout.last)
        present = prompts_of(self.policy, self._episodes)
        prompts = [ids for ids, _ in rollout.last.values()]
        sets = [s for _, s in rollout.last.values()]
        bootstrap = self._values([*prompts, *np.split(present[0], present[1][1:-1])],
                                 [*sets, *present[2]])  # fmt: skip
        next_value.view(-1)[rows] = bootstrap[: len(rows)]
        alive = ~ended[-1]
        next_value[-1, alive] = bootstrap[len(rows) :][alive]
        advantage = ppo.gae(reward, value, next_value, ended, gamma, lam)
        return Experience(self.policy, rollout, advantage.flatten(), (advantage + value).flatten())

    def _values(self, prompts: Sequence[Ids], sets: Sequence[CandidateSet]) -> Tensor:
        """V of prompts, float64 [B], on the CPU."""
        offsets = np.cumsum([0, *map(len, prompts)], dtype=np.int64)
        v = self._scores(np.concatenate(prompts), offsets, sets).v
        assert v is not None
        return v.double()

    def _scores(
        self, prompts: Ids, offsets: npt.NDArray[np.int64], sets: Sequence[CandidateSet]
    ) -> Scores:
        """Scores with V, on the CPU."""
        forest = self.policy.pack(prompts, offsets, sets, device="cpu")
        return self.policy.acting_scores(forest, with_value=True)


class Experience:
    """A rollout to learn from.

    Args:
        policy: packs the prompts.
        rollout: R rows.
        advantage, returns: [R], of the rollout's rows.
    """

    def __init__(
        self, policy: Policy, rollout: Rollout, advantage: Tensor, returns: Tensor
    ) -> None:
        self._policy = policy
        self.rollout = rollout
        kind = torch.promote_types(policy.dtype, torch.float32)
        self.advantage, self.returns = advantage.to(kind), returns.to(kind)
        self._action = _on_host(rollout.action)
        self._log_prob = _on_host(rollout.log_prob, dtype=kind)
        self._sets = rollout.sets
        self._ids = np.concatenate(rollout.prompts)
        self._offsets = np.cumsum([0, *map(len, rollout.prompts)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.advantage)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, for a checkpoint."""
        return {
            **self.rollout.tensors(),
            "advantage": self.advantage,
            "returns": self.returns,
        }

    @staticmethod
    def of(policy: Policy, tensors: Mapping[str, Tensor]) -> Experience:
        """The inverse of `tensors`; KeyError if one is missing."""
        rollout = Rollout.of(tensors)
        return Experience(policy, rollout, tensors["advantage"], tensors["returns"])

    def minibatches(
        self,
        order: npt.NDArray[np.int64],
        size: int,
        *,
        first: int = 0,
        most: int = 0,
        normalise: bool = False,
        device: str | None = None,
    ) -> Iterator[list[Minibatch]]:
        """All rows once, in minibatches of nearly equal sizes, at most `size`, each as its parts.

        Args:
            order: permutation of the rows.
            size: of the minibatches.
            first: number of the minibatch to begin with.
            most: rows of a part; 0: a minibatch is one.
            normalise: the advantages of each minibatch.
            device: where forests are made; None: where the policy is.
        """
        for rows in np.array_split(order, -(-len(self) // size))[first:]:
            index = torch.from_numpy(rows)
            whole = Rows(
                self._action[index], self._log_prob[index], self.advantage[index],
                self.returns[index],
            )  # fmt: skip
            if normalise:
                whole = whole._replace(advantage=ppo.normalise(whole.advantage))
            yield [
                Minibatch(
                    self._policy.pack(
                        self._ids, self._offsets, self._sets, rows=rows[part], device=device
                    ),
                    Rows(*(x[part] for x in whole)),
                )
                for part in row_parts(len(rows), most)
            ]


def _on_host(numbers: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device="cpu")  # whatever torch's default device is


def _packed(name: str, lists: Sequence[Ids]) -> dict[str, Tensor]:
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    flat = np.concatenate(lists) if lists else np.empty(0, dtype=np.int32)
    return {f"{name}_ids": torch.from_numpy(flat), f"{name}_offsets": torch.from_numpy(offsets)}


def _unpacked(name: str, tensors: Mapping[str, Tensor]) -> list[Ids]:
    offsets = tensors[f"{name}_offsets"].numpy()
    if len(offsets) < 2:
        return []
    return np.split(tensors[f"{name}_ids"].numpy(), offsets[1:-1])


def _packed_sets(name: str, sets: Sequence[CandidateSet]) -> dict[str, Tensor]:
    """Each different set once, and which one every row has."""
    number = {one: k for k, one in enumerate(dict.fromkeys(sets))}
    return {
        name: _on_host([number[one] for one in sets], dtype=torch.int64),
        f"{name}_count": _on_host([len(one) for one in number], dtype=torch.int64),
        **_packed(f"{name}_candidates", [ids for one in number for ids in candidates_of(one)]),
    }


def _unpacked_sets(name: str, tensors: Mapping[str, Tensor]) -> list[CandidateSet]:
    candidates = iter(_unpacked(f"{name}_candidates", tensors))
    different = []
    for count in tensors[f"{name}_count"].tolist():
        ids = list(itertools.islice(candidates, count))
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        different.append(CandidateSet(np.concatenate(ids), offsets))
    return [different[k] for k in tensors[name].tolist()]

"""Other goals to act for at the start of an episode, so that what is far off is reached at all.

An agent that can grow a herbivore never does so when its goal is the carnivore that eats it:
nothing has told it yet that one leads to the other. So in a share of the episodes it first
pursues the hardest goal that it can reach from here, then its own (Go-Explore, arXiv 2004.12919:
first return, then explore; the goals as in Goal GAN, arXiv 1705.06366: neither mastered nor out
of reach). Only behaviour changes: the episode keeps its goal in the replay buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..models.forest import Forest
from ..models.graphs import with_room
from ..models.policy import Policy
from .episode import Episode, pack_episodes

MOST = 32  # known goals asked about per episode
WITHIN_REACH = 0.2  # least value of a subgoal, as a share of the best one's
HARDER = 4.0  # exponent of the preference for low values
ROWS = 256  # prompts in one pass


class Subgoals:
    """Gives episodes that begin a subgoal, drawn from the goals achieved so far.

    Args:
        policy: its critic says what is within reach.
        share: of the episodes that get one.
        generator: for the draws.
    """

    def __init__(self, policy: Policy, share: float, generator: torch.Generator) -> None:
        self._policy, self._share, self._generator = policy, share, generator
        self._known: dict[str, None] = {}

    @property
    def known(self) -> list[str]:
        """Goals achieved so far, in the order of their first time."""
        return list(self._known)

    def note(self, achieved: Iterable[str]) -> None:
        """Goals that a transition achieved."""
        self._known.update(dict.fromkeys(achieved))

    def assign(self, episodes: Sequence[Episode]) -> None:
        """Set the subgoal of a share of the episodes that are in their first state."""
        begun = [e for e in episodes if not e.history]
        if not begun or not self._known:
            return
        uniform = torch.rand(len(begun), generator=self._generator, device="cpu")
        begun = [e for e, u in zip(begun, uniform.tolist(), strict=True) if u < self._share]
        drawn = [(e, self._others(e.goal)) for e in begun]
        some = [(e, goals) for e, goals in drawn if goals]
        if not some:
            return
        values = self._values([replace(e, goal=goal) for e, goals in some for goal in goals])
        each = values.split([len(goals) for _, goals in some])
        for (episode, goals), value in zip(some, each, strict=True):
            chosen = torch.multinomial(preference(value), 1, generator=self._generator)
            episode.subgoal = goals[int(chosen)]

    def _others(self, own: str) -> list[str]:
        """Some of the known goals, without the episode's own."""
        known = self.known
        order = torch.randperm(len(known), generator=self._generator, device="cpu")[: MOST + 1]
        return [known[k] for k in order.tolist() if known[k] != own][:MOST]

    def _values(self, episodes: Sequence[Episode]) -> Tensor:
        """Expected Q under the policy, float [B] on the CPU."""
        values = []
        for start in range(0, len(episodes), ROWS):
            forest = pack_episodes(self._policy, episodes[start : start + ROWS], leaves=True)
            values.append(with_room(partial(self._value, forest), None, self._policy))
        return torch.cat(values)

    def _value(self, forest: Forest, _: None) -> Tensor:
        with torch.no_grad():
            scores = self._policy.forward(forest)
        assert scores.q is not None
        return (scores.pi * scores.q.min(0).values).sum(-1).float().cpu()


def preference(value: Tensor) -> Tensor:
    """Weights to draw a subgoal by, float [G]: the hardest first, none for those out of reach."""
    relative = value / value.max().clamp(min=1e-6)
    within = relative >= WITHIN_REACH
    # The best one keeps a little, so that something can be drawn whatever the values are.
    return torch.where(within, (1.0 - relative).clamp(min=1e-3) ** HARDER, 0.0).clamp(
        min=torch.finfo(torch.float32).tiny
    )

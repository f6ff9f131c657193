"""Texts of the environment as ids of the replay buffer, and its candidate sets as the policy's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from .._C import CandidateSet
from ..models.policy import REMEMBERED_SETS, Policy
from ..replay import ReplayBuffer
from ..text import PromptTemplate, TextCodec
from ..text.codec import REMEMBERED_TEXTS


class ReplayTexts:
    """Interns texts: text -> token ids (codec) -> id in the replay buffer; recent ones are known.

    A buffer with `capacity_bytes` frees texts: then each is interned whenever it is used.
    """

    def __init__(self, policy: Policy, buffer: ReplayBuffer) -> None:
        self._policy = policy
        self._codec = policy.codec
        self._buffer = buffer
        self.forget()
        buffer.set_template(self._template())

    def forget(self) -> None:
        """After the buffer was loaded: what is known of its ids may be wrong."""
        intern: Callable[[str], int] = partial(_intern_text, self._buffer, self._codec)
        if self._buffer.capacity_bytes is None:
            intern = lru_cache(REMEMBERED_TEXTS)(intern)
        intern_set: Callable[[tuple[str, ...]], int] = partial(
            _intern_set, self._buffer, self._codec.template, intern
        )
        if self._buffer.capacity_bytes is None:
            intern_set = lru_cache(REMEMBERED_SETS)(intern_set)
        self._intern, self._intern_set = intern, intern_set
        self._set_of = lru_cache(REMEMBERED_SETS)(partial(_set_of, self._buffer))

    def prepare(
        self, goals: Iterable[str], observations: Iterable[str], actions: Iterable[str]
    ) -> None:
        """Tokenise what of these is new in one call."""
        template = self._codec.template
        self._codec.prepare(
            [
                *map(template.goal, goals),
                *map(template.observation, observations),
                *map(template.action, actions),
            ]
        )

    def text(self, segment: str) -> int:
        """The buffer's id of a segment's ids."""
        return self._intern(segment)

    def goal(self, goal: str) -> int:
        return self.text(self._codec.template.goal(goal))

    def observation(self, observation: str) -> int:
        return self.text(self._codec.template.observation(observation))

    def candidates(self, actions: Sequence[str]) -> int:
        """The buffer's id of an ordered candidate set."""
        self._policy.candidate_set(actions)  # refuses duplicates and empty lists
        return self._intern_set(tuple(actions))

    def policy_sets(self, replay_sets: npt.NDArray[np.int32]) -> list[CandidateSet]:
        """The buffer's candidate sets [B] as `Policy.pack` takes them."""
        return [self._set_of(found) for found in replay_sets.tolist()]

    def _template(self) -> list[tuple]:
        template, codec = self._codec.template, self._codec

        def literal(ids: npt.NDArray[np.int32]) -> tuple:
            return ("literal", self._buffer.intern_text(ids))

        action_label = literal(codec.ids(template.action_label))
        past = [("observation",), action_label, ("action",)]
        ops: list[tuple] = [literal(codec.opening()), ("goal",)]
        if template.history:
            ops.append(("history", template.history, past))
        ops.append(("observation",))
        if template.list_actions:
            ops.append(literal(codec.ids(template.actions_label)))
            ops.append(("actions", self._buffer.intern_text(codec.ids(template.actions_separator))))
        ops.append(literal(codec.closing()))
        return ops


def _intern_text(buffer: ReplayBuffer, codec: TextCodec, segment: str) -> int:
    return buffer.intern_text(codec.ids(segment))


def _intern_set(
    buffer: ReplayBuffer,
    template: PromptTemplate,
    intern: Callable[[str], int],
    actions: tuple[str, ...],
) -> int:
    return buffer.intern_candidates([intern(template.action(a)) for a in actions])


def _set_of(buffer: ReplayBuffer, replay_set: int) -> CandidateSet:
    return CandidateSet(*buffer.candidate_tokens(replay_set))

"""Texts of the environment as ids of the replay buffer and of the policy's candidate sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ReplayError
from ..models.policy import Policy
from ..replay import ReplayBuffer


class ReplayTexts:
    """Interns each text once: text -> token ids (codec) -> id in the replay buffer.

    A buffer with `capacity_bytes` frees texts: then each is interned whenever it is used.

    Candidate sets have an id in the buffer and one in the policy's packer: see `policy_sets`.
    """

    def __init__(self, policy: Policy, buffer: ReplayBuffer) -> None:
        self._policy = policy
        self._codec = policy.codec
        self._buffer = buffer
        self._frees = buffer.capacity_bytes is not None
        self._texts: dict[str, int] = {}
        self._sets: dict[tuple[str, ...], int] = {}
        self._policy_set = np.full(64, -1, dtype=np.int32)
        buffer.set_template(self._template())

    def text(self, segment: str) -> int:
        """The buffer's id of a segment's ids."""
        found = self._texts.get(segment)
        if found is None:
            found = self._buffer.intern_text(self._codec.ids(segment))
            if not self._frees:
                self._texts[segment] = found
        return found

    def goal(self, goal: str) -> int:
        return self.text(self._codec.template.goal(goal))

    def observation(self, observation: str) -> int:
        return self.text(self._codec.template.observation(observation))

    def candidates(self, actions: Sequence[str]) -> int:
        """The buffer's id of an ordered candidate set."""
        key = tuple(actions)
        found = self._sets.get(key)
        if found is None or self._frees:
            policy_set = self._policy.candidate_set(key)  # refuses duplicates and empty lists
            found = self._buffer.intern_candidates([self.text(f" {action}") for action in key])
            self._know(key, found, policy_set)
        return found

    def _know(self, key: tuple[str, ...], found: int, policy_set: int) -> None:
        self._sets[key] = found
        if found >= len(self._policy_set):
            grown = np.full(2 * found, -1, dtype=np.int32)
            grown[: len(self._policy_set)] = self._policy_set
            self._policy_set = grown
        self._policy_set[found] = policy_set

    def policy_sets(self, replay_sets: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The packer's set ids for the buffer's, int32 [B]."""
        return self._policy_set[replay_sets]

    def known_sets(self) -> list[Any]:
        """All candidate sets, in the order of their ids in the buffer; for a checkpoint. Those of a
        buffer that frees texts, with their ids."""
        known = sorted(self._sets.items(), key=lambda item: item[1])
        if not self._frees:
            return [list(key) for key, _ in known]
        self._sets = {key: found for key, found in known if self._is_there(found)}
        return [[found, list(key)] for key, found in self._sets.items()]

    def restore_sets(self, sets: Sequence[Any]) -> None:
        """After the buffer was loaded. What is freed when must not depend on resuming, so that
        nothing is interned where it could be freed: ids are as they were."""
        for entry in sets:
            if self._frees:
                found, actions = entry
                self._know(tuple(actions), found, self._policy.candidate_set(tuple(actions)))
            else:
                self.candidates(entry)

    def _is_there(self, replay_set: int) -> bool:
        try:
            self._buffer.candidate_set(replay_set)
        except ReplayError:
            return False
        return True

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

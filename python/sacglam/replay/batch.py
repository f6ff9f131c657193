"""What sampling returns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Batch(NamedTuple):
    """B sampled transitions; prompt i is `prompt_ids[prompt_offsets[i]:prompt_offsets[i + 1]]`."""

    prompt_ids: NDArray[np.int32]  # [*] prompts of s_t, packed
    prompt_offsets: NDArray[np.int64]  # [B + 1]
    candidates: NDArray[np.int32]  # [B] candidate-set id of s_t
    next_prompt_ids: NDArray[np.int32]  # [*] prompts of s_{t+m}, packed
    next_prompt_offsets: NDArray[np.int64]  # [B + 1]
    next_candidates: NDArray[np.int32]  # [B] candidate-set id of s_{t+m}
    action: NDArray[np.int32]  # [B] index into the candidate set of s_t
    n_step_return: NDArray[np.float32]  # [B] sum_{k<m} gamma^k r_{t+k}
    discount: NDArray[np.float32]  # [B] gamma^m, 0 where s_{t+m} is terminal
    weight: NDArray[np.float32]  # [B] importance weight (1 unless sampling is prioritised)
    steps: NDArray[np.int32]  # [B] m
    goal: NDArray[np.int32]  # [B] text id of the goal in both prompts
    relabeled: NDArray[np.uint8]  # [B] 1 where the goal is a hindsight goal
    episode: NDArray[np.int64]  # [B] episode id, as add_episode returned it
    step: NDArray[np.int32]  # [B] t
    key: NDArray[np.int64]  # [B] names the transition for ever; for update_priorities

    @classmethod
    def allocate(cls, batch_size: int, prompt_tokens: int, next_prompt_tokens: int) -> Batch:
        """Arrays for `sample(out=...)`: room for `batch_size` rows and so many tokens in all."""
        b = batch_size
        return cls(
            prompt_ids=np.empty(prompt_tokens, np.int32),
            prompt_offsets=np.empty(b + 1, np.int64),
            candidates=np.empty(b, np.int32),
            next_prompt_ids=np.empty(next_prompt_tokens, np.int32),
            next_prompt_offsets=np.empty(b + 1, np.int64),
            next_candidates=np.empty(b, np.int32),
            action=np.empty(b, np.int32),
            n_step_return=np.empty(b, np.float32),
            discount=np.empty(b, np.float32),
            weight=np.empty(b, np.float32),
            steps=np.empty(b, np.int32),
            goal=np.empty(b, np.int32),
            relabeled=np.empty(b, np.uint8),
            episode=np.empty(b, np.int64),
            step=np.empty(b, np.int32),
            key=np.empty(b, np.int64),
        )

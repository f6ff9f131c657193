"""A user's own relabeling: a function that is asked once a batch which goals its rows get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sacglam.errors import ReplayError


class GoalRequest(NamedTuple):
    """R rows of a batch whose goals may be replaced. A return spans at most `width` steps: n_step,
    or less where all of the rows are near their episode's end."""

    row: NDArray[np.int32]  # [R] places in the batch, ascending
    episode: NDArray[np.int64]  # [R] episode id, as add_episode returned it
    step: NDArray[np.int32]  # [R] t
    length: NDArray[np.int32]  # [R] transitions of the episode
    goal: NDArray[np.int32]  # [R] text id of the recorded goal
    observations: NDArray[np.int32]  # [R, width + 1] text ids of s_t .. s_{t+width}, -1 beyond
    achieved_offsets: NDArray[np.int64]  # [R + 1]
    # What the episode achieved at t or later, in the order of the steps; row i's part is
    # achieved[achieved_offsets[i] : achieved_offsets[i + 1]].
    achieved: NDArray[np.int32]  # [*] text ids of goals
    achieved_steps: NDArray[np.int32]  # [*] the steps that achieved them


Goals = Any  # [R] integers
Hits = Any  # [R, width] bools
Rewards = Any  # [R, width] real numbers
GoalHook = Callable[[GoalRequest], "Goals | tuple[Goals, Hits | None, Rewards | None]"]

Answer = tuple[NDArray[np.int32], NDArray[np.uint8] | None, NDArray[np.float32] | None]


def ask(hook: GoalHook, *arrays: NDArray[Any]) -> Answer:
    """The hook's answer to a request, its shapes and dtypes checked; raises ReplayError."""
    request = GoalRequest._make(arrays)
    answer = hook(request)
    parts = answer if isinstance(answer, tuple) else (answer,)
    if not 1 <= len(parts) <= 3:
        raise ReplayError(
            f"the goals hook returned a tuple of {len(parts)}; goals, (goals, hits) or "
            "(goals, hits, rewards) are needed"
        )
    goals, hits, rewards = (*parts, None, None)[:3]
    rows, width = len(request.row), request.observations.shape[1] - 1
    goals = _array("goals", goals, "iu", (rows,))
    if goals.dtype.kind == "u" and rows and goals.max() > np.iinfo(np.int64).max:
        raise ReplayError("the goals hook returned goals that are no text ids")
    if hits is not None:
        hits = _array("hits", hits, "b", (rows, width)).astype(np.uint8).ravel()
    if rewards is not None:
        rewards = _array("rewards", rewards, "fiu", (rows, width)).astype(np.float32).ravel()
    return goals, hits, rewards


def _array(name: str, value: Any, kinds: str, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as error:  # unequal lengths, or whatever an object's own conversion raises
        raise ReplayError(
            f"the goals hook returned {name} that numpy cannot read as an array: {error}"
        ) from error
    wanted = {"iu": "integers", "b": "bools", "fiu": "real numbers"}[kinds]
    if array.dtype.kind not in kinds or array.shape != shape:
        raise ReplayError(
            f"the goals hook returned {name} of dtype {array.dtype} and shape "
            f"{list(array.shape)}; {wanted} of shape {list(shape)} are needed"
        )
    return array

"""The Python face of the native replay buffer: arrays in, arrays out, no logic of its own."""

from __future__ import annotations

import difflib
import math
import os
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sacglam import _C
from sacglam.errors import CheckpointError, ReplayError

IntArray = NDArray[np.int32] | NDArray[np.int64] | Sequence[int]

STRATEGIES = ("future", "final", "episode", "random", "none")
BALANCES = ("events", "goals")


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
    weight: NDArray[np.float32]  # [B] importance weight (1: sampling is uniform)
    steps: NDArray[np.int32]  # [B] m
    goal: NDArray[np.int32]  # [B] text id of the goal in both prompts
    relabeled: NDArray[np.uint8]  # [B] 1 where the goal is a hindsight goal
    episode: NDArray[np.int64]  # [B] episode id, as add_episode returned it
    step: NDArray[np.int32]  # [B] t

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
        )


class ReplayBuffer:
    """Whole episodes of text transitions, stored as ids of interned token lists.

    Texts (goals, observations, action texts, literals of the template) and candidate sets are
    interned once and never freed; a stored step then costs a few dozen bytes (`stats()` reports
    it). When `capacity` would be exceeded the oldest episodes go, whole.

    Sampling: `her_ratio` of a batch's rows are relabeled: exactly floor or ceil of
    `her_ratio * B` (chosen at random so that the mean is exact), spread evenly over the rows.
    The others are uniform over all stored transitions and keep goal, rewards and termination
    as recorded. A relabeled row is drawn so that its hindsight goal exists:

    | `her_strategy` | `her_balance="events"` | `her_balance="goals"` |
    |---|---|---|
    | `future`  | a transition uniformly among those with an achievement at or after it in their episode, then one of these achievements | a goal uniformly among those achieved in the buffer, one of its achievements, a step of that episode up to it |
    | `final`   | a transition uniformly among the episodes with achievements, then a goal achieved by the last step that achieved any | a goal uniformly among those so achieved, one such episode, any of its steps |
    | `episode` | the same transitions, any achievement of the episode | a goal, one of its achievements, any step of that episode |
    | `random`  | any transition; the goal of any achievement in the buffer | any transition; any goal achieved in the buffer |
    | `none`    | nothing is relabeled | |

    While nothing in the buffer can be relabeled, all rows are plain.

    Targets: m = min(n_step, steps to the episode's end). A relabeled row also stops at the
    first step at or after t that achieves its goal: `her_reward` there, and terminal; other
    steps pay 0, and the recorded termination, which belongs to another goal, does not end it.
    Truncation (and an episode that ends with neither flag) bootstraps: discount gamma^m.

    Deterministic: batch number n of a buffer depends on `seed`, n and the contents alone.

    Threads: any may call any method at any time; the GIL is released while native code works.
    Sampling takes no lock and never waits for producers, nor they for it; a row that an eviction
    overtakes while it is drawn is drawn again (`stats()["redrawn"]`). Saving does not stop
    producers: the file holds all that was stored when it began, less what was evicted meanwhile.

    Processes: with `shared="name"` any number of processes, forked or spawned, add episodes to one
    buffer and sample from it; the others get it by `ReplayBuffer.attach("name")`, by being forked,
    or as a pickled argument. No lock is shared: a process that dies at any instruction leaves the
    others running and every sample valid, and loses at most the episode that it was writing. Texts
    lie in shared memory once; each process that samples keeps the steps (40 to 60 bytes each) for
    itself and takes over what is new whenever it is asked for something. A template is each
    process's own.

    Args:
        capacity: transitions held at most.
        n_step: longest n-step return.
        gamma: discount per step, in [0, 1].
        her_strategy: "future", "final", "episode", "random" or "none".
        her_ratio: share of relabeled rows, in [0, 1].
        her_balance: "events" or "goals".
        her_reward: reward of a hit under a hindsight goal.
        seed: of the sampling, in [0, 2**64).
        shared: a name for the shared memory, which `close` of this object, or its end, removes.
        shared_texts: different texts, and different candidate sets, that a shared buffer can hold;
            by default twice the capacity, at least 65536.
        shared_bytes: of token ids that a shared buffer can hold (taken as they come).

    Raises:
        ReplayError: here and in every method, for data of a wrong type, shape or range.
    """  # noqa: E501

    def __init__(
        self,
        capacity: int,
        *,
        n_step: int = 3,
        gamma: float = 0.99,
        her_strategy: str = "future",
        her_ratio: float = 0.8,
        her_balance: str = "goals",
        her_reward: float = 1.0,
        seed: int = 0,
        shared: str | None = None,
        shared_texts: int | None = None,
        shared_bytes: int = 2**34,
    ) -> None:
        self.capacity = _integer("capacity", capacity, 1, 2**40)
        self.n_step = _integer("n_step", n_step, 1, 2**31 - 1)
        self.gamma = _real("gamma", gamma, 0.0, 1.0)
        self.her_strategy = _choice("her_strategy", her_strategy, STRATEGIES)
        self.her_ratio = _real("her_ratio", her_ratio, 0.0, 1.0)
        self.her_balance = _choice("her_balance", her_balance, BALANCES)
        self.her_reward = _real("her_reward", her_reward, -1e30, 1e30)
        self.seed = _integer("seed", seed, 0, 2**64 - 1)
        self.name = shared
        self._template: list[tuple[Any, ...]] | None = None
        self._native: Any
        if shared is None:
            self._native = _C.Replay(self._settings(), self.seed)
            return
        if not isinstance(shared, str):
            raise ReplayError(f"shared must be a name, got {shared!r}")
        texts = max(65536, 2 * self.capacity) if shared_texts is None else shared_texts
        self._native = _C.Replay.create(
            shared,
            self._settings(),
            self.seed,
            _integer("shared_texts", min(texts, 2**30), 16, 2**30),
            _integer("shared_bytes", shared_bytes, 2**20, 2**37),
        )
        _shared_buffers.add(self)

    def _settings(self) -> Any:
        return _C.ReplaySettings(
            self.capacity,
            self.n_step,
            self.gamma,
            self.her_strategy,
            self.her_ratio,
            self.her_balance,
            self.her_reward,
        )

    @classmethod
    def attach(cls, name: str, **settings: Any) -> ReplayBuffer:
        """The shared buffer of this name, which another process, or this one, has made.

        Args:
            name: as given to `shared`.
            settings: arguments of the constructor that are to differ from the creator's: what is
                sampled here does not concern the others. Give each process its own `seed`, or all
                draw the same batches.

        Raises:
            ReplayError: there is no such buffer, or it belongs to another version of sacglam.
        """
        if not isinstance(name, str):
            raise ReplayError(f"name must be a string, got {name!r}")
        native = _C.Replay.attach(name)
        given = {**native.settings(), "seed": native.seed(), **settings}
        for fixed in ("shared", "shared_texts", "shared_bytes"):
            if fixed in settings:
                raise ReplayError(f"{fixed} is decided by the creator of a shared buffer")
        buffer = cls(**given)
        buffer.name = name
        buffer._native = native.with_settings(buffer._settings(), buffer.seed)
        _shared_buffers.add(buffer)
        return buffer

    def __reduce__(self) -> tuple[Any, ...]:
        """A shared buffer is pickled as its name: the receiver attaches to it."""
        if self.name is None:
            raise ReplayError(
                "a replay buffer of one process cannot be pickled: create it with shared=name, "
                "or use save and load"
            )
        settings = {name: getattr(self, name) for name in self._native.settings()}
        return _attach, (self.name, {**settings, "seed": self.seed}, self._template)

    def close(self) -> None:
        """Give the memory back; the creator of a shared buffer also removes its name. Calls under
        way in other threads end normally, later ones raise ReplayError. Others who have attached
        go on."""
        self._native = _Closed()
        _shared_buffers.discard(self)

    def __enter__(self) -> ReplayBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def intern_text(self, ids: IntArray) -> int:
        """Id of a token list (ids >= 0, may be empty); the same list always has the same id."""
        return int(self._native.intern_text(ids))

    def intern_candidates(self, text_ids: IntArray) -> int:
        """Id of an ordered candidate set: at least one text id, none twice."""
        return int(self._native.intern_candidates(text_ids))

    def text(self, text_id: int) -> NDArray[np.int32]:
        """The token ids of an interned text."""
        return self._native.text(text_id)

    def candidate_set(self, set_id: int) -> NDArray[np.int32]:
        """The text ids of an interned candidate set."""
        return self._native.candidate_set(set_id)

    def set_template(self, ops: Sequence[tuple[Any, ...]]) -> None:
        """Say how a prompt is made: the concatenation of these parts.

        ("literal", text_id)
        ("goal",)
        ("observation",)                   of the prompt's step t
        ("actions", separator_text_id)     the candidates of step t, the separator between
        ("history", k, [parts])            parts for each of the last min(k, t) earlier steps,
                                           oldest first; parts: ("literal", text_id),
                                           ("observation",), ("action",), of that step
        """
        self._native.set_template(ops)
        self._template = list(ops)

    def add_episode(
        self,
        goal: int,
        observations: IntArray,
        candidates: IntArray,
        actions: IntArray,
        rewards: NDArray[np.float32] | Sequence[float],
        terminated: bool,
        truncated: bool,
        achieved_offsets: IntArray,
        achieved: IntArray,
    ) -> int:
        """Store an episode of T >= 1 transitions; returns its id (0, 1, 2, ...; a shared buffer
        counts the episodes of all processes).

        Args:
            goal: text id of the goal that was pursued.
            observations: [T + 1] text ids of s_0 .. s_T.
            candidates: [T + 1] candidate-set ids of s_0 .. s_T.
            actions: [T] index of the chosen action in the step's candidate set.
            rewards: [T] finite.
            terminated: s_T is terminal (wins over `truncated`).
            truncated: a time limit cut the episode.
            achieved_offsets: [T + 1]; transition t newly achieved the goals
                `achieved[achieved_offsets[t] : achieved_offsets[t + 1]]`.
            achieved: text ids; a goal repeated within one step counts once.

        Raises:
            ReplayError: also when T exceeds the capacity. Nothing is stored then.
        """
        return int(
            self._native.add_episode(
                goal,
                observations,
                candidates,
                actions,
                rewards,
                terminated,
                truncated,
                achieved_offsets,
                achieved,
            )
        )

    def assemble(
        self,
        goal: int,
        observations: IntArray,
        candidates: IntArray,
        actions: IntArray,
        t: int,
    ) -> NDArray[np.int32]:
        """Token ids of the prompt at step t of a running episode, by the code that sampling uses.

        Needs the text ids of at least t + 1 observations, t + 1 candidate sets and t actions.
        """
        return self._native.assemble(goal, observations, candidates, actions, t)

    def sample(self, batch_size: int, *, out: Batch | None = None) -> Batch:
        """Draw a batch.

        Args:
            batch_size: B, in [1, 2**24].
            out: arrays to write to (see `Batch.allocate`), each long enough; the result then
                holds views on them. New arrays otherwise.

        Raises:
            ReplayError: nothing is stored, no template is set, or an array of `out` has a wrong
                dtype or shape or is too small; the next call then draws this same batch.
        """
        if out is None:
            return Batch._make(self._native.sample(batch_size, None))
        if not isinstance(out, Batch):
            raise ReplayError(f"out must be a Batch, got {type(out).__name__}; see Batch.allocate")
        self._native.sample(batch_size, tuple(out))
        b = int(batch_size)
        lengths = [b] * len(out)
        lengths[0], lengths[1] = int(out.prompt_offsets[b]), b + 1
        lengths[3], lengths[4] = int(out.next_prompt_offsets[b]), b + 1
        arrays: tuple[NDArray[Any], ...] = tuple(out)
        return Batch._make(
            array if len(array) == n else array[:n]
            for array, n in zip(arrays, lengths, strict=True)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to `path`, atomically: interned tables, template, episodes, counter.

        Raises:
            CheckpointError: it could not be written; what `path` held before is untouched.
        """
        self._native.save(_path_bytes(path))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the contents by those of a saved buffer; sampling continues where it was.

        Seed and counter come from the file; the settings given to the constructor stay. With the
        settings that the file was saved under, the next batches are bit-identical to those the
        saved buffer would have drawn. A smaller capacity drops the oldest episodes. Ids that were
        interned after the file was saved are no longer valid.

        A shared buffer must not hold episodes yet, and no other process may add any meanwhile;
        all processes get the contents. Ids are those of the file only if nothing, or the same in
        the same order, was interned before.

        Raises:
            CheckpointError: missing, damaged, foreign or unfit; the buffer is as it was.
            ReplayError: a shared buffer holds episodes.
        """
        self._native.load(_path_bytes(path))

    def stats(self) -> dict[str, int | float]:
        """steps, episodes, evicted_steps, goals (achieved in the buffer), bytes (of all native
        memory of this process), shared_bytes (of shared memory in use), bytes_per_step, samples
        (rows drawn), batches, redrawn (rows that an eviction overtook while they were drawn),
        her_share (of the rows drawn), texts, candidate_sets."""
        return self._native.stats()

    def __len__(self) -> int:
        """Transitions stored."""
        return int(self._native.steps())


class _Closed:
    def __getattr__(self, name: str) -> Any:
        raise ReplayError("the replay buffer is closed")


class _Forked:
    """Stands in for the native buffer that a forked process inherits, until it is first used.

    The inherited one belongs to the parent (its open segments, its locks): it is kept, untouched.
    """

    def __init__(self, buffer: ReplayBuffer) -> None:
        self._buffer, self._inherited = buffer, buffer._native

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        buffer = self._buffer
        native = self._inherited.with_settings(buffer._settings(), buffer.seed)
        if buffer._template is not None:
            native.set_template(buffer._template)
        _inherited.append(self._inherited)
        buffer._native = native
        return getattr(native, name)


_shared_buffers: weakref.WeakSet[ReplayBuffer] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork() -> None:
    for buffer in list(_shared_buffers):
        buffer._native = _Forked(buffer)


os.register_at_fork(after_in_child=_after_fork)


def _attach(name: str, settings: dict[str, Any], template: Any) -> ReplayBuffer:
    buffer = ReplayBuffer.attach(name, **settings)
    if template is not None:
        buffer.set_template(template)
    return buffer


def _path_bytes(path: Any) -> bytes:
    """As the system takes it; a NUL would end it early and name another file."""
    try:
        name = os.fsencode(path)
    except (TypeError, UnicodeError) as error:
        raise CheckpointError(f"not a path: {error}") from error
    if b"\0" in name:
        raise CheckpointError("a path holds no NUL character")
    return name


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ReplayError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ReplayError(f"{name} must be in [{low}, {high}], got {value}")
    return int(value)


def _real(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ReplayError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and low <= value <= high):
        raise ReplayError(f"{name} must be in [{low}, {high}], got {value}")
    return float(value)


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in allowed:
        return str(value)
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ReplayError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{hint}")

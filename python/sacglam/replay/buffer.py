"""The Python face of the native replay buffer: arrays in, arrays out, no logic of its own."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacglam import _C
from sacglam.errors import ReplayError
from sacglam.replay.batch import Batch
from sacglam.replay.checks import integer, path_bytes, real, shared_name, shown
from sacglam.replay.process import Closed, prefetching, shared_buffers
from sacglam.replay.relabel import GoalHook, ask
from sacglam.replay.settings import checked_settings, native_settings

IntArray = NDArray[np.int32] | NDArray[np.int64] | Sequence[int]


class ReplayBuffer:
    """Whole episodes of text transitions, stored as ids of interned token lists.

    Texts (goals, observations, action texts, literals of the template) and candidate sets are
    interned once and, without `capacity_bytes`, never freed; a stored step then costs a few dozen
    bytes (`stats()` reports it). When `capacity` would be exceeded the oldest episodes go, whole.

    Sampling: `her_ratio` of a batch's rows are relabeled: exactly floor or ceil of
    `her_ratio * B` (chosen at random so that the mean is exact), spread evenly over the rows.
    The others are uniform over all stored transitions (`sampling` offers other draws) and keep
    goal, rewards and termination as recorded. A relabeled row is drawn so that its hindsight goal
    exists:

    | `her_strategy` | `her_balance="events"` | `her_balance="goals"` |
    |---|---|---|
    | `future`  | a transition uniformly among those with an achievement at or after it in their episode, then one of these achievements | a goal uniformly among those achieved in the buffer, one of its achievements, a step of that episode up to it |
    | `final`   | a transition uniformly among the episodes with achievements, then a goal achieved by the last step that achieved any | a goal uniformly among those so achieved, one such episode, any of its steps |
    | `episode` | the same transitions, any achievement of the episode | a goal, one of its achievements, any step of that episode |
    | `random`  | any transition; the goal of any achievement in the buffer | any transition; any goal achieved in the buffer |
    | `none`    | nothing is relabeled | |

    Of these rows a share `her_random` is drawn as by `random`, whatever the strategy. A goal that
    was achieved later is nearly always in reach; these rows show what does not lead to a goal.

    While nothing in the buffer can be relabeled, all rows are plain.

    Targets: m = min(n_step, steps to the episode's end). A relabeled row also stops at the
    first step at or after t that achieves its goal: `her_reward` there, and terminal; other
    steps pay 0. The recorded termination belongs to another goal and does not end it, unless
    the last step paid nothing (or less): a failure, after which no goal has a future.
    Truncation (and an episode that ends with neither flag) bootstraps: discount gamma^m.

    Where a transition is drawn uniformly here, `sampling="episodes"` first draws an episode among
    those that have such transitions, then one of its; `sampling="prioritised"` draws in proportion
    to (priority + priority_epsilon) ** priority_exponent, and a row's weight is (N * P) ** -beta
    over the largest of its batch, N and P those of its draw (Schaul et al. 2016). Where a step is
    drawn after a goal (`her_balance="goals"`), the step is drawn in this way. A new transition
    has the largest priority that was ever given, at first 1; see `update_priorities`.

    `goals=f` has f say which goals the share of relabeled rows gets, in place of `her_strategy`:
    these rows are drawn as plain ones, then f is called, once a batch, in the thread that samples,
    with a `GoalRequest`, and returns `goals`, `(goals, hits)` or `(goals, hits, rewards)`:

    - goals, integers [R]: the text id of each row's new goal, or -1: the row stays as recorded.
    - hits, bools [R, width]: whether the transition of step t + k reaches the new goal; None: what
      `achieved` says. The return stops at the first one, which is terminal.
    - rewards, [R, width]: of step t + k under the new goal; None: `her_reward` at the hit.

    What f raises is raised by `sample`; the next call then draws the same batch. f may use the
    buffer. Rows that are evicted while f runs are replaced by plain ones.

    Deterministic: batch number n of a buffer depends on `seed`, n and the contents alone.

    Threads: any may call any method at any time; the GIL is released while native code works.
    Sampling takes no lock and never waits for producers, nor they for it; a row that an eviction
    overtakes while it is drawn is drawn again (`stats()["redrawn"]`). Saving does not stop
    producers: the file holds all that was stored when it began, less what was evicted meanwhile.

    Processes: with `shared="name"` any number of processes, forked or spawned, add episodes to one
    buffer and sample from it; the others get it by `ReplayBuffer.attach("name")`, by being forked,
    or as a pickled argument. No lock is shared: a process that dies at any instruction leaves the
    others running and every sample valid, and loses at most the episode that it was writing. Texts
    lie in shared memory once; each process that samples keeps the steps (40 to 60 bytes each) and
    candidate sets for itself and takes over what is new whenever it is asked for something. A
    template is each process's own.

    Args:
        capacity: transitions held at most.
        capacity_bytes: bytes of transitions and texts held at most, [4096, 2**50], not for a shared
            buffer or with `prefetch`. Texts and candidate sets that no stored episode uses any more are freed then,
            and their ids are not used again: an id is good until all that was stored, when it was
            last interned or used, is gone. Intern again where an id may be older: it is cheap.
            The newest episode always stays. `stats()["content_bytes"]` says what is taken; rings
            that double, and the allocator, may need twice as much memory.
        n_step: longest n-step return.
        gamma: discount per step, in [0, 1].
        her_strategy: "future", "final", "episode", "random" or "none".
        her_ratio: share of relabeled rows, in [0, 1].
        her_random: share of the relabeled rows that are drawn as by strategy "random", in [0, 1].
        her_balance: "events" or "goals".
        her_reward: reward of a hit under a hindsight goal.
        seed: of the sampling, in [0, 2**64).
        sampling: "transitions", "episodes" or "prioritised".
        priority_exponent: alpha, in [0, 10]; 0 is uniform.
        priority_beta: exponent of the importance weights, in [0, 10]; `sample` may give another.
        priority_epsilon: added to every priority, so that none starves.
        goals: a function that proposes goals, see above.
        long_episodes: what `add_episode` does with more steps than the buffer, or a segment of
            a shared one (about 3 % of the capacity, at least 510 steps, in which achievements
            count half a step each), can hold as one episode: "refuse" them (ReplayError), or
            "split" them.
        prefetch: batches that a native thread keeps ready, 0 to 1024; see `sample`.
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
        capacity_bytes: int | None = None,
        n_step: int = 3,
        gamma: float = 0.99,
        her_strategy: str = "future",
        her_ratio: float = 0.8,
        her_random: float = 0.0,
        her_balance: str = "goals",
        her_reward: float = 1.0,
        seed: int = 0,
        sampling: str = "transitions",
        priority_exponent: float = 0.6,
        priority_beta: float = 0.4,
        priority_epsilon: float = 1e-6,
        goals: GoalHook | None = None,
        long_episodes: str = "refuse",
        prefetch: int = 0,
        shared: str | None = None,
        shared_texts: int | None = None,
        shared_bytes: int = 2**34,
    ) -> None:
        self._settings = checked_settings(locals())
        self.capacity: int = self._settings["capacity"]
        vars(self).update(self._settings)
        self.capacity_bytes = capacity_bytes
        self.seed = integer("seed", seed, 0, 2**64 - 1)
        if goals is not None and not callable(goals):
            raise ReplayError(f"goals must be a function of a GoalRequest, got {shown(goals)}")
        self._goals = goals
        self._set_prefetch(prefetch)
        self._ask = None if goals is None else functools.partial(ask, goals)
        self._ahead: Any = None
        self.name = shared
        self._template: list[tuple[Any, ...]] | None = None
        self._native: Any
        if shared is None:
            self._native = _C.Replay(native_settings(self._settings), self.seed)
            self._start_ahead()
            return
        if shared_texts is None:
            shared_texts = min(max(65536, 2 * self.capacity), 2**30)
        self._native = _C.Replay.create(
            shared_name(shared),
            native_settings(self._settings),
            self.seed,
            integer("shared_texts", shared_texts, 16, 2**30),
            integer("shared_bytes", shared_bytes, 2**20, 2**37),
        )
        self._start_ahead()
        shared_buffers.add(self)

    def _set_prefetch(self, prefetch: Any) -> None:
        self.prefetch: int = integer("prefetch", prefetch, 0, 1024)
        if self.prefetch and self._goals is not None:
            raise ReplayError("prefetch draws batches without Python: it cannot call goals=")
        if self.prefetch and self.capacity_bytes is not None:
            raise ReplayError(
                "prefetch cannot be used with capacity_bytes: texts of batches that are ready "
                "would be freed"
            )

    def _start_ahead(self) -> None:
        if self.prefetch:
            self._ahead = _C.ReplayPrefetcher(self._native, self.prefetch)
            # Also at the end of the interpreter, while everything is still there.
            self._stop_ahead = weakref.finalize(self, self._ahead.stop)
            prefetching.add(self)

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
        native = _C.Replay.attach(shared_name(name))
        given = {**native.settings(), "seed": native.seed(), **settings}
        for fixed in ("shared", "shared_texts", "shared_bytes"):
            if fixed in settings:
                raise ReplayError(f"{fixed} is decided by the creator of a shared buffer")
        ahead = given.pop("prefetch", 0)
        buffer = cls(**given)
        buffer._set_prefetch(ahead)
        buffer.name = name
        buffer._native = native.with_settings(native_settings(buffer._settings), buffer.seed)
        buffer._start_ahead()
        shared_buffers.add(buffer)
        return buffer

    def __reduce__(self) -> tuple[Any, ...]:
        """A shared buffer is pickled as its name: the receiver attaches to it."""
        if self.name is None:
            raise ReplayError(
                "a replay buffer of one process cannot be pickled: create it with shared=name, "
                "or use save and load"
            )
        settings = self._settings | {
            "capacity_bytes": None,
            "seed": self.seed,
            "goals": self._goals,
            "prefetch": self.prefetch,
        }
        return _attach, (self.name, settings, self._template)

    def close(self) -> None:
        """Give the memory back; the creator of a shared buffer also removes its name. Calls under
        way in other threads end normally, later ones raise ReplayError. Others who have attached
        go on."""
        if self._ahead is not None:
            self._stop_ahead()  # and lets go of the memory
            self._ahead = None
        self._native = Closed()
        shared_buffers.discard(self)

    def __enter__(self) -> ReplayBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        shared = "" if self.name is None else f", shared as {self.name!r}"
        try:
            steps = f"{len(self):,} of {self.capacity:,} steps"
        except ReplayError:  # closed
            steps = "closed"
        return f"ReplayBuffer({steps}{shared})"

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

    def candidate_tokens(self, set_id: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The token ids of a candidate set's K texts, one behind the other, and offsets [K + 1]."""
        return self._native.candidate_tokens(set_id)

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
            ReplayError: also when T exceeds the capacity. Nothing is stored then. With
                `long_episodes="split"`, such an episode is stored as several, of at most half the
                capacity each, cut off by truncations; the first one's id is returned. Neither
                hindsight nor a prompt's history reaches across a cut.
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

    def sample(
        self, batch_size: int, *, out: Batch | None = None, beta: float | None = None
    ) -> Batch:
        """Draw a batch.

        With `prefetch=N` a native thread draws the next N batches while this one is used. They
        are the batches that would be drawn without it as long as nothing is added between calls;
        what is added (or given another priority) while batches lie ready is first seen N + 1 calls
        later. Another batch size or beta, `load` and `set_template` void what is ready: it is
        drawn anew. The thread starts at the first call, ends at `close`, and does not exist in
        a forked process, which samples without it. What it fails at is raised by the next call.

        Args:
            batch_size: B, in [1, 2**24].
            out: arrays to write to (see `Batch.allocate`), each long enough; the result then
                holds views on them. New arrays otherwise.
            beta: of prioritised sampling, in place of `priority_beta`.

        Raises:
            ReplayError: nothing is stored, no template is set, or an array of `out` has a wrong
                dtype or shape or is too small; the next call then draws this same batch.
        """
        if out is not None and not isinstance(out, Batch):
            raise ReplayError(f"out must be a Batch, got {type(out).__name__}; see Batch.allocate")
        return Batch._make(self._draw(batch_size, out, beta))

    def _draw(self, batch_size: int, out: Any, beta: float | None) -> tuple[Any, ...]:
        weight = self._settings["priority_beta"] if beta is None else real("beta", beta, 0.0, 10.0)
        ahead = self._ahead
        if ahead is not None:
            return ahead.sample(batch_size, out, weight)
        return self._native.sample(batch_size, out, weight, self._ask)

    def sample_many(self, count: int, batch_size: int, *, beta: float | None = None) -> list[Batch]:
        """`count` batches as `sample` would return them one by one, in one call, which gives the
        GIL up once (with `prefetch`, of what is ready)."""
        count = integer("count", count, 1, 2**20)
        if self._ahead is not None:
            return [self.sample(batch_size, beta=beta) for _ in range(count)]
        weight = self._settings["priority_beta"] if beta is None else real("beta", beta, 0.0, 10.0)
        drawn = self._native.sample_many(count, batch_size, weight, self._ask)
        return [Batch._make(fields) for fields in drawn]

    def update_priorities(
        self, keys: IntArray, priorities: NDArray[np.floating[Any]] | Sequence[float]
    ) -> int:
        """Give transitions new priorities; needs `sampling="prioritised"`.

        Args:
            keys: [n] from `Batch.key` of this object's batches. Of equal keys the last one counts.
            priorities: [n] finite, not negative; for instance absolute TD errors. A transition has
                one priority, under whichever goal it is drawn.

        Returns:
            how many were still stored. The others are counted in `stats()["stale_priorities"]`: a
            key never names another transition, whatever lies in its place now.

        Raises:
            ReplayError: also for keys that no batch of this buffer held. Nothing is changed then.
        """
        return int(self._native.update_priorities(keys, priorities))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to `path`, atomically: interned tables, template, episodes, counter.

        Raises:
            CheckpointError: it could not be written; what `path` held before is untouched.
        """
        self._native.save(path_bytes(path))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the contents by those of a saved buffer; sampling continues where it was.

        Seed and counter come from the file; the settings given to the constructor stay. With the
        settings that the file was saved under, the next batches are bit-identical to those the
        saved buffer would have drawn, priorities included (under another priority_exponent, or
        from a file without any, all are as of new transitions). Keys of earlier batches are stale.
        A smaller capacity drops the oldest episodes. Ids that were
        interned after the file was saved are no longer valid.

        A shared buffer must not hold episodes yet, and no other process may add any meanwhile;
        all processes get the contents. Ids are those of the file only if nothing, or the same in
        the same order, was interned before.

        Raises:
            CheckpointError: missing, damaged, foreign or unfit; the buffer is as it was.
            ReplayError: a shared buffer holds episodes.
        """
        self._native.load(path_bytes(path))

    def stats(self) -> dict[str, int | float]:
        """steps, episodes, evicted_steps, goals (achieved in the buffer), bytes (of all native
        memory of this process), shared_bytes (of shared memory in use), bytes_per_step,
        content_bytes (of what is stored, without spare room), samples
        (rows drawn), batches, redrawn (rows that an eviction overtook while they were drawn),
        her_share (of the rows drawn), stale_priorities (updates of what was gone), texts,
        candidate_sets."""
        return self._native.stats()

    def __len__(self) -> int:
        """Transitions stored."""
        return int(self._native.steps())


def _attach(name: str, settings: dict[str, Any], template: Any) -> ReplayBuffer:
    buffer = ReplayBuffer.attach(name, **settings)
    if template is not None:
        buffer.set_template(template)
    return buffer

"""The work that the replay suite gives to every buffer, ours on it, and what runs beside it."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sacglam.replay import Batch, ReplayBuffer

T, B = 25, 256  # steps of an episode, rows of a batch
GOALS, GOAL_TOKENS = 64, 4
RNG = np.random.default_rng


class Workload:
    """Episodes as arrays, the same for every buffer: `steps` in all, T each.

    Every observation is a text of its own, unless `texts` says that so many recur.
    """

    def __init__(self, steps: int, tokens: int, texts: int | None = None) -> None:
        rng = RNG(0)
        self.steps, self.tokens, self.episodes = steps, tokens, steps // T
        self.texts = rng.integers(0, 30_000, (texts or steps, tokens), np.int32)
        self.goals = rng.integers(0, 30_000, (GOALS, GOAL_TOKENS), np.int32)
        # The goal that a step achieves. Half of the steps have a negative one: none, for those who
        # can store that; a goal like any other (indexed from the end) for those who cannot.
        self.achieved = rng.integers(-GOALS, GOALS, steps)
        self.actions = rng.integers(0, 8, steps).astype(np.int32)

    def steps_of(self, episode: int) -> np.ndarray:
        """Positions of its T + 1 states; the last one is its first again."""
        return np.append(np.arange(T), 0) + episode % self.episodes * T

    def observations(self, steps: np.ndarray) -> np.ndarray:
        return self.texts[steps % len(self.texts)]

    def goal(self, episode: int) -> np.ndarray:
        return self.goals[episode % GOALS]


def ours(work: Workload, **options: Any) -> tuple[ReplayBuffer, list[tuple]]:
    """A filled buffer, and its first episodes as `add_episode` takes them."""
    options = {"her_balance": "events", "seed": 1} | options
    buffer = ReplayBuffer(work.steps, **options)
    goals = np.array([buffer.intern_text(g) for g in work.goals], np.int32)
    texts = np.array([buffer.intern_text(o) for o in work.texts], np.int32)
    actions = [buffer.intern_text([i, i, i]) for i in range(40)]
    rng = RNG(1)
    sets = np.array(
        [buffer.intern_candidates(rng.permutation(actions)[:8]) for _ in range(500)], np.int32
    )
    buffer.set_template([("goal",), ("observation",)])
    episodes = []
    for e in range(work.episodes):
        steps = work.steps_of(e)
        hit = work.achieved[steps[:-1]]
        offsets = np.concatenate([[0], np.cumsum(hit >= 0)]).astype(np.int32)
        episode = (
            int(goals[e % GOALS]), texts[steps % len(texts)], sets[steps % 500],
            work.actions[steps[:-1]], np.zeros(T, np.float32), True, False, offsets,
            goals[hit[hit >= 0]],
        )  # fmt: skip
        buffer.add_episode(*episode)
        if e < 4000:  # enough to go on with
            episodes.append(episode)
    return buffer, episodes


def sampler(buffer: ReplayBuffer, tokens: int, rows: int = B) -> Callable[[], Batch]:
    """`tokens`: of the longest prompt."""
    out = Batch.allocate(rows, rows * (tokens + 64), rows * (tokens + 64))
    return lambda: buffer.sample(rows, out=out)


def gather_floor(work: Workload) -> Callable[[], object]:
    """The bound that memory sets: copies what a batch takes from places all over memory, and
    nothing else. That is the observations of s and of s', three steps on, and B records of steps,
    24 bytes each, from which candidates, actions and rewards come. Goals and action texts are few,
    stay in the caches, and are not counted; nor is what is written of each row (69 bytes)."""
    records = np.zeros((work.steps, 6), np.int32)
    rows, texts = np.empty((B, 6), np.int32), np.empty((2 * B, work.tokens), np.int32)
    # So many batches that none finds in the caches what it took the last time.
    steps = RNG(3).integers(0, work.steps, (1024, B))
    both = np.concatenate([steps, steps + 3], axis=1) % len(work.texts)
    picks = itertools.cycle(zip(steps, both, strict=True))

    def gather() -> None:
        row, text = next(picks)
        np.take(records, row, axis=0, out=rows, mode="clip")
        np.take(work.texts, text, axis=0, out=texts, mode="clip")

    return gather


class Producer:
    """A Python thread that adds whole episodes to one buffer at a time, at a steady rate."""

    def __init__(self, steps_per_s: float) -> None:
        self._period_s = T / steps_per_s
        self._add: Callable[[], object] | None = None
        self._added = threading.Semaphore(0)
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def feed(self, add: Callable[[], object]) -> None:
        """From now on, until the next call; returns once it does."""
        self._add = add
        while self._added.acquire(blocking=False):
            pass
        for _ in range(2):  # the first may still have been for the buffer before
            self._added.acquire()

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._stop:
            if self._add is not None:
                self._add()
                self._added.release()
            now = time.perf_counter()
            # Who cannot keep the pace is not asked to make up for it.
            due = max(due + self._period_s, now)
            time.sleep(due - now)

    def __enter__(self) -> Producer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()


@contextmanager
def forked_pair(draw: Callable[[int], object]) -> Iterator[Callable[[], None]]:
    """A call that has two forked processes run draw(0) and draw(1) at the same time."""
    context = multiprocessing.get_context("fork")

    def serve(k: int, link: Any) -> None:
        while link.recv():
            draw(k)
            link.send(None)

    links, processes = [], []
    for k in range(2):
        mine, theirs = context.Pipe()
        links.append(mine)
        processes.append(context.Process(target=serve, args=(k, theirs), daemon=True))
        processes[-1].start()

    def both() -> None:
        for link in links:
            link.send(True)
        for link in links:
            link.recv()

    try:
        yield both
    finally:
        for process in processes:
            process.kill()
            process.join()


@contextmanager
def producing_process(
    buffer: ReplayBuffer, episodes: list[tuple], steps_per_s: float
) -> Iterator[None]:
    """A forked process that adds whole episodes to a shared buffer at a steady rate."""

    def run() -> None:
        due = time.perf_counter()
        for episode in itertools.cycle(episodes):
            buffer.add_episode(*episode)
            due += T / steps_per_s
            time.sleep(max(0.0, due - time.perf_counter()))

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()

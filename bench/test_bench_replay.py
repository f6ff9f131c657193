"""The replay buffer beside its peers: insert, sample, sample beside a producer, scaling.

The work: observations of `tokens` int32, episodes of 25 steps, hindsight `future` 0.8, batches of
256. Ours returns packed prompts of s and s' (goal + observation) with candidate sets and n-step
targets; a peer returns its own arrays, which hold less. The floor is the bare copy of as many
rows of as many bytes from random places of an array of the same size.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from sacglam.replay import Batch, ReplayBuffer

T, B = 25, 256
GOAL_TOKENS = 4
RNG = np.random.default_rng


class Workload:
    """Episodes as arrays, the same for every buffer. Every observation is a text of its own."""

    def __init__(self, steps: int, tokens: int) -> None:
        rng = RNG(0)
        self.steps, self.tokens, self.episodes = steps, tokens, steps // T
        self.observations = rng.integers(0, 30_000, (steps, tokens), np.int32)
        self.goals = rng.integers(0, 30_000, (64, GOAL_TOKENS), np.int32)
        self.achieved = rng.integers(-64, 64, steps)  # -x: none, half of the steps
        self.actions = rng.integers(0, 8, steps).astype(np.int32)

    def rows(self, episode: int) -> np.ndarray:
        """The T + 1 rows of an episode; its last observation is its first again."""
        return np.append(np.arange(T), 0) + episode * T


def ours(work: Workload, **options: Any) -> tuple[ReplayBuffer, list[tuple]]:
    """A filled buffer and the episodes as `add_episode` takes them."""
    options = {"her_balance": "events", "seed": 1} | options
    buffer = ReplayBuffer(work.steps, **options)
    goals = np.array([buffer.intern_text(g) for g in work.goals], np.int32)
    texts = np.array([buffer.intern_text(o) for o in work.observations], np.int32)
    actions = [buffer.intern_text([i, i, i]) for i in range(40)]
    rng = RNG(1)
    sets = np.array(
        [buffer.intern_candidates(rng.permutation(actions)[:8]) for _ in range(500)], np.int32
    )
    buffer.set_template([("goal",), ("observation",)])
    episodes = []
    for e in range(work.episodes):
        rows = work.rows(e)
        hit = work.achieved[rows[:-1]]
        offsets = np.concatenate([[0], np.cumsum(hit >= 0)]).astype(np.int32)
        episodes.append(
            (int(goals[e % 64]), texts[rows], sets[rows % 500], work.actions[rows[:-1]],
             np.zeros(T, np.float32), True, False, offsets, goals[hit[hit >= 0]])
        )  # fmt: skip
        buffer.add_episode(*episodes[-1])
    return buffer, episodes


def sampler(buffer: ReplayBuffer, tokens: int, rows: int = B) -> Callable[[], Batch]:
    room = rows * (tokens + 64) * 8
    out = Batch.allocate(rows, room, room)
    return lambda: buffer.sample(rows, out=out)


class PythonList:
    """What one writes first: a list of episodes, relabeled and packed in Python."""

    def __init__(self, work: Workload) -> None:
        self.work, self.rng, self.episodes = work, RNG(2), []
        for e in range(work.episodes):
            self.add(e)

    def add(self, e: int) -> None:
        work = self.work
        steps = [(work.observations[r], work.actions[r], work.achieved[r]) for r in work.rows(e)]
        self.episodes.append((work.goals[e % 64], steps))
        del self.episodes[: len(self.episodes) - work.episodes]

    def sample(self) -> tuple[np.ndarray, np.ndarray, list, list]:
        prompts, following, returns, discounts = [], [], [], []
        picks = self.rng.integers(0, len(self.episodes) * T, B)
        relabel = self.rng.random(B) < 0.8
        for pick, her in zip(picks.tolist(), relabel.tolist(), strict=True):
            goal, steps = self.episodes[pick // T]
            t, m, value, discount = pick % T, min(3, T - pick % T), 0.0, 0.99**3
            events = [(k, steps[k][2]) for k in range(t, T) if steps[k][2] >= 0] if her else []
            if events:
                _, new = events[int(self.rng.integers(len(events)))]
                goal = self.work.goals[new]
                first = next(k for k, g in events if g == new)
                if first < t + m:
                    m, value, discount = first - t + 1, 0.99 ** (first - t), 0.0
            prompts += [goal, steps[t][0]]
            following += [goal, steps[t + m][0]]
            returns.append(value)
            discounts.append(discount)
        return np.concatenate(prompts), np.concatenate(following), returns, discounts


def cpprb(work: Workload) -> Callable[[], object]:
    """cpprb's HER: relabels when an episode ends, into extra rows."""
    module = pytest.importorskip("cpprb")
    shape = {"shape": work.tokens, "dtype": np.int32}
    buffer = module.HindsightReplayBuffer(
        work.steps * 5, {"obs": shape, "act": {"dtype": np.int32}, "next_obs": shape}, T,
        lambda state, act, goal: np.zeros((len(goal), 1), np.float32), goal_shape=GOAL_TOKENS,
        goal_func=lambda state: state[:, :GOAL_TOKENS], strategy="future", additional_goals=4,
    )  # fmt: skip
    for e in range(work.episodes):
        rows = work.rows(e)
        for a, b in itertools.pairwise(rows):
            buffer.add(obs=work.observations[a], act=work.actions[a],
                       next_obs=work.observations[b])  # fmt: skip
        buffer.on_episode_end(work.goals[e % 64])
    return lambda: buffer.sample(B)


def stable_baselines3(work: Workload) -> Callable[[], object]:
    pytest.importorskip("stable_baselines3")
    from gymnasium import spaces
    from stable_baselines3 import HerReplayBuffer

    class Env:
        num_envs = 1

        def env_method(self, name: str, achieved: np.ndarray, *_: Any, **__: Any) -> list:
            return [np.zeros(len(achieved), np.float32)]

    text = spaces.Box(0, 30_000, (work.tokens,), np.int32)
    goal = spaces.Box(0, 30_000, (GOAL_TOKENS,), np.int32)
    space = spaces.Dict({"observation": text, "achieved_goal": goal, "desired_goal": goal})
    buffer = HerReplayBuffer(work.steps, space, spaces.Discrete(8), Env(), n_sampled_goal=4)
    for e in range(work.episodes):
        want = work.goals[e % 64][None]

        def state(row: int, want: np.ndarray = want) -> dict[str, np.ndarray]:
            got = work.goals[work.achieved[row]][None]
            return {"observation": work.observations[row][None], "achieved_goal": got,
                    "desired_goal": want}  # fmt: skip

        for k, (a, b) in enumerate(itertools.pairwise(work.rows(e))):
            buffer.add(state(a), state(b), work.actions[a : a + 1], np.zeros(1),
                       np.array([k == T - 1]), [{}])  # fmt: skip
    return lambda: buffer.sample(B, env=None)


def torchrl(work: Workload) -> Callable[[], object]:
    """torchrl without hindsight: with it, it is slower still."""
    pytest.importorskip("torchrl")
    import torch
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(work.steps), batch_size=B)
    rows = np.concatenate([work.rows(e)[:-1] for e in range(work.episodes)])
    following = np.concatenate([work.rows(e)[1:] for e in range(work.episodes)])
    buffer.extend(
        TensorDict(
            {"obs": torch.from_numpy(work.observations[rows]),
             "next_obs": torch.from_numpy(work.observations[following]),
             "goal": torch.from_numpy(work.goals[np.arange(len(rows)) % 64]),
             "action": torch.from_numpy(work.actions[rows]), "reward": torch.zeros(len(rows))},
            batch_size=[len(rows)],
        )
    )  # fmt: skip
    return buffer.sample


PEERS = {"cpprb HER": cpprb, "stable-baselines3 HER": stable_baselines3, "torchrl": torchrl}


def installed_peers(work: Workload) -> dict[str, Callable[[], object]]:
    methods = {}
    for name, make in PEERS.items():
        try:
            methods[name] = make(work)
        except pytest.skip.Exception:
            continue
    return methods


def gather_floor(work: Workload) -> Callable[[], object]:
    """Copies 2 B rows from random places of an array as large as the texts."""
    target = np.empty((2 * B, work.tokens), np.int32)
    picks = itertools.cycle(RNG(3).integers(0, work.steps, (64, 2 * B)))
    source = work.observations
    return lambda: np.take(source, next(picks), axis=0, out=target, mode="clip")


@contextmanager
def producer(buffer: ReplayBuffer, episodes: list[tuple], steps_per_s: int) -> Iterator[None]:
    """A Python thread that inserts whole episodes at a steady rate."""
    stop = threading.Event()

    def run() -> None:
        due = time.perf_counter()
        for episode in itertools.cycle(episodes):
            if stop.is_set():
                return
            buffer.add_episode(*episode)
            due += T / steps_per_s
            time.sleep(max(0.0, due - time.perf_counter()))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def work(quick):
    return Workload(10_000 if quick else 100_000, 128)


@pytest.fixture(scope="module")
def filled(work):
    return ours(work)


def test_insert(compare, work, filled):
    """One episode of 25 steps, the oldest one evicted; ids ready, as the collector has them."""
    buffer, episodes = filled
    turn, plain = itertools.cycle(episodes), PythonList(work)
    count = itertools.cycle(range(work.episodes))
    compare(
        f"insert, episode of {T}",
        {
            "sacglam": lambda: buffer.add_episode(*next(turn)),
            "python list": lambda: plain.add(next(count)),
        },
    )


def test_sample(compare, peak_bytes, work, filled):
    sample = sampler(filled[0], work.tokens)
    peak = peak_bytes(sample)
    methods = {"sacglam": sample, "python list": PythonList(work).sample, **installed_peers(work)}
    compare(f"sample {B}, 128 tokens", methods, floor=gather_floor(work), peak_bytes=peak)


@pytest.mark.parametrize("balance", ["events", "goals"])
def test_sample_full_prompt(compare, work, balance):
    """Goal, two steps of history, observation and the action list in both prompts."""
    bare, _ = ours(work, her_balance=balance)
    full, _ = ours(work, her_balance=balance)
    newline = full.intern_text([5])
    step = [("observation",), ("action",), ("literal", newline)]
    full.set_template([("goal",), ("history", 2, step), ("observation",), ("actions", newline)])
    tokens = int(full.sample(B).prompt_offsets[-1]) / B
    compare(
        f"sample {B}, full prompts, by {balance}",
        {"sacglam": sampler(full, work.tokens), "goal and observation": sampler(bare, work.tokens)},
        floor=gather_floor(Workload(work.steps // 4, round(tokens))),
    )


def test_sample_beside_a_producer(compare, work, filled):
    buffer, episodes = filled
    alone, _ = ours(work)
    with producer(buffer, episodes, steps_per_s=20_000):
        compare(
            f"sample {B} beside 20k steps/s",
            {"sacglam": sampler(buffer, 128), "without a producer": sampler(alone, 128)},
        )


def test_two_samplers(compare, work, filled):
    """The time of 64 batches, by one thread and by two; each batch of 1024 rows."""
    buffer, _ = filled
    samplers = [sampler(buffer, work.tokens, 1024) for _ in range(2)]

    def draw(k: int, batches: int) -> None:
        for _ in range(batches):
            samplers[k]()

    def two() -> None:
        threads = [threading.Thread(target=draw, args=(k, 32)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    compare("64 batches, two threads", {"sacglam": two, "one thread": lambda: draw(0, 64)})


@pytest.mark.parametrize("steps", [10_000, 100_000, 1_000_000])
def test_capacity(compare, quick, steps):
    """The cost of a batch must not grow with what is stored, beyond what memory costs."""
    if quick and steps > 10_000:
        pytest.skip("quick mode")
    work = Workload(steps, 32)
    buffer, _ = ours(work)
    compare(f"sample {B}, 32 tokens, {steps} steps", {"sacglam": sampler(buffer, 32)},
            floor=gather_floor(work))  # fmt: skip


@pytest.mark.parametrize("tokens", [32, 128, 512, 2048])
def test_length(compare, quick, tokens):
    work = Workload(5_000 if quick else 25_000, tokens)
    buffer, _ = ours(work)
    compare(f"sample {B}, {tokens} tokens", {"sacglam": sampler(buffer, tokens)},
            floor=gather_floor(work))  # fmt: skip

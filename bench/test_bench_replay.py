"""The replay buffer beside its peers: insert, sample, sample beside a producer, scaling.

The work: observations of `tokens` int32, episodes of 25 steps, hindsight `future` 0.8, batches of
256. Ours returns packed prompts of s and s' (goal + observation) with candidate sets and n-step
targets; a peer returns its own arrays, which hold less. The floor is the bare copy of what a batch
takes from memory: see `gather_floor`.

What one thread does alone is timed in CPU time, so that other work on the machine weighs on long
calls no more than on short ones.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

from replay_peers import Locked, installed, turns  # noqa: E402
from replay_work import (  # noqa: E402
    B,
    Producer,
    T,
    Workload,
    forked_pair,
    gather_floor,
    ours,
    producing_process,
    sampler,
)

RATE = 20_000  # steps/s of a producer
CPU = time.thread_time


@pytest.fixture(scope="module")
def work(quick):
    return Workload(10_000 if quick else 100_000, 128)


@pytest.fixture(scope="module")
def filled(work):
    return ours(work)


@pytest.fixture(scope="module")
def peers(work):
    return installed(work)


def test_sample(compare, peak_bytes, work, filled, peers):
    methods = {"sacglam": sampler(filled[0], work.tokens)}
    methods |= {name: peer.sample for name, peer in peers.items()}
    peaks = {name: peak_bytes(method) for name, method in methods.items()}
    case = f"sample {B}, 128 tokens, {work.steps} steps"
    compare(case, methods, floor=gather_floor(work), peak_bytes=peaks, clock=CPU)


def test_sample_alone(steady, work, filled):
    """What one sampler gives that has the machine to itself."""
    steady(
        f"sample {B}, 128 tokens, nothing between",
        sampler(filled[0], work.tokens),
        floor=gather_floor(work),
        clock=CPU,
    )


def test_insert(compare, work, filled, peers):
    """One episode of 25 steps, the oldest one evicted. Ours: ids ready, as the collector has them
    from acting; and with its texts interned in the call, which finds them known."""
    buffer, episodes = filled
    turn, numbers = itertools.cycle(episodes), itertools.count()

    def interning() -> None:
        number = next(numbers)
        for text in work.observations(work.steps_of(number)):
            buffer.intern_text(text)
        buffer.add_episode(*episodes[number % len(episodes)])

    compare(
        f"insert, episode of {T}",
        {
            "sacglam": lambda: buffer.add_episode(*next(turn)),
            "sacglam, texts interned as well": interning,
            **{name: turns(peer) for name, peer in peers.items()},
        },
        clock=CPU,
    )


def test_sample_beside_a_producer(compare, quick, work, filled, peers):
    """Each method has the producer for itself while it is timed, in a thread of the same process;
    who cannot take so many steps gets as many as it can."""
    buffer, episodes = filled
    turn, batches = itertools.cycle(episodes), 16 if quick else 64
    shared = {name: Locked(peer) for name, peer in peers.items()}
    adds = {"sacglam": lambda: buffer.add_episode(*next(turn))}
    adds |= {name: turns(peer) for name, peer in shared.items()}
    samples = {"sacglam": sampler(buffer, work.tokens)}
    samples |= {name: peer.sample for name, peer in shared.items()}

    def many(sample):
        def draw():
            for _ in range(batches):
                sample()

        return draw

    with Producer(RATE) as producer:
        compare(
            f"{batches} batches of {B} beside a thread of {RATE} steps/s",
            {name: many(sample) for name, sample in samples.items()},
            setup={name: lambda add=add: producer.feed(add) for name, add in adds.items()},
        )


def test_sample_beside_a_producing_process(compare, work):
    name = f"bench-{os.getpid()}"
    alone, _ = ours(work)
    buffer, episodes = ours(work, shared=name)
    with buffer, producing_process(buffer, episodes, RATE):
        compare(
            f"sample {B} beside a process of {RATE} steps/s",
            {"sacglam": sampler(buffer, 128), "without a producer": sampler(alone, 128)},
            clock=CPU,  # following the log, which the sampling thread does, included
        )


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
        {
            "sacglam": sampler(full, 4 * work.tokens),
            "goal and observation": sampler(bare, work.tokens),
        },
        floor=gather_floor(Workload(work.steps // 4, round(tokens))),
        clock=CPU,
    )


def test_two_samplers(compare, quick, work, filled):
    """The time of so many batches of 1024 rows, by one thread and by two: enough that starting
    these, and the first growth of what each keeps, does not count. Two processes that draw from
    copies of the buffer share nothing but the machine: more than they gain, threads cannot."""
    buffer, _ = filled
    samplers = [sampler(buffer, work.tokens, 1024) for _ in range(2)]
    batches = 64 if quick else 256

    def draw(k: int, batches: int) -> None:
        for _ in range(batches):
            samplers[k]()

    def two() -> None:
        threads = [threading.Thread(target=draw, args=(k, batches // 2)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    case = f"{batches} batches of 1024, two threads"
    with forked_pair(lambda k: draw(k, batches // 2)) as two_processes:
        compare(
            case,
            {
                "sacglam": two,
                "one thread": lambda: draw(0, batches),
                "two processes": two_processes,
            },
        )


@pytest.mark.parametrize("steps", [10_000, 100_000, 1_000_000, 10_000_000])
def test_capacity(compare, quick, steps):
    """The cost of a batch must not grow with what is stored, beyond what memory costs. The largest
    size has a million different texts, and no peers: filling them would take minutes."""
    if quick and steps > 10_000:
        pytest.skip("quick mode")
    if steps > 1_000_000 and os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 << 30:
        pytest.skip("needs 8 GB of free memory")
    work = Workload(steps, 32, min(steps, 1_000_000))
    names = [] if steps > 1_000_000 else ["stable-baselines3 HER", "torchrl HER"]
    peers = installed(work, "python list", *names) if names else {}
    buffer, _ = ours(work)
    methods = {"sacglam": sampler(buffer, 32)} | {n: p.sample for n, p in peers.items()}
    case = f"sample {B}, 32 tokens, {steps} steps"
    compare(case, methods, floor=gather_floor(work), clock=CPU)


@pytest.mark.parametrize("tokens", [32, 128, 512, 2048])
def test_length(compare, quick, tokens):
    work = Workload(5_000 if quick else 25_000, tokens)
    buffer, _ = ours(work)
    compare(
        f"sample {B}, {tokens} tokens, {work.steps} steps",
        {"sacglam": sampler(buffer, tokens)}
        | {name: peer.sample for name, peer in installed(work, "python list").items()},
        floor=gather_floor(work),
        clock=CPU,
    )

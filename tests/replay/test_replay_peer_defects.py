"""Defects that other replay buffers have shown, as tests of ours. Each names where it was seen."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from sacglam.replay import Batch, ReplayBuffer

_numbers = itertools.count()


@pytest.fixture
def name():
    return f"defect-{os.getpid()}-{next(_numbers)}"


LENGTH, GOALS = 6, 50


class Marked:
    """Episodes that name themselves: episode n is about key n % GOALS, all its observations say so,
    and it achieves the goal of that key, at each step, and no other."""

    def __init__(self, buffer: ReplayBuffer) -> None:
        self.buffer = buffer
        self.goals = [buffer.intern_text([1000 + k]) for k in range(GOALS)]
        self.texts = [[buffer.intern_text([k, t]) for t in range(LENGTH + 1)] for k in range(GOALS)]
        self.actions = buffer.intern_candidates(self.goals[:2])
        buffer.set_template([("goal",), ("observation",)])

    def add(self, n: int, achieves: bool = True) -> int:
        k = n % GOALS
        return self.buffer.add_episode(
            self.goals[(k + 1) % GOALS],  # what was wanted is another key's
            self.texts[k], [self.actions] * (LENGTH + 1), [0] * LENGTH, [0.0] * LENGTH, True, False,
            range(LENGTH + 1) if achieves else [0] * (LENGTH + 1),
            [self.goals[k]] * LENGTH if achieves else [],
        )  # fmt: skip

    @staticmethod
    def wrong(batch: Batch) -> np.ndarray:
        """Rows that are not of one episode and one step, or whose goal is not that episode's."""
        prompt = batch.prompt_ids.reshape(-1, 3)
        following = batch.next_prompt_ids.reshape(-1, 3)
        key = prompt[:, 1]
        goal = np.where(batch.relabeled == 1, key, (key + 1) % GOALS) + 1000
        ok = (batch.episode % GOALS == key) & (prompt[:, 0] == goal) & (following[:, 0] == goal)
        ok &= (prompt[:, 2] == batch.step) & (following[:, 1] == key)
        ok &= following[:, 2] == batch.step + batch.steps
        return np.flatnonzero(~ok)


@pytest.mark.parametrize("shared", [False, True])
def test_sampling_after_several_episodes_went_into_a_full_buffer(shared, name):
    """torchrl 0.14 raises in `HERReplayBuffer.sample` once more than one row was added to a full
    buffer: its cache of episode ends compares a tensor of cursors with the one before."""
    kw = {"shared": name} if shared else {}
    with ReplayBuffer(10 * LENGTH, her_ratio=1.0, **kw) as buffer:
        marked = Marked(buffer)
        for n in range(10):
            marked.add(n)
        buffer.sample(32)
        added = 10
        for count in (1, 2, 3, 9, 10, 11, 25):  # several between two samples, up to whole laps
            for _ in range(count):
                marked.add(added)
                added += 1
            batch = buffer.sample(200)
            assert len(marked.wrong(batch)) == 0
            assert len(buffer) == 10 * LENGTH
            assert set(batch.episode.tolist()) == set(range(added - 10, added))


@pytest.mark.parametrize("balance", ["events", "goals"])
@pytest.mark.parametrize("shared", [False, True])
def test_relabeling_beside_a_writer_never_takes_a_goal_of_another_episode(shared, balance, name):
    """torchrl 0.14 draws rows and goals under different states of the storage: with a writer in
    another thread 0.2 % of the goals came from another episode."""
    kw = {"shared": name} if shared else {}
    with ReplayBuffer(8 * LENGTH, her_ratio=1.0, her_balance=balance, seed=1, **kw) as buffer:
        marked = Marked(buffer)
        for n in range(8):
            marked.add(n)
        stop = threading.Event()

        def write() -> None:
            for n in itertools.count(8):
                if stop.is_set():
                    return
                marked.add(n)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            relabeled = wrong = 0
            last = -1
            laps = 0
            # Until the contents were replaced often enough while batches were drawn.
            while laps < 200:
                batch = buffer.sample(128)
                wrong += len(marked.wrong(batch))
                relabeled += int(batch.relabeled.sum())
                newest = int(batch.episode.max())
                laps += newest > last + 8
                last = max(last, newest)
        finally:
            stop.set()
            writer.join()
        assert wrong == 0
        assert relabeled > 0


def bytes_touched(buffer: ReplayBuffer, calls: int) -> int:
    """Pages of the process that `calls` batches read or wrote, in bytes: the kernel's count of what
    was referenced since it was told to forget (proc(5), clear_refs and smaps)."""
    out = Batch.allocate(64, 64 * 3, 64 * 3)
    buffer.sample(64, out=out)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("1")
    for _ in range(calls):
        buffer.sample(64, out=out)
    with open("/proc/self/smaps_rollup") as file:
        lines = [line for line in file if line.startswith("Referenced:")]
    return int(lines[0].split()[1]) * 1024


def small_pages() -> bool:
    """Huge pages off for this process (prctl(2), PR_SET_THP_DISABLE): they would count whole."""
    return ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0


TOUCHED = """
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("defects", {file!r})
    defects = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(defects)
    if not defects.small_pages():
        sys.exit()
    for capacity in (20_000, 200_000):
        buffer = defects.ReplayBuffer(capacity, her_balance=sys.argv[1], seed=1)
        marked = defects.Marked(buffer)
        for n in range(capacity // defects.LENGTH):
            marked.add(n)
        print(defects.bytes_touched(buffer, 1))
    print(buffer.stats()["bytes"])
"""


@pytest.mark.skipif(
    not (os.access("/proc/self/clear_refs", os.W_OK) and os.path.exists("/proc/self/smaps_rollup")),
    reason="needs Linux's count of referenced pages",
)
@pytest.mark.parametrize("balance", ["events", "goals"])
def test_the_work_of_a_batch_does_not_grow_with_the_capacity(balance):
    """stable-baselines3's HER scans the whole buffer for each batch: 0.3 ms at a capacity of 10^4,
    1.4 ms at 10^6. Seen here by the memory that batches touch, which no busy machine changes."""
    # In a process of its own: this one's heap may lie on huge pages by now, which count whole.
    code = textwrap.dedent(TOUCHED).format(file=__file__)
    command = [sys.executable, "-c", code, balance]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if not done.stdout:
        pytest.skip("huge pages cannot be turned off")
    *touched, stored = map(int, done.stdout.split())
    # A batch of 64 touches at most some pages for each of its rows; a scan would touch all that is
    # stored: the buffer's rows alone are 24 bytes a step.
    assert touched[1] - touched[0] < 64 * 6 * 4096
    assert touched[1] - touched[0] < stored / 4


PRODUCER = """
    import importlib.util, itertools, sys
    spec = importlib.util.spec_from_file_location("defects", {file!r})
    defects = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(defects)
    buffer = defects.ReplayBuffer.attach({name!r})
    marked = defects.Marked(buffer)
    for n in itertools.count():
        marked.add(n)
        if n == 20:
            print("running", flush=True)
"""


def test_a_killed_producer_stalls_nobody(name):
    """cpprb's `MPReplayBuffer` and torchrl's shared storages hang in ten of twelve trials: the dead
    process holds a lock. Here a sampler and another producer go on at once; the time limit of the
    test suite would name one that does not."""
    with ReplayBuffer(40 * LENGTH, shared=name, seed=2) as buffer:
        marked = Marked(buffer)
        marked.add(0)
        code = textwrap.dedent(PRODUCER).format(file=__file__, name=name)
        for trial in range(6):
            producer = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
            )
            assert producer.stdout.readline() == "running\n"
            for _ in range(trial):  # another moment of its work each time
                buffer.sample(64)
            os.kill(producer.pid, signal.SIGKILL)
            buffer.sample(64)  # while it dies, and after
            producer.wait()
            producer.stdout.close()
            before = buffer.stats()
            added = [marked.add(n) for n in range(50)]  # a whole lap
            batch = buffer.sample(400)
            after = buffer.stats()
            stored = [s["steps"] + s["evicted_steps"] for s in (before, after)]
            assert stored[1] - stored[0] == 50 * LENGTH
            assert set(batch.episode.tolist()) <= set(added)
            prompt = batch.prompt_ids.reshape(-1, 3)
            assert (prompt[:, 2] == batch.step).all()

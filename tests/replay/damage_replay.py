"""Garbage in the memory of a shared buffer, at random: whoever is attached to it, or attaches, gets
a typed error or rows that look sound; never a crash, a hang, or a read beyond what is there. Run by
test_replay_fuzz.py, also under the address sanitizer; by hand:

    python tests/replay/damage_replay.py --seconds 60 [--seed N] [--extension PATH]

Exits with 1 and the seed of the round when a call does anything else; a crash says so by itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import random
import sys
from pathlib import Path
from typing import Any

import fuzz_replay
import numpy as np
from fuzz_replay import check, episode, fill_tables
from hostile import SETS, TEXTS, at_once

_numbers = itertools.count()
HANG_S = 120.0  # a round takes a fraction of a second
# Limits of the fields that the words consist of, and what lies on either side of them.
EDGES = [0, 1, 2, 7, 64, 255, 256, 2**16, 2**20, 2**24 - 1, 2**31, 2**32, 2**33, 2**40, 2**44,
         2**62, 2**63, 2**64 - 1]  # fmt: skip
HEAD_WORDS = 1200  # the header, and the two words of each segment


class Memory:
    """What a shared buffer's processes see, as a stranger who writes to it does."""

    def __init__(self, name: str) -> None:
        self.words = np.memmap(f"/dev/shm/sacglam-{name}", np.uint64, "r+")
        self.look()

    def look(self) -> None:
        """Most of the memory is not used: damage there would show nothing."""
        self.used = np.flatnonzero(self.words.copy()).tolist()  # others write to it

    def damage(self, rng: random.Random) -> None:
        words = self.words
        at = rng.randrange(HEAD_WORDS)
        if rng.random() < 0.7:
            at = rng.choice(self.used) + rng.choice([0, 0, 0, -1, 1])
        at = min(max(at, 0), len(words) - 1)
        word = int(words[at])
        kind = rng.randrange(6)
        if kind == 0:
            words[at] = word ^ 1 << rng.randrange(64)
        elif kind == 1:
            words[at] = rng.getrandbits(64)
        elif kind == 2:
            words[at] = (rng.choice(EDGES) + rng.randrange(-1, 2)) % 2**64
        elif kind == 3:  # one 32-bit half
            half, shift = rng.choice(EDGES) % 2**32, rng.choice([0, 32])
            words[at] = word & ~(0xFFFFFFFF << shift) & (2**64 - 1) | half << shift
        elif kind == 4:
            words[at] = words[rng.choice(self.used)]
        else:
            end = min(at + rng.choice([2, 8, 64]), len(words))
            words[at:end] = np.frombuffer(rng.randbytes(8 * (end - at)), np.uint64)


class Round:
    def __init__(self, seed: int, folder: Path) -> None:
        from sacglam.replay import ReplayBuffer

        self.rng = rng = random.Random(seed)
        self.path = folder / "a"
        self.settings = {
            "capacity": rng.choice([20, 200]),
            "her_strategy": rng.choice(["future", "final", "episode", "random", "none"]),
            "her_balance": rng.choice(["events", "goals"]),
            "n_step": rng.choice([1, 3]),
            "sampling": rng.choice(["transitions", "episodes", "prioritised"]),
        }
        name = f"damage-{os.getpid()}-{next(_numbers)}"
        made = ReplayBuffer(**self.settings, shared=name, shared_texts=64, shared_bytes=2**20)
        self.name = name
        self.buffers = [made]
        fill_tables(made)
        for _ in range(rng.choice([1, 10, 150])):
            made.add_episode(**episode(rng))
        if rng.random() < 0.3:
            self.forked()  # leaves a dead producer and its open segment
        self.memory = Memory(name)

    def attach(self) -> None:
        """With the settings that the memory names, or others; it may have none of this name."""
        from sacglam.replay import ReplayBuffer

        buffer = ReplayBuffer.attach(self.name, **self.rng.choice([{}, self.settings]))
        self.buffers.append(buffer)
        buffer.set_template(
            [("goal",), ("history", 2, [("action",)]), ("observation",), ("actions", 1)]
        )

    def create(self) -> None:
        from sacglam.replay import ReplayBuffer

        ReplayBuffer(20, shared=self.name, shared_texts=64, shared_bytes=2**20).close()

    def any(self) -> Any:
        return self.rng.choice(self.buffers)

    def add(self) -> None:
        self.any().add_episode(**episode(self.rng))

    def add_many(self) -> None:  # more than a segment holds
        buffer = self.any()
        for _ in range(80):
            buffer.add_episode(**episode(self.rng))

    def sample(self) -> None:
        # Texts stay in the shared memory: whoever writes there may write any token.
        check(self.any().sample(9), 9, tokens=False)

    def intern(self) -> None:
        ids = [self.rng.randrange(TEXTS) for _ in range(self.rng.randrange(9))]
        buffer = self.any()
        self.rng.choice([buffer.intern_text, buffer.intern_candidates])(ids)

    def look_up(self) -> None:
        for i in range(TEXTS):
            assert self.any().text(i).dtype == np.int32
        for i in range(SETS):
            assert (self.any().candidate_set(i) >= 0).all()

    def save(self) -> None:
        from sacglam.replay import ReplayBuffer

        self.any().save(self.path)
        ReplayBuffer(**self.settings).load(self.path)

    def forked(self) -> None:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(*fuzz_replay.ALLOWED):
                self.add()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    def fresh(self) -> None:
        """What attaches now takes in nothing that is senseless now."""
        self.attach()
        check(self.buffers[-1].sample(9), 9)

    def calls(self, count: int) -> None:
        some = (self.attach, self.create, self.add, self.add, self.add_many, self.sample,
                self.sample, self.intern, self.look_up, self.save,
                lambda: self.any().stats(), lambda: len(self.any()))  # fmt: skip
        for _ in range(count):
            with contextlib.suppress(*fuzz_replay.ALLOWED):
                self.rng.choice(some)()

    def disturb(self) -> None:
        rng = random.Random(self.rng.random())
        for _ in range(200):
            self.memory.damage(rng)

    def run(self) -> None:
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        for _ in range(self.rng.choice([1, 3])):
            self.memory.look()
            for _ in range(self.rng.choice([1, 1, 3, 20])):
                self.memory.damage(self.rng)
            with contextlib.suppress(*fuzz_replay.ALLOWED):
                self.fresh()
            self.calls(8)
        if self.rng.random() < 0.2:
            self.forked()
        if self.rng.random() < 0.2:
            at_once([self.disturb, lambda: self.calls(12)])
        for buffer in self.buffers:
            buffer.close()
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    sys.exit(fuzz_replay.main(__doc__, Round))

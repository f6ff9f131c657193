"""Producers, samplers, interning, saving and loading in threads of one process, and a forked
producer beside them, for a while. Run by test_replay_fuzz.py under the thread sanitizer; by hand:

    python tests/replay/threads_replay.py --seconds 60 [--extension PATH]

Exits with 1 when a row is not of one episode.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile import at_once, use_extension

KEYS, LENGTH = 30, 5


class Ground:
    """A buffer whose episodes are about one key each, which all their tokens name."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer
        self.goals = [buffer.intern_text([k]) for k in range(KEYS)]
        self.texts = [[buffer.intern_text([k, t]) for t in range(LENGTH + 1)] for k in range(KEYS)]
        # A set of all texts, which every episode uses: none of them is ever freed.
        everything = [*self.goals, *itertools.chain(*self.texts)]
        self.actions = buffer.intern_candidates(everything)
        buffer.set_template([("goal",), ("observation",)])

    def add(self, k: int) -> None:
        self.buffer.add_episode(
            self.goals[k], self.texts[k], [self.actions] * (LENGTH + 1), [0] * LENGTH,
            [0.0] * LENGTH, True, False, range(LENGTH + 1), [self.goals[k]] * LENGTH,
        )  # fmt: skip

    def sample(self, out: Any) -> None:
        batch = self.buffer.sample(32, out=out)
        if self.buffer.sampling == "prioritised":
            self.buffer.update_priorities(batch.key, 1.0 + batch.step)
        prompt = batch.prompt_ids.reshape(-1, 3)
        following = batch.next_prompt_ids.reshape(-1, 3)
        sound = (prompt[:, 0] == prompt[:, 1]) & (following[:, 0] == prompt[:, 0])
        sound &= (following[:, 1] == prompt[:, 1]) & (prompt[:, 2] == batch.step)
        sound &= following[:, 2] == batch.step + batch.steps
        assert sound.all(), "a row is not of one episode"


def run(buffer: Any, seconds: float, folder: Path) -> int:
    """Rows sampled."""
    from sacglam.replay import Batch, ReplayBuffer

    ground = Ground(buffer)
    ground.add(0)
    saved, kept = folder / "saved", folder / "kept"
    kept.unlink(missing_ok=True)  # another buffer's
    end = time.monotonic() + seconds
    counts = [0, 0]

    def repeat(call: Any) -> Callable[[], None]:
        def loop() -> None:
            for n in itertools.count():
                if time.monotonic() > end:
                    return
                call(n)

        return loop

    def sampling(which: int) -> Any:
        out = Batch.allocate(32, 96, 96)

        def sample(_: int) -> None:
            ground.sample(out)
            counts[which] += 32

        return sample

    def look(n: int) -> None:
        buffer.stats()
        len(buffer)
        buffer.text(n % KEYS)
        buffer.intern_text([10_000 + n % 100])
        buffer.intern_candidates([ground.goals[n % KEYS], ground.goals[n % KEYS - 1]])
        buffer.assemble(ground.goals[0], ground.texts[0][:1], [ground.actions], [], 0)
        if n % 50 == 0:
            ground.buffer.set_template([("goal",), ("observation",)])

    def save(n: int) -> None:
        buffer.save(saved)
        if n % 5 == 0:
            other = ReplayBuffer(100)
            other.load(saved)
            if len(other) > 0:  # all may be evicted while a save waits for its turn
                Ground(other).sample(None)
                saved.replace(kept)
        time.sleep(0.01)

    def load(_: int) -> None:
        if kept.exists():
            buffer.load(kept)
        time.sleep(0.002)  # else the others would hardly come to anything between two of them

    producers = [repeat(lambda n, k=k: ground.add((n * 7 + k) % KEYS)) for k in range(2)]
    calls = [sampling(0), sampling(1), look, save]
    if buffer.name is None:  # a shared one takes a file only while it is empty
        calls.append(load)
    at_once([*producers, *map(repeat, calls)])
    return sum(counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--extension")
    args = parser.parse_args()
    use_extension(args.extension)
    from sacglam.replay import ReplayBuffer

    rows = 0
    with tempfile.TemporaryDirectory(prefix="sacglam-threads-") as folder:
        kinds: list[dict[str, Any]] = [
            {"her_balance": "events"},
            {"her_balance": "goals", "prefetch": 2},
            {"sampling": "prioritised"},
            # What is interned beside the ground is freed all the time, and what load() replaces.
            {"capacity_bytes": 75_000},
        ]
        seconds = args.seconds / (2 * len(kinds) - 1)
        for kind in kinds:
            private = ReplayBuffer(40 * LENGTH, **kind)
            rows += run(private, seconds, Path(folder))
            private.close()
            if "capacity_bytes" in kind:  # not for a shared one
                continue
            name = f"threads-{os.getpid()}-{len(kind)}"
            with ReplayBuffer(40 * LENGTH, shared=name, **kind) as shared:
                child = os.fork()
                if child == 0:
                    ground = Ground(shared)
                    for n in itertools.count():
                        ground.add(n % KEYS)
                        time.sleep(0.001)
                try:
                    rows += run(shared, seconds, Path(folder))
                finally:
                    os.kill(child, 9)
                    os.waitpid(child, 0)
    print(f"rows {rows} wrong 0")
    return 0 if rows > 0 else 1


if __name__ == "__main__":
    sys.exit(main())

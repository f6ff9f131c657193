"""Hostile input for the replay buffer, at random: every call must end in a typed error or in a
sound result. Run by test_replay_fuzz.py, also under the address sanitizer; by hand:

    python tests/replay/fuzz_replay.py --seconds 60 [--seed N] [--extension PATH]

Exits with 1 and the seed of the round when a call does anything else; a crash says so by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hostile import SETS, TEXTS, Hostile, at_once, damaged, use_extension

_numbers = itertools.count()
ALLOWED: tuple[type[BaseException], ...] = ()  # set by main(): what a refusal may be


# ---- sound contents


def fill_tables(buffer: Any) -> None:
    for i in range(TEXTS):
        buffer.intern_text(list(range(i)))
    for ids in ([0], [1, 2], [3, 4, 5, 6]):
        buffer.intern_candidates(ids)
    buffer.set_template(
        [("goal",), ("history", 2, [("observation",), ("action",)]), ("observation",),
         ("actions", 1)]
    )  # fmt: skip


def episode(rng: random.Random) -> dict[str, Any]:
    n = rng.randrange(1, 7)
    candidates = [rng.randrange(SETS) for _ in range(n + 1)]
    achieved = [[rng.randrange(TEXTS) for _ in range(rng.randrange(3))] for _ in range(n)]
    return {
        "goal": rng.randrange(TEXTS),
        "observations": [rng.randrange(TEXTS) for _ in range(n + 1)],
        "candidates": candidates,
        "actions": [rng.randrange((1, 2, 4)[c]) for c in candidates[:-1]],
        "rewards": [rng.uniform(-1, 1) for _ in range(n)],
        "terminated": rng.random() < 0.5,
        "truncated": rng.random() < 0.5,
        "achieved_offsets": list(itertools.accumulate(map(len, achieved), initial=0)),
        "achieved": list(itertools.chain(*achieved)),
    }


def check(batch: Any, rows: int, tokens: bool = True) -> None:
    """What holds for every batch; of its tokens where `tokens`."""
    for offsets, ids in (
        (batch.prompt_offsets, batch.prompt_ids),
        (batch.next_prompt_offsets, batch.next_prompt_ids),
    ):
        assert len(offsets) == rows + 1
        assert offsets[0] == 0
        assert (np.diff(offsets) >= 0).all()
        assert offsets[-1] == len(ids)
        assert not tokens or (ids >= 0).all()
    assert (batch.candidates >= 0).all()
    assert (batch.action >= 0).all()
    assert (batch.steps >= 1).all()
    assert (batch.step >= 0).all()
    assert (batch.goal >= 0).all()
    assert ((batch.discount >= 0) & (batch.discount <= 1)).all()
    assert (batch.weight >= 0).all()
    assert np.isfinite(batch.weight).all()


# ---- one round: a buffer, and calls on it


class Round:
    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = rng = random.Random(seed)
        self.folder = folder
        self.settings = {
            "capacity": rng.choice([7, 12, 40]),
            "her_strategy": rng.choice(["future", "final", "episode", "random", "none"]),
            "her_balance": rng.choice(["events", "goals"]),
            "n_step": rng.choice([1, 2, 5, 2**31 - 1]),
            "gamma": rng.choice([0.0, 0.5, 1.0]),
            "sampling": rng.choice(["transitions", "episodes", "prioritised"]),
            "long_episodes": rng.choice(["refuse", "split"]),
        }
        self.keys: Any = np.zeros(0, np.int64)
        self.depth = 0  # of hooks that sample
        self.open()

    def open(self) -> None:
        from sacglam.replay import ReplayBuffer

        name = f"fuzz-{os.getpid()}-{next(_numbers)}"
        sizes = {"shared": name, "shared_texts": 64, "shared_bytes": 2**20}
        ahead = self.rng.choice([{}, {"goals": self.hook}, {"prefetch": 3}])
        shared = sizes if self.rng.random() < 0.5 else {}
        self.buffer = ReplayBuffer(**self.settings, **ahead, **shared)
        fill_tables(self.buffer)
        self.bad = Hostile(self.rng, self.buffer)

    def mixed(self, sound: Any, bad: Callable[[], Any], chance: float = 0.25) -> Any:
        return bad() if self.rng.random() < chance else sound

    def hook(self, request: Any) -> Any:
        """A user's relabeling, mostly wrong, which uses and sometimes closes the buffer."""
        rng, rows, width = self.rng, len(request.row), request.observations.shape[1] - 1
        if rng.random() < 0.2 and self.depth == 0:
            self.depth = 1
            try:
                with contextlib.suppress(*ALLOWED):
                    rng.choice([self.add, self.sample, self.template, self.buffer.close])()
            finally:
                self.depth = 0
        if rng.random() < 0.1:
            raise ALLOWED[0]("the hook's own")
        goals = np.array([rng.randrange(-1, TEXTS) for _ in range(rows)])
        hits = np.array([rng.random() < 0.3 for _ in range(rows * width)]).reshape(rows, width)
        rewards = np.full((rows, width), rng.choice([0.5, -1, 3e38, np.nan]), np.float32)
        parts = [goals, rng.choice([hits, None]), rng.choice([rewards, None])]
        parts[rng.randrange(3)] = self.mixed(parts[rng.randrange(3)], self.bad.array, 0.3)
        return rng.choice([goals, tuple(parts), tuple(parts), parts, (), None])

    def add(self) -> None:
        bad, sound = self.bad, episode(self.rng)
        wrong = {
            k: self.mixed(v, bad.array if isinstance(v, list) else bad.scalar, 0.1)
            for k, v in sound.items()
        }
        self.buffer.add_episode(**wrong)

    def add_extremes(self) -> None:
        """Numbers that calculations overflow with, where an episode has them for each step."""
        sound = episode(self.rng)
        name = self.rng.choice(["achieved_offsets", "achieved", "observations", "actions"])
        wide = name == "achieved_offsets"
        edges = [-(2**63), -1, 0, 1, 2**63 - 1] if wide else [-(2**31), -1, 0, 1, 2**31 - 1]
        values = [self.rng.choice(edges) for _ in sound[name]]
        sound[name] = np.array(values, np.int64 if wide else np.int32)
        self.buffer.add_episode(**sound)

    def intern(self) -> None:
        self.rng.choice([self.buffer.intern_text, self.buffer.intern_candidates])(self.bad.array())

    def look_up(self) -> None:
        look = [self.buffer.text, self.buffer.candidate_set, self.buffer.candidate_tokens]
        self.rng.choice(look)(self.bad.scalar())

    def template(self) -> None:
        rng, bad = self.rng, self.bad
        part = rng.choice(
            ["literal", "goal", "observation", "actions", "history", "action", "x", "\ud800"]
        )
        ops: Any = [(part, *(bad.scalar() for _ in range(rng.randrange(3)))), ("goal",)]
        if part == "history":
            inner = [("action",), (rng.choice(["literal", "goal", "history"]), bad.scalar())]
            ops = [("history", self.mixed(2, bad.scalar), rng.choice([inner, inner[:1], 3, None]))]
        self.buffer.set_template(self.mixed(ops, bad.array, 0.1))

    def assemble(self) -> None:
        bad, e = self.bad, episode(self.rng)
        args = [e["goal"], e["observations"], e["candidates"], e["actions"], len(e["actions"])]
        at = self.rng.randrange(5)
        args[at] = bad.scalar() if at in (0, 4) else bad.array()
        ids = self.buffer.assemble(*args)
        assert ids.dtype == np.int32

    def sample(self) -> None:
        size = self.mixed(self.rng.choice([1, 7, 64]), self.bad.scalar)
        beta = self.mixed(None, self.bad.scalar, 0.1)
        batch = self.buffer.sample(size, beta=beta)
        check(batch, int(size))
        self.keys = batch.key

    def sample_many(self) -> None:
        count, size = self.mixed(3, self.bad.scalar, 0.2), self.mixed(5, self.bad.scalar, 0.2)
        if isinstance(count, int) and count > 1000:  # allowed, and only memory
            return
        for batch in self.buffer.sample_many(count, size):
            check(batch, int(size))

    def priorities(self) -> None:
        keys = self.mixed(self.keys, self.bad.array, 0.3)
        priorities = np.array([self.rng.uniform(0, 2) for _ in range(len(self.keys))])
        self.buffer.update_priorities(keys, self.mixed(priorities, self.bad.array, 0.3))

    def sample_into(self) -> None:
        """One array of `out` is hostile; the others are dropped by their owner meanwhile."""
        from sacglam.replay import Batch

        rng = self.rng
        out = Batch.allocate(16, 2000, 2000)
        field = rng.choice(Batch._fields)
        was = getattr(out, field)
        value = rng.choice([
            self.bad.array, self.bad.array, lambda: was[: rng.randrange(len(was))],
            lambda: was[::-1], lambda: Hostile.readonly(was), lambda: was.reshape(1, -1),
            lambda: was.astype(was.dtype.newbyteorder()), lambda: was.view(f"V{was.itemsize}"),
            lambda: out.prompt_ids, lambda: out.episode,
        ])()  # fmt: skip
        check(self.buffer.sample(16, out=out._replace(**{field: value})), 16)

    def beside(self) -> None:
        """Calls while another thread closes the buffer, frees and resizes the arrays given."""
        from sacglam.replay import Batch

        arrays = [np.zeros(5, np.int32) for _ in range(3)]
        out: list[Any] = [Batch.allocate(16, 2000, 2000)]
        close = self.rng.random() < 0.2

        def disturb() -> None:
            for a in arrays:
                with contextlib.suppress(ValueError):  # numpy sees that it is in use
                    a.resize(5000)
                a[:] = -7
            arrays.clear()
            out.clear()
            if close:
                self.buffer.close()

        def use() -> None:
            for _ in range(3):
                for call in (lambda: self.buffer.intern_text(arrays[0]),
                             lambda: self.buffer.sample(16, out=out[0]), self.add):  # fmt: skip
                    with contextlib.suppress(IndexError, *ALLOWED):
                        call()

        at_once([use, use, disturb])

    def save_and_load(self) -> None:
        from sacglam.replay import ReplayBuffer

        path = self.folder / "a"
        self.buffer.save(path)
        path.write_bytes(damaged(path.read_bytes(), self.rng))
        other = ReplayBuffer(**self.settings)
        fill_tables(other)
        other.add_episode(**episode(random.Random(1)))
        before = other.stats()
        try:
            other.load(path)
        except ALLOWED:
            assert other.stats() == before
        with contextlib.suppress(*ALLOWED):  # a sound file may hold nothing, or no template
            check(other.sample(33), 33)
        other.add_episode(**episode(random.Random(2))) if other.stats()["texts"] == TEXTS else ()
        other.save(path)

    def paths(self) -> None:
        bad = self.rng.choice(
            ["", "/", "\0", "a\0b", "/no/such", b"/no", "x" * 5000, "\ud800", 3, self.folder]
        )
        self.rng.choice([self.buffer.save, self.buffer.load])(bad)

    def settings_of_a_new_one(self) -> None:
        from sacglam.replay import ReplayBuffer

        name = self.rng.choice(
            [*self.settings, "her_ratio", "her_reward", "seed", "prefetch", "goals"]
        )
        name = self.mixed(name, lambda: "shared", 0.1)
        ReplayBuffer(**(self.settings | {name: self.bad.scalar()})).close()

    def attach(self) -> None:
        """A second object on the same memory, with hostile settings or under a hostile name."""
        from sacglam.replay import ReplayBuffer

        known = [*self.settings, "her_ratio", "her_reward", "seed", "shared_bytes", "prefetch"]
        own = {self.rng.choice(known): self.mixed(1, self.bad.scalar, 0.5)}
        name = self.mixed(self.buffer.name, self.bad.scalar)
        with ReplayBuffer.attach(name, **own) as other:
            other.set_template([("literal", TEXTS - 1), ("goal",)])
            other.add_episode(**episode(self.rng))
            check(other.sample(5), 5)

    def forked(self) -> None:
        """A child that inherits open producers, uses everything and dies at once."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for call in (self.add, self.sample, self.buffer.stats, self.intern):
                    with contextlib.suppress(*ALLOWED):
                        call()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"a forked child ended with status {status}"

    def run(self, calls: int = 40) -> None:
        sound = (lambda: self.buffer.add_episode(**episode(self.rng)),
                 lambda: check(self.buffer.sample(9), 9), self.buffer.stats,
                 lambda: len(self.buffer))  # fmt: skip
        hostile = (self.add, self.add, self.add_extremes, self.intern, self.look_up,
                   self.template, self.assemble, self.sample, self.sample_into, self.sample_into,
                   self.beside, self.attach, self.paths, self.sample_many, self.priorities,
                   self.settings_of_a_new_one, self.save_and_load)  # fmt: skip
        for _ in range(calls):
            call = self.rng.choice(self.rng.choice([sound, hostile, hostile]))
            try:
                call()
            except ALLOWED as error:
                if "is closed" in str(error) and self.rng.random() < 0.5:
                    self.open()
        if self.rng.random() < 0.1:
            self.forked()
        self.buffer.close()


def main(about: str | None, start: Callable[[int, Path], Any]) -> int:
    """The command line, also of damage_replay.py: rounds of start(seed, folder).run()."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extension")
    args = parser.parse_args()
    faulthandler.enable()
    use_extension(args.extension)
    from sacglam.errors import SacglamError

    global ALLOWED
    ALLOWED = (SacglamError,)
    end = time.monotonic() + args.seconds
    rounds = 0
    with tempfile.TemporaryDirectory(prefix="sacglam-fuzz-") as folder:
        for seed in itertools.count(args.seed):
            if time.monotonic() > end:
                break
            try:
                start(seed, Path(folder)).run()
            except BaseException:
                traceback.print_exc()
                print(f"round {seed} failed: run with --seed {seed}", flush=True)
                return 1
            rounds += 1
    print(f"rounds {rounds} wrong 0")
    return 0


if __name__ == "__main__":
    sys.exit(main(__doc__, Round))

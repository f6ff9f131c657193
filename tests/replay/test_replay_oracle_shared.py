"""The shared buffer against the plain Python oracle: bit-identical batches, by whoever produces.

The episodes are those of test_replay_oracle.py. Stores are tiny, so that they recycle all the time.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sacglam.replay import ReplayBuffer

_spec = importlib.util.spec_from_file_location(
    "test_replay_oracle", Path(__file__).with_name("test_replay_oracle.py")
)
private = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(private)

LONG = os.environ.get("SACGLAM_STRESS", "0") not in ("", "0")
FORKS = hasattr(os, "fork")
_numbers = itertools.count()


class Pair:
    """A shared buffer, an object attached to it with other settings, and the oracle of both."""

    def __init__(self, capacity: int, kw: dict, own: dict) -> None:
        self.name = f"oracle-{os.getpid()}-{next(_numbers)}"
        # Room for the texts of the tests and no more: the memory is taken when it is made.
        self.buffer = ReplayBuffer(
            capacity, shared=self.name, shared_texts=64, shared_bytes=2**20, **kw
        )
        self.plain = private.oracle.Oracle(capacity, **kw)
        private.fill_tables(self.buffer)
        private.fill_tables(self.plain)
        self.other = ReplayBuffer.attach(self.name, **own)
        self.other.set_template(private.TEMPLATE)
        self.own = own
        self.drawn = {id(self.buffer): 0, id(self.other): 0}

    def check(self, buffer: ReplayBuffer, batch_size: int) -> None:
        """What `buffer` draws next is what the oracle draws under its settings."""
        plain = self.plain
        before = plain.__dict__.copy()
        if buffer is self.other:
            plain.seed, plain.ratio = self.own["seed"], self.own["her_ratio"]
            plain.n, plain.gamma = self.own["n_step"], self.own["gamma"]
        plain.batches = self.drawn[id(buffer)]
        self.drawn[id(buffer)] += 1
        private.assert_same(buffer.sample(batch_size), plain.sample(batch_size))
        plain.__dict__.update(before)
        assert len(buffer) == plain.steps()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.other.close()
        self.buffer.close()


def test_a_template_may_name_texts_that_others_interned():
    own = {"n_step": 1, "gamma": 1.0, "her_ratio": 0.5, "seed": 3}
    with Pair(
        20, {**own, "her_strategy": "none", "her_balance": "events", "her_reward": 1}, own
    ) as p:
        episode = (3, [1, 2], [0, 1], [0], [0.0], True, False, [0, 0], [])
        p.buffer.add_episode(*episode)
        p.plain.add_episode(*episode)
        third = pickle.loads(pickle.dumps(p.other))  # has interned nothing itself, nor looked
        third.sample(1)
        p.check(p.other, 9)


own_settings = st.fixed_dictionaries(
    {
        "n_step": st.integers(1, 4),
        "gamma": st.sampled_from([0.0, 0.9, 1.0]),
        "her_ratio": st.floats(0, 1),
        "seed": st.integers(0, 2**64 - 1),
    }
)
quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(quiet, max_examples=1000 if LONG else 100)
@given(
    capacity=st.integers(7, 25),
    kw=private.options,
    own=own_settings,
    history=st.lists(
        st.tuples(private.episodes(), st.integers(0, 9), st.booleans()), min_size=1, max_size=9
    ),
)
def test_batches_are_bit_identical_to_the_oracle(capacity, kw, own, history):
    """The creator looks after each episode, the attached object now and then."""
    with Pair(capacity, kw, own) as pair:
        for episode, batch_size, both in history:
            assert pair.buffer.add_episode(**episode) == pair.plain.add_episode(**episode)
            if batch_size:
                pair.check(pair.buffer, batch_size)
                if both:
                    pair.check(pair.other, batch_size)
        pair.check(pair.buffer, 50)
        pair.check(pair.other, 50)


@pytest.mark.skipif(not FORKS, reason="needs fork")
@settings(quiet, max_examples=200 if LONG else 25)
@given(
    capacity=st.integers(7, 25),
    kw=private.options,
    own=own_settings,
    history=st.lists(private.episodes(), min_size=1, max_size=12),
    cut=st.integers(0, 12),
)
def test_a_forked_producers_episodes_are_drawn_as_the_oracle_draws_them(
    capacity, kw, own, history, cut
):
    """The child produces by the object that it inherits, dies without a word, and the attached
    object goes on producing."""
    with Pair(capacity, kw, own) as pair:
        child = os.fork()
        if child == 0:
            try:
                for episode in history[:cut]:
                    pair.buffer.add_episode(**episode)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        for episode in history[:cut]:
            pair.plain.add_episode(**episode)
        if cut > 0:
            pair.check(pair.buffer, 20)
        for episode in history[cut:]:
            assert pair.other.add_episode(**episode) == pair.plain.add_episode(**episode)
        pair.check(pair.buffer, 50)
        pair.check(pair.other, 50)


@settings(quiet, max_examples=40 if LONG else 4)
@given(
    capacity=st.integers(7, 25),
    kw=private.options,
    own=own_settings,
    history=st.lists(private.episodes(), min_size=2, max_size=9),
    every=st.integers(30, 90),
)
def test_batches_stay_those_of_the_oracle_when_the_log_itself_is_recycled(
    capacity, kw, own, history, every
):
    """The smallest log has 96 segments of 1024 words, and each goes around at least once."""
    words = 0
    with Pair(capacity, kw, own) as pair:
        for n in itertools.count():
            if words > 120_000:
                break
            episode = history[n % len(history)]
            words += 4 + 2 * len(episode["actions"]) + len(episode["achieved"])
            assert pair.buffer.add_episode(**episode) == pair.plain.add_episode(**episode)
            if n % every == 0:
                pair.check(pair.other, 5)
            if n % 500 == 0:
                pair.check(pair.buffer, 20)
        pair.check(pair.buffer, 50)
        pair.check(pair.other, 50)

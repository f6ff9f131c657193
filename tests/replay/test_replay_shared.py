"""One buffer, several processes: fork, spawn, death, and the same batches as a private buffer."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sacglam.errors import CheckpointError, ReplayError
from sacglam.replay import ReplayBuffer

_numbers = itertools.count()

KEYS, TOKENS = 40, 6


@pytest.fixture
def name():
    return f"test-{os.getpid()}-{next(_numbers)}"


def texts(buffer):
    """Observation t of an episode of this key says so in every token."""
    return np.array([[buffer.intern_text([k * 10 + t] * TOKENS) for t in range(6)]
                     for k in range(KEYS)])  # fmt: skip


def add(buffer, ids, key):
    """An episode that achieves its own observation 3 + key % 3 by its last step."""
    n = 3 + key % 3
    actions = buffer.intern_candidates([int(ids[key][0]), int(ids[key][1])])
    return buffer.add_episode(
        int(ids[key][n]), ids[key][: n + 1], [actions] * (n + 1), [0] * n,
        [float(key)] * n, True, False, [0] * n + [1], [int(ids[key][n])],
    )  # fmt: skip


def check(batch):
    """Every row is wholly of one episode."""
    prompt = batch.prompt_ids.reshape(-1, 2 * TOKENS)
    following = batch.next_prompt_ids.reshape(-1, 2 * TOKENS)
    key = prompt[:, -1] // 10
    n = 3 + key % 3
    goal = (key * 10 + n)[:, None]
    assert (prompt[:, :TOKENS] == goal).all()
    assert (prompt[:, TOKENS:] == (key * 10 + batch.step)[:, None]).all()
    assert (following[:, :TOKENS] == goal).all()
    assert (following[:, TOKENS:] == (key * 10 + batch.step + batch.steps)[:, None]).all()
    assert (batch.steps == np.minimum(3, n - batch.step)).all()
    plain = batch.relabeled == 0
    assert np.allclose(batch.n_step_return[plain], (key * batch.steps)[plain])


def make(name, capacity=400, **kw):
    buffer = ReplayBuffer(capacity, shared=name, gamma=1.0, her_balance="events", **kw)
    buffer.set_template([("goal",), ("observation",)])
    return buffer


def python(code, *args):
    """A fresh interpreter, as a spawned process has it."""
    helpers = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("shared", {__file__!r})
        shared = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(shared)
        from sacglam.replay import ReplayBuffer
        buffer = ReplayBuffer.attach(sys.argv[1])
    """
    source = textwrap.dedent(helpers) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", source, *map(str, args)],
                            stdout=subprocess.PIPE, text=True)  # fmt: skip


FOREVER = """
    ids = shared.texts(buffer)
    for n in range(10**9):
        shared.add(buffer, ids, (n * 7 + int(sys.argv[2])) % shared.KEYS)
        if n == 20:
            print("running", flush=True)
"""


def test_a_shared_buffer_draws_the_batches_of_a_private_one(name):
    private = ReplayBuffer(50, seed=4, gamma=1.0, her_balance="goals")
    with ReplayBuffer(50, seed=4, gamma=1.0, her_balance="goals", shared=name) as shared:
        for buffer in (private, shared):
            buffer.set_template([("goal",), ("observation",)])
        for n in range(60):
            assert add(private, texts(private), n % KEYS) == add(shared, texts(shared), n % KEYS)
            for a, b in zip(private.sample(16), shared.sample(16), strict=True):
                assert a.tobytes() == b.tobytes()
            assert len(private) == len(shared)


def test_a_spawned_process_adds_and_a_spawned_process_samples(name):
    with make(name) as buffer:
        producer = python("for k in range(shared.KEYS): "
                          "shared.add(buffer, shared.texts(buffer), k)", name)  # fmt: skip
        assert producer.wait() == 0
        check(buffer.sample(200))
        assert buffer.stats()["episodes"] == KEYS
        sampler = python(
            """
            buffer.set_template([("goal",), ("observation",)])
            shared.check(buffer.sample(200))
            print(len(buffer))
            """,
            name,
        )
        assert sampler.wait() == 0
        assert int(sampler.stdout.read()) == len(buffer)


def test_threads_that_come_first_all_find_what_was_added_before(name):
    """One of them takes it over; the others have nothing to go on with until it is done."""
    with make(name, capacity=100_000) as buffer:
        ids = texts(buffer)
        for n in range(6000):
            add(buffer, ids, n % KEYS)
        for _ in range(5):
            with ReplayBuffer.attach(name) as late:
                late.set_template([("goal",), ("observation",)])
                threads = 8
                start = threading.Barrier(threads)
                sound = []

                def sample(late=late, start=start, sound=sound):
                    start.wait()
                    check(late.sample(32))
                    sound.append(True)

                running = [threading.Thread(target=sample) for _ in range(threads)]
                for thread in running:
                    thread.start()
                for thread in running:
                    thread.join()
                assert len(sound) == threads
                assert len(late) == len(buffer)


def test_a_forked_process_adds_by_the_object_that_it_inherits(name):
    with make(name) as buffer:
        ids = texts(buffer)
        add(buffer, ids, 0)  # the parent's producer is open when the child appears
        child = os.fork()
        if child == 0:
            try:
                for k in range(1, KEYS):
                    add(buffer, ids, k)
                check(buffer.sample(50))
                os._exit(0)
            finally:
                os._exit(1)
        for k in range(KEYS):
            add(buffer, ids, k)
        assert os.waitpid(child, 0)[1] == 0
        check(buffer.sample(400))
        assert buffer.stats()["episodes"] == 2 * KEYS


def test_a_forked_process_draws_on_and_leaves_the_buffer_to_its_parent(name):
    with make(name, prefetch=2) as buffer:
        ids = texts(buffer)
        for k in range(KEYS):
            add(buffer, ids, k)
        check(buffer.sample(50))  # its thread draws ahead now, and is not there in the child
        child = os.fork()
        if child == 0:
            try:
                drawn = [buffer.sample(50) for _ in range(3)]
                for batch in drawn:
                    check(batch)
                keys = {batch.key.tobytes() for batch in drawn}
                buffer.close()
                os._exit(0 if len(keys) == 3 else 2)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        check(buffer.sample(50))
        with ReplayBuffer.attach(name) as other:
            assert len(other) == len(buffer) > 0


def test_a_killed_producer_stops_nobody(name):
    """cpprb's and torchrl's shared buffers hang here in ten of twelve trials."""
    with make(name) as buffer:
        add(buffer, texts(buffer), 0)
        for _ in range(3):
            producers = [python(FOREVER, name, k) for k in range(2)]
            for p in producers:
                assert p.stdout.readline() == "running\n"
                os.kill(p.pid, signal.SIGKILL)
                p.wait()
                p.stdout.close()
                check(buffer.sample(500))
        ids = texts(buffer)
        before = buffer.stats()
        for n in range(2000):  # more than all segments: those of the dead are used again
            add(buffer, ids, n % KEYS)
            if n % 50 == 0:
                check(buffer.sample(64))
        after = buffer.stats()
        total = [s["steps"] + s["evicted_steps"] for s in (before, after)]
        assert total[1] - total[0] == sum(3 + n % KEYS % 3 for n in range(2000))


@pytest.mark.parametrize("segments", [93, 94, 95, 96])
def test_a_slow_producer_does_not_overwrite_its_own_newest_episodes(name, segments):
    """The log has 96 segments. Where the others have filled 95 since it opened its own, that one
    is the next in turn at the very moment when it is full."""
    with make(name) as slow, ReplayBuffer.attach(name) as fast:
        ids = texts(slow)
        longest = next(k for k in range(KEYS) if k % 3 == 2)
        a_segment = 1024 // (4 + 2 * 5 + 1)
        add(slow, ids, longest)
        for _ in range(a_segment * (segments - 1) + 1):
            add(fast, ids, longest)
        before = slow.stats()
        for n in range(2 * a_segment):
            add(slow, ids, longest)
            if n % 60 == 59:
                len(slow)  # takes over what is new
        after = slow.stats()
        total = [s["steps"] + s["evicted_steps"] for s in (before, after)]
        assert total[1] - total[0] == 2 * a_segment * 5


def test_saving_and_loading_while_a_producer_runs(name, tmp_path):
    with make(name) as buffer:
        add(buffer, texts(buffer), 0)
        producer = python(FOREVER, name, 3)
        producer.stdout.readline()
        for i in range(5):
            buffer.save(tmp_path / "a")
            private = ReplayBuffer(400, gamma=1.0)
            private.load(tmp_path / "a")
            check(private.sample(300))
            with make(f"{name}-{i}") as other:
                other.intern_text([5] * 9)  # ids are no longer those of the file
                other.load(tmp_path / "a")
                check(other.sample(300))
                assert other.stats()["steps"] == private.stats()["steps"]
                with pytest.raises(ReplayError, match="fresh"):
                    other.load(tmp_path / "a")
                with ReplayBuffer.attach(f"{name}-{i}") as third:
                    assert len(third) == len(other)
        producer.kill()
        producer.wait()
        producer.stdout.close()


def test_pickling_attaches(name):
    with make(name, seed=5) as buffer:
        add(buffer, texts(buffer), 3)
        other = pickle.loads(pickle.dumps(buffer))
        for a, b in zip(buffer.sample(9), other.sample(9), strict=True):
            assert a.tobytes() == b.tobytes()
    with pytest.raises(ReplayError, match="pickled"):
        pickle.dumps(ReplayBuffer(10))


def test_names_lifetimes_and_limits(name):
    with make(name) as buffer:
        with pytest.raises(ReplayError, match="attach to it"):
            make(name)
        other = ReplayBuffer.attach(name, seed=9)
        buffer.close()
        with pytest.raises(ReplayError, match="No such file"):
            ReplayBuffer.attach(name)
        add(other, texts(other), 1)  # who has attached goes on
        assert len(other) == 4
        for call in (lambda: buffer.sample(1), lambda: len(buffer), buffer.stats):
            with pytest.raises(ReplayError, match="closed"):
                call()
    for bad in ("", "a/b", "x" * 300, "ä", 3):
        with pytest.raises(ReplayError):
            make(bad)
    with pytest.raises(ReplayError):
        ReplayBuffer.attach(None)
    with make(name), pytest.raises(ReplayError, match="creator"):
        ReplayBuffer.attach(name, shared_bytes=2**30)


def test_a_full_shared_table_is_an_error_and_no_more(name):
    with make(name, shared_texts=20, shared_bytes=2**20) as buffer:
        ids = [buffer.intern_text([i]) for i in range(20)]
        for _ in range(3):
            with pytest.raises(ReplayError, match="shared_texts"):
                buffer.intern_text([99])
        assert [buffer.intern_text([i]) for i in range(20)] == ids
    with make(name, shared_bytes=2**20) as buffer:

        def fill():
            for i in range(10**6):
                buffer.intern_text(np.full(10_000, i))

        with pytest.raises(ReplayError, match="shared_bytes"):
            fill()
        assert buffer.intern_text(np.full(10_000, 0)) == 0


def test_a_buffer_left_by_a_dead_process_is_replaced(name):
    code = (
        "import os, sys; from sacglam.replay import ReplayBuffer; "
        "b = ReplayBuffer(10, shared=sys.argv[1]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, name], check=True)
    with make(name) as buffer:
        assert len(buffer) == 0


def test_a_buffer_that_was_never_finished_is_replaced(name):
    Path(f"/dev/shm/sacglam-{name}").touch()  # killed at once
    ReplayBuffer(100, shared=name).close()
    Path(f"/dev/shm/sacglam-{name}").write_bytes(bytes(10**6))  # killed before the header
    ReplayBuffer(100, shared=name).close()


def test_of_many_creators_one_succeeds(name):
    """They start together; a large buffer takes long to make."""
    code = """
        import os, sys, time
        from sacglam.errors import ReplayError
        from sacglam.replay import ReplayBuffer
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            buffer = ReplayBuffer(1_000_000, shared=sys.argv[1])
        except ReplayError as error:
            print(error, flush=True)
        else:
            print("made", flush=True)
            sys.stdin.readline()
            assert os.path.exists("/dev/shm/sacglam-" + sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(4)]
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 4
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        said = [child.stdout.readline() for child in children]
        assert said.count("made\n") == 1, said
        assert all("choose another name" in s for s in said if s != "made\n")
        for child in children:
            if child is not children[said.index("made\n")]:
                child.wait()
        children[said.index("made\n")].communicate("\n")
        assert all(child.wait() == 0 for child in children)


def test_a_living_buffer_of_another_pid_namespace_is_not_replaced(name):
    code = f"""
        from sacglam.replay import ReplayBuffer
        from sacglam.errors import ReplayError
        try:
            ReplayBuffer(100, shared={name!r})
        except ReplayError as error:
            print(error)
    """
    with ReplayBuffer(100, shared=name):
        done = subprocess.run(
            [*("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"),
             *(sys.executable, "-c", textwrap.dedent(code))],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0 and "unshare" in done.stderr:
            pytest.skip(f"no namespaces here: {done.stderr.strip()}")
        assert "made in another pid namespace" in done.stdout, done.stderr
        ReplayBuffer.attach(name).close()


def test_who_closes_leaves_the_name_of_another_buffer(name):
    path = Path(f"/dev/shm/sacglam-{name}")
    first = ReplayBuffer(100, shared=name)
    path.unlink()
    second = ReplayBuffer(100, shared=name)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_a_checkpoint_that_does_not_fit_changes_nothing(name, tmp_path):
    private = ReplayBuffer(2000)
    text = private.intern_text([1])
    actions = private.intern_candidates([text])
    for n in (10, 900):
        private.add_episode(
            text, [text] * (n + 1), [actions] * (n + 1), [0] * n, [0.0] * n, True, False,
            [0] * (n + 1), [],
        )  # fmt: skip
    private.save(str(tmp_path / "long.bin"))
    with ReplayBuffer(2000, shared=name) as buffer:
        for _ in range(2):
            with pytest.raises(CheckpointError, match="900 transitions"):
                buffer.load(str(tmp_path / "long.bin"))
            assert len(buffer) == 0


def test_a_private_buffer_of_a_forked_process_can_be_read_only():
    buffer = ReplayBuffer(100, gamma=1.0)
    buffer.set_template([("goal",), ("observation",)])
    ids = texts(buffer)
    add(buffer, ids, 2)
    child = os.fork()
    if child == 0:
        try:
            check(buffer.sample(10))
            for call in (lambda: add(buffer, ids, 1), buffer.stats,
                         lambda: buffer.save("/nowhere")):  # fmt: skip
                with pytest.raises(ReplayError, match="fork"):
                    call()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=30))
def test_equal_texts_have_one_id_in_all_processes(lists):
    name = f"test-{os.getpid()}-{next(_numbers)}"
    with make(name) as a, ReplayBuffer.attach(name) as b:
        ids = {}
        for i, tokens in enumerate(lists):
            ids.setdefault(tuple(tokens), (a, b)[i % 2].intern_text(tokens))
            assert a.intern_text(tokens) == b.intern_text(tokens) == ids[tuple(tokens)]
            assert b.text(ids[tuple(tokens)]).tolist() == tokens
        assert len(set(ids.values())) == len(ids)

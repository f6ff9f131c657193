"""Other replay buffers on the work of replay_work.py: filled, with hindsight `future` 0.8 where
they have it. One whose package is not installed raises ImportError.

    pip install cpprb stable-baselines3 torchrl tianshou

They store arrays of a fixed length and return these, with goals relabeled; none returns prompts,
candidate sets or n-step targets.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from replay_work import GOAL_TOKENS, RNG, B, T, Workload


class Peer(Protocol):
    def __init__(self, work: Workload) -> None: ...

    def add(self, episode: int) -> None:
        """Store one of the work's episodes, the oldest going."""

    def sample(self) -> object:
        """A batch of B rows."""


class PythonList:
    """What one writes first: a list of episodes, relabeled and packed in Python."""

    def __init__(self, work: Workload) -> None:
        self.work, self.rng, self.episodes = work, RNG(2), []
        for e in range(work.episodes):
            self.add(e)

    def add(self, episode: int) -> None:
        work = self.work
        at = work.steps_of(episode)
        steps = list(zip(work.observations(at), work.actions[at], work.achieved[at], strict=True))
        self.episodes.append((work.goal(episode), steps))
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


class Cpprb:
    """Relabels when an episode ends, into rows of their own: five times the memory."""

    def __init__(self, work: Workload) -> None:
        import cpprb

        self.work = work
        text = {"shape": work.tokens, "dtype": np.int32}
        self.buffer = cpprb.HindsightReplayBuffer(
            work.steps * 5, {"obs": text, "act": {"dtype": np.int32}, "next_obs": text}, T,
            lambda state, act, goal: np.zeros((len(goal), 1), np.float32), goal_shape=GOAL_TOKENS,
            goal_func=lambda state: state[:, :GOAL_TOKENS], strategy="future", additional_goals=4,
        )  # fmt: skip
        for e in range(work.episodes):
            self.add(e)

    def add(self, episode: int) -> None:
        at = self.work.steps_of(episode)
        texts, actions = self.work.observations(at), self.work.actions[at]
        for t in range(T):
            self.buffer.add(obs=texts[t], act=actions[t], next_obs=texts[t + 1])
        self.buffer.on_episode_end(self.work.goal(episode))

    def sample(self) -> object:
        return self.buffer.sample(B)


class StableBaselines3:
    def __init__(self, work: Workload) -> None:
        from gymnasium import spaces
        from stable_baselines3 import HerReplayBuffer

        class Env:
            num_envs = 1

            def env_method(self, name: str, achieved: np.ndarray, *_: Any, **__: Any) -> list:
                return [np.zeros(len(achieved), np.float32)]

        self.work = work
        text = spaces.Box(0, 30_000, (work.tokens,), np.int32)
        goal = spaces.Box(0, 30_000, (GOAL_TOKENS,), np.int32)
        space = spaces.Dict({"observation": text, "achieved_goal": goal, "desired_goal": goal})
        self.buffer = HerReplayBuffer(
            work.steps, space, spaces.Discrete(8), Env(), n_sampled_goal=4
        )
        for e in range(work.episodes):
            self.add(e)

    def add(self, episode: int) -> None:
        at = self.work.steps_of(episode)
        texts, goals = self.work.observations(at), self.work.goals[self.work.achieved[at]]
        want, actions = self.work.goal(episode)[None], self.work.actions[at]
        states = [
            {"observation": texts[t : t + 1], "achieved_goal": goals[t : t + 1],
             "desired_goal": want}
            for t in range(T + 1)
        ]  # fmt: skip
        reward = np.zeros(1)
        for t in range(T):
            done = np.array([t == T - 1])
            self.buffer.add(states[t], states[t + 1], actions[t : t + 1], reward, done, [{}])

    def sample(self) -> object:
        return self.buffer.sample(B, env=None)


class Torchrl:
    def __init__(self, work: Workload) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.data import HERReplayBuffer, LazyTensorStorage

        class Buffer(HERReplayBuffer):
            # 0.14 compares this as it is, and raises once a full buffer was extended by rows.
            def _storage_cache_key(self, storage: Any) -> tuple:
                size, cursor, full = super()._storage_cache_key(storage)
                return size, None if cursor is None else str(cursor), full

        self.work, self.torch, self.tensors = work, torch, TensorDict
        self.buffer = Buffer(
            lambda rows: torch.zeros(len(rows), 1), her_ratio=0.8, strategy="future",
            storage=LazyTensorStorage(work.steps), batch_size=B,
        )  # fmt: skip
        for e in range(work.episodes):
            self.add(e)

    def add(self, episode: int) -> None:
        torch, work = self.torch, self.work
        at = work.steps_of(episode)
        texts = torch.from_numpy(work.observations(at))
        goals = torch.from_numpy(work.goals[work.achieved[at]])
        want = torch.from_numpy(work.goal(episode)).expand(T, -1)
        done = torch.zeros(T, 1, dtype=torch.bool)
        done[-1] = True
        following = self.tensors(
            {"observation": texts[1:], "achieved_goal": goals[1:], "desired_goal": want,
             "reward": torch.zeros(T, 1), "done": done},
            [T],
        )  # fmt: skip
        self.buffer.extend(
            self.tensors(
                {"observation": texts[:-1], "achieved_goal": goals[:-1], "desired_goal": want,
                 "action": torch.from_numpy(work.actions[at[:-1]]), "next": following},
                [T],
            )
        )  # fmt: skip

    def sample(self) -> object:
        return self.buffer.sample()


class Tianshou:
    def __init__(self, work: Workload) -> None:
        from tianshou.data import Batch, HERReplayBuffer

        self.work, self.batch = work, Batch
        self.buffer = HERReplayBuffer(
            work.steps, lambda achieved, _: np.zeros(achieved.shape[:-1], np.float32), T,
            future_k=5.0,
        )  # fmt: skip
        for e in range(work.episodes):
            self.add(e)

    def add(self, episode: int) -> None:
        Batch = self.batch
        at = self.work.steps_of(episode)
        texts, goals = self.work.observations(at), self.work.goals[self.work.achieved[at]]
        want, actions = self.work.goal(episode), self.work.actions[at]
        states = [
            Batch(observation=texts[t], achieved_goal=goals[t], desired_goal=want)
            for t in range(T + 1)
        ]
        for t in range(T):
            self.buffer.add(
                Batch(obs=states[t], obs_next=states[t + 1], act=actions[t], rew=0.0,
                      terminated=t == T - 1, truncated=False, info={})
            )  # fmt: skip

    def sample(self) -> object:
        return self.buffer.sample(B)


PEERS: dict[str, type[Peer]] = {
    "python list": PythonList,
    "cpprb HER": Cpprb,
    "stable-baselines3 HER": StableBaselines3,
    "torchrl HER": Torchrl,
    "tianshou HER": Tianshou,
}


def installed(work: Workload, *names: str) -> dict[str, Peer]:
    """The peers (those named, or all) that can be had, filled; says which cannot."""
    found: dict[str, Peer] = {}
    for name in names or PEERS:
        try:
            found[name] = PEERS[name](work)
        except ImportError as error:
            print(f"without {name}: {error}")
    return found


def turns(peer: Peer) -> Callable[[], None]:
    """A call that adds the next episode."""
    count = itertools.count()
    return lambda: peer.add(next(count))


class Locked:
    """A peer that one thread fills while another samples: none but torchrl's, which brings a lock
    of its own, says that this is allowed without."""

    def __init__(self, peer: Peer) -> None:
        self._peer, self._lock = peer, threading.Lock()

    def add(self, episode: int) -> None:
        with self._lock:
            self._peer.add(episode)

    def sample(self) -> object:
        with self._lock:
            return self._peer.sample()

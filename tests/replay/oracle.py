"""An independent, plain Python replay buffer that draws the same batches, bit for bit.

It shares no code and no data structure with the native one: contents are lists, every draw is
made by enumerating what could be drawn.
"""

from __future__ import annotations

import math

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


class Rng:
    def __init__(self, seed: int, batch: int, row: int) -> None:
        a = mix64((seed + GOLDEN) & MASK)
        b = mix64(a ^ ((batch + GOLDEN) & MASK))
        self.state = mix64(b ^ ((row + GOLDEN) & MASK))

    def next(self) -> int:
        self.state = (self.state + GOLDEN) & MASK
        return mix64(self.state)

    def choose(self, items):
        return items[(self.next() * len(items)) >> 64]

    def unit(self) -> float:
        return (self.next() >> 11) * 2.0**-53


class Oracle:
    def __init__(
        self,
        capacity,
        *,
        n_step,
        gamma,
        her_strategy,
        her_ratio,
        her_random=0.0,
        her_balance,
        her_reward,
        seed,
        sampling="transitions",
        priority_exponent=0.6,
        priority_beta=0.4,
        priority_epsilon=1e-6,
        long_episodes="refuse",
        goals=None,
        capacity_bytes=None,
    ):
        self.capacity, self.n, self.gamma = capacity, n_step, gamma
        self.strategy, self.ratio, self.balance = her_strategy, her_ratio, her_balance
        self.random = her_random
        self.her_reward, self.seed = her_reward, seed
        self.sampling, self.hook, self.long_episodes = sampling, goals, long_episodes
        self.exponent, self.beta, self.epsilon = priority_exponent, priority_beta, priority_epsilon
        self.priorities: dict[tuple[int, int], int] = {}  # (episode, step) -> 2^24 p^alpha
        self.largest = 1 << 24
        self.evicted = 0  # steps; with it a stored step's place is its number since the beginning
        self.stale = 0
        self.capacity_bytes = capacity_bytes
        self.text_use: dict[int, int] = {}  # the last episode that may need it
        self.set_use: dict[int, int] = {}
        self.of_template: set[int] = set()
        self.texts: list[tuple[int, ...]] = []
        self.sets: list[tuple[int, ...]] = []
        self.ops: list = []
        self.episodes: dict[int, dict] = {}
        self.next_id = 0
        self.batches = 0
        self.active: list[int] = []  # goals, in the order that decides their index

    def intern_text(self, ids):
        found = self._intern(self.texts, ids)
        self._use(self.text_use, [found])
        return found

    def intern_candidates(self, ids):
        found = self._intern(self.sets, ids)
        if found not in self.set_use:
            self._use(self.text_use, ids)
        self._use(self.set_use, [found])
        return found

    def _intern(self, table, ids):
        key = tuple(int(i) for i in ids)
        if key not in table:
            self._make_room(self._list_bytes(key))
            table.append(key)
        return table.index(key)

    def set_template(self, ops):
        self.ops = ops
        nested = [part for op in ops if op[0] == "history" for part in op[2]]
        for op in [*ops, *nested]:
            if op[0] in ("literal", "actions"):
                self.of_template.add(op[1])

    # --- with capacity_bytes: freed is what was last used, or interned, before the oldest episode

    def _use(self, uses, ids):
        for i in ids:
            uses[i] = self.next_id

    @staticmethod
    def _list_bytes(key):
        width = 2 if all(i < 2**16 for i in key) else 4
        return 160 + 32 * max(1, math.ceil(width * len(key) / 32))

    def content_bytes(self):
        lists = [x for x in self.texts + self.sets if x is not None]
        steps, events = self.steps(), sum(len(e["events"]) for e in self.episodes.values())
        step = 24 + 8 + (19 if self.sampling == "prioritised" else 0)
        episodes = 64 * len(self.episodes)
        return steps * step + events * 24 + episodes + sum(map(self._list_bytes, lists))

    def _make_room(self, more):
        if not self.capacity_bytes:
            return
        self._free()
        while self.content_bytes() + more > self.capacity_bytes:
            if len(self.episodes) < 2:
                break
            self._evict()
            self._free()

    def _free(self):
        oldest = min(self.episodes, default=self.next_id)
        for i in range(len(self.sets)):
            if self.set_use[i] < oldest:
                self.sets[i] = None
        needed = self.of_template | {t for s in self.sets if s is not None for t in s}
        for i in range(len(self.texts)):
            if self.text_use[i] < oldest and i not in needed:
                self.texts[i] = None

    # --- contents

    def add_episode(
        self,
        goal,
        observations,
        candidates,
        actions,
        rewards,
        terminated,
        truncated,
        achieved_offsets,
        achieved,
    ):
        length = len(actions)
        if length > self.capacity and self.long_episodes == "split":
            most, ids = math.ceil(self.capacity / 2), []
            for a in range(0, length, most):
                b, o = min(a + most, length), achieved_offsets
                ids.append(
                    self.add_episode(
                        goal, observations[a : b + 1], candidates[a : b + 1], actions[a:b],
                        rewards[a:b], terminated and b == length, truncated or b < length,
                        [x - o[a] for x in o[a : b + 1]], achieved[o[a] : o[b]],
                    )
                )  # fmt: skip
            return ids[0]
        achieved_sets = [
            list(dict.fromkeys(achieved[achieved_offsets[t] : achieved_offsets[t + 1]]))
            for t in range(length)
        ]
        self.episodes[self.next_id] = {
            "goal": goal,
            "obs": list(observations),
            "cand": list(candidates),
            "act": list(actions),
            "rew": [float(np.float32(r)) for r in rewards],
            "term": terminated,
            "events": [(t, g) for t in range(length) for g in achieved_sets[t]],
        }
        for _, g in self._eligible(self.episodes[self.next_id]):
            if g not in self.active:
                self.active.append(g)
        self._use(self.text_use, [goal, *observations, *achieved])
        self._use(self.set_use, candidates)
        for t in range(length):
            self.priorities[self.next_id, t] = self.largest
        self.next_id += 1
        while self.steps() > self.capacity:
            self._evict()
        self._make_room(0)
        return self.next_id - 1

    def steps(self):
        return sum(len(e["act"]) for e in self.episodes.values())

    def _eligible(self, e):
        if self.strategy == "final":
            last = max((t for t, _ in e["events"]), default=None)
            return [(t, g) for t, g in e["events"] if t == last]
        return e["events"]

    def _evict(self):
        first = min(self.episodes)
        oldest = self.episodes.pop(first)
        self.evicted += len(oldest["act"])
        for t in range(len(oldest["act"])):
            del self.priorities[first, t]
        left = [g for e in self.episodes.values() for _, g in self._eligible(e)]
        gone = self._eligible(oldest)
        for i, (_, g) in enumerate(gone):
            if g in left or g in [h for _, h in gone[i + 1 :]]:
                continue
            place = self.active.index(g)
            last = self.active.pop()
            if place < len(self.active):
                self.active[place] = last

    # --- sampling

    def prompt(self, obs, cand, act, t, goal):
        out: list[int] = []
        for op in self.ops:
            kind = op[0]
            if kind == "literal":
                out += self.texts[op[1]]
            elif kind == "goal":
                out += self.texts[goal]
            elif kind == "observation":
                out += self.texts[obs[t]]
            elif kind == "actions":
                for i, a in enumerate(self.sets[cand[t]]):
                    out += (self.texts[op[1]] if i else ()) + self.texts[a]
            elif kind == "history":
                for i in range(max(0, t - op[1]), t):
                    for part in op[2]:
                        if part[0] == "literal":
                            out += self.texts[part[1]]
                        elif part[0] == "observation":
                            out += self.texts[obs[i]]
                        else:
                            out += self.texts[self.sets[cand[i]][act[i]]]
        return out

    def assemble(self, goal, observations, candidates, actions, t):
        return self.prompt(observations, candidates, actions, t, goal)

    def update_priorities(self, keys, priorities):
        stored = self._transitions()
        hits = 0
        for key, p in zip(keys, priorities, strict=True):
            if key < self.evicted:
                self.stale += 1
                continue
            value = int(min((p + self.epsilon) ** self.exponent * 2**24 + 0.5, 2.0**39))
            self.priorities[stored[key - self.evicted]] = value = max(1, value)
            self.largest = max(self.largest, value)
            hits += 1
        return hits

    def sample(self, batch_size, beta=None):
        batch, self.batches = self.batches, self.batches + 1
        possible = (self.strategy != "none" and bool(self.active)) or self.hook is not None
        exact = self.ratio * batch_size if possible else 0.0
        share = math.floor(exact)
        if possible and Rng(self.seed, batch, MASK).unit() < exact - share:
            share += 1
        drawn, offered = [], []
        for i in range(batch_size):
            rng = Rng(self.seed, batch, i)
            relabel = (i + 1) * share // batch_size > i * share // batch_size
            if relabel:
                offered.append(i)
            by_her = relabel and self.hook is None
            drawn.append(self._relabeled(rng) if by_her else self._plain(rng))
        answers = self._asked(drawn, offered) if self.hook and offered else {}
        rows = [self._row(*d[:4], *answers.get(i, ())) for i, d in enumerate(drawn)]
        if self.sampling == "prioritised":
            weights = [d[4] ** -(self.beta if beta is None else beta) for d in drawn]
            for row, w in zip(rows, weights, strict=True):
                row["weight"] = np.float32(w / max(weights))
        return rows

    def _asked(self, drawn, offered):
        """The hook's say on each offered row: (goal, hits or None, rewards or None)."""
        episodes = [self.episodes[drawn[i][0]] for i in offered]
        steps = [drawn[i][1] for i in offered]
        lengths = [len(e["act"]) for e in episodes]
        width = max(min(self.n, n - t) for n, t in zip(lengths, steps, strict=True))
        events = [
            [x for x in e["events"] if x[0] >= t] for e, t in zip(episodes, steps, strict=True)
        ]
        answer = self.hook(
            offered, [drawn[i][0] for i in offered], steps, lengths, [e["goal"] for e in episodes],
            [(e["obs"][t : t + width + 1] + [-1] * width)[: width + 1]
             for e, t in zip(episodes, steps, strict=True)],
            events,
        )  # fmt: skip
        return {i: a for i, a in zip(offered, answer, strict=True) if a[0] >= 0}

    def _transitions(self):
        return [(i, t) for i, e in self.episodes.items() for t in range(len(e["act"]))]

    def _draw(self, rng, transitions):
        """One of them, in the way of `sampling`, and N * P."""
        if self.sampling == "episodes":
            episode = rng.choose(list(dict.fromkeys(i for i, _ in transitions)))
            return *rng.choose([x for x in transitions if x[0] == episode]), 1.0
        if self.sampling == "transitions":
            return *rng.choose(transitions), 1.0
        values = [self.priorities[x] for x in transitions]
        x = (rng.next() * sum(values)) >> 64
        for transition, value in zip(transitions, values, strict=True):
            if x < value:
                return *transition, float(len(values)) * float(value) / float(sum(values))
            x -= value
        raise AssertionError

    def _plain(self, rng):
        episode, t, scale = self._draw(rng, self._transitions())
        return episode, t, self.episodes[episode]["goal"], False, scale

    def _relabeled(self, rng):
        events = [(i, t, g) for i, e in self.episodes.items() for t, g in self._eligible(e)]
        any_goal = self.strategy == "random" or (self.random > 0 and rng.unit() < self.random)
        if any_goal:
            episode, t, _, _, scale = self._plain(rng)
            if self.balance == "goals":
                return episode, t, rng.choose(self.active), True, scale
            everywhere = [g for e in self.episodes.values() for _, g in e["events"]]
            return episode, t, rng.choose(everywhere), True, scale
        if self.balance == "goals":
            goal = rng.choose(self.active)
            episode, at, _ = rng.choose([x for x in events if x[2] == goal])
            length = len(self.episodes[episode]["act"])
            among = [(episode, t) for t in range(at + 1 if self.strategy == "future" else length)]
            _, t, scale = (
                self._draw(rng, among)
                if self.sampling == "prioritised"
                else (*rng.choose(among), 1.0)
            )
            return episode, t, goal, True, scale

        def choices(episode, t):
            e = self.episodes[episode]
            return [g for s, g in self._eligible(e) if s >= t or self.strategy != "future"]

        episode, t, scale = self._draw(rng, [x for x in self._transitions() if choices(*x)])
        return episode, t, rng.choose(choices(episode, t)), True, scale

    def _row(self, episode, t, goal, relabeled, new_goal=None, hits=None, rewards=None):
        if new_goal is not None:
            goal, relabeled = new_goal, True
        e = self.episodes[episode]
        length = len(e["act"])
        total, gamma_k, m, terminal = 0.0, 1.0, 0, False
        for k in range(t, min(t + self.n, length)):
            m += 1
            hit = relabeled and (hits[k - t] if hits else (k, goal) in e["events"])
            reward = (
                (float(np.float32(self.her_reward)) if hit else 0.0) if relabeled else e["rew"][k]
            )
            if relabeled and rewards:
                reward = float(np.float32(rewards[k - t]))
            total += gamma_k * reward
            gamma_k *= self.gamma
            over = e["term"] and k == length - 1 and (not relabeled or e["rew"][-1] <= 0)
            if hit or over:
                terminal = True
                break
        return {
            "prompt": self.prompt(e["obs"], e["cand"], e["act"], t, goal),
            "next_prompt": self.prompt(e["obs"], e["cand"], e["act"], t + m, goal),
            "candidates": e["cand"][t],
            "next_candidates": e["cand"][t + m],
            "action": e["act"][t],
            "n_step_return": np.float32(total),
            "discount": np.float32(0.0 if terminal else gamma_k),
            "weight": np.float32(1.0),
            "steps": m,
            "goal": goal,
            "relabeled": int(relabeled),
            "episode": episode,
            "step": t,
            "key": self.evicted + self._transitions().index((episode, t)),
        }

"""What the policy reads when it acts, and what it learns from later, is the prompt as documented:
history, listed actions and the goal in hindsight, written out here as one text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from sacglam import Trainer
from sacglam.models.critics import candidates_of
from sacglam.text import PromptTemplate
from sacglam.training.episode import prompts_of

ACTIONS = [["left", "right"], ["wait"], ["right", "wait", "jump"], ["jump", "left"]]


class Walk:
    """Four steps; every action is a goal that it reaches."""

    vocabulary = ("place 0 1 2 3", "left right wait jump", "Do as asked .", "Possible actions : ,")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.at = 0
        return "place 0", self._info([])

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.at = (self.at + 1) % 4
        over = self.at == 0
        won = action == "jump" and not over
        return f"place {self.at}", float(won), won, over, self._info([action])

    def _info(self, achieved: list[str]) -> dict[str, Any]:
        info = {"goal": "jump", "possible_actions": ACTIONS[self.at]}
        return {**info, "achieved_goals": achieved}


def _text(
    goal: str, observation: str, actions: list[str], past: list[tuple[str, str]], listed: bool
) -> str:
    text = f"Do as asked .\nGoal: {goal}"
    for earlier, action in past:
        text += f"\n{earlier}\nAction: {action}"
    text += f"\n{observation}"
    if listed:
        text += f"\nPossible actions: {', '.join(actions)}"
    return text + "\nAction:"


@pytest.mark.parametrize(("history", "listed"), [(0, False), (1, True), (2, False), (9, True)])
def test_the_template_is_as_documented(history: int, listed: bool):
    template = PromptTemplate("Do as asked .", history=history, list_actions=listed)
    past = [("place 0", "left"), ("place 1", "wait"), ("place 2", "jump")]
    found = "".join(template.segments("jump", "place 3", past, ACTIONS[3]))
    shown = {0: [], 1: past[2:], 2: past[1:], 9: past}[history]
    assert found == _text("jump", "place 3", ACTIONS[3], shown, listed)


@pytest.mark.parametrize(
    ("model", "history", "listed"),
    [("tiny-llama", 0, False), ("tiny-llama", 2, True), ("tiny-t5", 1, True)],
)
def test_what_is_learned_from_is_what_was_acted_on(
    quick_config: Any, model: str, history: int, listed: bool
):
    config = quick_config(
        **{
            "model.id": model, "prompt.history": history, "prompt.list_actions": listed,
            "prompt.instruction": "Do as asked .", "replay.her_ratio": 0.5,
        }
    )  # fmt: skip
    trainer = Trainer(config, env=Walk)
    algorithm: Any = trainer.algorithm
    collector, buffer, codec = algorithm.collector, algorithm.buffer, trainer.policy.codec
    stored: dict[int, Any] = {}
    add, store = buffer.add_episode, collector._store

    def storing(episode: Any, *ended: bool) -> None:
        buffer.add_episode = lambda **given: stored.update({add(**given): episode})
        store(episode, *ended)

    collector._store = storing

    def prompt(episode: Any, t: int, goal: str) -> list[int]:
        places = [place for place, _ in episode.history] + [episode.observation]
        past = episode.history[max(0, t - history) : t]
        actions = ACTIONS[int(places[t][-1])]
        return codec.text(_text(goal, places[t], actions, past, listed)).tolist()

    collector.start()
    for _ in range(12):
        ids, offsets, sets = prompts_of(trainer.policy, collector.episodes)
        for (a, b), episode, one in zip(
            pairwise(offsets.tolist()), collector.episodes, sets, strict=True
        ):
            assert ids[a:b].tolist() == prompt(episode, len(episode.history), "jump")
            tokens = [x.tolist() for x in candidates_of(one)]
            assert tokens == [codec.ids(f" {action}").tolist() for action in episode.actions]
        collector.step()

    batch = buffer.sample(64)
    goals = {algorithm.texts.goal(goal): goal for goal in ("left", "right", "wait", "jump")}
    sets, later = map(algorithm.texts.policy_sets, (batch.candidates, batch.next_candidates))
    kinds = set()
    for row in range(64):
        episode, t = stored[int(batch.episode[row])], int(batch.step[row])
        goal, after = goals[int(batch.goal[row])], t + int(batch.steps[row])
        a, b = batch.prompt_offsets[row : row + 2]
        assert batch.prompt_ids[a:b].tolist() == prompt(episode, t, goal)
        a, b = batch.next_prompt_offsets[row : row + 2]
        assert batch.next_prompt_ids[a:b].tolist() == prompt(episode, after, goal)
        for one, at in ((sets[row], t), (later[row], after)):
            place = [*(p for p, _ in episode.history), episode.observation][at]
            wanted = [codec.ids(f" {x}").tolist() for x in ACTIONS[int(place[-1])]]
            assert [x.tolist() for x in candidates_of(one)] == wanted
        taken = candidates_of(sets[row])[int(batch.action[row])].tolist()
        assert taken == codec.ids(f" {episode.history[t][1]}").tolist()
        kinds.add((t, bool(batch.relabeled[row])))
    assert {t for t, _ in kinds} >= {0, 1, 2}
    assert {relabeled for _, relabeled in kinds} == {False, True}

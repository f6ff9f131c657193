"""The prompt as a sequence of segments, so that hindsight can swap the goal without a tokenizer.

    {instruction}\\nGoal: {goal}[\\n{earlier observation}\\nAction: {its action}]*
    \\n{observation}\\nAction:

In a chat, the user says all but the last label, and the assistant's answer begins with that.

Every segment starts with its own white space, where byte-pair and sentence-piece tokenizers split
anyway, so a prompt tokenised by segments has the ids of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptTemplate:
    """How goal, history, observation and (optionally) the action list become a prompt.

    Attributes:
        instruction: a fixed text before everything else; may be empty.
        history: how many earlier steps (observation and action) of the episode are shown.
        list_actions: whether the admissible actions are written into the prompt.
        before, after: what a chat template puts around a user's message (`chat_frame`), its special
            tokens included; empty: no chat.
    """

    instruction: str = ""
    history: int = 0
    list_actions: bool = False
    goal_label: str = "Goal:"
    action_label: str = "\nAction:"
    actions_label: str = "\nPossible actions:"
    actions_separator: str = ","
    before: str = ""
    after: str = ""

    @property
    def opening(self) -> str:
        """The literal before the goal."""
        own = f"{self.instruction}\n{self.goal_label}" if self.instruction else self.goal_label
        return self.before + own

    @property
    def closing(self) -> str:
        """The literal that the action follows."""
        return self.after + self.action_label.lstrip() if self.after else self.action_label

    def goal(self, goal: str) -> str:
        """The goal's segment."""
        return f" {goal}"

    def observation(self, observation: str) -> str:
        """An observation's segment, current or earlier."""
        return f"\n{observation}"

    def action(self, action: str) -> str:
        """An action's segment, in a prompt and as a candidate."""
        return f" {action}"

    def segments(
        self,
        goal: str,
        observation: str,
        history: Sequence[tuple[str, str]] = (),
        actions: Sequence[str] = (),
    ) -> list[str]:
        """The prompt's texts in order; their concatenation is the prompt.

        Args:
            goal: the goal's text.
            observation: the current observation.
            history: earlier (observation, action) pairs, oldest first; `self.history` are shown.
            actions: the admissible actions, used only if `list_actions`.
        """
        parts = [self.opening, self.goal(goal)]
        shown = history[-self.history :] if self.history else ()
        for past_observation, past_action in shown:
            parts += [
                self.observation(past_observation),
                self.action_label,
                self.action(past_action),
            ]
        parts.append(self.observation(observation))
        if self.list_actions:
            parts.append(self.actions_label)
            for k, action in enumerate(actions):
                if k:
                    parts.append(self.actions_separator)
                parts.append(self.action(action))
        parts.append(self.closing)
        return parts

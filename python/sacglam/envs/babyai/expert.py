"""Advice from minigrid's own BabyAI bot."""

from __future__ import annotations

import logging
from typing import Any

from sacglam.envs.babyai.levels import import_minigrid
from sacglam.errors import MissingDependencyError

_log = logging.getLogger(__name__)

# The bot's authors say so: it takes keys in boxes for unreachable.
_UNSOLVED = frozenset({"KeyInBox"})

# Subgoals that the bot may add in planning one action; sound plans add fewer than 20. On some
# layouts (GoToImpUnlock, seed 6) minigrid 3.2's bot goes round in circles for ever.
_MOST_NEW_SUBGOALS = 100


class _BotLostError(Exception):
    """The bot goes round in circles."""


class _BoundedStack(list[Any]):
    """The bot's stack of subgoals, limited in how many are added while one action is planned."""

    added = 0

    def append(self, subgoal: Any) -> None:
        self.added += 1
        if self.added > _MOST_NEW_SUBGOALS:
            raise _BotLostError("it adds subgoal after subgoal")
        super().append(subgoal)


def make_expert(level: Any) -> BotExpert | None:
    """The expert for a level; None where the bot is not installed or does not solve the level."""
    if any(cls.__name__ in _UNSOLVED for cls in type(level).__mro__):
        return None
    try:
        module = import_minigrid("minigrid.utils.baby_ai_bot")
    except MissingDependencyError:  # minigrid before the bot was added
        return None
    return BotExpert(level, module.BabyAIBot)


class BotExpert:
    """Asks the bot for the next action, from any state of an episode.

    The bot plans from the actions that were taken, so it is made when advice is first asked for in
    an episode and told of every step from then on. It gives up by failed assertions, and exceptions
    of all kinds, on states that it does not understand: then a new one is made, with empty hands.
    """

    def __init__(self, level: Any, bot_class: Any) -> None:
        self._level = level
        self._bot_class = bot_class
        self._bot: Any = None
        self._advice: int | None = None

    def reset(self) -> None:
        """Forget the plan: a new episode begins."""
        self._bot, self._advice = None, None

    def observe(self, action: int) -> None:
        """Tell of an action that was taken."""
        if self._bot is not None:
            self._replan(action)

    def act(self) -> int:
        """minigrid's number of the action to take; going on straight, or turning left where that is
        impossible, if no plan exists (such as when the target was destroyed)."""
        actions = self._level.actions
        ahead = self._level.grid.get(*self._level.front_pos)
        if self._bot is None:
            if self._level.carrying is not None:
                # A new bot believes that its hands are empty.
                return int(actions.drop if ahead is None else actions.left)
            self._level.update_objs_poss()  # the bot looks for objects where these were last noted
            self._bot = self._bot_class(self._level)
            self._bot.stack = _BoundedStack(self._bot.stack)
            self._replan(None)
        if self._advice is None:
            return int(actions.forward if ahead is None else actions.left)
        return self._advice

    def _replan(self, action: int | None) -> None:
        self._bot.stack.added = 0
        try:
            advice = int(self._bot.replan(action))
        except Exception as error:  # the bot's way to say that it is lost, see the class
            _log.debug("the BabyAI bot gave up: %r", error)
            advice = int(self._level.actions.done)
        if advice == self._level.actions.done:
            self._bot, self._advice = None, None
        else:
            self._advice = advice

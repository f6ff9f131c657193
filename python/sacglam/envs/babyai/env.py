"""The text environment `babyai/<level>`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sacglam.envs.babyai.expert import make_expert
from sacglam.envs.babyai.grammar import (
    COLORS,
    KINDS,
    PORTABLE,
    Grammar,
    family_of,
    goal_vocabulary,
    grammar_of,
)
from sacglam.envs.babyai.hindsight import GoalBook
from sacglam.envs.babyai.levels import build_level, resolve_level
from sacglam.envs.babyai.view import FORWARD, WORDINGS, TextView, view_vocabulary
from sacglam.errors import ConfigError, EnvironmentProtocolError

# In the order of minigrid's action numbers 0..5.
ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
_ACTION_NUMBER = {text: number for number, text in enumerate(ACTIONS)}
_THINGS = frozenset({"key", "ball", "box", "door"})


class BabyAITextEnv:
    """A BabyAI level of minigrid as a text environment.

    An observation is what the agent sees and carries, nearest first (order: `view.places`):
    `You carry a blue key, You see a wall 1 step forward, You see a red ball 2 steps left and 1 step
    forward`. All six `ACTIONS` are always possible. `info["goal"]` is the level's mission, reached
    when minigrid's verifier says so. A level draws its own missions, so that
    `reset(options={"goal": ...})` accepts only None. There is no held-out split of missions:
    `options["split"]` is accepted and changes nothing.

    Attributes: `level` (name), `history` (earlier steps that the prompt should show), `vocabulary`,
    `max_steps` (of the present episode), `minigrid` (the level itself), and, where minigrid's bot
    is installed and solves the level, `expert_action() -> str`.
    """

    expert_action: Callable[[], str]

    def __init__(
        self,
        level: str,
        *,
        time_discounted_reward: bool = False,
        wording: str = "glam",
        history: int = 2,
        hindsight: str = "level",
        **level_kwargs: Any,
    ) -> None:
        """Builds the level.

        Args:
            level: name (`GoToLocal`) or gymnasium id (`BabyAI-GoToLocal-v0`).
            time_discounted_reward: pay minigrid's 1 - 0.9 * steps / max_steps for a success,
                instead of 1.
            wording: "glam" as above, or "short" with about half the words: `carrying blue key, wall
                1 forward, red ball 2 left 1 forward`.
            history: earlier steps (observation and action) that the prompt should show; GLAM's 2.
            hindsight: "level" derives hindsight goals of the kinds that this level has as missions,
                "all" of every kind (go to, pick up, open, put next).
            level_kwargs: passed to the level, such as max_steps=100, num_dists=4, room_size=6.

        Raises:
            MissingDependencyError, UnknownEnvironmentError, ConfigError: see `make_babyai`.
        """
        if wording not in WORDINGS:
            raise ConfigError(f"wording must be one of {', '.join(WORDINGS)}, not {wording!r}")
        if hindsight not in ("level", "all"):
            raise ConfigError(f"hindsight must be 'level' or 'all', not {hindsight!r}")
        if isinstance(history, bool) or not isinstance(history, int) or history < 0:
            raise ConfigError(f"history must be a number of steps >= 0, not {history!r}")
        self.level, gym_id = resolve_level(level)
        self.minigrid = build_level(gym_id, **level_kwargs)
        self.history = history
        self._time_discounted_reward = time_discounted_reward
        self._all_kinds = hindsight == "all"
        # Nobody reads minigrid's image of the view; without it a step costs a tenth.
        self.minigrid.gen_obs = dict
        view_size = self.minigrid.agent_view_size
        self._view = TextView(self.minigrid.width, self.minigrid.height, view_size, wording)
        self.vocabulary: list[str] = [
            *ACTIONS,
            *goal_vocabulary(),
            *view_vocabulary(view_size, wording, list(COLORS), list(PORTABLE)),
        ]
        self._expert = make_expert(self.minigrid)
        if self._expert is not None:
            self.expert_action = self._ask_expert
        self._goals: GoalBook | None = None
        self._running = False
        self._ahead: Any = None

    @property
    def max_steps(self) -> int:
        """Steps until truncation; some levels set it anew for each mission."""
        return int(self.minigrid.max_steps)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode on a new layout with a new mission, both determined by the seed.

        Raises:
            ConfigError: a goal in `options`, or an unknown option.
        """
        for name, value in (options or {}).items():
            if name == "goal" and value is not None:
                raise ConfigError(
                    f"babyai/{self.level} was asked for the goal {value!r}, but BabyAI levels draw "
                    "their own missions together with the layout; leave options['goal'] out (or "
                    "None) and choose the level or the seed instead"
                )
            if name not in ("goal", "split"):
                raise ConfigError(f"unknown reset option {name!r}; known are 'goal' and 'split'")
        level = self.minigrid
        # Older minigrids let a locked room of the last episode influence the next layout.
        if hasattr(level, "locked_room"):
            level.locked_room = None
        level.reset(seed=seed)
        grammar = grammar_of(level)
        if self._all_kinds:
            grammar = Grammar(KINDS, grammar.forms, grammar.connectives)
        self._goals = GoalBook(level, grammar)
        if self._expert is not None:
            self._expert.reset()
        self._running = True
        return self._observe(), self._info([])

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one of `ACTIONS`; returns (observation, reward, terminated, truncated, info).

        Raises:
            EnvironmentProtocolError: another action, or no episode is running.
        """
        number = _ACTION_NUMBER.get(action)
        if number is None:
            raise EnvironmentProtocolError(
                f"babyai/{self.level} has no action {action!r}; it has {', '.join(ACTIONS)}"
            )
        if not self._running or self._goals is None:
            raise EnvironmentProtocolError(
                f"babyai/{self.level}: step() needs a running episode; call reset() first"
            )
        level = self.minigrid
        ahead, carried = self._ahead, level.carrying
        _, paid, terminated, truncated, _ = level.step(number)
        # A strict level also ends when the wrong thing was done, and pays nothing.
        success = bool(terminated and paid > 0)
        observation = self._observe()
        achieved = self._goals.after_step(action, ahead, self._ahead, carried, level)
        # About the mission itself minigrid's verifier has the last word.
        if success and level.mission not in achieved:
            achieved.append(level.mission)
        elif not success and level.mission in achieved:
            achieved.remove(level.mission)
        if self._expert is not None:
            self._expert.observe(number)
        self._running = not (terminated or truncated)
        reward = (float(paid) if self._time_discounted_reward else 1.0) if success else 0.0
        return (
            observation,
            reward,
            bool(terminated),
            bool(truncated and not terminated),
            self._info(achieved),
        )

    def goal_family(self, goal: str) -> str:
        """ "Go to", "Pick up", "Open", "Put next" or "Sequence" (then, after, and)."""
        family = family_of(goal)
        if family is None:
            raise ConfigError(
                f"{goal!r} is no mission of BabyAI; they start with go to, pick up, open or put"
            )
        return family

    def close(self) -> None:
        """Release minigrid's resources."""
        self.minigrid.close()

    def _ask_expert(self) -> str:
        """The next action of minigrid's bot, from any state of the running episode."""
        if not self._running or self._expert is None:
            raise EnvironmentProtocolError(
                f"babyai/{self.level}: expert_action() needs a running episode; call reset() first"
            )
        return ACTIONS[self._expert.act()]

    def _observe(self) -> str:
        """The observation; also notes the thing in front of the agent."""
        level = self.minigrid
        cells, direction = level.grid.grid, int(level.agent_dir)
        x, y = int(level.agent_pos[0]), int(level.agent_pos[1])
        dx, dy = FORWARD[direction]
        ahead = cells[(y + dy) * level.grid.width + x + dx]
        self._ahead = ahead if ahead is not None and ahead.type in _THINGS else None
        return self._view.describe(cells, x, y, direction, level.carrying)

    def _info(self, achieved: list[str]) -> dict[str, Any]:
        mission = self.minigrid.mission
        return {
            "goal": mission,
            "goal_family": family_of(mission) or "all",
            "possible_actions": list(ACTIONS),
            "achieved_goals": achieved,
        }

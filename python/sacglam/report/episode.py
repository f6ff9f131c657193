"""An episode as a person wants to see it: what the agent saw, weighed, did, and got."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .text import MISSING, bar, compact, number, percent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult


def render_step(
    console: Console | None = None,
    *,
    step: int,
    goal: str,
    observation: str,
    candidates: Sequence[str],
    probabilities: Sequence[float] | Any,
    q_values: Sequence[float] | Any | None,
    chosen: int | str,
    reward: float | None = None,
    achieved: Sequence[str] = (),
    max_candidates: int | None = None,
) -> RenderableType:
    """One step of an episode. Nothing is printed: pass the result to `console.print`.

    Args:
        console: where it will be printed; only asked whether it can show block characters.
            None asks the console that prints it.
        step: number of the step, from 0.
        goal, observation: texts, shown as they are (no markup is interpreted).
        candidates: the K admissible actions.
        probabilities: K probabilities in 0..1 (a sequence, array or tensor).
        q_values: K values, or None where the policy has no critic.
        chosen: index or text of the action taken.
        reward: what the action paid, or None while it has not been taken.
        achieved: the goals that the action newly satisfied.
        max_candidates: show only the most probable ones, and the chosen one; None shows all.
    """
    names = [str(candidate) for candidate in candidates]
    shares = _floats(probabilities, len(names), "probabilities")
    values = None if q_values is None else _floats(q_values, len(names), "q_values")
    index = names.index(chosen) if isinstance(chosen, str) else int(chosen)
    if not 0 <= index < len(names):
        raise ValueError(f"chosen is {chosen}, but there are {len(names)} candidates")
    return _Step(
        console, step, goal, observation, names, shares, values, index, number(reward),
        tuple(map(str, achieved)), max_candidates,
    )  # fmt: skip


def render_outcome(
    console: Console | None = None,
    *,
    goal: str,
    success: bool,
    steps: int,
    total_reward: float | None = None,
    truncated: bool = False,
) -> RenderableType:
    """How an episode ended, in a line. Nothing is printed: pass the result to `console.print`."""
    from rich.text import Text

    plural = "" if steps == 1 else "s"
    if success:
        text, style = f"reached in {steps} step{plural}", "bold green"
    elif truncated:
        text, style = f"not reached: time limit after {steps} step{plural}", "bold red"
    else:
        text, style = f"not reached: ended after {steps} step{plural}", "bold red"
    line = Text.assemble(("goal ", "dim"), goal, " ", (text, style))
    if total_reward is not None:
        line.append(f"  return {compact(number(total_reward))}", style="dim")
    return line


class _Step:
    """Lays itself out when printed, because only then the width is known."""

    def __init__(
        self,
        console: Console | None,
        step: int,
        goal: str,
        observation: str,
        candidates: list[str],
        probabilities: list[float | None],
        q_values: list[float | None] | None,
        chosen: int,
        reward: float | None,
        achieved: tuple[str, ...],
        max_candidates: int | None,
    ) -> None:
        self.console = console
        self.step = step
        self.goal = goal
        self.observation = observation
        self.candidates = candidates
        self.probabilities = probabilities
        self.q_values = q_values
        self.chosen = chosen
        self.reward = reward
        self.achieved = achieved
        self.max_candidates = max_candidates

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.padding import Padding
        from rich.rule import Rule
        from rich.table import Table
        from rich.text import Text

        asked = self.console or console
        ascii_only = asked.options.ascii_only
        rule = "-" if ascii_only else "─"
        yield Rule(Text(f"step {self.step}", style="bold"), align="left", characters=rule)
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        facts.add_row("goal", Text(self.goal, style="bold"))
        facts.add_row("sees", Text(self.observation))
        yield facts
        yield Text()
        yield Padding(self._choices(options.max_width, ascii_only), (0, 0, 0, 1))
        outcome = self._outcome()
        if outcome is not None:
            yield Text()
            yield outcome
        yield Text()

    def _choices(self, width: int, ascii_only: bool) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        order = self._order()
        bar_width = 20 if width >= 72 else 10
        table = Table(
            box=None, pad_edge=False, padding=(0, 1), show_header=True, header_style="dim"
        )
        table.add_column("", no_wrap=True, width=1)
        table.add_column("action", overflow="fold", max_width=max(12, width - bar_width - 26))
        table.add_column("probability", no_wrap=True, min_width=bar_width)
        table.add_column("", no_wrap=True, justify="right", min_width=6)
        if self.q_values is not None:
            table.add_column("Q", no_wrap=True, justify="right", min_width=7)
        for i in order:
            mark = (">" if ascii_only else "▶") if i == self.chosen else ""
            style = "bold" if i == self.chosen else ""
            share = self.probabilities[i]
            filled = "green" if i == self.chosen else "blue"
            cells = [
                Text(mark, style="bold green"),
                Text(self.candidates[i], style=style),
                Text(bar(share, bar_width, ascii_only=ascii_only), style=f"{filled} on grey23"),
                Text(percent(share, 1), style=style),
            ]
            if self.q_values is not None:
                value = self.q_values[i]
                cells.append(Text(MISSING if value is None else f"{value:.3f}", style=style))
            table.add_row(*cells)
        hidden = [i for i in range(len(self.candidates)) if i not in set(order)]
        if hidden:
            rest = sum(self.probabilities[i] or 0.0 for i in hidden)
            label = Text(f"{len(hidden)} more", style="dim")
            table.add_row("", label, "", Text(percent(rest, 1), style="dim"))
        return table

    def _order(self) -> list[int]:
        """Candidates to show: most probable first, ties as the environment lists them."""
        order = sorted(range(len(self.candidates)), key=lambda i: -(self.probabilities[i] or 0.0))
        if self.max_candidates is None or len(order) <= self.max_candidates:
            return order
        kept = order[: max(1, self.max_candidates)]
        if self.chosen not in kept:
            kept[-1] = self.chosen
        return kept

    def _outcome(self) -> RenderableType | None:
        from rich.text import Text

        if self.reward is None and not self.achieved:
            return None
        line = Text()
        if self.reward is not None:
            line.append("reward ", style="dim")
            line.append(compact(self.reward), style="bold green" if self.reward > 0 else "")
        if self.achieved:
            line.append("   achieved " if self.reward is not None else "achieved ", style="dim")
            line.append(", ".join(self.achieved))
        return line


def _floats(values: Any, expected: int, name: str) -> list[float | None]:
    if hasattr(values, "detach"):
        values = values.detach()
    found = [number(value) for value in values]
    if len(found) != expected:
        raise ValueError(f"{name} must hold one value per candidate ({expected}), got {len(found)}")
    return found

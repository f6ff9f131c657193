"""Progress of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .display import Display
from .text import count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_NAMES = {"policy": "the policy", "random": "random actions", "expert": "the expert"}

# Who is evaluated, as for `Callback.on_evaluation`; how many episodes ended; of how many.
Evaluation = tuple[str, int, int]


def evaluation_line(evaluation: Evaluation) -> str:
    """evaluating the policy: 12/300 episodes"""
    kind, done, episodes = evaluation
    return f"evaluating {_NAMES.get(kind, kind)}: {done}/{episodes} episodes"


def progress_table() -> Table:
    """An empty table of progress: what is done, a bar, how far it is."""
    from rich.table import Table

    table = Table.grid(expand=True, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True, justify="right")
    return table


def add_evaluation(table: Table, evaluation: Evaluation) -> None:
    """A row of `progress_table`."""
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    kind, done, episodes = evaluation
    table.add_row(
        Text("evaluating", style="bold"),
        ProgressBar(total=episodes, completed=done),
        Text(f"{_NAMES.get(kind, kind)}: {count(done)} / {count(episodes)} episodes"),
    )


class EvaluationDisplay(Display):
    """Shows evaluations, one after the other. Arguments as for `Display`."""

    remains = False  # the result says it all
    _evaluation: Evaluation | None = None

    def evaluating(self, kind: str, done: int, episodes: int) -> None:
        """Show that `done` of the `episodes` ended; `kind` as for `Callback.on_evaluation`."""
        self._guarded(lambda: self._evaluating((kind, done, episodes)))

    def _evaluating(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._write_after_a_while(lambda: evaluation_line(evaluation))

    def layout(self) -> RenderableType:
        from rich.text import Text

        if self._evaluation is None:
            return Text("loading")
        table = progress_table()
        add_evaluation(table, self._evaluation)
        return table

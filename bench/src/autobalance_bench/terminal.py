"""What `autobalance compare` shows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from autobalance.cli import FILE_WIDTH, format_percent, narrow_table, plain_text

# Characters of a cell's reason that its line shows; the end of the run shows all.
REASON = 120


class CellProgress:
    """A bar over the cells of a comparison, and a line for each that ends, on standard error.

    Without a terminal the lines alone. A context manager.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._bars = Progress(
            TextColumn("cells"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: Any = None

    def __enter__(self) -> CellProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def update(self, done: int, total: int, record: dict[str, Any]) -> None:
        """Show the record of the cell that ended as number `done` of `total`."""
        if self._task is None:
            self._task = self._bars.add_task("cells", total=total, completed=done - 1)
        self._bars.update(self._task, completed=done)
        aim = "" if record["objective"] is None else f" for {record['objective']}"
        what = f"{record['dataset']}, {record['method']}{aim}, seed {record['seed']}"
        if record["status"] == "finished":
            ended = f"{_objective(record)}{record['seconds']['wall']:.1f} s"
        else:
            ended = f"failed: {shorten(record['reason'], REASON, placeholder=' ...')}"
        self._console.print(plain_text(f"{done}/{total} {what}: {ended}"))


def _objective(record: dict[str, Any]) -> str:
    """The value that the cell was for, or the first; nothing where the data has no groups for it."""
    values = record["objectives"]
    name = record["objective"] if record["objective"] in values else next(iter(values), None)
    return "" if name is None else f"{name.replace('_', ' ')} {format_percent(values[name])} %, "


def print_comparison(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Tables of a comparison, objective by objective, each with a line between it and the next."""
    from autobalance_bench.comparison.tables import terminal_tables

    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    for summary in summaries:
        for table in terminal_tables(summary):
            narrow_table(table)
            console.print(table)
            console.print()

"""What the terminal shows: live progress and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from autobalance.training import Progress as RunProgress


class LiveProgress:
    """A bar per phase on standard error: phase, step, objective, time left.

    Quiet when standard error is not a terminal. A context manager.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[objective]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def update(self, title: str, progress: RunProgress) -> None:
        """Show where the run named `title` is."""
        stage = "retrain" if progress.phase == "retrain" else "search"
        key = f"{title}, {stage}"
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(key, total=progress.total, objective="")
        fields: dict[str, Any] = {"description": f"{title}, {progress.phase}"}
        if progress.objective is not None:
            fields["objective"] = f"validation {100 * progress.objective:.1f} %"
        self._bars.update(self._tasks[key], completed=progress.step, **fields)


def print_methods(methods: dict[str, dict[str, Any]]) -> None:
    """The demo's table."""
    table = Table(title="Error in percent")
    table.add_column("method", no_wrap=True)
    for name in ("balanced", "worst class", "training", "seconds", "runs"):
        table.add_column(name, justify="right")
    for method in methods.values():
        table.add_row(
            method["title"],
            _percent(method["balanced_error"]),
            _percent(method["worst_class_error"]),
            _percent(method["training_error"]),
            f"{method['seconds']:.1f}",
            str(method["training_runs"]),
        )
    Console().print(table)


def print_report(report: dict[str, Any]) -> None:
    """Error rates: overall, then by class, then by group."""
    console = Console()
    summary = Table("error in percent", title=f"{report['n']:,} examples")
    summary.add_column(justify="right")
    for key in ("error", "balanced_error", "worst_class_error", "worst_group_error"):
        if key in report:
            summary.add_row(key.replace("_", " "), _percent(report[key]))
    console.print(summary)
    by_class = Table("class")
    by_class.add_column("error", justify="right")
    for name, error in zip(report["classes"], report["class_errors"], strict=True):
        by_class.add_row(name, "absent" if error is None else _percent(error))
    console.print(by_class)
    if "groups" in report:
        by_group = Table("group")
        by_group.add_column("error", justify="right")
        by_group.add_column("balanced error", justify="right")
        for i, name in enumerate(report["groups"]):
            errors = report["group_errors"][i], report["group_balanced_errors"][i]
            by_group.add_row(name, *map(_percent, errors))
        console.print(by_group)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"

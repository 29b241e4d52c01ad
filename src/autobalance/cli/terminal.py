"""What the terminal shows: live progress and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from autobalance.bilevel import (
        Baseline,
        Frontier,
        FrontierPoint,
        Progress as RunProgress,
        SearchResult,
    )
    from autobalance.posthoc import Decided


_SUMMARY = (
    "error",
    "balanced_error",
    "worst_class_error",
    "worst_group_error",
    "group_balanced_error",
    "worst_class_and_group_error",
    "deo",
)


# Of tables that no terminal's width limits.
FILE_WIDTH = 120

_CHOICES = {
    "designed": "the designed loss",
    "start": "the loss it started from",
    "cross_entropy": "plain cross-entropy",
}


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


def narrow_table(table: Table) -> None:
    """Lean, with a word per line in its headings, so that 80 columns cut none; names wrap instead."""
    table.box, table.show_edge, table.padding = SIMPLE_HEAD, False, (0, 1, 0, 0)
    for column in table.columns:
        column.no_wrap = False
        column.header = str(column.header).replace(" ", "\n").replace("95\n%", "95 %")


def print_methods(methods: dict[str, dict[str, Any]]) -> None:
    """The demo's table."""
    table = Table(title="Error in percent")
    table.add_column("method", no_wrap=True)
    for name in ("balanced", "worst class", "training", "seconds", "runs"):
        table.add_column(name, justify="right")
    for method in methods.values():
        table.add_row(
            method["title"],
            format_percent(method["balanced_error"]),
            format_percent(method["worst_class_error"]),
            format_percent(method["training_error"]),
            f"{method['seconds']:.1f}",
            str(method["training_runs"]),
        )
    Console().print(table)


def print_choice(result: SearchResult) -> None:
    """The final choice over folds, and by how much; nothing where there was none."""
    if not result.candidates:
        return
    by_name = {candidate.name: candidate for candidate in result.candidates}
    chosen = by_name[result.choice]
    shown = by_name["designed"] if chosen.name == "start" else chosen
    print(
        f"Final choice on held-out data: {_CHOICES[chosen.name]}, at {format_percent(chosen.objective)} %. "
        f"{_CHOICES[shown.name].capitalize()} less its start: {100 * shown.difference:+.1f} points "
        f"(standard error {100 * shown.standard_error:.1f})."
    )


def print_frontier(
    found: Frontier,
    baselines: Sequence[Baseline],
    picked: FrontierPoint | None = None,
    bound: float | None = None,
) -> None:
    """The points by their mix, then the baselines; which points no other beats, which is picked.

    Parameters
    ----------
    found, baselines
        What to show.
    picked, bound
        The point whose network is kept, and the largest gap that was asked for.
    """
    table = _frontier_table("training loss", found.main, found.gap)
    best = found.non_dominated()
    notes = []
    for point in found.points:
        note = "not beaten" if point in best else ""
        if point.constant:
            note = "a class always wrong"
        if point is picked:
            note = "picked"
        notes.append(note)
        table.add_row(
            f"mix {point.mix:g}", format_percent(point.main), format_percent(point.gap), note
        )
    if baselines:
        table.add_section()
    for baseline in baselines:
        note = "a class always wrong" if baseline.constant else ""
        table.add_row(
            baseline.title, format_percent(baseline.main), format_percent(baseline.gap), note
        )
    sizes = sum(map(sum, found.settings["validation_counts"]))
    said = [
        f"Percent of {sizes:,.0f} held-out examples, lower is better. {_gap_named(found.gap)} Mix: the "
        "gap's weight in what a loss was designed for, the rest is the error's."
    ]
    if "not beaten" in notes:
        said.append("Not beaten: no other mix is at least as low in both.")
    if picked is not None and bound is not None:
        said.append(f"Picked: the lowest error whose gap is at most {format_percent(bound)}.")
    _print_with_legend(table, said)


def print_decisions(
    points: Sequence[Decided],
    plain: Decided,
    main: str,
    kept: Decided | None = None,
    bound: float | None = None,
) -> None:
    """The decisions by falling gap, then cross-entropy's; which is picked, for a gap of at most `bound`."""
    table = _frontier_table("decision", main, "deo", "worst class of a group")
    rows = sorted(
        [*((p, "") for p in points), *([] if kept is None else [(kept, "picked")])],
        key=lambda row: -row[0].held_out.deo,
    )
    drawn = 1
    for decided, note in [*rows, (plain, "")]:
        if decided is plain:
            table.add_section()
        held, parts = decided.held_out, len(decided.network.shares)
        drawn = max(drawn, parts)
        table.add_row(
            "cross-entropy" if decided is plain else f"gap at most {format_percent(held.deo)}",
            format_percent(getattr(held, main)),
            format_percent(held.deo),
            format_percent(held.worst_class_and_group_error),
            ", ".join(filter(None, [note, f"drawn from {parts}" if parts > 1 else ""])),
        )
    said = [
        f"Percent of {plain.held_out.mass.sum():,.0f} held-out examples, lower is better. "
        f"{_gap_named('deo')} Cross-entropy: the most probable class."
    ]
    if drawn > 1:
        said.append("Drawn from 2: each prediction follows one of so many rules, drawn at random.")
    if kept is not None and bound is not None:
        said.append(f"Picked: the lowest error whose gap is at most {format_percent(bound)}.")
    _print_with_legend(table, said)


def _frontier_table(what: str, main: str, gap: str, *more: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(what, no_wrap=True)
    for name in (main, f"gap: {gap}", *more):
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("", no_wrap=True)
    return table


def _gap_named(gap: str) -> str:
    from autobalance.report import GAP_TITLES

    title = GAP_TITLES.get(gap, gap)
    words = gap.replace("_", " ")
    return f"Gap between groups: {title}." if title != words else "The gap is between groups."


def _print_with_legend(table: Table, said: Sequence[str]) -> None:
    """The table, and under it what its words mean."""
    console = Console()
    console.print(table)
    for line in said:
        console.print(line, highlight=False, style="dim")


def print_report(report: dict[str, Any]) -> None:
    """Error rates: overall, then by class, by group, and by both."""
    console = Console()
    summary = Table("error in percent", title=f"{report['n']:,} examples")
    summary.add_column(justify="right")
    for key in _SUMMARY:
        if key in report:
            summary.add_row(key.replace("_", " "), format_percent(report[key]))
    console.print(summary)
    by_class = Table("class")
    by_class.add_column("error", justify="right")
    for name, error in zip(report["classes"], report["class_errors"], strict=True):
        by_class.add_row(plain_text(name), format_percent(error))
    console.print(by_class)
    if "group_errors" in report:
        by_group = Table("group")
        by_group.add_column("error", justify="right")
        by_group.add_column("balanced error", justify="right")
        for name, error in report["group_errors"].items():
            by_group.add_row(
                plain_text(name),
                format_percent(error),
                format_percent(report["group_balanced_errors"][name]),
            )
        console.print(by_group)
        by_both = Table("class", "group")
        by_both.add_column("examples", justify="right")
        by_both.add_column("error", justify="right")
        for name, errors in report["class_and_group_errors"].items():
            sizes = report["class_and_group_n"][name]
            for label, n, error in zip(report["classes"], sizes, errors, strict=True):
                by_both.add_row(
                    plain_text(label), plain_text(name), f"{n:,}", format_percent(error)
                )
        console.print(by_both)


def plain_text(text: object) -> str:
    """Text of the user's, in which square brackets are no markup."""
    return escape(str(text))


def format_percent(value: float | None) -> str:
    return "absent" if value is None else f"{100 * value:.1f}"

"""What the terminal shows: live progress and tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autobalance.cli.options import complain

if TYPE_CHECKING:
    from autobalance.bilevel import (
        Baseline,
        Frontier,
        FrontierPoint,
        Progress as RunProgress,
        SearchResult,
    )
    from autobalance.posthoc import FairDecision


_SUMMARY = (
    "error", "balanced_error", "worst_class_error", "worst_group_error", "group_balanced_error",
    "worst_class_and_group_error", "deo",
)  # fmt: skip
FILE_WIDTH = 120
"""Width of tables that no terminal limits."""

_CHOICES = {
    "designed": "the designed loss",
    "start": "the loss it started from",
    "cross_entropy": "plain cross-entropy",
}


class LiveProgress:
    """A bar per phase on standard error: phase, step, objective, rows per second, time left.

    Quiet when standard error is not a terminal. A context manager.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[objective]}"),
            TextColumn("{task.fields[speed]}"),
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
        stage = progress.phase if progress.phase in ("race", "retrain") else "search"
        key = f"{title}, {stage}"
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(
                key, total=progress.total, objective="", speed=""
            )
        fields: dict[str, Any] = {"description": f"{title}, {progress.phase}"}
        if progress.objective is not None:
            fields["objective"] = f"validation {100 * progress.objective:.1f} %"
        task = self._bars.tasks[self._tasks[key]]
        if progress.rows and task.elapsed:
            # A run that was resumed has done its first steps before.
            done = progress.step - task.fields.setdefault("first", progress.step)
            if done:
                fields["speed"] = f"{progress.rows * done / task.elapsed:,.0f} rows/s"
        self._bars.update(task.id, completed=progress.step, total=progress.total, **fields)


@contextmanager
def print_table_warnings() -> Iterator[None]:
    """Print each warning of reading a table once, on one line of standard error."""
    from autobalance.data import TableWarning

    printed: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", TableWarning)
        show_other = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **options: Any) -> None:
            if not issubclass(category, TableWarning):
                show_other(message, category, *place, **options)
            elif str(message) not in printed:
                printed.add(str(message))
                complain(message)

        warnings.showwarning = show
        yield


def narrow_table(table: Table) -> None:
    """Lean, with a word per line in its headings, so that 80 columns cut none; names wrap instead."""
    table.box, table.show_edge, table.padding = SIMPLE_HEAD, False, (0, 1, 0, 0)
    for column in table.columns:
        column.no_wrap = False
        column.header = str(column.header).replace(" ", "\n").replace("95\n%", "95 %")


def print_methods(methods: dict[str, dict[str, Any]]) -> None:
    """The demo's table."""
    names = ("balanced_error", "worst_class_error", "training_error")
    rows = [
        (
            method["title"],
            *(format_percent(method[name]) for name in names),
            f"{method['seconds']:.1f}",
            f"{method['training_runs']:.2g}",
        )
        for method in methods.values()
    ]
    _print_rows(
        ("method", "balanced", "worst class", "training", "seconds", "runs"),
        rows,
        title="Error in percent",
    )


def _print_rows(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    names: int = 1,
    title: str | None = None,
) -> None:
    """A table whose first columns are `names`, to the left, and whose others are numbers."""
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < names else "right", no_wrap=i < names)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_race(result: SearchResult) -> None:
    """Which way to train won the race, and against which; nothing where there was none."""
    raced = [record for record in result.race if record.criterion is not None]
    if len(raced) < 2:
        return
    each = ", ".join(f"{r.name} {r.criterion:.3f} ({r.outcome})" for r in raced)
    print(
        f"Race of {len(raced)} ways to train, held-out cross-entropy of balanced classes: {each}."
    )


def print_choice(result: SearchResult) -> None:
    """The final choice over folds, and by how much; nothing where there was none."""
    if not result.candidates:
        return
    by_name = {candidate.name: candidate for candidate in result.candidates}
    chosen = by_name[result.choice]
    compared = by_name["designed"] if chosen.name == "start" else chosen
    print(
        f"Final choice on held-out data: {_CHOICES[chosen.name]}, at {format_percent(chosen.objective)} %. "
        f"{_CHOICES[compared.name].capitalize()} less its start: {100 * compared.difference:+.1f} points "
        f"(standard error {100 * compared.standard_error:.1f})."
    )
    if chosen.undefined is not None:
        print(f"{chosen.undefined} The objective is not defined there: these numbers leave it out.")


def print_frontier(
    swept: Frontier,
    baselines: Sequence[Baseline],
    picked: FrontierPoint | None = None,
    bound: float | None = None,
) -> None:
    """The points by their mix, then the baselines; which no other beats, which is picked for a `bound`."""
    table = _frontier_table("training loss", swept.main, swept.gap)
    best = swept.non_dominated()

    def add(title: str, point: FrontierPoint | Baseline, note: str = "") -> None:
        note = "picked" if point is picked else "a class always wrong" if point.constant else note
        table.add_row(title, format_percent(point.main), format_percent(point.gap), note)

    for point in swept.points:
        add(f"mix {point.mix:g}", point, "not beaten" if point in best else "")
    if baselines:
        table.add_section()
    for baseline in baselines:
        add(baseline.title, baseline)
    sizes = sum(map(sum, swept.settings["validation_counts"]))
    legend = [
        f"Percent of {sizes:,.0f} held-out examples, lower is better. {_describe_gap(swept.gap)} Mix: the "
        "gap's weight in what a loss was designed for, the rest is the error's."
    ]
    if any(p in best and p is not picked and not p.constant for p in swept.points):
        legend.append("Not beaten: no other mix is at least as low in both.")
    if picked is not None and bound is not None:
        legend.append(f"Picked: the lowest error whose gap is at most {format_percent(bound)}.")
    _print_with_legend(table, legend)


def print_decisions(
    points: Sequence[FairDecision],
    plain: FairDecision,
    main: str,
    picked: FairDecision | None = None,
    bound: float | None = None,
) -> None:
    """The decisions by falling gap, then cross-entropy's; which is picked, for a gap of at most `bound`."""
    table = _frontier_table("decision", main, "deo", "worst class of a group")
    rows = sorted(
        [*((p, "") for p in points), *([] if picked is None else [(picked, "picked")])],
        key=lambda row: -row[0].held_out.known_deo,
    )
    for decision, note in [*rows, (plain, "")]:
        title = f"gap at most {format_percent(decision.held_out.known_deo)}"
        if decision is plain:
            table.add_section()
            title = "cross-entropy"
        held, parts = decision.held_out, len(decision.network.shares)
        rates = getattr(held, main), held.deo, held.worst_class_and_group_error
        mixture = f"drawn from {parts}" if parts > 1 else ""
        table.add_row(title, *map(format_percent, rates), ", ".join(filter(None, [note, mixture])))
    legend = [
        f"Percent of {plain.held_out.mass.sum():,.0f} held-out examples, lower is better. "
        f"{_describe_gap('deo')} Cross-entropy: the most probable class."
    ]
    if any(len(d.network.shares) > 1 for d, _ in [*rows, (plain, "")]):
        legend.append(
            "Drawn from 2: each prediction follows one of so many rules, drawn at random."
        )
    if picked is not None and bound is not None:
        legend.append(f"Picked: the lowest error whose gap is at most {format_percent(bound)}.")
    _print_with_legend(table, legend)


def _frontier_table(what: str, main: str, gap: str, *more: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(what, no_wrap=True)
    for name in (main, f"gap: {gap}", *more):
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("", no_wrap=True)
    return table


def _describe_gap(gap: str) -> str:
    from autobalance.report import GAP_TITLES

    title = GAP_TITLES.get(gap, gap)
    words = gap.replace("_", " ")
    return f"Gap between groups: {title}." if title != words else "The gap is between groups."


def _print_with_legend(table: Table, legend: Sequence[str]) -> None:
    """The table, and under it what its words mean."""
    console = Console()
    console.print(table)
    for line in legend:
        console.print(line, highlight=False, style="dim")


def print_report(report: dict[str, Any]) -> None:
    """Error rates: overall, then by class, by group, and by both."""
    summary = [
        (key.replace("_", " "), format_percent(report[key])) for key in _SUMMARY if key in report
    ]
    _print_rows(("error in percent", ""), summary, title=f"{report['n']:,} examples")
    classes = [plain_text(name) for name in report["classes"]]
    errors = map(format_percent, report["class_errors"])
    _print_rows(("class", "error"), zip(classes, errors, strict=True))
    if "group_errors" not in report:
        return
    balanced = report["group_balanced_errors"]
    by_group = [
        (plain_text(name), format_percent(error), format_percent(balanced[name]))
        for name, error in report["group_errors"].items()
    ]
    _print_rows(("group", "error", "balanced error"), by_group)
    sizes = report["class_and_group_n"]
    by_both = [
        (label, plain_text(name), f"{n:,}", format_percent(error))
        for name, errors in report["class_and_group_errors"].items()
        for label, n, error in zip(classes, sizes[name], errors, strict=True)
    ]
    _print_rows(("class", "group", "examples", "error"), by_both, names=2)


def print_label_report(report: dict[str, Any]) -> None:
    """Errors of several labels: overall, then of each, the largest first."""
    titles = {
        "balanced_error": "balanced error, mean over labels",
        "worst_class_error": "worst label",
        "macro_f1_error": "1 - F1, mean over labels",
    }
    summary = [(title, format_percent(report[key])) for key, title in titles.items()]
    _print_rows(("error in percent", ""), summary, title=f"{report['n']:,} examples")
    columns = [
        [None if n == 0 else w / n for w, n in zip(*table, strict=True)]
        for table in zip(report["sign_wrong"], report["sign_n"], strict=True)
    ]
    rows = zip(report["labels"], report["class_n"], *columns, report["class_errors"], strict=True)
    _print_rows(
        ("label", "positives", "false positives", "false negatives", "balanced error"),
        [
            (plain_text(name), f"{n:,}", *map(format_percent, rates))
            for name, n, *rates in sorted(rows, key=lambda row: -(row[-1] or -1.0))
        ],
    )


def plain_text(text: object) -> str:
    """Text of the user's, in which square brackets are no markup."""
    return escape(str(text))


def format_percent(value: float | None) -> str:
    """A rate in percent with one decimal; "absent" for None."""
    return "absent" if value is None else f"{100 * value:.1f}"

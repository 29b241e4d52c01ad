"""What the terminal shows: live progress and tables."""

from __future__ import annotations

import re
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
    from autobalance.bilevel import Progress as RunProgress, SearchResult


_SUMMARY = (  # Measures of a report, in this order.
    "error", "balanced_error", "worst_class_error", "worst_group_error", "group_balanced_error",
    "worst_class_and_group_error", "deo",
)  # fmt: skip
FILE_WIDTH = 120
"""Width of tables that no terminal limits."""

_KINDS = {"mix": "training loss", "bound": "decision"}
CHOICES = {
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
        stage = (
            progress.phase
            if progress.phase in ("encode", "length", "race", "retrain")
            else "search"
        )
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

    def count(self, title: str, done: int, total: int) -> None:
        """Show how many of the trainings named `title` are done."""
        if title not in self._tasks:
            self._tasks[title] = self._bars.add_task(title, total=total, objective="", speed="")
        self._bars.update(self._tasks[title], completed=done)


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


def print_methods(methods: dict[str, dict[str, Any]], title: str = "") -> None:
    """The demo's table: errors, their standard errors where there are several seeds, and the cost."""
    seeds = max(len(method["by_seed"]) for method in methods.values())
    rows = [
        (
            method["title"],
            *(
                _with_standard_error(method, name)
                for name in ("balanced_error", "worst_class_error")
            ),
            f"{method['training_runs']:.2g}",
            f"{method['cpu_seconds']:.1f}",
        )
        for method in methods.values()
    ]
    what = f"mean of {seeds} seeds ± standard error" if seeds > 1 else "one seed"
    heading = ". ".join(filter(None, [title, f"Error in percent, {what}"]))
    table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    for i, name in enumerate(("method", "balanced", "worst class", "runs", "CPU s")):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _with_standard_error(method: dict[str, Any], name: str) -> str:
    mean = format_percent(method[name])
    error = method.get("standard_error", {}).get(name)
    return mean if error is None else f"{mean} ± {format_percent(error)}"


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
        f"{len(raced)} ways to train, each tried for half the steps: {each}. The numbers are the held-out "
        "cross-entropy with every class counting the same; lower is better."
    )


def print_choice(result: SearchResult) -> None:
    """The final choice over folds, and by how much; nothing where there was none."""
    if not result.candidates:
        return
    by_name = {candidate.name: candidate for candidate in result.candidates}
    chosen = by_name[result.choice]
    compared = by_name["designed"] if chosen.name == "start" else chosen
    print(
        f"Final choice on held-out data: {CHOICES[chosen.name]}, at {format_percent(chosen.objective)} %. "
        f"Against the loss that the search started from, {CHOICES[compared.name]} changes the error by "
        f"{100 * compared.difference:+.1f} points (standard error {100 * compared.standard_error:.1f})."
    )
    if chosen.undefined is not None:
        print(f"{chosen.undefined} The objective is not defined there: these numbers leave it out.")


def print_baselines(beside: dict[str, Any], objective: str) -> None:
    """What plain training, class weights and the run's own result give on the same rows."""
    from autobalance.report import in_words

    methods = beside["methods"].values()
    measures = dict.fromkeys(("balanced_error", "worst_class_error"))
    named = re.findall(r"\b[a-z_]+\b(?!\()", objective)
    measures |= dict.fromkeys(name for name in named if all(name in m for m in methods))
    header = ("training", *(in_words(name) for name in measures))
    rows = [(m["title"], *(format_percent(m[name]) for name in measures)) for m in methods]
    _print_rows(header, rows, title=f"Error in percent on {beside['data']}")


def print_test(record: dict[str, Any]) -> None:
    """The errors on the rows of ``--test``, of the record of a finished run."""
    classes = [str(name) for name in record["class_names"]]
    title = f"Test errors: {record['evaluation_data']}"
    print_report({**record["methods"]["autobalance"], "classes": classes}, title)


def print_frontier(record: dict[str, Any], bound: float | None = None) -> None:
    """The points of a frontier's record, then the baselines; which is picked, for a `bound` on the gap."""
    from autobalance.report import frontier_points, point_title

    by, points = record.get("by", "mix"), frontier_points(record)
    worst = ("worst class of a group",) if by == "bound" else ()
    table = _frontier_table(_KINDS[by], record["main"], record["gap"], *worst)
    for point in points:
        _add_point(table, point_title(by, point), point, by)
    if record["baselines"]:
        table.add_section()
    for baseline in record["baselines"]:
        _add_point(table, baseline["title"], baseline, by)
    sizes = sum(map(sum, record["settings"]["validation_counts"]))
    legend = [
        f"Percent of {sizes:,.0f} held-out examples, lower is better. {_describe_gap(record['gap'])}"
    ]
    if by == "mix":
        legend[0] += (
            " Mix: the gap's weight in what a loss was designed for, the rest is the error's."
        )
    else:
        legend[0] += " Cross-entropy: the most probable class."
    if any((p.get("drawn_from") or 1) > 1 for p in points):
        legend.append(
            "Several rules: each row falls under one of them. Which one is fixed by the row's own features."
        )
    swept = {point[by] for point in [*record["points"], *points]}
    left_out = len(swept) - len(points)
    if left_out:
        legend.append(
            f"Left out: {left_out} of {len(swept)} that another is at least as good as in both "
            "error and gap. frontier.json has them."
        )
    if record.get("picked") is not None and bound is not None:
        legend.append(f"Picked: the lowest error whose gap is at most {format_percent(bound)}.")
    _print_with_legend(table, legend)


def _add_point(table: Table, title: str, point: dict[str, Any], by: str) -> None:
    notes = ["picked"] if point.get("picked") else ["a class always wrong"] * point["constant"]
    rules = point.get("drawn_from") or 1
    notes += [f"{rules} rules"] * (rules > 1)
    keys = ("main", "gap", "worst_cell") if by == "bound" else ("main", "gap")
    table.add_row(title, *(format_percent(point.get(key)) for key in keys), ", ".join(notes))


def _frontier_table(what: str, main: str, gap: str, *more: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(what, no_wrap=True)
    from autobalance.report import in_words

    for name in (in_words(main), f"gap: {in_words(gap)}", *more):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=True)
    return table


def _describe_gap(gap: str) -> str:
    from autobalance.report import GAP_TITLES

    title = GAP_TITLES.get(gap, gap)
    words = gap.replace("_", " ")
    return f"Gap between groups: {title}." if title != words else "The gap is between groups."


def _print_with_legend(table: Table, legend: Sequence[str]) -> None:
    """The table, and under it what its words mean."""
    Console().print(table)
    print_legend(legend)


def print_legend(lines: Sequence[str]) -> None:
    """What the words of a table mean, under it."""
    console = Console()
    for line in lines:
        console.print(line, highlight=False, style="dim")


def print_report(report: dict[str, Any], title: str | None = None) -> None:
    """Error rates: overall, then by class, by group, and by both."""
    from autobalance.report import measure_name

    summary = [
        (measure_name(key), format_percent(report[key])) for key in _SUMMARY if key in report
    ]
    _print_rows(("error in percent", ""), summary, title=title or f"{report['n']:,} examples")
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

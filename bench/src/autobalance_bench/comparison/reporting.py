"""What a store of results says, as files and tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autobalance.records import to_json, write_together
from autobalance_bench.comparison.statistics import summary
from autobalance_bench.comparison.store import Key, Store, key_of
from autobalance_bench.comparison.tables import critical_difference_plot, markdown


def summarize(store: Store, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """One summary per objective.

    Raises
    ------
    InputError
        If the store is missing or empty, or no finished cell has a value of an objective.
    """
    cells = store.cells(required=True)
    return [summary(cells, objective) for objective in objectives]


def as_json(summaries: Sequence[dict[str, Any]]) -> str:
    """The first objective's summary, with those of all objectives under "objectives"."""
    record = {**summaries[0], "objectives": {s["metric"]: s for s in summaries}}
    return to_json(record, indent=1) + "\n"


def write_report(
    folder: Path, summaries: Sequence[dict[str, Any]], *, date: str, command: str
) -> Path:
    """Write BENCHMARKS.md, its critical-difference diagrams and summary.json; return the first's path.

    An objective has a diagram if at least two methods are ranked over two families of datasets.
    """
    pictures = {
        s["metric"]: critical_difference_plot(s)
        for s in summaries
        if s["tests"]["critical_difference"] is not None
    }
    names = {metric: f"ranks-{_plain(metric)}.svg" for metric in pictures}
    text = markdown(*summaries, date=date, command=command, plots=names)
    files = {names[metric]: picture for metric, picture in pictures.items()}
    files |= {"BENCHMARKS.md": text.encode(), "summary.json": as_json(summaries).encode()}
    write_together(folder, files)
    return folder / "BENCHMARKS.md"


def describe_failures(failed: Iterable[dict[str, Any]], keys: Iterable[Key]) -> list[str]:
    """One line for each reason: how many cells failed for it, and which, each name once if possible.

    Parameters
    ----------
    failed : iterable of dict
        Records of cells.
    keys : iterable of tuple
        Keys of all cells of the run. A method that failed for all its objectives is named without them.
    """
    aims: dict[tuple[str, str, int], set[str | None]] = {}
    for dataset, method, objective, seed in keys:
        aims.setdefault((dataset, method, seed), set()).add(objective)
    reasons: dict[str, list[Key]] = {}
    for record in failed:
        reasons.setdefault(record["reason"], []).append(key_of(record))
    methods = {method for _, method, _ in aims}
    lines = []
    for reason, cell_keys in reasons.items():
        lacking: dict[tuple[str, str, int], set[str | None]] = {}
        for dataset, method, objective, seed in cell_keys:
            lacking.setdefault((dataset, method, seed), set()).add(objective)
        rows: list[tuple[Any, ...]] = []
        for (dataset, method, seed), missed in lacking.items():
            whole = missed == aims.get((dataset, method, seed), missed)
            rows += [(method, None if whole else m, dataset, seed) for m in missed]
        cells = _factored(list(dict.fromkeys(rows)), len(methods))
        count = len(cell_keys)
        lines.append(f"{count} cell{'s' * (count > 1)} failed: {cells}: {reason}")
    return lines


def _factored(rows: Sequence[tuple[Any, ...]], methods: int) -> str:
    """Rows of method, objective, dataset and seed, with those together that have the same rest."""
    rests: dict[Any, list[tuple[Any, ...]]] = {}
    for first, *rest in rows:
        rests.setdefault(first, []).append(tuple(rest))
    if rests.keys() == {()}:
        return ""
    alike: dict[tuple[tuple[Any, ...], ...], list[Any]] = {}
    for first, rest in rests.items():
        alike.setdefault(tuple(rest), []).append(first)
    level = len(rows[0])
    phrases = []
    for rest, firsts in alike.items():
        inner = _factored(rest, methods) if level > 1 else ""
        own = _part(level, firsts, methods)
        phrases.append(f"{own}{', ' if level == 2 else ' ' if own and inner else ''}{inner}")
    return "; ".join(phrases)


def _part(level: int, names: Sequence[Any], methods: int) -> str:
    """The names of one column: 4 for methods, 3 for objectives, 2 for datasets, 1 for seeds."""
    if level == 4 and len(names) == methods > 2:
        return f"all {methods} methods"
    if level == 3 and list(names) == [None]:
        return ""
    if level == 1:
        together = len(names) > 2 and list(names) == [*range(names[0], names[-1] + 1)]
        seeds = f"{names[0]} to {names[-1]}" if together else ", ".join(map(str, names))
        return f"seed{'s' * (len(names) > 1)} {seeds}"
    word = {4: "", 3: "for ", 2: "on "}[level]
    return word + join_names(names)


def join_names(names: Sequence[Any]) -> str:
    """Join names by commas, and the last by "and"."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def _plain(metric: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in metric)

"""What a store of results says, as files and tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autobalance.records import to_json, write_together
from autobalance_bench.comparison.statistics import summary
from autobalance_bench.comparison.store import Key, Store, key_of
from autobalance_bench.comparison.tables import critical_difference_plot, markdown


def summaries(store: Store, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """One summary per objective.

    Raises
    ------
    InputError
        If the store is missing or empty, or no finished cell has a value of an objective.
    """
    cells = store.cells(required=True)
    return [summary(cells, objective) for objective in objectives]


def as_json(found: Sequence[dict[str, Any]]) -> str:
    """The first objective's summary, with those of all under "objectives"."""
    record = {**found[0], "objectives": {s["metric"]: s for s in found}}
    return to_json(record, indent=1) + "\n"


def write_report(folder: Path, found: Sequence[dict[str, Any]], *, date: str, command: str) -> Path:
    """BENCHMARKS.md, its critical difference diagrams, and summary.json.

    An objective has a diagram where two methods are ranked over two families of datasets.

    Returns the path of BENCHMARKS.md.
    """
    pictures = {
        s["metric"]: critical_difference_plot(s)
        for s in found
        if s["tests"]["critical_difference"] is not None
    }
    names = {metric: f"ranks-{_plain(metric)}.svg" for metric in pictures}
    text = markdown(*found, date=date, command=command, plots=names)
    files = {names[metric]: picture for metric, picture in pictures.items()}
    files |= {"BENCHMARKS.md": text.encode(), "summary.json": as_json(found).encode()}
    write_together(folder, files)
    return folder / "BENCHMARKS.md"


def failures(failed: Iterable[dict[str, Any]], keys: Iterable[Key]) -> list[str]:
    """A line per reason: how many cells failed for it, which they are, each name once where it can be.

    Parameters
    ----------
    failed : iterable of dict
        Records of cells.
    keys : iterable of tuple
        Of all cells that were to be run: what failed for all objectives needs none named.
    """
    aims: dict[tuple[str, str, int], set[str | None]] = {}
    for dataset, method, objective, seed in keys:
        aims.setdefault((dataset, method, seed), set()).add(objective)
    reasons: dict[str, list[Key]] = {}
    for record in failed:
        reasons.setdefault(record["reason"], []).append(key_of(record))
    methods = {method for _, method, _ in aims}
    lines = []
    for reason, found in reasons.items():
        lacking: dict[tuple[str, str, int], set[str | None]] = {}
        for dataset, method, objective, seed in found:
            lacking.setdefault((dataset, method, seed), set()).add(objective)
        rows: list[tuple[Any, ...]] = []
        for (dataset, method, seed), missed in lacking.items():
            whole = missed == aims.get((dataset, method, seed), missed)
            rows += [(method, None if whole else m, dataset, seed) for m in missed]
        cells = _factored(list(dict.fromkeys(rows)), len(methods))
        lines.append(f"{len(found)} cell{'s' * (len(found) > 1)} failed: {cells}: {reason}")
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
    said = []
    for rest, firsts in alike.items():
        inner = _factored(rest, methods) if level > 1 else ""
        own = _part(level, firsts, methods)
        said.append(f"{own}{', ' if level == 2 else ' ' if own and inner else ''}{inner}")
    return "; ".join(said)


def _part(level: int, names: Sequence[Any], methods: int) -> str:
    """The names of one column: 4 for methods, 3 for objectives, 2 for datasets, 1 for seeds."""
    if level == 4 and len(names) == methods > 2:
        return f"all {methods} methods"
    if level == 3 and list(names) == [None]:
        return ""
    if level == 1:
        together = len(names) > 2 and list(names) == [*range(names[0], names[-1] + 1)]
        shown = f"{names[0]} to {names[-1]}" if together else ", ".join(map(str, names))
        return f"seed{'s' * (len(names) > 1)} {shown}"
    word = {4: "", 3: "for ", 2: "on "}[level]
    return word + listed(names)


def listed(names: Sequence[Any]) -> str:
    """Names with commas and an "and"."""
    shown = [str(name) for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _plain(metric: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in metric)

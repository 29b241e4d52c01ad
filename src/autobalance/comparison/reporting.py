"""What a store of results says, as files and tables. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autobalance.comparison.statistics import summary
from autobalance.comparison.store import Store
from autobalance.comparison.tables import critical_difference_plot, markdown
from autobalance.files import to_json, write_together


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


def _plain(metric: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in metric)

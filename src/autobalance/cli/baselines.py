"""What plain training and class weights give beside a fit, for its record and the terminal."""

from __future__ import annotations

from typing import Any

from autobalance.records import ErrorTable, report_rates
from autobalance.sklearn import CLASS_WEIGHTS, CROSS_ENTROPY

_TITLES = {CROSS_ENTROPY: "Plain training", CLASS_WEIGHTS: "Class weights"}


def baselines_record(
    baselines: dict[str, ErrorTable],
    own: ErrorTable | None,
    title: str,
    rows: str,
    groups: list[str] | None,
) -> dict[str, Any]:
    """The "baselines" of a fit's record: errors of each on the same rows.

    Parameters
    ----------
    baselines : dict
        Tables by name.
    own : ErrorTable or None
        What the fit took; None where nothing measured it there.
    title : str
        What that is called.
    rows : str
        What the rows are, after their number: "held-out rows".
    groups : list or None
        The groups' names, where the tables are by group.
    """
    tables = {name: (_TITLES[name], table) for name, table in baselines.items()}
    if own is not None:
        tables["autobalance"] = title, own
    by_group = groups is not None and all(len(table.mass) > 1 for _, table in tables.values())
    n = next(iter(baselines.values())).mass.sum()
    return {
        "data": f"{n:,.0f} {rows}",
        "methods": {
            name: {"title": label, **report_rates(table, groups, by_group=by_group)}
            for name, (label, table) in tables.items()
        },
    }

"""What judged the loss: test data, the folds of a final choice, or the search's held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from autobalance.report.choice import candidate_title
from autobalance.report.record import Candidate, Method, Run
from autobalance.report.text import start_name


@dataclass(frozen=True, eq=False)
class Judged:
    """Errors per class, before and after.

    Attributes
    ----------
    kind : {"test", "folds", "search"}
        On test data; on what the folds of the final choice held out; or on what the search held
        out, by its own network at the end.
    data : str
        The data in words.
    methods : list of Method
        All that have errors per class.
    before, after : Method or None
        Without and with the loss found. Of one method alone, `after`.
    """

    kind: Literal["test", "folds", "search"]
    data: str
    methods: list[Method]
    before: Method | None
    after: Method | None

    @property
    def pair(self) -> list[Method]:
        """Before and after, those there are."""
        return [m for m in (self.before, self.after) if m is not None]


def judged(run: Run) -> Judged | None:
    """The best evidence that the record has; None where it has none."""
    tested = [m for m in run.methods if np.isfinite(m.errors).any()]
    if tested:
        ends = [m if m in tested else None for m in (run.before, run.after)]
        return Judged("test", run.evaluation_data or "test data", tested, *ends)
    found = {c.name: _as_method(run, c) for c in run.candidates if c.errors is not None}
    if run.choice in found:
        other = "cross_entropy" if run.choice == "start" else "start"
        folds = f"{run.folds} folds" if run.folds else "folds"
        data = f"what the {folds} of the final choice held out"
        ends = (found.get(other), found[run.choice])
        return Judged("folds", data, list(found.values()), *ends)
    held = run.held_out
    if held is None:
        return None
    n, wrong = (np.sum(table, axis=0).astype(float) for table in (held.n, held.wrong))
    errors = np.divide(wrong, n, out=np.full(len(n), np.nan), where=n > 0)
    network = Method(
        "search", "Network of the search", errors, n, confused=run.confused, by_group=run.by_group
    )
    data = f"the {n.sum():,.0f} held-out examples that guided the search, by its network at the end"
    return Judged("search", data, [network], None, network)


def _as_method(run: Run, candidate: Candidate) -> Method:
    errors = candidate.errors
    assert errors is not None
    return Method(
        candidate.name,
        candidate_title(candidate.name, start_name(run)),
        errors,
        candidate.n,
        confused=candidate.confused,
        by_group=candidate.by_group,
    )

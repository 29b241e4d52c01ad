"""What judged the loss: test data, the folds of a final choice, or the search's held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from autobalance.report.choice import candidate_title
from autobalance.report.record import Candidate, Method, Run, held_out_by_group
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
    def short(self) -> str:
        """The data in a few words."""
        return {"folds": "held-out folds", "search": "search's held-out data"}.get(
            self.kind, self.data
        )

    @property
    def change(self) -> np.ndarray | None:
        """Error after less error before, per class ``(k,)``; None where there are not two methods."""
        if self.before is None or self.after is None:
            return None
        change = self.after.errors - self.before.errors
        return change if np.isfinite(change).any() else None

    @property
    def pair(self) -> list[Method]:
        """Before and after, those there are."""
        return [m for m in (self.before, self.after) if m is not None]


def judged(run: Run) -> Judged | None:
    """The best evidence that the record has; None where it has none."""
    return next(iter(evidence(run)), None)


def shown_evidence(run: Run) -> list[Judged]:
    """What errors per class are shown of: the best, and the folds' where that has no before."""
    found = evidence(run)
    beside = [e for e in found[1:] if e.kind == "folds" and found[0].before is None]
    return [*found[:1], *beside]


def with_confusions(run: Run) -> Judged | None:
    """The best evidence that says which classes are taken for which, with a before if any has one."""
    known = [e for e in evidence(run) if e.pair and all(m.confused is not None for m in e.pair)]
    known = [e for e in known if all(m.n is not None for m in e.pair)]
    return max(known, key=lambda e: len(e.pair), default=None)


def evidence(run: Run) -> list[Judged]:
    """All that judged the loss, the best first."""
    found = [_on_test_data(run), _on_folds(run), _by_the_search(run)]
    return [each for each in found if each is not None]


def _on_test_data(run: Run) -> Judged | None:
    methods = [m for m in run.methods if np.isfinite(m.errors).any()]
    if not methods:
        return None
    before, after = (m if m in methods else None for m in (run.before, run.after))
    return Judged("test", run.evaluation_data or "test data", methods, before, after)


def _on_folds(run: Run) -> Judged | None:
    found = {c.name: _as_method(run, c) for c in run.candidates if c.errors is not None}
    if run.choice not in found:
        return None
    other = None if run.other is None else found.get(run.other.name)
    data = f"what the {run.in_folds} of the final choice held out"
    return Judged("folds", data, list(found.values()), other, found[run.choice])


def _by_the_search(run: Run) -> Judged | None:
    held = run.held_out
    if held is None:
        return None
    n, wrong = (np.sum(table, axis=0).astype(float) for table in (held.n, held.wrong))
    errors = np.divide(wrong, n, out=np.full(len(n), np.nan), where=n > 0)
    by_group = held_out_by_group(held, run.groups)
    network = Method(
        "search", "Network of the search", errors, n, confused=run.confused, by_group=by_group
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

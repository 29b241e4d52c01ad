"""What judged the loss: test data, the folds of a final choice, or the search's held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from autobalance.report.record import held_out_by_group
from autobalance.report.run import Method, Run
from autobalance.report.text import candidate_title


@dataclass(frozen=True, eq=False)
class Evidence:
    """Errors per class, before and after."""

    kind: Literal[
        "test", "folds", "baselines", "search"
    ]  # test data, folds held out, held-out rows with baselines, or the search's held-out data
    data: str  # in words
    short: str  # in a few words
    methods: list[Method]  # all that have errors per class
    before: Method | None  # without the loss found
    after: Method | None  # with it; of one method alone, that one

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


def all_evidence(run: Run) -> list[Evidence]:
    """All that judged the loss, the best first."""
    ranked = (_on_test_data(run), _on_folds(run), _beside_baselines(run), _by_the_search(run))
    return [e for e in ranked if e is not None]


def error_evidence(run: Run) -> list[Evidence]:
    """The evidence on errors per class: the best, and the folds' where that has no before."""
    ranked = all_evidence(run)
    beside = [e for e in ranked[1:] if e.kind != "search" and ranked[0].before is None]
    return [*ranked[:1], *beside[:1]]


def confusion_evidence(run: Run) -> Evidence | None:
    """The best evidence that says which classes are taken for which, with a before if any has one."""
    known = [
        e
        for e in all_evidence(run)
        if e.pair and all(m.confused is not None and m.n is not None for m in e.pair)
    ]
    return max(known, key=lambda e: len(e.pair), default=None)


def _on_test_data(run: Run) -> Evidence | None:
    methods = [m for m in run.methods if np.isfinite(m.errors).any()]
    if not methods:
        return None
    before, after = (m if m in methods else None for m in (run.before, run.after))
    return Evidence("test", run.data, run.data, methods, before, after)


def _on_folds(run: Run) -> Evidence | None:
    methods = {
        c.name: Method(
            c.name, candidate_title(run, c.name), c.table.class_errors, c.table.mass.sum(axis=0),
            confused=c.confused, by_group=c.by_group, effective=c.table.trials(axis=0),
        )
        for c in run.candidates
        if c.table is not None
    }  # fmt: skip
    if run.choice not in methods:
        return None
    other = None if run.other is None else methods.get(run.other.name)
    data = f"what the {run.in_folds} of the final choice held out"
    every = list(methods.values())
    return Evidence("folds", data, "held-out folds", every, other, methods[run.choice])


def _beside_baselines(run: Run) -> Evidence | None:
    """Plain training against what the run took, on the rows that both were not trained on."""
    named = {m.name: m for m in run.baselines if np.isfinite(m.errors).any()}
    before, after = named.get("cross_entropy"), named.get("autobalance")
    if before is None or after is None:
        return None
    data = run.baselines_data
    return Evidence("baselines", data, "held-out rows", [*named.values()], before, after)


def _by_the_search(run: Run) -> Evidence | None:
    if run.held_out is None:
        return None
    table = run.held_out.table
    n = table.mass.sum(axis=0).astype(float)
    network = Method(
        "search", "Network of the search", table.class_errors, n,
        confused=run.confused, by_group=held_out_by_group(run.held_out, run.groups),
        effective=table.trials(axis=0),
    )  # fmt: skip
    data = f"the {n.sum():,.0f} held-out examples that guided the search, by its network at the end"
    return Evidence("search", data, "search's held-out data", [network], None, network)

"""A search over several labels in words, from its record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from autobalance.bilevel.result import SearchResult

MOST_SHOWN = 8


def summarise_labels(result: SearchResult, names: Sequence[Any] | None = None) -> str:
    """What the loss does, how its network errs on held-out examples, and what the search cost.

    `names` are the labels' in the order of their indices, by default "label 0" and so on. Of many labels
    those that err most are named.
    """
    counts = np.array(result.settings["class_counts"])
    k = counts.shape[1]
    shown = [f"label {j}" for j in range(k)] if names is None else [*map(str, names)]
    rarest, commonest = int(counts[1].min()), int(counts[1].max())
    lines = [
        f"A loss designed for {k} labels of {rarest:,} to {commonest:,} positives in "
        f"{result.settings['examples']:,} examples.",
        f"Objective: {_describe(result.settings['objective'])}. Chosen: {result.choice}.",
    ]
    shared = [
        f"{name} = {float(value):.2f}"
        for name in ("tau", "rho", "gamma")
        if isinstance(value := result.design.get(name), float)
    ]
    if shared:
        lines.append(f"Shared strengths of the space found: {', '.join(shared)}.")
    lines += _held_out_lines(result, shown)
    if result.candidates:
        values = ", ".join(f"{c.name} {100 * c.objective:.1f} %" for c in result.candidates)
        lines.append(f"Objective on all folds' held-out examples: {values}.")
    lines.append(f"The search cost {result.training_runs:.1f} training runs.")
    return "\n".join(lines)


def _held_out_lines(result: SearchResult, names: Sequence[str]) -> list[str]:
    if result.held_out is None:
        return []
    n, wrong = np.array(result.held_out.n, float), np.array(result.held_out.wrong, float)
    both = (n > 0).all(axis=0)
    if not both.any():
        return ["No label has positives and negatives among the held-out examples."]
    rates = wrong / np.maximum(n, 1e-300)
    errors = np.where(both, rates.mean(axis=0), -1.0)
    worst = np.argsort(-errors, kind="stable")[: min(MOST_SHOWN, int(both.sum()))]
    each = "; ".join(
        f"{names[j]} {100 * errors[j]:.1f} % ({100 * rates[1, j]:.1f} % of {n[1, j]:g} positives)"
        for j in worst
    )
    return [
        "Balanced error of a label on held-out examples: "
        f"{100 * errors[both].mean():.1f} % on the mean of {int(both.sum())} labels; the largest: {each}."
    ]


def _describe(objective: Any) -> str:
    return str(objective.get("kind", objective)) if isinstance(objective, dict) else str(objective)

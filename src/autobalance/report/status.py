"""How far a run came, and what the page calls things accordingly."""

from __future__ import annotations

import numpy as np

from autobalance.report.formats import name_list
from autobalance.report.record import Run


def heading(run: Run, objective: str) -> str:
    """The page's title."""
    if run.search_status == "diverged":
        return f"Training diverged before a loss for the {objective} was found"
    if run.search_status != "finished":
        return f"Unfinished search of a loss for the {objective}"
    if run.decided:
        return f"Decisions for the {objective}"
    if run.choice != "designed":
        return f"A loss chosen for the {objective}"
    return f"A loss designed for the {objective}"


def loss_heading(run: Run) -> str:
    """The title of the section that shows the loss."""
    moved = any(part.changed for part in run.parts)
    if run.search_status != "finished":
        if not moved:
            return "The loss at the start"
        return f"The loss when the search {'diverged' if run.search_status == 'diverged' else 'stopped'}"
    if run.choice != "designed" and moved:
        return "The loss designed, not taken"
    return "The loss found"


def warning(run: Run) -> str | None:
    """What the reader must know before anything else, or None."""
    if run.search_status != "finished":
        return _search_stopped(run)
    if run.status != "finished":
        return _retraining_stopped(run)
    return collapse(run)


def collapse(run: Run) -> str | None:
    """Which classes the network searched with never predicts, with a remedy; or None."""
    held = run.held_out
    if held is None:
        return None
    if held.collapsed:
        only = run.classes[int(np.argmax(np.sum(held.predicted, axis=0)))]
        fault = (
            f"predicts {only} for every held-out example, so small gaps between groups mean nothing"
        )
    elif held.never_predicted:
        names = [run.classes[c] for c in held.never_predicted]
        fault = f"predicts {name_list(names)} for no held-out example, though there are such"
    else:
        return None
    return (
        f"At the end of the search its network {fault}. Check the network on test data before you use "
        "it. Train for longer or lower --recipe.lr; with a gap between groups in the objective, give "
        "it less weight or a looser bound."
    )


def _search_stopped(run: Run) -> str:
    if run.search_status == "diverged":
        begun = any(part.changed for part in run.parts)
        loss = "The loss shown is that of the steps before." if begun else "No loss was designed."
        return (
            f"Training diverged{_after(run)}: its loss or gradients became infinite or NaN. "
            f"No network was trained to the end. {loss} {_remedy(run)}"
        )
    if run.search_status == "interrupted":
        return (
            f"The search was interrupted{_after(run)}, and no network was trained to the end. "
            f"The loss shown is the best estimate up to then.{_resume(run)}"
        )
    return f"The search ended with the status “{run.search_status}”."


def _retraining_stopped(run: Run) -> str:
    if run.status == "interrupted":
        return (
            "The search finished, but the run was interrupted while the network was retrained with "
            f"its loss. The network saved is half trained: do not rely on its predictions.{_resume(run)}"
        )
    if run.status == "diverged":
        return (
            "The search finished, but retraining with its loss diverged: the training loss became "
            "infinite or NaN. The network saved is from an earlier step and not trained to the end: "
            f"do not rely on its predictions. {_remedy(run)}"
        )
    return (
        "The search finished, but the run ended while the network was retrained, with the status "
        f"“{run.status}”. There is no network trained to the end."
    )


def _after(run: Run) -> str:
    """How many steps were done, where the record says so."""
    if run.steps is None or run.steps_done is None:
        return ""
    if run.steps_done >= run.steps:
        return " during the final choice"
    return f" after {run.steps_done:,} of {run.steps:,} steps"


def _remedy(run: Run) -> str:
    recipe = run.settings.get("recipe")
    rate = recipe.get("lr") if isinstance(recipe, dict) else None
    now = f" (now {rate:g})" if isinstance(rate, (int, float)) else ""
    return f"Lower the learning rate, --recipe.lr{now}, or scale the inputs; then run it again."


def _resume(run: Run) -> str:
    if not (run.command or "").startswith("autobalance fit"):
        return ""
    return (
        " The same command with --resume continues it, or where it was stopped before its first checkpoint "
        "starts anew."
    )

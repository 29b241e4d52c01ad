"""What held-out data says of the loss: the final choice, in words."""

from __future__ import annotations

from autobalance.report.formats import percent, points
from autobalance.report.record import Candidate, Run

UNNAMED = "the loss it began with"  # a start that has no name of its own
_NOISE = 2.0  # standard errors


def candidate_title(name: str, start: str) -> str:
    """A candidate as the table names it; `start` is the start's own name."""
    return {
        "designed": "Designed loss",
        "start": "Start" if start == UNNAMED else f"Start: {start}",
        "cross_entropy": "Plain cross-entropy",
    }.get(name, name)


def choice_sentence(run: Run, start: str) -> str | None:
    """What was taken and why; None where there was no choice to be made."""
    designed, taken = run.candidate("designed"), run.candidate(run.choice)
    if designed is None or designed.difference is None or taken is None:
        return None
    of = f"its start, {start}" if start != UNNAMED else "its start"
    if run.folds == 1:  # where augmentation was learned
        verdict = "so the start was taken, and no augmentation"
        if taken.name == "designed":
            verdict = "so both were kept: the start would have to be better by two standard errors"
        return (
            "On held-out data the error of the designed loss with the augmentation learned, less that of "
            f"{of}, without augmentation, was {_signed(designed)} points "
            f"({_errors(run, designed)}), {verdict}."
        )
    if taken.name == "designed":
        return (
            f"On held-out folds the designed loss was {_gap(designed)} points better than {of} "
            f"({_errors(run, taken)}), so it was taken.{_doubt(designed)}"
        )
    held = f"({_signed(designed)} points; {_errors(run, designed)})"
    if taken.name == "start":
        if designed.difference < 0:
            return f"On held-out folds the designed loss was better than {of} {held}; the start was taken."
        return (
            f"On held-out folds the designed loss was not better than {of} {held}, so the start "
            "was taken."
        )
    what = candidate_title(taken.name, start)
    what = what[:1].lower() + what[1:]
    return (
        f"On held-out folds {what} did best ({_signed(taken)} points against the start; the designed "
        f"loss {_signed(designed)} points), so it was taken.{_doubt(taken)}"
    )


def one_fold_sentence(run: Run) -> str | None:
    """That nothing says how good the loss is, where that is so because of a single fold."""
    moved = run.search_status == "finished" and any(part.changed for part in run.parts)
    # A frontier has no final choice, with however many folds.
    if run.candidates or not moved or (run.folds or 1) > 1 or run.kind == "frontier":
        return None
    return (
        "One fold cannot say by how much the designed loss beat its start, if at all: "
        "--search.folds 3 would measure it, at the cost of 12 training runs."
    )


def _errors(run: Run, candidate: Candidate) -> str:
    start = run.candidate("start")
    against = f" against {percent(start.objective)}" if start else ""
    return f"held-out error {percent(candidate.objective)}{against}"


def _gap(candidate: Candidate) -> str:
    gap = abs(candidate.difference or 0.0)
    return f"{100 * gap:.1f}{_spread(candidate)}"


def _signed(candidate: Candidate) -> str:
    return f"{points(candidate.difference or 0.0)}{_spread(candidate)}"


def _spread(candidate: Candidate) -> str:
    return "" if candidate.standard_error is None else f" ± {100 * candidate.standard_error:.1f}"


def _doubt(candidate: Candidate) -> str:
    gap, error = candidate.difference, candidate.standard_error
    if gap is None or error is None or abs(gap) > _NOISE * error:
        return ""
    return " So small a gap may be chance: it is within two standard errors."

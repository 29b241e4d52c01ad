"""A run in words: what the loss does, whom it helped, what to be careful about, what it cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from autobalance.report.evidence import all_evidence
from autobalance.report.formats import duration, name_list, number, percent, points
from autobalance.report.record import Method, Run, array_of
from autobalance.report.statistics import Z95, class_variances
from autobalance.report.status import heading, warning
from autobalance.report.tables import Table, parameters_table
from autobalance.report.text import (
    SAME_ERROR,
    in_sentence,
    objective_name,
    objective_then_and_now,
    sentences,
)
from autobalance.report.verdicts import bound_sentences, doubts

WIDTH = 88
_ROWS = 10  # of the table in a notebook
_FEW = 5  # held-out examples, below which an error rate says next to nothing
_FEW_IN_A_GAP = 50  # below which one example moves a difference of rates by 2 points or more
_SATURATED = 0.005
_FALLING = 0.01  # of the objective, from the third quarter of the search to the last
_GROWING = 1.5  # the hypergradient's norm, last quarter over first
_QUARTERED = 8  # upper steps that can be cut in quarters
_FAR = 2.0  # standard deviations of the prior
_EDGE = 0.99  # of a sigmoid
_SYMBOLS = {
    "tau": "the strength τ of ℓ",
    "tau_class": "the strength τ_c of ℓ over classes",
    "tau_group": "the strength τ_g of ℓ within groups",
    "rho": "the share ρ that the weights carry",
    "gamma": "the strength γ of δ",
    "eps": "the deviation of ℓ",
    "additive": "the deviation of ℓ",
    "log_delta": "the deviation of log δ",
    "raw_delta": "the free parameter of δ",
    "log_weight": "the deviation of log w",
}


@dataclass(frozen=True)
class Explanation:
    """What there is to say of a run.

    Attributes
    ----------
    heading : str
        What it is.
    story, classes, warnings : list of str
        What was asked and found; which classes gained and lost; what to be careful about, each
        with a remedy. One or more sentences each.
    cost : list of (str, str)
        Names and values.
    """

    heading: str
    story: list[str]
    classes: list[str]
    warnings: list[str]
    cost: list[tuple[str, str]]


def _sentences(notes: list[str]) -> list[str]:
    return [f"{note[0].upper()}{note[1:]}." for note in notes if note]


def explanation(run: Run) -> Explanation:
    """What there is to say of a run, from its record alone."""
    first = warning(run)
    return Explanation(
        heading=heading(run, objective_name(run)),
        story=[
            *bound_sentences(run),
            *sentences(run),
            *augmentation_sentences(run),
            *calibration_sentences(run),
        ],
        classes=[*favoured(run), *class_changes(run)],
        warnings=[
            *([] if first is None else [first]),
            *_sentences(run.notes),
            *cautions(run),
            *doubts(run),
        ],
        cost=_cost(run),
    )


def as_text(content: Explanation, width: int = WIDTH) -> str:
    """Paragraphs of plain text, lines of at most `width` characters."""

    def wrapped(text: str, lead: str = "") -> str:
        return textwrap.fill(
            text, width, initial_indent=lead, subsequent_indent=" " * len(lead),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    parts = [content.heading, *map(wrapped, content.story)]
    for title, texts in (("Classes", content.classes), ("Take care", content.warnings)):
        if texts:
            parts.append("\n".join([title, *(wrapped(text, "  - ") for text in texts)]))
    if content.cost:
        widest = max(len(name) for name, _ in content.cost)
        rows = [f"  {name:<{widest}}  {value}" for name, value in content.cost]
        parts.append("\n".join(["Cost", *rows]))
    return "\n\n".join(parts)


def as_html(run: Run) -> str:
    """The heading, what was found, warnings and a small table, for a notebook; all escaped."""
    content = explanation(run)
    outcomes = [s for s in content.story if s.startswith(("The loss", "The search"))]
    outcome = (outcomes or content.story[-1:])[0]
    parts = [f"<p><strong>{escape(content.heading)}</strong></p>", f"<p>{escape(outcome)}</p>"]
    if content.warnings:
        items = "".join(f"<li>{escape(text)}</li>" for text in content.warnings)
        parts.append(f"<p>Take care:</p><ul>{items}</ul>")
    table = parameters_table(run)
    if table is not None:
        parts.append(_first_and_last_rows(table))
    return f"<div>{''.join(parts)}</div>"


def _first_and_last_rows(table: Table) -> str:
    rows = [_html_row("td", [cell.text for cell in row]) for row in table.rows]
    gap, half = len(rows) - _ROWS, _ROWS // 2
    if gap > 0:
        more = f'<tr><td colspan="{len(table.columns)}">… {gap:,} more rows …</td></tr>'
        rows = [*rows[:half], more, *rows[-half:]]
    head = _html_row("th", table.columns)
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _html_row(tag: str, texts: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"


# Whom it helped ---------------------------------------------------------------------------------


def favoured(run: Run) -> list[str]:
    """Which classes the loss favours more than its start did, where ℓ alone says so."""
    moved = [part for part in run.parts if part.changed]
    if [part.key for part in moved] != ["additive"]:
        return []
    # A lower ℓ in training is a higher raw logit afterwards.
    shift = np.nanmean(moved[0].start - moved[0].end, axis=0)
    up, down = (
        [f"{run.classes[c]} ({number(sign * shift[c])})" for c in order if sign * shift[c] > 0.05]
        for sign, order in ((1, np.argsort(-shift)), (-1, np.argsort(shift)))
    )
    if not up and not down:
        return []
    clauses = []
    if up:
        clauses.append(f"favours {name_list(up)} more")
    if down:
        clauses.append(f"{'favours ' if not up else ''}{name_list(down)} less")
    means = ", means over the groups" if run.groups else ""
    return [
        f"Against its start the designed loss {', and '.join(clauses)} (shift of the logit that training "
        f"makes up for, in nats{means})."
    ]


def class_changes(run: Run) -> list[str]:
    """Which classes gained and lost, as far as the record says."""
    for evidence in all_evidence(run):
        if evidence.before is None or evidence.after is None:
            continue
        where = f"On {run.evaluation_data or 'test data'}"
        if evidence.kind == "folds":
            where = "On held-out data" if run.folds == 1 else "On the held-out folds"
        after, before = (in_sentence(m.title) for m in (evidence.after, evidence.before))
        lead = f"{where}, {after} against {before}"
        return [_changes(run, evidence.before, evidence.after, lead)]
    if run.kind == "frontier":  # which has no final choice, with however many folds
        return []
    return [
        "Which classes gained and which lost was not measured. It is with --search.folds 3, on held-out "
        "data, and by `autobalance compare`."
    ]


def _changes(run: Run, before: Method, after: Method, lead: str) -> str:
    change = after.errors - before.errors
    known = np.flatnonzero(np.isfinite(change))
    order = known[np.argsort(change[known], kind="stable")]

    def describe(c: int) -> str:
        ends = f"{percent(before.errors[c])} to {percent(after.errors[c])}"
        return f"{run.classes[c]} ({points(change[c])} points, {ends})"

    gained = [describe(c) for c in order if change[c] < -5e-4]
    lost = [describe(c) for c in order[::-1] if change[c] > 5e-4]
    if not gained and not lost:
        return f"{lead}: no class's error changed."
    clauses = [f"gained: {name_list(gained)}" if gained else "no class gained"]
    clauses.append(f"lost: {name_list(lost)}" if lost else "none lost")
    text = f"{lead}, {'; '.join(clauses)}."
    if before.n is None or after.n is None:
        return text
    variance = sum(class_variances(np.nan_to_num(m.errors), m.n) for m in (before, after))
    clear = int((np.abs(change[known]) > Z95 * np.sqrt(variance)[known]).sum())
    sure = f"{clear} of the {len(gained) + len(lost)} changes" if clear else "No change"
    verb = "are" if clear > 1 else "is"
    return f"{text} {sure} {verb} larger than the choice of examples explains."


def augmentation_sentences(run: Run) -> list[str]:
    """What was learned of the augmentation, means over the classes."""
    rows = [row for row in run.policy.values() if row]
    if not rows:
        return []
    clauses = []
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        often = np.mean([each["probability"] for each in values])
        size = [each["magnitude"] for each in values if "magnitude" in each]
        upto = f", by up to {percent(float(np.mean(size)))} of its limit" if size else ""
        clauses.append(f"{name.replace('_', ' ')} {percent(float(often))} of the time{upto}")
    return [f"Training examples are augmented (means over the classes): {'; '.join(clauses)}."]


def calibration_sentences(run: Run) -> list[str]:
    """How far off the probabilities are."""
    calibration = run.calibration
    if not {"raw_error", "error", "temperature"} <= calibration.keys():
        return []
    return [
        "The raw logits are for deciding: on held-out examples their softmax is off by "
        f"{percent(calibration['raw_error'])} (expected calibration error). Probabilities for the classes "
        f"as frequent as in training, predict --prior training, are off by {percent(calibration['error'])}, "
        f"with the temperature {number(calibration['temperature'])} fitted on these examples."
    ]


# What to be careful about -----------------------------------------------------------------------


def cautions(run: Run) -> list[str]:
    """What beside `status.warning` to be careful about, each with a remedy."""
    checks = (
        few_held_out, uncertain_gap, risen, saturated, unsettled, far_from_prior,
        unjudged_augmentation,
    )  # fmt: skip
    return [text for check in checks if (text := check(run))]


def few_held_out(run: Run) -> str | None:
    """Classes (or pairs of group and class) with too few held-out examples to judge by."""
    counts = array_of(run.settings.get("validation_counts"))
    counts = np.zeros(0) if counts is None else np.nan_to_num(np.atleast_2d(counts))
    if counts.shape[1:] != (len(run.classes),) or not counts.sum():
        return None
    of_groups = "group" in f"{run.objective} {run.settings.get('objective')}" and len(counts) > 1
    if of_groups and run.groups and len(run.groups) >= len(counts):
        trained = run.counts[: len(counts)] > 0
        pairs = np.argwhere((counts < _FEW) & trained).tolist()
        names = [f"{run.classes[c]} in {run.groups[g]} ({counts[g, c]:.0f})" for g, c in pairs]
        kind, one = "pairs of group and class", "pair"
    else:
        totals = counts.sum(axis=0)
        names = [
            f"{run.classes[c]} ({totals[c]:.0f})"
            for c in np.argsort(totals, kind="stable")
            if totals[c] < _FEW
        ]
        kind, one = "classes", "class"
    if not names:
        return None
    splits = "" if (run.folds or 1) > 2 else "average over more splits with --search.folds 3, "
    remedy = f"{splits}hold out more with --search.validation_fraction, or add data."
    return (
        f"Fewer than {_FEW} examples were held out of these {kind}: {name_list(names)}. What the search "
        f"makes of so small a {one} is mostly noise, which the prior alone holds in check. "
        f"{remedy[:1].upper()}{remedy[1:]}"
    )


def uncertain_gap(run: Run) -> str | None:
    """Of a frontier: in how small a pair of group and class the gap was measured."""
    if run.kind != "frontier" or not run.groups:
        return None
    counts = array_of(run.settings.get("validation_counts"))
    if counts is None or counts.ndim != 2:
        return None
    return few_in_a_cell(counts, run.classes, run.groups, decided=bool(run.decided))


def few_in_a_cell(
    counts: np.ndarray, classes: Sequence[str], groups: Sequence[str], *, decided: bool
) -> str | None:
    """How far one example moves a gap that was measured on so few, with a remedy; or None."""
    known = np.where(counts > 0, counts, np.inf)
    g, k = map(int, np.unravel_index(int(np.argmin(known)), known.shape))
    fewest = known[g, k]
    if not fewest < _FEW_IN_A_GAP:
        return None
    remedy = "Leave a margin below the gap you need, or add data of that group"
    if not decided:
        remedy = (
            "Measure it on more rows with --search.folds 3, or take --by decisions, which measures on all of "
            "them"
        )
    return (
        f"The gap was measured on few: {fewest:.0f} held-out examples of {classes[k]} in {groups[g]}, so "
        f"that one error more or less there moves it by up to {percent(1.0 / fewest)}. The smallest of "
        f"several gaps measured so is mostly luck. {remedy}, and evaluate the result on test data."
    )


def risen(run: Run) -> str | None:
    """Whether validation data, which nothing else has judged, say that the search did not help."""
    ends = objective_then_and_now(run)
    compared = run.candidates or (run.before and run.after)
    if ends is None or ends[1] - ends[0] <= SAME_ERROR or compared:
        return None
    return (
        f"The {objective_name(run)} on validation data rose during the search: the network may be "
        "overfitting, or the validation data too small to guide it. Compare the loss with its start "
        "before using it, by `autobalance compare` or with --search.folds 3."
    )


def saturated(run: Run) -> str | None:
    """Whether there is next to no error left to learn from, or nothing but errors."""
    hard = run.curves["hard_objective"]
    hard = hard[np.isfinite(hard)]
    if not len(hard):
        return None
    last = float(hard[-max(1, len(hard) // 4) :].mean())
    lead = (
        "The objective is saturated: over the last quarter of the search its value on validation "
        f"data was {percent(last)}"
    )
    if last <= _SATURATED:
        return (
            f"{lead}, so there was hardly an error to learn from. Keep the start, or give validation "
            "data that are harder, or more of them."
        )
    if last >= 1 - _SATURATED:
        return (
            f"{lead}: where nothing is predicted rightly, little tells which way is better. Train for "
            "longer (--recipe.epochs), merge the smallest classes or groups, or take a mean over them "
            "for the objective."
        )
    return None


def unsettled(run: Run) -> str | None:
    """Whether the search was still on its way when it ended."""
    if run.search_status != "finished" or len(run.curves["step"]) < _QUARTERED:
        return None
    signs = []
    third, last = np.array_split(run.curves["objective"], 4)[2:]
    if np.isfinite(third).all() and np.isfinite(last).all():
        noise = np.sqrt(third.var() / len(third) + last.var() / len(last))
        fall = float(third.mean() - last.mean())
        if fall > max(_FALLING, _FAR * noise):
            signs.append(
                f"its objective was still falling, by {number(fall, 3)} in the last quarter"
            )
    norms = np.array_split(run.curves["norm"], 4)
    first, last = (float(np.median(n[np.isfinite(n)])) if np.isfinite(n).any() else np.nan
                   for n in (norms[0], norms[-1]))  # fmt: skip
    if last > _GROWING * first:
        signs.append(
            f"its hypergradient had grown to {last / first:.1f} times that of the beginning"
        )
    if not signs:
        return None
    return (
        f"The search had not settled when it ended: {' and '.join(signs)}. Train for longer "
        "(--recipe.epochs), or move faster (--search.lr)."
    )


def far_from_prior(run: Run) -> str | None:
    """Free parameters far from where the prior holds them, or at the edge of what they can be."""
    priors = run.design.get("priors")
    # The paper's sigmoid starts δ at 0.73, where the exponential starts it at 1.
    sigmoid = any(p.key == "multiplicative" and np.nanmax(p.start) < 1 for p in run.parts)
    far: list[tuple[float, str]] = []
    for name, symbol in _SYMBOLS.items():
        values = array_of(run.design.get(name))
        prior = array_of(priors.get(name)) if isinstance(priors, dict) else None
        if values is None:
            continue
        if prior is not None and prior.shape == (2,) and prior[1] > 0:
            z = (values - prior[0]) / prior[1]
            for at in map(tuple, np.argwhere(np.abs(z) > _FAR).tolist()):
                text = f"{symbol}{_whose(run, values, at)} ({number(float(z[at]), 1)} σ)"
                far.append((abs(float(z[at])), text))
        elif name == "raw_delta" and sigmoid:
            delta = 1.0 / (1.0 + np.exp(-values))
            for at in map(tuple, np.argwhere((delta > _EDGE) | (delta < 1 - _EDGE)).tolist()):
                text = f"δ{_whose(run, values, at)} ({number(float(delta[at]))}, between 0 and 1)"
                far.append((abs(float(values[at])), text))
    if not far:
        return None
    most = name_list([text for _, text in sorted(far, key=lambda f: -f[0])])
    return (
        f"The search went far from where it is held, or to the edge: {most}. Either the start was wrong "
        "for this objective, which is worth knowing, or validation data mislead it: compare the loss "
        "with its start on test data, or with --search.folds 3."
    )


def unjudged_augmentation(run: Run) -> str | None:
    """Whether an augmentation was learned that nothing set against none.

    The hypergradient is of a training that has converged: what augmentation costs a shorter one, it does
    not see.
    """
    if not run.policy or run.candidates:
        return None
    return (
        "The learned augmentation was not set against none. It can hurt, by much where training is short or "
        "classes are told apart by what it changes: leave --search.choose at true, which drops it where "
        "held-out data speak against it, or compare with --augment none on test data."
    )


def _whose(run: Run, values: np.ndarray, at: tuple[int, ...]) -> str:
    """Of which class (and group) a free parameter is, where there is one for each."""
    if values.ndim == 0 or values.shape[-1] != len(run.classes):
        return f" of cluster {at[-1]}" if values.ndim else ""
    group = f" in {run.groups[at[0]]}" if values.ndim == 2 and run.groups else ""
    return f" of {run.classes[at[-1]]}{group}"


def _cost(run: Run) -> list[tuple[str, str]]:
    upper = len(run.curves["step"])
    costs = {
        "Search": None if run.search_time is None else duration(run.search_time),
        "Search, in training runs": None
        if run.training_runs is None
        else f"{run.training_runs:.3g}",
        "Training steps per run": None if run.steps is None else f"{run.steps:,}",
        "Steps on the loss": f"{upper:,}" if upper else None,
        "In all": duration(run.seconds["total"]) if "total" in run.seconds else None,
    }
    return [(name, cost) for name, cost in costs.items() if cost is not None]

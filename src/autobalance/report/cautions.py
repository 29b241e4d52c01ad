"""What a reader must be careful about, each with a remedy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autobalance.report.formats import name_list, number, percent, phrase, read_words
from autobalance.report.record import array_of
from autobalance.report.run import Run
from autobalance.report.text import SAME_ERROR, objective_name, objective_then_and_now

_FEW = 5  # held-out examples, below which an error rate says next to nothing
_FEW_IN_A_GAP = 50  # below which one example moves a difference of rates by 2 points or more
_SATURATED = 0.005
_FALLING = 0.01  # of the objective, from the third quarter of the search to the last
_GROWING = 1.5  # the hypergradient's norm, last quarter over first
_QUARTERED = 8  # upper steps that can be cut in quarters
_FAR = 2.0  # standard deviations of the prior
_EDGE = 0.99  # of a sigmoid


def warning(run: Run) -> str | None:
    """What the reader must know before anything else, or None."""
    if run.search_status != "finished":
        return _describe_search_stop(run)
    if run.status != "finished":
        return _describe_stop(run, run.status, "retraining_")
    return describe_collapse(run)


def cautions(run: Run) -> list[str]:
    """What beside `warning` to be careful about, each with a remedy."""
    checks = (
        warn_of_few_held_out, warn_of_uncertain_gap, warn_of_rise, warn_of_saturation,
        warn_of_unsettled_search, warn_of_far_parameters, warn_of_augmentation,
    )  # fmt: skip
    return [text for check in checks if (text := check(run))]


# A run that is not finished, or whose network is of no use ------------------------------------------


def _describe_search_stop(run: Run) -> str:
    done, steps, after = run.steps_done, run.steps, ""
    if done is not None and steps is not None:
        after = f" after {done:,} of {steps:,} steps"
        after = after if done < steps else " during the final choice"
    loss = "The loss shown is that of the steps before." if run.moved else "No loss was designed."
    return _describe_stop(run, run.search_status, "", after=after, loss=loss)


def _describe_stop(run: Run, status: str, phase: str, **values: str) -> str:
    recipe = run.settings.get("recipe")
    rate = recipe.get("lr") if isinstance(recipe, dict) else None
    now = f" (now {rate:g})" if isinstance(rate, (int, float)) else ""
    values["remedy"] = phrase("warning.slower", now=now)
    fits = (run.command or "").startswith("autobalance fit")
    values["resume"] = phrase("warning.resume") if fits else ""
    end = status if status in ("diverged", "interrupted") else "ended"
    return phrase(f"warning.{phase}{end}", status=status, **values)


def describe_collapse(run: Run) -> str | None:
    """Which classes the network searched with never predicts; or None."""
    held = run.held_out
    if held is None:
        return None
    if held.collapsed:
        only = run.classes[int(np.argmax(np.sum(held.predicted, axis=0)))]
        fault = phrase("warning.one_class", name=only)
    elif held.never_predicted:
        names = name_list([run.classes[c] for c in held.never_predicted])
        fault = phrase("warning.missing_classes", names=names)
    else:
        return None
    return phrase("warning.collapse", fault=fault)


# Too few examples -------------------------------------------------------------------------------


def warn_of_few_held_out(run: Run) -> str | None:
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
        few = [c for c in np.argsort(totals, kind="stable") if totals[c] < _FEW]
        names = [f"{run.classes[c]} ({totals[c]:.0f})" for c in few]
        kind, one = "classes", "class"
    if not names:
        return None
    remedy = phrase(f"caution.more_{'data' if (run.folds or 1) > 2 else 'splits'}")
    return phrase(
        "caution.few_held_out", few=_FEW, kind=kind, names=name_list(names), one=one, remedy=remedy
    )


def warn_of_uncertain_gap(run: Run) -> str | None:
    """Of a frontier: in how small a pair of group and class the gap was measured."""
    counts = array_of(run.settings.get("validation_counts"))
    if run.kind != "frontier" or not run.groups or counts is None or counts.ndim != 2:
        return None
    return few_in_a_cell(counts, run.classes, run.groups, decided=bool(run.decided))


def few_in_a_cell(
    counts: np.ndarray, classes: Sequence[str], groups: Sequence[str], *, decided: bool
) -> str | None:
    """How far one example moves a gap that was measured on so few, with a remedy; or None.

    `counts` are held-out examples, shape ``(g, k)``; `decided` says whether decisions were searched.
    """
    known = np.where(counts > 0, counts, np.inf)
    g, k = map(int, np.unravel_index(int(np.argmin(known)), known.shape))
    fewest = known[g, k]
    if not fewest < _FEW_IN_A_GAP:
        return None
    remedy = phrase(f"caution.{'margin' if decided else 'more_rows'}")
    return phrase(
        "caution.few_in_a_cell", fewest=fewest, name=classes[k], group=groups[g],
        share=percent(1.0 / fewest), remedy=remedy,
    )  # fmt: skip


# How the search went ----------------------------------------------------------------------------


def warn_of_rise(run: Run) -> str | None:
    """Whether validation data, which nothing else has judged, say that the search did not help."""
    ends = objective_then_and_now(run)
    compared = run.candidates or (run.before and run.after)
    if ends is None or ends[1] - ends[0] <= SAME_ERROR or compared:
        return None
    return phrase("caution.risen", objective=objective_name(run))


def warn_of_saturation(run: Run) -> str | None:
    """Whether there is next to no error left to learn from, or nothing but errors."""
    hard = run.curves["hard_objective"]
    hard = hard[np.isfinite(hard)]
    if not len(hard):
        return None
    last = float(hard[-max(1, len(hard) // 4) :].mean())
    if _SATURATED < last < 1 - _SATURATED:
        return None
    sense = phrase(f"caution.{'no_error' if last <= _SATURATED else 'only_errors'}")
    return phrase("caution.saturated", last=percent(last), sense=sense)


def warn_of_unsettled_search(run: Run) -> str | None:
    """Whether the search was still on its way when it ended."""
    if run.search_status != "finished" or len(run.curves["step"]) < _QUARTERED:
        return None
    signs = []
    third, last = np.array_split(run.curves["objective"], 4)[2:]
    if np.isfinite(third).all() and np.isfinite(last).all():
        noise = np.sqrt(third.var() / len(third) + last.var() / len(last))
        fall = float(third.mean() - last.mean())
        if fall > max(_FALLING, _FAR * noise):
            signs.append(phrase("caution.falling", fall=number(fall, 3)))
    norms = [n[np.isfinite(n)] for n in np.array_split(run.curves["norm"], 4)]
    first, last = (float(np.median(n)) if len(n) else np.nan for n in (norms[0], norms[-1]))
    if last > _GROWING * first:
        signs.append(phrase("caution.growing", times=last / first))
    if not signs:
        return None
    return phrase("caution.unsettled", signs=" and ".join(signs))


def warn_of_far_parameters(run: Run) -> str | None:
    """Free parameters far from where the prior holds them, or at the edge of what they can be."""
    priors = run.design.get("priors")
    # The paper's sigmoid starts δ at 0.73, where the exponential starts it at 1.
    sigmoid = any(p.key == "multiplicative" and np.nanmax(p.start) < 1 for p in run.parts)
    far: list[tuple[float, str]] = []
    for name, symbol in read_words("parameters").items():
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
    return phrase("caution.far_from_prior", most=most)


def _whose(run: Run, values: np.ndarray, at: tuple[int, ...]) -> str:
    """Of which class (and group) a free parameter is, where there is one for each."""
    if values.ndim == 0 or values.shape[-1] != len(run.classes):
        return f" of cluster {at[-1]}" if values.ndim else ""
    group = f" in {run.groups[at[0]]}" if values.ndim == 2 and run.groups else ""
    return f" of {run.classes[at[-1]]}{group}"


def warn_of_augmentation(run: Run) -> str | None:
    """Whether an augmentation was learned that nothing compared with none.

    The hypergradient is of a training that has converged: it does not see what augmentation costs a
    shorter one.
    """
    return phrase("caution.unjudged_augmentation") if run.policy and not run.candidates else None

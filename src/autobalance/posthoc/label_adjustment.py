"""Decisions for several labels, designed on scores of examples that a classifier was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from autobalance._validation import InputError, array_of_numbers, one_of, same_length, shown
from autobalance.data import (
    as_label_matrix,
    as_tensor,
    assign_folds,
    labels_without_both,
    rarest_labels,
)
from autobalance.objectives import MacroF1Error, Objective, over_labels
from autobalance.posthoc.adjustment import PRIORS, Adjustment, check_weights
from autobalance.posthoc.adjustment_choice import (
    FOLDS,
    JudgedCandidate,
    choose,
    drawn_standard_error,
)
from autobalance.posthoc.decision_rule import LabelRule
from autobalance.posthoc.label_fit import (
    LabelScores,
    ThresholdFit,
    ThresholdPrior,
    calibrate_labels,
    fit_balanced,
    label_errors,
    tune_each,
    tune_shared,
)
from autobalance.posthoc.score_input import FLOOR, KINDS, ScoreKind

Design = Callable[[LabelScores], ThresholdFit]


class LabelAdjustment(Adjustment):
    """As `Adjustment`, of several labels: decisions and scores have shape ``(n, k)``.

    `rule` is a `LabelRule`; `errors_before` and `errors` are those of each label ``(k,)``, its balanced error
    or one minus its F1, and `class_counts` negatives and positives in training ``(2, k)``. In `by_cell` are
    the sums of the weights of negatives and positives, each ``(2, k)``. There are no intervals.
    """

    @property
    def _own(self) -> LabelRule:
        return cast(Any, self.rule)

    @property
    def l(self) -> np.ndarray:  # noqa: E743
        """The threshold of each label's log odds, shape ``(k,)``."""
        return self._own.additive

    @property
    def tau(self) -> float | None:
        """The strength of the log prior odds in l; None where l was not built from one."""
        return self._own.tau

    def predict(self, scores: Any) -> np.ndarray:
        """0 and 1, shape ``(n, k)``."""
        return (self.log_scores(scores) > self.l).astype(np.int64)

    def decision_shares(self, scores: Any) -> np.ndarray:
        """The decisions as numbers: none are drawn."""
        return self.predict(scores).astype(float)

    def predict_proba(self, scores: Any, prior: str | Sequence[float] | None = None) -> np.ndarray:
        """Probabilities that are above 0.5 where the decision is 1, or calibrated ones, shape ``(n, k)``.

        Parameters
        ----------
        scores : array-like
            As for `design_adjustment`.
        prior : {"training", "balanced"}, optional
            How frequent labels are where the probabilities are for: as in training, or each in half of the
            examples. Without, they are sigmoid(a (z - l)), biased on purpose as the decisions are.
        """
        z = self.log_scores(scores)
        if prior is None:
            logits = self._own.scale * (z - self.l)
        else:
            one_of("prior", shown(prior) if not isinstance(prior, str) else prior, PRIORS)
            additive, scale = self.calibration
            logits = scale * (z - additive)
            if prior == "balanced":
                logits = logits - np.log(self.class_counts[1] / self.class_counts[0])
        return torch.sigmoid(torch.from_numpy(logits)).numpy()

    def log_scores(self, scores: Any) -> np.ndarray:
        """Log odds z of scores ``(n, k)``; decision values in units of their mean distance."""
        z = log_odds(scores, self.kind)
        if z.shape[1] != len(self.l):
            raise InputError(
                f"The adjustment is for {len(self.l)} labels, the scores have {z.shape[1]}."
            )
        shift, scale = self.standardisation
        return scale * z - shift if self.kind == "decision_values" else z


def log_odds(scores: Any, kind: ScoreKind = "probabilities") -> np.ndarray:
    """Log odds of labels from probabilities, or decision values as they are, shape ``(n, k)``, float64.

    Raises
    ------
    InputError
        If they are not what they are said to be.
    """
    one_of("kind", kind, KINDS)
    array = array_of_numbers("scores", scores).astype(np.float64)
    if array.ndim != 2 or array.shape[1] < 2 or not len(array):
        raise InputError(
            f"scores of several labels have one column per label, shape (n, k); got {array.shape}."
        )
    if kind == "log_probabilities":
        array = np.exp(array)
    if not np.isfinite(array).all():
        row, label = np.argwhere(~np.isfinite(array))[0].tolist()
        raise InputError(f"scores must be finite; that of row {row}, label {label} is not.")
    if kind == "decision_values":
        return array
    if (array < 0).any() or (array > 1).any():
        row, label = np.argwhere((array < 0) | (array > 1))[0].tolist()
        raise InputError(
            f"Probabilities of labels must lie in [0, 1]; row {row}, label {label} has "
            f'{array[row, label]:g}. For logits or other decision values say kind="decision_values".'
        )
    p = np.clip(array, FLOOR, 1.0 - FLOOR)
    return np.log(p) - np.log1p(-p)


def design_label_adjustment(
    scores: Any,
    y: Any,
    goal: Objective,
    *,
    sample_weight: Any = None,
    class_counts: Any = None,
    kind: ScoreKind = "probabilities",
    seed: int = 0,
) -> LabelAdjustment:
    """`autobalance.design_adjustment` for several labels; `class_counts` has shape ``(2, k)``."""
    goal = over_labels(goal)
    z = log_odds(scores, kind)
    k = z.shape[1]
    target = as_label_matrix("y", as_tensor("y", y), k)
    weight = None if sample_weight is None else check_weights(sample_weight)
    same_length(scores=z, y=target, sample_weight=weight)
    given = None if weight is None else torch.from_numpy(weight)
    standardisation = (np.zeros(k), 1.0)
    if kind == "decision_values":  # their zero and unit say little: they are calibrated first
        centre = z.mean(axis=0)
        unit = 1.0 / max(float(np.abs(z - centre).mean()), 1e-12)
        rows = LabelScores(torch.from_numpy(unit * (z - centre)).float(), target, given)
        fitted = calibrate_labels(rows, _check_counts(rows, class_counts))
        scale = fitted.scale * unit
        standardisation = (scale * centre + fitted.scale * fitted.l, scale)
        z = scale * z - standardisation[0]
    rows = LabelScores(torch.from_numpy(z).float(), target, given)
    return _design(rows, goal, _check_counts(rows, class_counts), kind, standardisation, seed)


def _design(
    rows: LabelScores,
    goal: Objective,
    counts: np.ndarray,
    kind: ScoreKind,
    standardisation: tuple[np.ndarray, float],
    seed: int,
) -> LabelAdjustment:
    designs, start = designs_for(goal, counts, -standardisation[0])
    wrong = cross_fit_labels(rows, designs, seed)
    mass = rows.mass()
    judged = _judge(rows, wrong, start, goal, seed)
    chosen = choose(judged, start)
    fit, calibration = designs[chosen](rows), calibrate_labels(rows, counts)
    scale = fit.scale if chosen == "cross_entropy" else calibration.scale
    tau = None if chosen == "none" else fit.tau
    tables = {name: rows.sums(wrong[name]) for name in ("none", chosen)}
    values = {candidate.name: candidate.value for candidate in judged}
    return LabelAdjustment(
        rule=cast(Any, LabelRule(fit.l, scale, tau)),
        objective=goal,
        chosen=chosen,
        candidates=tuple(judged),
        value_before=values["none"],
        value=values[chosen],
        errors_before=label_errors(goal, tables["none"], mass),
        errors=label_errors(goal, tables[chosen], mass),
        class_counts=counts,
        kind=kind,
        standardisation=standardisation,
        calibration=(calibration.l, calibration.scale),
        intervals={},
        by_cell={
            "mass": mass.numpy(),
            "wrong_before": tables["none"].numpy(),
            "wrong": tables[chosen].numpy(),
        },
    )


def designs_for(
    goal: Objective, counts: np.ndarray, unadjusted: np.ndarray
) -> tuple[dict[str, Design], str]:
    """The candidates by name, and the name of the start.

    For the balanced errors of the labels that is the calibration for labels as often present as not; for F1,
    which no calibration knows the threshold of, tau tuned for all labels together.
    """
    prior = ThresholdPrior.of(counts, goal)
    designs: dict[str, Design] = {
        "none": lambda rows: ThresholdFit(unadjusted, 0.0),
        "post_hoc": lambda rows: ThresholdFit(prior.log_odds, 1.0),
        "tuned_tau": lambda rows: tune_shared(rows, prior, goal),
        "thresholds": lambda rows: tune_each(rows, prior, goal),
    }
    if isinstance(goal, MacroF1Error):
        return designs, "tuned_tau"
    designs["cross_entropy"] = lambda rows: fit_balanced(rows, prior)
    return designs, "cross_entropy"


def cross_fit_labels(
    rows: LabelScores, designs: Mapping[str, Design], seed: int
) -> dict[str, torch.Tensor]:
    """What each candidate, designed without an example, decides wrongly of it, ``(n, k)``."""
    generator = np.random.default_rng(seed)
    fold = assign_folds(rarest_labels(rows.target).numpy(), FOLDS, generator)
    alone = fold < 0
    fold[alone] = generator.integers(FOLDS, size=int(alone.sum()))
    wrong = {name: torch.zeros(rows.target.shape, dtype=torch.bool) for name in designs}
    for f in range(FOLDS):
        held = np.flatnonzero(fold == f)
        if len(held) in (0, len(fold)):
            continue
        train, rest = rows.subset(np.flatnonzero(fold != f)), rows.subset(held)
        for name, design in designs.items():
            wrong[name][held] = rest.wrong(design(train).l)
    return wrong


def _judge(
    rows: LabelScores,
    wrong: Mapping[str, torch.Tensor],
    start: str,
    goal: Objective,
    seed: int,
) -> list[JudgedCandidate]:
    """Every candidate's objective, and its difference to the start."""
    mass, plain = rows.mass(), LabelScores(rows.z, rows.target)
    base, judged = float(goal.value(rows.sums(wrong[start]), mass)), []
    for name, own in wrong.items():
        value, other = float(goal.value(rows.sums(own), mass)), wrong[start]
        outcomes = (~own & ~other, own & ~other, ~own & other, own & other)
        counts = np.stack([plain.sums(each).flatten().numpy() for each in outcomes], axis=1)
        error = 0.0 if name == start else drawn_standard_error(counts, mass, goal, seed)
        judged.append(JudgedCandidate(name, value, value - base, error))
    return judged


def _check_counts(rows: LabelScores, class_counts: Any) -> np.ndarray:
    """Negatives and positives in training ``(2, k)``, by default those of the examples."""
    own = rows.mass().numpy()
    what, counts = "Examples to design decisions on", own
    if class_counts is not None:
        what, counts = "class_counts", array_of_numbers("class_counts", class_counts)
        if counts.shape != own.shape or not np.isfinite(counts).all() or (counts < 0).any():
            raise InputError(
                f"class_counts needs negatives and positives of each label, shape {own.shape}; got "
                f"{counts.shape}."
            )
    absent = labels_without_both(counts)
    if absent:
        raise InputError(
            f"{what} must have a positive and a negative of each label: {absent}. Leave these labels out, "
            "add examples, or give the training counts (2, k) as class_counts."
        )
    return counts.astype(np.float64)

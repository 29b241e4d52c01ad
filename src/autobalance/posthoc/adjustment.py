"""Decisions designed on scores that a classifier of any kind gave to examples it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from autobalance._validation import (
    InputError,
    array_of_numbers,
    class_counts as check_counts,
    instance,
    one_of,
    same_length,
    seed_number,
    whole,
)
from autobalance.data import assign_folds, shape_of
from autobalance.objectives import BoundedGap, CostMatrix, Objective, as_objective
from autobalance.posthoc.adjustment_candidates import calibrate, candidates_for
from autobalance.posthoc.adjustment_choice import (
    FOLDS,
    JudgedCandidate,
    choose,
    class_means,
    cross_fit,
    judge,
)
from autobalance.posthoc.adjustment_intervals import bootstrap_intervals
from autobalance.posthoc.cell_rule import CellRule, design_cell_rule
from autobalance.posthoc.decision_rule import DecisionRule, LabelRule, numbers_of
from autobalance.posthoc.rival_scores import RivalScores
from autobalance.posthoc.score_input import ScoreKind, log_scores
from autobalance.records import ErrorTable

PRIORS = ("training", "balanced")


@dataclass(frozen=True)
class Adjustment:
    """Decisions from scores, how they were chosen, and what they are worth on held-out data.

    Attributes
    ----------
    rule : DecisionRule or CellRule
        What decides: by log-scores less l, or by weighted probabilities of the cells.
    objective : Objective
        What the decisions are for.
    chosen : str
        The name of the candidate that was taken; "program" where groups count.
    candidates : tuple of JudgedCandidate
        All candidates, each judged on examples that it was not designed on; empty with groups' cells.
    value_before, value : float
        The objective of the unadjusted decisions and of these, on examples they were not designed on.
    errors_before, errors : ndarray
        Likewise each class's error, or its mean cost in shares of the largest, shape ``(k,)``; NaN for a
        class without an example.
    class_counts : ndarray
        Training examples per class, or the sums of their weights, shape ``(k,)``.
    kind : str
        What the scores are.
    standardisation : tuple of ndarray and float
        b ``(k,)`` and c for which z = c f - b are calibrated log-scores of decision values f; 0 and 1 for
        probabilities, whose logarithms are z.
    calibration : tuple of ndarray and float
        l and a for which softmax(a (z - l)) has the labels most likely, at the classes' frequencies.
    intervals : dict
        The 5th and 95th percentile over resamples of the examples, by name: "tau" ``(2,)`` if the rule
        has one, "l" ``(k, 2)``, "gain" ``(2,)``; empty if none were asked for.
    by_cell : dict
        Of decisions by groups' cells: sums of weights on examples they were not designed on, of all
        ("mass") and of those decided wrongly, unadjusted ("wrong_before") and adjusted ("wrong"), each
        ``(g, k)``.
    """

    rule: DecisionRule | CellRule
    objective: Objective
    chosen: str
    candidates: tuple[JudgedCandidate, ...]
    value_before: float
    value: float
    errors_before: np.ndarray
    errors: np.ndarray
    class_counts: np.ndarray
    kind: ScoreKind
    standardisation: tuple[np.ndarray, float]
    calibration: tuple[np.ndarray, float]
    intervals: dict[str, np.ndarray]
    by_cell: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def l(self) -> np.ndarray:  # noqa: E743
        """The adjustment, shape ``(k,)``; of several that are drawn the one drawn most often.

        Raises
        ------
        InputError
            If the decisions are by groups' cells, which no l expresses.
        """
        if isinstance(self.rule, CellRule):
            raise InputError(
                "Decisions from p(class, group | x) have weights, no l: see rule.weights."
            )
        return self.rule.additive[int(self.rule.shares.argmax())]

    @property
    def tau(self) -> float | None:
        """The strength of log pi in l; None where l was not built from one."""
        return self.rule.tau if isinstance(self.rule, DecisionRule) else None

    @property
    def gain(self) -> float:
        """By how much the objective falls from the unadjusted decisions to these."""
        return self.value_before - self.value

    def predict(self, scores: Any) -> np.ndarray:
        """Class index of each row of scores, shape ``(n,)``.

        Parameters
        ----------
        scores : array-like
            As for `design_adjustment`, shape ``(n, k)``, or ``(n, g, k)`` where it was given groups' cells.

        Raises
        ------
        InputError
            If they are not what the design was given.
        """
        if isinstance(self.rule, CellRule):
            return self.rule.decide(self._cells(scores))
        return self.rule.decide(self.log_scores(scores))

    def rule_indices(self, scores: Any) -> np.ndarray:
        """Which of the rules decides each row, as an index of ``rule.shares``, shape ``(n,)``.

        It is a function of the row's scores, so equal rows have the same rule. `scores` as in `predict`.
        """
        if isinstance(self.rule, CellRule):
            return self.rule.index_of(self._cells(scores))
        return self.rule.index_of(self.log_scores(scores))

    def decision_shares(self, scores: Any) -> np.ndarray:
        """How often each class is decided, shape ``(n, k)``: one-hot unless decisions are drawn."""
        if isinstance(self.rule, CellRule):
            return self.rule.shares_of_classes(self._cells(scores))
        return self.rule.shares_of_classes(self.log_scores(scores))

    def predict_proba(self, scores: Any, prior: str | Sequence[float] | None = None) -> np.ndarray:
        r"""Probabilities whose largest is the decision, or calibrated ones for a class prior, ``(n, k)``.

        Without a prior they are softmax(a (z - l)), biased on purpose as the decisions are. For a prior
        pi' they are

        .. math:: p_k \propto \mathrm{softmax}(a (z - l'))_k \, \pi'_k / \pi_k

        with a and l' of `calibration`, fitted on the same examples; their largest need not be the decision.
        Where the decision is by costs or by cells, which no l expresses, the default is the training prior.

        Parameters
        ----------
        scores : array-like
            As for `predict`.
        prior : {"training", "balanced"} or sequence of float, optional
            The classes' shares where the probabilities are for, shape ``(k,)``.
        """
        if isinstance(self.rule, CellRule):
            z = np.log(np.maximum(self._cells(scores).sum(axis=1), 1e-30))
        else:
            z = self.log_scores(scores)
            if prior is None and self.rule.costs is None:
                return self.rule.probabilities(z)
        additive, scale = self.calibration
        shares = self.class_counts / self.class_counts.sum()
        with np.errstate(divide="ignore"):
            shift = np.log(_prior("training" if prior is None else prior, shares)) - np.log(shares)
        logits = torch.from_numpy(scale * (z - additive) + shift)
        return torch.softmax(logits, dim=1).numpy()

    def explain(self, class_names: Sequence[Any] | None = None) -> str:
        """The design in words: objective, choice, tau and the classes' errors before and after."""
        from autobalance.posthoc.adjustment_text import explain_adjustment

        return explain_adjustment(self, class_names)

    def to_dict(self) -> dict[str, Any]:
        """Everything, of numbers, strings, lists and dicts alone."""
        (additive, scale), (shift, unit) = self.calibration, self.standardisation
        return {
            "rule": {"kind": type(self.rule).__name__, **self.rule.to_dict()},
            "objective": self.objective.to_dict(),
            "chosen": self.chosen,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "value_before": self.value_before,
            "value": self.value,
            "errors_before": _or_none(self.errors_before),
            "errors": _or_none(self.errors),
            "class_counts": self.class_counts.tolist(),
            "kind": self.kind,
            "standardisation": {"shift": shift.tolist(), "scale": unit},
            "calibration": {"additive": additive.tolist(), "scale": scale},
            "intervals": {name: array.tolist() for name, array in self.intervals.items()},
            "by_cell": {name: array.tolist() for name, array in self.by_cell.items()},
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Adjustment:
        """Inverse of `to_dict`.

        Raises
        ------
        InputError
            If the record is altered.
        """
        instance("record", record, dict)
        from autobalance.posthoc.label_adjustment import LabelAdjustment  # is an Adjustment

        try:
            rules: dict[str, Any] = {
                rule.__name__: rule for rule in (DecisionRule, CellRule, LabelRule)
            }
            calibration, standard = record["calibration"], record["standardisation"]
            rule = rules[record["rule"]["kind"]].from_dict(record["rule"])
            of_labels = isinstance(rule, LabelRule)
            k = numbers_of(record["class_counts"], 2 if of_labels else 1).shape[-1]
            width = (rule.weights if isinstance(rule, CellRule) else rule.additive).shape[-1]
            shift, offset = numbers_of(standard["shift"], 1), numbers_of(calibration["additive"], 1)
            if {width, len(shift), len(offset)} != {k}:
                raise ValueError("its arrays are of other numbers of classes")
            return (LabelAdjustment if of_labels else cls)(
                rule=rule,
                objective=Objective.from_dict(record["objective"]),
                chosen=record["chosen"],
                candidates=tuple(JudgedCandidate(**each) for each in record["candidates"]),
                value_before=float(record["value_before"]),
                value=float(record["value"]),
                errors_before=np.array(record["errors_before"], dtype=float),
                errors=np.array(record["errors"], dtype=float),
                class_counts=np.array(record["class_counts"], dtype=float),
                kind=record["kind"],
                standardisation=(shift, float(standard["scale"])),
                calibration=(offset, float(calibration["scale"])),
                intervals={name: np.array(each) for name, each in record["intervals"].items()},
                by_cell={name: np.array(each) for name, each in record["by_cell"].items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This record of an Adjustment is altered: {error!r}.") from None

    def log_scores(self, scores: Any) -> np.ndarray:
        """Z of scores ``(n, k)``: logarithms of probabilities, or calibrated decision values."""
        z = log_scores(scores, self.kind)
        if z.shape[1] != len(self.class_counts):
            raise InputError(
                f"The adjustment is for {len(self.class_counts)} classes, the scores have {z.shape[1]}."
            )
        shift, scale = self.standardisation
        return scale * z - shift if self.kind == "decision_values" else z

    def _cells(self, scores: Any) -> np.ndarray:
        assert isinstance(self.rule, CellRule)
        return _cell_probabilities(scores, self.rule.weights.shape[1:])


def design_adjustment(
    scores: Any,
    y: Any,
    *,
    objective: str | Objective = "balanced_error",
    groups: Any = None,
    sample_weight: Any = None,
    class_counts: Any = None,
    kind: ScoreKind = "probabilities",
    randomised: bool = True,
    resamples: int = 50,
    seed: int = 0,
) -> Adjustment:
    r"""Design decisions on the scores of a classifier that is left as it is.

    The decision is :math:`\arg\max_k \log p_k - l_k` with :math:`l_k = \tau \log \pi_k + \epsilon_k`.
    Several ways to design l compete with post hoc logit adjustment (l = log pi), with tuning tau alone
    and with no adjustment. Each is designed on three quarters of the examples and judged on the
    rest; the start, a calibration for balanced classes, is left only for a lead of one standard error.

    Parameters
    ----------
    scores : array-like
        Scores of examples that the classifier was *not* trained on, such as out-of-fold probabilities,
        shape ``(n, k)``. With groups also p(class, group | x), shape ``(n, g, k)``.
    y : array-like
        Their classes as indices of the scores' columns, shape ``(n,)``. With several labels for each
        example a 0 or 1 for each, shape ``(n, k)``, -1 or NaN where not labelled: then each column of
        scores is a label's, and a threshold is designed for each, see `LabelAdjustment`.
    objective : str or Objective
        What is to be small: any objective of this library. A bound, "balanced_error where deo <= 0.05",
        needs the cells' probabilities ``(n, g, k)``.
    groups : array-like, optional
        Their groups as indices, shape ``(n,)``, for objectives over groups.
    sample_weight : array-like, optional
        What each example counts for, shape ``(n,)``, not negative.
    class_counts : array-like, optional
        Training examples per class, shape ``(k,)``, from which log pi is; by default those of `y`. Of
        several labels negatives and positives, shape ``(2, k)``.
    kind : {"probabilities", "log_probabilities", "decision_values"}
        What the scores are. Decision values, of a support vector machine for example, are first scaled
        so that their softmax is calibrated.
    randomised : bool
        Whether decisions may be drawn between several l, where that is better for a worst class, CVaR or
        a bound. Equal rows of scores always get equal decisions.
    resamples : int
        Of the examples, for the intervals; 0 leaves them out.
    seed : int
        Of the folds and resamples.

    Returns
    -------
    Adjustment

    Raises
    ------
    InputError
        If the scores are no probabilities, lengths differ, a class or cell has no example, or the
        objective cannot be designed for from these scores; the message says what to do.
    """
    goal = as_objective(objective)
    seed_number(seed)
    whole("resamples", resamples, least=0)
    if len(shape_of(y)) == 2:
        return _design_for_labels(scores, y, goal, groups, sample_weight, class_counts, kind, seed)
    if np.ndim(scores) == 3:
        return _design_by_cells(
            scores, y, goal, groups, sample_weight, class_counts, randomised, seed
        )
    if isinstance(goal, BoundedGap):
        raise InputError(
            "A bound on a gap between groups needs p(class, group | x), scores of shape (n, g, k): fit "
            "the classifier to predict the pair of class and group. LogitAdjustedClassifierCV does so."
        )
    z = log_scores(scores, kind)
    k = z.shape[1]
    target, members, weight, counts = _check_labels(
        len(z), k, y, groups, sample_weight, class_counts
    )
    if goal.over != "class" and members is None:
        raise InputError(
            f"The objective is over {goal.over!r}: give groups, one index per example."
        )
    standardisation = (np.zeros(k), 1.0)
    if kind == "decision_values":
        standardisation = _standardise(z, target, weight, counts)
        z = standardisation[1] * z - standardisation[0]
    rows = RivalScores.of(
        z,
        target,
        groups=None if goal.over == "class" else members,
        weight=weight,
        log_prior=np.log(counts / counts.sum()),
    )
    if not isinstance(goal, CostMatrix):  # all else is decided from the rows, which are smaller
        z = None
    options = {"randomised": randomised, "resamples": resamples, "seed": seed}
    return _design(rows, z, goal, counts, kind, standardisation, **options)


def _design_for_labels(
    scores: Any,
    y: Any,
    goal: Objective,
    groups: Any,
    sample_weight: Any,
    class_counts: Any,
    kind: ScoreKind,
    seed: int,
) -> Adjustment:
    from autobalance.posthoc.label_adjustment import design_label_adjustment  # is an Adjustment

    if groups is not None:
        raise InputError(
            "groups are for one class per example; y has several labels. Leave them out."
        )
    return design_label_adjustment(
        scores,
        y,
        goal,
        sample_weight=sample_weight,
        class_counts=class_counts,
        kind=kind,
        seed=seed,
    )


def _standardise(
    values: np.ndarray, target: np.ndarray, weight: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, float]:
    """B and c for which c f - b are calibrated log-scores of decision values f."""
    unit = 1.0 / max(float(np.abs(values - values.mean(axis=1, keepdims=True)).mean()), 1e-12)
    log_prior = np.log(counts / counts.sum())
    rows = RivalScores.of(unit * values, target, weight=weight, log_prior=log_prior)
    fit = calibrate(rows, counts)
    return fit.scale * fit.l, fit.scale * unit


def _design(
    rows: RivalScores,
    z: np.ndarray | None,
    goal: Objective,
    counts: np.ndarray,
    kind: ScoreKind,
    standardisation: tuple[np.ndarray, float],
    *,
    randomised: bool,
    resamples: int,
    seed: int,
) -> Adjustment:
    unadjusted = -standardisation[0]
    makers, start = candidates_for(goal, counts, unadjusted, randomised=randomised)
    target = rows.target.numpy()

    def losses_of(rule: DecisionRule, some: np.ndarray) -> np.ndarray:
        if not isinstance(goal, CostMatrix) or z is None:
            return rule.wrong(rows if len(some) == len(rows) else rows.subset(some))
        decided = torch.from_numpy(rule.decide(z[some]))
        return goal.decision_losses(decided, torch.from_numpy(target[some])).numpy()

    losses = cross_fit(rows, makers, losses_of, seed)
    judged = judge(rows, losses, start, goal, seed)
    # "none" knows nothing of a class that nobody here is of, so that these rows cannot speak for it.
    unseen = not rows.mass().any(dim=0).all()
    chosen = choose([each for each in judged if each.name != "none" or not unseen], start)
    calibration = calibrate(rows, counts)
    rule = makers[chosen](rows)
    if chosen != "cross_entropy":
        rule = replace(rule, scale=calibration.scale)
    before = "most_probable" if isinstance(goal, CostMatrix) else "none"
    values = {candidate.name: candidate.value for candidate in judged}
    intervals = {}
    if resamples:
        intervals = bootstrap_intervals(
            rows, makers[chosen], rule, losses[before], losses[chosen], goal, resamples, seed
        )
    return Adjustment(
        rule=rule,
        objective=goal,
        chosen=chosen,
        candidates=tuple(judged),
        value_before=values[before],
        value=values[chosen],
        errors_before=class_means(rows, losses[before]),
        errors=class_means(rows, losses[chosen]),
        class_counts=counts,
        kind=kind,
        standardisation=standardisation,
        calibration=(calibration.l, calibration.scale),
        intervals=intervals,
    )


def _design_by_cells(
    scores: Any,
    y: Any,
    goal: Objective,
    groups: Any,
    sample_weight: Any,
    class_counts: Any,
    randomised: bool,
    seed: int,
) -> Adjustment:
    """Decisions for an objective over groups, judged by decisions designed on other examples."""
    if groups is None:
        raise InputError(
            "scores have shape (n, g, k), of cells: give groups, one index per example."
        )
    cells = _cell_probabilities(scores, None)
    n, g, k = cells.shape
    target, members, weight, counts = _check_labels(n, k, y, groups, sample_weight, class_counts)
    assert members is not None
    _check_cells(target, members, weight, (g, k))
    index = members * k + target

    def design(some: np.ndarray) -> CellRule:
        return design_cell_rule(
            cells[some], target[some], members[some], weight[some], goal, randomised=randomised
        )

    fold = assign_folds(index, FOLDS, np.random.default_rng(seed))
    wrong, plain = np.zeros(n), (cells.sum(axis=1).argmax(axis=1) != target).astype(float)
    for f in range(FOLDS):
        held = np.flatnonzero(fold == f)
        shares = design(np.flatnonzero(fold != f)).shares_of_classes(cells[held])
        wrong[held] = 1.0 - shares[np.arange(len(held)), target[held]]
    judged = fold >= 0
    tables = []
    for losses in (plain, wrong):
        total, mass = (
            np.bincount(index[judged], values[judged], g * k).reshape(g, k)
            for values in (weight * losses, weight)
        )
        tables.append(ErrorTable.from_counts(total, mass))
    z = np.log(np.maximum(cells.sum(axis=1), 1e-30))
    log_prior = np.log(counts / counts.sum())
    calibration = calibrate(RivalScores.of(z, target, weight=weight, log_prior=log_prior), counts)
    before, after = (
        float(goal.value(torch.from_numpy(table.wrong), torch.from_numpy(table.mass)))
        for table in tables
    )
    return Adjustment(
        rule=design(np.arange(n)),
        objective=goal,
        chosen="program",
        candidates=(),
        value_before=before,
        value=after,
        errors_before=tables[0].class_errors,
        errors=tables[1].class_errors,
        class_counts=counts,
        kind="probabilities",
        standardisation=(np.zeros(k), 1.0),
        calibration=(calibration.l, calibration.scale),
        intervals={},
        by_cell={"mass": tables[0].mass, "wrong_before": tables[0].wrong, "wrong": tables[1].wrong},
    )


def _check_labels(
    n: int, k: int, y: Any, groups: Any, sample_weight: Any, class_counts: Any
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
    """Classes, groups, weights and training examples per class, checked against scores ``(n, k)``."""
    target = _indices("y", y)
    members = None if groups is None else _indices("groups", groups)
    weight = np.ones(n) if sample_weight is None else check_weights(sample_weight)
    same_length(scores=range(n), y=target, groups=members, sample_weight=weight)
    if target.max() >= k:
        raise InputError(
            f"y has class {target.max()}, but the scores are for {k} classes, 0 to {k - 1}. y holds indices "
            "of the scores' columns."
        )
    seen = np.bincount(target, weight, k)
    if len(np.flatnonzero(seen)) < 2:
        raise InputError("y has examples of one class only: there is nothing to decide.")
    if class_counts is None:
        if not seen.all():
            missing = np.flatnonzero(seen == 0).tolist()
            raise InputError(
                f"Class {missing[0]} of the scores has no example in y (without any: {missing}). Leave its "
                "column out, or give the training examples per class as class_counts."
            )
        return target, members, weight, seen
    counts = check_counts(class_counts)
    if counts.shape != (k,):
        raise InputError(f"class_counts must have one number per class, {k}; got {counts.shape}.")
    return target, members, weight, counts


def check_weights(sample_weight: Any) -> np.ndarray:
    """Weights of examples as float64, finite, none negative and not all 0."""
    weight = array_of_numbers("sample_weight", sample_weight)
    if weight.ndim != 1 or not np.isfinite(weight).all() or (weight < 0).any():
        raise InputError("sample_weight must hold one finite number per example, none negative.")
    if not weight.any():
        raise InputError("sample_weight is zero for every example: there is nothing to learn from.")
    return weight


def _indices(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iub" or len(array) == 0 or array.min() < 0:
        raise InputError(
            f"{name} must hold indices, whole numbers from 0, of shape (n,); got {array.dtype} of shape "
            f"{array.shape}. Number labels first, with numpy.unique(return_inverse=True)."
        )
    return array.astype(np.int64)


def _check_cells(
    target: np.ndarray, groups: np.ndarray, weight: np.ndarray, shape: tuple[int, int]
) -> None:
    g, k = shape
    if groups.max() >= g:
        raise InputError(f"groups has group {groups.max()}, but the scores are for {g} groups.")
    mass = np.bincount(groups * k + target, weight, g * k)
    if not mass.all():
        group, c = divmod(int(np.argmin(mass)), k)
        raise InputError(
            f"Group {group} has no example of class {c}: its error is not known, so no bound on it can be "
            "kept. Merge small groups, or add data."
        )


def _cell_probabilities(scores: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    """p(class, group | x), shape ``(n, g, k)``, checked."""
    array = array_of_numbers("scores", scores)
    if array.ndim != 3 or (shape is not None and array.shape[1:] != shape):
        expected = "(n, g, k)" if shape is None else f"(n, {shape[0]}, {shape[1]})"
        raise InputError(
            f"scores must hold p(class, group | x), shape {expected}; got {array.shape}."
        )
    log_scores(array.reshape(len(array), -1))
    return array


def _prior(prior: str | Sequence[float], training: np.ndarray) -> np.ndarray:
    if isinstance(prior, str):
        one_of("prior", prior, PRIORS)
        return training if prior == "training" else np.full(len(training), 1.0 / len(training))
    shares = array_of_numbers("prior", prior)
    if shares.shape != training.shape or not np.isfinite(shares).all() or (shares < 0).any():
        raise InputError(
            f"prior must be one of {', '.join(PRIORS)}, or hold one share per class ({len(training)}), none "
            "negative."
        )
    if not shares.any():
        raise InputError("prior must not be all 0.")
    return shares / shares.sum()


def _or_none(errors: np.ndarray) -> list[float | None]:
    return [None if np.isnan(e) else float(e) for e in errors]

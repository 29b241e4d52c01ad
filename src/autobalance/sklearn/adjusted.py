"""Any classifier of scikit-learn with decisions that are designed for an objective."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils import Bunch, get_tags, indexable
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.validation import (
    NotFittedError,
    _num_samples,
    check_is_fitted,
    has_fit_parameter,
)

from autobalance._validation import InputError, same_length
from autobalance.data import group_names, number_groups, positions, rarest_labels
from autobalance.objectives import Objective, as_objective
from autobalance.posthoc import Adjustment, LabelAdjustment, check_weights, design_adjustment
from autobalance.sklearn.label_scores import check_complete, keep_both_signs, score_labels
from autobalance.sklearn.label_targets import label_names, read_target
from autobalance.sklearn.out_of_fold import OutOfFold, fit_out_of_fold, folds_of, score
from autobalance.sklearn.training_data import draw_seed, without_zero_weights

PREFIT = "prefit"


class LogitAdjustedClassifierCV(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    r"""Any classifier, with decisions designed for an objective on out-of-fold scores.

    What a tuned threshold is for two classes this is for any number of them, and for objectives such as
    the worst class, a matrix of costs or a bound on a gap between groups; with several labels for each
    example it is one threshold for each label. The classifier is fitted on
    each of `cv` folds' training parts and scores what was held out; on these scores l is designed, for
    decisions :math:`\arg\max_k \log p_k - l_k`, see `autobalance.design_adjustment`; then the classifier is
    fitted on everything. The cost is that of `cv` + 1 fits.

    Parameters
    ----------
    estimator : estimator
        A classifier with `predict_proba`, or else `decision_function`. It is cloned.
    objective : str or Objective
        What is to be small, on the 0-1 errors of decisions: "balanced_error", "worst_class_error",
        "cvar_error(0.1)", `cost_matrix(C)`, "balanced_error where deo <= 0.05" and others. Costs are in
        the order of `classes_`. For an objective over groups the classifier is fitted to predict the
        pair of class and group, so that decisions need no group.
    cv : int, splitter, iterable or "prefit"
        Folds. A number keeps every class in the training of each fold: classes of few members are held
        out in fewer folds, and the only member of a class never. "prefit" takes the estimator as it
        is, and the data of `fit` for design only: they must be data that it was not trained on.
    refit : bool
        Whether to fit the classifier on everything in the end. If not, the mean of the folds' classifiers
        predicts. Without meaning for "prefit".
    randomised : bool
        Whether decisions may be drawn where that is better, see `autobalance.design_adjustment`.
    resamples : int
        For the intervals; 0 leaves them out.
    n_jobs : int, optional
        Folds that are fitted at once, by joblib.
    random_state : int, RandomState or None
        Decides folds and resamples; not the estimator, which has its own.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        The labels.
    groups_ : list or None
        The groups' names, where the objective is over groups.
    adjustment_ : Adjustment
        The decisions, and what they are worth on examples they were not designed on.
    result_ : OutOfFold
        The scores that the design is from, and the folds.
    estimator_ : estimator
        The classifier fitted on everything; `estimator` itself for "prefit".
    estimators_ : list
        The folds' classifiers, if `refit` is False.
    n_features_in_, feature_names_in_
        Those of the estimator, if it has them.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = make_classification(600, n_informative=4, n_classes=3, weights=[0.8, 0.15], random_state=0)
    >>> model = LogitAdjustedClassifierCV(LogisticRegression(), random_state=0).fit(X, y)
    >>> model.adjustment_.value < model.adjustment_.value_before
    True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        objective: str | Objective = "balanced_error",
        cv: Any = 5,
        refit: bool = True,
        randomised: bool = True,
        resamples: int = 50,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.objective = objective
        self.cv = cv
        self.refit = refit
        self.randomised = randomised
        self.resamples = resamples
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        own = get_tags(self.estimator)
        tags.input_tags.sparse = own.input_tags.sparse
        tags.input_tags.allow_nan = own.input_tags.allow_nan
        tags.classifier_tags.multi_class = (
            own.classifier_tags is None or own.classifier_tags.multi_class
        )
        tags.classifier_tags.multi_label = (
            own.classifier_tags is not None and own.classifier_tags.multi_label
        )
        return tags

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sensitive_features: Any = None,
        sample_weight: Any = None,
        **params: Any,
    ) -> Self:
        """Fit the folds' classifiers, design the decisions, and fit the classifier on everything.

        Parameters
        ----------
        X : array-like or DataFrame
            What the estimator takes.
        y : array-like of shape (n,) or (n, k)
            Labels of any kind, none missing. With several labels for each example a 0 or 1 for each, shape
            ``(n, k)``, for an estimator that takes such a matrix.
        sensitive_features : array-like, Series or DataFrame, optional
            Group of each example, for objectives over groups; several columns make one group per combination.
        sample_weight : array-like of shape (n,), optional
            Not negative: for the design, and for the estimator, which must take it.
        **params
            For the estimator's `fit`; with scikit-learn's metadata routing, as requested, also for the
            splitter's `split`.

        Returns
        -------
        LogitAdjustedClassifierCV
            Itself.

        Raises
        ------
        InputError
            If the data, folds or estimator cannot be used; the message says what to do.
        """
        goal = as_objective(self.objective)
        if sample_weight is not None:
            if _deals_folds(self.cv):  # the splits of others are of all rows
                sample_weight, X, y, sensitive_features = without_zero_weights(
                    sample_weight, X, y, sensitive_features
                )
            sample_weight = check_weights(sample_weight)
        if _num_samples(X) == 0:
            raise InputError("X has no row: there is nothing to train on.")
        labels = read_target(y)
        if labels.ndim == 2:
            check_complete(labels)
        same_length(X=range(_num_samples(X)), y=labels, sample_weight=sample_weight)
        X, _ = indexable(X, labels)
        groups = None
        if labels.ndim == 1:
            groups = self._read_groups(goal, sensitive_features, len(labels))
        elif sensitive_features is not None:
            raise InputError(
                "sensitive_features is for one class per example; y has several labels. Leave it out."
            )
        else:
            self.classes_, self.groups_ = label_names(y, labels.shape[1]), None
        seed = draw_seed(self.random_state)
        routed = self._route(sample_weight, params)
        if isinstance(self.cv, str) and self.cv == PREFIT:
            scores, target = self._score_prefit(X, labels, groups)
        else:
            scores, target = self._score_folds(X, labels, groups, seed, routed)
        self._design(scores, target, groups, sample_weight, goal, seed)
        for name in ("n_features_in_", "feature_names_in_"):
            model = self.estimator_ if hasattr(self, "estimator_") else self.estimators_[0]
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Labels, shape ``(n,)``; where `fit` was given several for each example 0 and 1, ``(n, k)``."""
        scores = self._score(X)
        decided = self.adjustment_.predict(scores)
        return decided if self._of_labels else self.classes_[decided]

    def predict_proba(self, X: Any, *, prior: str | Sequence[float] | None = None) -> np.ndarray:
        """Probabilities whose largest is the decision, or calibrated ones for a class prior, ``(n, k)``.

        Parameters
        ----------
        X : array-like or DataFrame
            What the estimator takes.
        prior : {"training", "balanced"} or sequence of float, optional
            The classes' shares where the probabilities are for, in the order of `classes_`; see
            `Adjustment.predict_proba`.
        """
        scores = self._score(X)
        return self.adjustment_.predict_proba(scores, prior)

    def explain(self) -> str:
        """What was designed, in words; see `Adjustment.explain`."""
        check_is_fitted(self, "adjustment_")
        return self.adjustment_.explain(self.classes_.tolist())

    def get_metadata_routing(self) -> MetadataRouter:
        """Where metadata goes: to this estimator, to the classifier's `fit`, and to the splitter."""
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(
                estimator=self.estimator,
                method_mapping=MethodMapping().add(caller="fit", callee="fit"),
            )
            .add(
                splitter=self.cv,
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
        )

    def _read_groups(self, goal: Objective, sensitive_features: Any, n: int) -> np.ndarray | None:
        """Group index of each example if the objective is over groups, shape ``(n,)``."""
        self.groups_: list[str] | None = None
        if goal.over == "class":
            if sensitive_features is not None:
                warnings.warn(
                    f"The objective {self.objective!r} does not look at groups: sensitive_features is "
                    "ignored.",
                    stacklevel=3,
                )
            return None
        if sensitive_features is None:
            raise InputError(
                f"The objective {self.objective!r} is over groups: give sensitive_features to fit."
            )
        names = group_names(sensitive_features, "refused")
        same_length(X=range(n), sensitive_features=names)
        self.groups_, index = number_groups(names)
        if len(self.groups_) < 2:
            raise InputError(
                f"The objective {self.objective!r} compares groups; sensitive_features has one only."
            )
        return index

    def _route(self, sample_weight: Any, params: dict[str, Any]) -> Any:
        """What goes to the estimator's fit and to the splitter."""
        if _routing_enabled():
            return process_routing(self, "fit", sample_weight=sample_weight, **params)
        fit_params = dict(params)
        if sample_weight is not None:
            if not has_fit_parameter(self.estimator, "sample_weight"):
                raise InputError(
                    f"{type(self.estimator).__name__} takes no sample_weight, so that weights would count "
                    "in the design alone. Leave them out, or, if a step within it takes them, turn on "
                    "scikit-learn's metadata routing and request them there."
                )
            fit_params["sample_weight"] = sample_weight
        return Bunch(estimator=Bunch(fit=fit_params), splitter=Bunch(split={}))

    def _score_prefit(
        self, X: Any, labels: np.ndarray, groups: np.ndarray | None
    ) -> tuple[OutOfFold, np.ndarray]:
        if groups is not None:
            raise InputError(
                'Objectives over groups need a classifier of class and group, which cv="prefit" cannot '
                "know. Give a number of folds, or call design_adjustment on its probabilities (n, g, k)."
            )
        try:
            check_is_fitted(self.estimator)
        except NotFittedError:
            raise InputError(
                'cv="prefit" takes an estimator that is already fitted. Fit it on other data first, or give '
                "a number of folds."
            ) from None
        self.estimator_ = self.estimator
        if labels.ndim == 2:
            scores, kind = score_labels(self.estimator, X, labels.shape[1])
            return OutOfFold(scores, np.zeros(len(labels), dtype=int), kind), labels
        self.classes_ = np.asarray(self.estimator.classes_)
        target = positions(labels, self.classes_.tolist(), "class", "y")
        lacking = self.classes_[np.bincount(target, minlength=len(self.classes_)) == 0]
        if len(lacking):
            raise InputError(
                f'With cv="prefit" y must have every class that the estimator knows; it has no example of '
                f"{lacking.tolist()[0]!r}. Add examples of it, or call design_adjustment with class_counts."
            )
        scores, kind = score(self.estimator, X, self.classes_)
        return OutOfFold(scores, np.zeros(len(labels), dtype=int), kind), target

    def _score_folds(
        self,
        X: Any,
        labels: np.ndarray,
        groups: np.ndarray | None,
        seed: int,
        routed: Any,
    ) -> tuple[OutOfFold, np.ndarray]:
        """Out-of-fold scores, and the index of each example's class; fits the final classifier too."""
        if labels.ndim == 2:
            target = labels
        else:
            self.classes_, target = np.unique(labels, return_inverse=True)
        k = len(self.classes_)
        if k < 2:
            raise InputError(
                "Classification needs at least two classes; y has one class only, "
                f"{self.classes_.tolist()[0]!r}."
            )
        learned, learned_classes = labels, self.classes_
        if groups is not None:
            learned = groups * k + target
            learned_classes = np.arange(len(self.groups_ or ()) * k)
            self._check_cells(learned, k)
        cells = learned if learned.ndim == 1 else rarest_labels(torch.from_numpy(learned)).numpy()
        splits = folds_of(self.cv, X, cells, seed, routed.splitter.split)
        if learned.ndim == 2:
            splits = keep_both_signs(splits, learned, own=not _deals_folds(self.cv))
        scores, models = fit_out_of_fold(
            self.estimator, X, learned, learned_classes, splits, routed.estimator.fit, self.n_jobs
        )
        if self.refit:
            model: Any = clone(self.estimator)
            self.estimator_ = model.fit(X, learned, **routed.estimator.fit)
        else:
            self.estimators_ = models
        return scores, target

    def _check_cells(self, cells: np.ndarray, k: int) -> None:
        groups = self.groups_ or []
        counts = np.bincount(cells, minlength=len(groups) * k)
        if (counts < 2).any():
            g, c = divmod(int(np.argmin(counts)), k)
            raise InputError(
                f"Group {groups[g]} has {counts.min()} examples of class {self.classes_.tolist()[c]!r}: its "
                "error cannot be measured on held-out data, which takes at least two. Merge small groups, or "
                "add data."
            )

    def _design(
        self,
        found: OutOfFold,
        target: np.ndarray,
        groups: np.ndarray | None,
        sample_weight: Any,
        goal: Objective,
        seed: int,
    ) -> None:
        rows, k = found.rows, len(self.classes_)
        scores = found.scores[rows]
        if groups is not None:
            if found.kind != "probabilities":
                raise InputError(
                    f"Objectives over groups need probabilities; {type(self.estimator).__name__} has no "
                    "predict_proba. Wrap it in CalibratedClassifierCV."
                )
            scores = scores.reshape(len(rows), -1, k)
        counts = _count(target, sample_weight, k)
        self.result_ = found
        self.adjustment_: Adjustment = design_adjustment(
            scores,
            target[rows],
            objective=goal,
            groups=None if groups is None else groups[rows],
            sample_weight=None if sample_weight is None else sample_weight[rows],
            class_counts=counts,
            kind=found.kind,
            randomised=self.randomised,
            resamples=self.resamples,
            seed=seed,
        )

    @property
    def _of_labels(self) -> bool:
        """Whether `fit` was given several labels for each example."""
        return isinstance(self.adjustment_, LabelAdjustment)

    def _score(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "adjustment_")
        k = len(self.classes_)
        classes = self.classes_ if self.groups_ is None else np.arange(len(self.groups_) * k)
        models = [self.estimator_] if hasattr(self, "estimator_") else self.estimators_
        if self._of_labels:
            return np.mean([score_labels(model, X, k)[0] for model in models], axis=0)
        scores = np.mean([score(model, X, classes)[0] for model in models], axis=0)
        return scores if self.groups_ is None else scores.reshape(len(scores), -1, k)


def _count(target: np.ndarray, sample_weight: Any, k: int) -> np.ndarray:
    """Training examples per class ``(k,)``, or negatives and positives of each label ``(2, k)``; weighed."""
    if target.ndim == 1:
        return np.bincount(target, sample_weight, k)
    weight = np.ones(len(target)) if sample_weight is None else sample_weight
    return np.stack([weight @ (target == sign) for sign in (0, 1)])


def _deals_folds(cv: Any) -> bool:
    """Whether the folds are made here, or there are none."""
    return cv is None or isinstance(cv, (Integral, str))

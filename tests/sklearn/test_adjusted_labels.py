"""Any classifier of several labels, with thresholds designed out of fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import (
    check_classifiers_multilabel_output_format_predict,
    check_classifiers_multilabel_representation_invariance,
)

from autobalance import InputError, LogitAdjustedClassifierCV
from autobalance.sklearn.label_scores import keep_both_signs

LOGISTIC = MultiOutputClassifier(LogisticRegression())
FOREST = RandomForestClassifier(30, min_samples_leaf=2, random_state=0)


def table(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 5))
    mix = np.random.default_rng(99).normal(size=(5, 4))
    chance = 1 / (1 + np.exp(-(1.5 * X @ mix + np.array([-0.5, -2.0, -3.0, -4.5]))))
    return X, (generator.random((n, 4)) < chance).astype(int)


X, Y = table(800, 0)
TEST = table(8000, 1)


def balanced_error(decided: np.ndarray, y: np.ndarray) -> float:
    wrong = decided != y
    return float(np.mean([(wrong & (y == s)).sum(0) / (y == s).sum(0) for s in (0, 1)]))


@pytest.mark.parametrize(
    "estimator",
    [LOGISTIC, FOREST, OneVsRestClassifier(LogisticRegression()), OneVsRestClassifier(LinearSVC())],
    ids=["list of probabilities", "forest", "matrix of probabilities", "decision values"],
)
def test_thresholds_of_any_classifier_lower_the_balanced_error(estimator: Any) -> None:
    model = LogitAdjustedClassifierCV(estimator, random_state=0).fit(X, Y)
    decided = model.predict(TEST[0])
    assert decided.shape == TEST[1].shape
    assert set(np.unique(decided)) == {0, 1}
    plain = clone(estimator).fit(X, Y).predict(TEST[0])
    assert balanced_error(decided, TEST[1]) < balanced_error(plain, TEST[1]) - 0.05
    assert model.adjustment_.value == pytest.approx(balanced_error(decided, TEST[1]), abs=0.05)
    assert np.array_equal(model.predict_proba(TEST[0]) > 0.5, decided == 1)
    assert model.score(*TEST) == np.mean((decided == TEST[1]).all(axis=1))
    assert np.array_equal(model.classes_, [0, 1, 2, 3])


@pytest.mark.parametrize(
    "check",
    [
        check_classifiers_multilabel_output_format_predict,
        check_classifiers_multilabel_representation_invariance,
    ],
)
def test_contract_of_scikit_learn_holds(check: Any) -> None:
    model = LogitAdjustedClassifierCV(FOREST, cv=3, random_state=0)
    assert model.__sklearn_tags__().classifier_tags.multi_label
    check("LogitAdjustedClassifierCV", model)


def test_folds_keep_both_signs_of_rare_labels_in_training() -> None:
    y = np.zeros((100, 3), dtype=int)
    y[::2, 0], y[[4, 6], 1], y[7, 2] = 1, 1, 1
    splits = [(np.arange(10, 100), np.arange(10)), (np.arange(10), np.arange(10, 100))]
    repaired = keep_both_signs(splits, y, own=False)
    for train, held in repaired:
        assert all(len(np.unique(y[train, j])) == 2 for j in range(3))
        assert not np.intersect1d(train, held).size
    dropped = np.setdiff1d(np.arange(100), np.concatenate([held for _, held in repaired]))
    assert dropped.tolist() == [4, 7]
    with pytest.raises(InputError, match="label 1 1"):
        keep_both_signs(splits, y, own=True)


def test_a_label_with_one_positive_is_fitted_and_told_of_nothing() -> None:
    y = Y.copy()
    y[:, 3] = 0
    y[5, 3] = 1
    model = LogitAdjustedClassifierCV(LOGISTIC, random_state=0).fit(X, y)
    assert model.result_.fold[5] == -1
    assert np.isnan(model.adjustment_.errors[3])
    assert np.isfinite(model.adjustment_.l).all()


def test_prefit_and_folds_that_predict_together() -> None:
    fitted = clone(LOGISTIC).fit(X, Y)
    prefit = LogitAdjustedClassifierCV(fitted, cv="prefit", random_state=0).fit(*table(800, 2))
    together = LogitAdjustedClassifierCV(LOGISTIC, refit=False, cv=KFold(3), random_state=0)
    for model in (prefit, together.fit(X, Y)):
        assert balanced_error(model.predict(TEST[0]), TEST[1]) < 0.2
    out = cross_val_predict(LogitAdjustedClassifierCV(LOGISTIC, cv=3, random_state=0), X, Y, cv=3)
    assert out.shape == Y.shape


def test_rows_of_weight_zero_count_as_if_they_were_not_there() -> None:
    model = LogitAdjustedClassifierCV(FOREST, random_state=0, cv=3)
    weight = np.r_[np.ones(800), np.zeros(100)]
    extra = table(100, 3)
    both = clone(model).fit(np.r_[X, extra[0]], np.r_[Y, 1 - extra[1]], sample_weight=weight)
    alone = clone(model).fit(X, Y, sample_weight=np.ones(800))
    assert np.array_equal(both.adjustment_.l, alone.adjustment_.l)


class OneColumn(ClassifierMixin, BaseEstimator):
    """A classifier that does not know of labels."""

    def fit(self, X: Any, y: Any) -> OneColumn:
        self.fitted_ = True
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        return np.full((len(X), 2), 0.5)


@pytest.mark.parametrize(
    ("estimator", "y", "options", "message"),
    [
        (FOREST, np.where(Y == 1, -1, Y), {}, "not labelled"),
        (FOREST, Y * [1, 1, 1, 0], {}, "no positive example there \\(3\\)"),
        (FOREST, Y + 1, {}, "0, 1, or -1"),
        (FOREST, Y * 0.5, {}, "0, 1, or -1"),
        (FOREST, Y, {"sensitive_features": Y[:, 0]}, "several labels"),
        (OneColumn(), Y, {}, "MultiOutputClassifier"),
    ],
)
def test_bad_input_is_told_with_what_to_do(
    estimator: Any, y: np.ndarray, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        LogitAdjustedClassifierCV(estimator, random_state=0).fit(X, y, **options)


def test_an_objective_over_groups_is_refused() -> None:
    with pytest.raises(InputError, match="groups have no part"):
        LogitAdjustedClassifierCV(FOREST, objective="worst_group_error").fit(X, Y)

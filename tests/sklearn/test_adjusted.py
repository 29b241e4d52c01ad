"""Any classifier with designed decisions: scikit-learn's contract, folds, groups, refusals."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TunedThresholdClassifierCV,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from autobalance import InputError, LogitAdjustedClassifierCV, cost_matrix
from sklearn import config_context

EXPECTED_FAILURES = {
    f"check_sample_weight_equivalence_on_{kind}_data": (
        "a repeated example may be in another fold of the choice than its twin, and scores are float32"
    )
    for kind in ("dense", "sparse")
}


def adjusted(estimator: Any = None, **options: Any) -> LogitAdjustedClassifierCV:
    options = {"random_state": 0, "resamples": 0, "cv": 3, **options}
    return LogitAdjustedClassifierCV(estimator or LogisticRegression(), **options)


def blobs(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping blobs of 80, 15 and 5 percent."""
    draw = np.random.default_rng(seed)
    y = np.r_[np.repeat([0, 1, 2], 3), draw.choice(3, n - 9, p=[0.8, 0.15, 0.05])]
    centres = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    return centres[y] + draw.normal(size=(n, 2)), y


def balanced_error(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    predicted = model.predict(X)
    return float(np.mean([np.mean(predicted[y == c] != c) for c in np.unique(y)]))


@parametrize_with_checks(
    [adjusted(), adjusted(RidgeClassifier())], expected_failed_checks=lambda _: EXPECTED_FAILURES
)
def test_scikit_learn_checks(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(), GaussianNB(), RidgeClassifier(), None], ids=str
)
def test_decisions_are_better_than_the_classifiers_own(estimator: Any) -> None:
    if estimator is None:
        import lightgbm

        estimator = lightgbm.LGBMClassifier(n_estimators=20, n_jobs=1, verbosity=-1)
    X, y = blobs()
    new, target = blobs(4000, seed=1)
    model = adjusted(estimator).fit(X, y)
    own = balanced_error(clone(estimator).fit(X, y), new, target)
    assert balanced_error(model, new, target) < own - 0.03
    assert model.adjustment_.value < model.adjustment_.value_before
    assert model.result_.scores.shape == (600, 3)
    assert "before" in model.explain()


def test_names_frames_and_pipelines_go_through() -> None:
    X, y = blobs()
    names = np.array(["common", "rare", "rarest"])[y]
    table = pd.DataFrame(X, columns=["u", "v"])
    model = adjusted(make_pipeline(StandardScaler(), LogisticRegression())).fit(table, names)
    assert model.classes_.tolist() == ["common", "rare", "rarest"]
    assert model.feature_names_in_.tolist() == ["u", "v"]
    assert set(model.predict(table)) <= set(names)
    assert "rarest" in model.explain()


def test_out_of_fold_scores_are_of_models_that_did_not_see_the_rows() -> None:
    X, y = blobs(200)
    model = adjusted(KNeighborsClassifier(1)).fit(X, y)  # is always right on what it has seen
    held = model.result_.scores.argmax(axis=1)
    assert np.mean(held != y) > 0.1
    fold = model.result_.fold
    for f in range(3):
        own = KNeighborsClassifier(1).fit(X[fold != f], y[fold != f]).predict(X[fold == f])
        np.testing.assert_array_equal(held[fold == f], own)


def test_every_class_stays_in_every_training() -> None:
    X, y = blobs(200)
    y = np.where(np.arange(200) == 50, 3, y)  # one example
    y[60:62] = 4  # two
    model = adjusted(cv=5).fit(X, y)
    assert model.result_.fold[50] == -1
    assert np.isnan(model.result_.scores[50]).all()
    assert len(set(model.result_.fold[60:62].tolist())) == 2
    assert model.result_.rows.tolist() == [i for i in range(200) if i != 50]
    assert np.isnan(model.adjustment_.errors[3])
    assert model.adjustment_.class_counts[3] == 1
    assert np.isfinite(model.adjustment_.l).all()


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    X, y = blobs(300)
    first, again, other = (adjusted(random_state=s).fit(X, y) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.adjustment_.l, again.adjustment_.l)
    assert (first.adjustment_.l != other.adjustment_.l).any()


def test_pickled_and_cloned() -> None:
    X, y = blobs(200)
    model = adjusted(objective="worst_class_error").fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert not hasattr(clone(model), "adjustment_")
    assert clone(model).get_params()["objective"] == "worst_class_error"


def test_search_inside_and_outside() -> None:
    X, y = blobs(300)
    inside = adjusted(GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2)).fit(X, y)
    assert inside.estimator_.best_params_["C"] in (0.1, 1.0)
    outside = GridSearchCV(
        adjusted(), {"estimator__C": [0.1, 1.0], "objective": ["balanced_error"]}, cv=2,
        scoring="balanced_accuracy",
    ).fit(X, y)  # fmt: skip
    assert outside.best_score_ > 0.6


def test_without_refit_the_mean_of_the_folds_models_decides() -> None:
    X, y = blobs(300)
    model = adjusted(refit=False).fit(X, y)
    assert len(model.estimators_) == 3
    mean = np.mean([each.predict_proba(X) for each in model.estimators_], axis=0)
    np.testing.assert_array_equal(model.predict(X), model.adjustment_.predict(mean))


def test_prefit_takes_data_of_ones_own() -> None:
    X, y = blobs(300)
    held, target = blobs(300, seed=2)
    fitted = LogisticRegression().fit(X, y)
    model = adjusted(fitted, cv="prefit").fit(held, target)
    assert model.estimator_ is fitted
    expected = model.adjustment_.predict(fitted.predict_proba(X))
    np.testing.assert_array_equal(model.predict(X), expected)


@pytest.mark.parametrize("cv", [StratifiedKFold(4), None], ids=["splitter", "list"])
def test_folds_of_ones_own(cv: Any) -> None:
    X, y = blobs(300)
    splits = cv or list(StratifiedKFold(3).split(X, y))
    model = adjusted(cv=splits).fit(X, y)
    assert (model.result_.fold >= 0).all()


def test_weights_reach_the_classifier_and_the_design() -> None:
    X, y = blobs(400)
    weight = np.where(y == 0, 1.0, 3.0)
    model = adjusted().fit(X, y, sample_weight=weight)
    expected = LogisticRegression().fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(model.estimator_.coef_, expected.coef_)
    np.testing.assert_allclose(model.adjustment_.class_counts, np.bincount(y, weight))
    zero = adjusted().fit(
        np.r_[X, 100.0 + X[:5]], np.r_[y, [7] * 5], sample_weight=np.r_[weight, np.zeros(5)]
    )
    assert zero.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(zero.predict(X), model.predict(X))


def test_metadata_is_routed() -> None:
    X, y = blobs(300)
    weight = np.where(y == 0, 1.0, 3.0)
    groups = np.arange(300) % 60
    with config_context(enable_metadata_routing=True):
        from sklearn.model_selection import GroupKFold

        inner = LogisticRegression().set_fit_request(sample_weight=True)
        model = adjusted(inner, cv=GroupKFold(3)).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=False)
        model.fit(X, y, sample_weight=weight, groups=groups)
        expected = LogisticRegression().fit(X, y, sample_weight=weight)
        np.testing.assert_allclose(model.estimator_.coef_, expected.coef_)
        for f in range(3):
            held = set(groups[model.result_.fold == f])
            assert not held & set(groups[model.result_.fold != f])
        grid = GridSearchCV(model, {"estimator__C": [1.0]}, cv=2)
        grid.fit(X, y, sample_weight=weight, groups=groups)
        ignoring = adjusted(LogisticRegression().set_fit_request(sample_weight=False))
        ignoring.set_fit_request(sample_weight=True).fit(X, y, sample_weight=weight)
        plain = LogisticRegression().fit(X, y)
        np.testing.assert_allclose(ignoring.estimator_.coef_, plain.coef_)


def test_two_classes_are_decided_about_as_a_tuned_threshold_does() -> None:
    draw = np.random.default_rng(0)
    y = (draw.random(3000) < 0.06).astype(int)
    X = y[:, None] * 1.5 + draw.normal(size=(3000, 2))
    new_y = (draw.random(9000) < 0.06).astype(int)
    new = new_y[:, None] * 1.5 + draw.normal(size=(9000, 2))
    ours = balanced_error(adjusted(cv=5).fit(X, y), new, new_y)
    theirs = balanced_error(TunedThresholdClassifierCV(LogisticRegression()).fit(X, y), new, new_y)
    assert ours < theirs + 0.01


def test_costs_are_in_the_order_of_the_classes() -> None:
    X, y = blobs(1500)
    costs = np.array([[0.0, 1.0, 1.0], [3.0, 0.0, 3.0], [20.0, 20.0, 0.0]])
    model = adjusted(objective=cost_matrix(costs)).fit(X, y)
    new, target = blobs(5000, seed=1)
    own = costs[target, LogisticRegression().fit(X, y).predict(new)].mean()
    assert costs[target, model.predict(new)].mean() < 0.8 * own


def grouped(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, classes and groups; the classes of the second group overlap more."""
    draw = np.random.default_rng(seed)
    y, g = (draw.random(n) < 0.3).astype(int), draw.integers(0, 2, n)
    signal = y * np.where(g == 0, 3.0, 1.0) + draw.normal(size=n)
    X = np.stack([signal, g + 0.5 * draw.normal(size=n)], axis=1)
    return np.c_[X, X[:, 0] * X[:, 1]], y, np.array(["a", "b"])[g]


def deo(predicted: np.ndarray, y: np.ndarray, g: np.ndarray) -> float:
    rates = [[np.mean(predicted[(g == i) & (y == j)] != j) for j in (0, 1)] for i in ("a", "b")]
    return float(np.ptp(rates, axis=0).sum())


def test_a_bound_between_groups_holds_without_groups_at_prediction() -> None:
    X, y, g = grouped(4000)
    new, target, group = grouped(10_000, seed=1)
    model = adjusted(objective="balanced_error where deo <= 0.1")
    model.fit(X, y, sensitive_features=g)
    assert model.groups_ == ["a", "b"]
    assert deo(adjusted().fit(X, y).predict(new), target, group) > 0.25
    assert deo(model.predict(new), target, group) < 0.17
    probabilities = model.predict_proba(new, prior="training")
    assert probabilities.shape == (10_000, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(new), model.predict(new))


# Refusals -------------------------------------------------------------------------------------


class Silent(ClassifierMixin, BaseEstimator):
    """Predicts, and scores nothing."""

    def fit(self, X: Any, y: Any) -> Silent:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        return np.repeat(self.classes_[:1], len(X))


class OneColumn(Silent):
    """Gives the probability of one class alone."""

    def predict_proba(self, X: Any) -> np.ndarray:
        return np.full((len(X), 1), 0.5)


X, Y = blobs(120)
HALVES = [(np.arange(60), np.arange(60, 120)), (np.arange(60, 120), np.arange(60))]


@pytest.mark.parametrize(
    ("options", "fit_options", "message"),
    [
        ({"estimator": Silent()}, {}, "neither predict_proba nor decision_function"),
        ({"cv": 1}, {}, "cv must be at least 2"),
        ({"cv": "three"}, {}, "cv must be"),
        ({"cv": KFold(3)}, {"y": np.repeat([0, 1, 2], 40)}, "no training example of class"),
        ({"cv": RepeatedKFold(n_splits=2, n_repeats=2)}, {}, "overlap"),
        ({"cv": ShuffleSplit(1, random_state=0)}, {}, "leaves .* without a score"),
        ({"cv": [*HALVES[:1], (np.arange(80), np.arange(60))]}, {}, "trains on .* that it holds"),
        ({"cv": [(np.arange(60), np.arange(60, 130))]}, {}, "row numbers from 0 to 119"),
        ({"cv": [(np.arange(60), np.arange(-60, 0))]}, {}, "row numbers from 0 to 119"),
        ({"cv": []}, {}, "leaves 120 rows without a score"),
        ({"estimator": OneColumn()}, {}, "one column per class, shape .40, 3.; got .40, 1."),
        ({"cv": "prefit"}, {}, "already fitted"),
        ({"estimator": KNeighborsClassifier()}, {"sample_weight": np.ones(120)}, "no sample_weight"),
        ({}, {"sample_weight": np.ones(7)}, "sample_weight has 7"),
        ({}, {"sample_weight": -np.ones(120)}, "none negative"),
        ({}, {"y": np.zeros(120)}, "one class only"),
        ({}, {"y": [None] * 120}, "missing label"),
        ({"objective": "worst_group_error"}, {}, "give sensitive_features"),
        ({"objective": "worst_group_error"}, {"sensitive_features": ["a"] * 120}, "one only"),
        (
            {"objective": "balanced_error where deo <= 0.1"},
            {"sensitive_features": np.where(Y == 2, "a", np.array(["a", "b"])[np.arange(120) % 2])},
            "Group b has 0 examples of class 2",
        ),
        (
            {"objective": "worst_group_error", "estimator": RidgeClassifier()},
            {"sensitive_features": np.array(["a", "b"])[np.arange(120) % 2]},
            "need probabilities",
        ),
        ({"objective": cost_matrix(1.0 - np.eye(2))}, {}, "there are 3 classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(
    options: dict[str, Any], fit_options: dict[str, Any], message: str
) -> None:
    given = {"y": Y, **fit_options}
    with pytest.raises(InputError, match=message):
        adjusted(options.pop("estimator", None), **options).fit(X, given.pop("y"), **given)


def test_labels_that_a_prefit_model_has_not_seen_are_refused() -> None:
    fitted = DecisionTreeClassifier().fit(X, np.minimum(Y, 1))
    with pytest.raises(InputError, match="class that training lacks: 2"):
        adjusted(fitted, cv="prefit").fit(X, Y)


def test_a_class_that_only_the_prefit_model_knows_is_refused() -> None:
    fitted = DecisionTreeClassifier().fit(X, Y)
    with pytest.raises(InputError, match=r"no example of 2\. Add"):
        adjusted(fitted, cv="prefit").fit(X[Y < 2], Y[Y < 2])


def test_splits_may_be_masks() -> None:
    first = np.arange(120) % 2 == 0
    masks = adjusted(cv=[(~first, first), (first, ~first)]).fit(X, Y)
    rows = adjusted(cv=[(np.flatnonzero(a), np.flatnonzero(~a)) for a in (~first, first)]).fit(X, Y)
    np.testing.assert_array_equal(masks.result_.scores, rows.result_.scores)


def test_groups_that_nothing_asks_for_are_ignored_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="does not look at groups"):
        adjusted().fit(X, Y, sensitive_features=np.arange(120) % 2)

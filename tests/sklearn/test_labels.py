"""The classifier on several labels, by scikit-learn's multilabel convention."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.utils.estimator_checks import (
    check_classifiers_multilabel_output_format_decision_function,
    check_classifiers_multilabel_output_format_predict,
    check_classifiers_multilabel_output_format_predict_proba,
    check_classifiers_multilabel_representation_invariance,
)
from torch import nn

from autobalance import (
    AutoBalanceClassifier,
    InputError,
    ParametricBinaryCrossEntropy,
    Recipe,
    SearchSettings,
)
from autobalance.calibration import label_probabilities


def table(n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 5)).astype(np.float32)
    mix = np.random.default_rng(99).normal(size=(5, 3))
    chance = 1 / (1 + np.exp(-(2.0 * X @ mix + np.array([-0.5, -2.5, -4.5]))))
    return X, (generator.random((n, 3)) < chance).astype(int)


def classifier(**options: Any) -> AutoBalanceClassifier:
    given = {"recipe": Recipe(epochs=1, min_steps=150), "random_state": 0, "device": "cpu"}
    return AutoBalanceClassifier(**{**given, "settings": SearchSettings(every=4), **options})


X, Y = table()
FITTED = classifier().fit(X, Y)


def test_predictions_are_as_scikit_learns_multilabel_classifiers_give_them() -> None:
    predicted, scores = FITTED.predict(X), FITTED.decision_function(X)
    assert predicted.dtype.kind == "i"
    assert predicted.shape == scores.shape == Y.shape
    assert np.array_equal(predicted, scores > 0)
    probabilities = FITTED.predict_proba(X)
    assert np.array_equal(probabilities > 0.5, scores > 0)
    assert FITTED.score(X, Y) == np.mean((predicted == Y).all(axis=1))
    assert np.array_equal(FITTED.classes_, [0, 1, 2])
    assert isinstance(FITTED.loss_, ParametricBinaryCrossEntropy)


def test_rare_labels_are_found() -> None:
    x, y = table(2000, seed=1)
    found = FITTED.predict(x)
    for j in range(3):
        assert found[y[:, j] == 1, j].mean() > 0.7
        assert found[y[:, j] == 0, j].mean() < 0.4


def test_probabilities_for_the_training_frequencies_are_calibrated() -> None:
    x, y = table(4000, seed=1)
    p = FITTED.predict_proba(x, prior="training")
    assert np.abs(p.mean(axis=0) - y.mean(axis=0)).max() < 0.05
    balanced = FITTED.predict_proba(x, prior="balanced")
    odds = np.log(Y.mean(axis=0) / (1 - Y.mean(axis=0)))
    np.testing.assert_allclose(
        np.log(balanced / (1 - balanced)), np.log(p / (1 - p)) - odds, rtol=1e-6
    )


def test_probabilities_undo_the_loss() -> None:
    """At the minimiser of the loss for a known chance they give the chance back."""
    loss = ParametricBinaryCrossEntropy([[0.5, 1.5], [2.0, 0.7]], [-1.0, 0.5], [0.8, 1.2]).double()
    chance = torch.tensor([[0.1, 0.6], [0.3, 0.9]]).double()
    f = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([f], max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0)

    def risk() -> Any:
        optimizer.zero_grad()
        each = ParametricBinaryCrossEntropy(*loss.parameters_of_loss, reduction="none")
        value = (
            chance * each(f, torch.ones(2, 2)) + (1 - chance) * each(f, torch.zeros(2, 2))
        ).sum()
        value.backward()
        return value

    optimizer.step(risk)
    p = label_probabilities(f, loss, [[9, 8], [1, 2]])
    torch.testing.assert_close(p, chance, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="differ between negatives and positives"):
        label_probabilities(
            f, ParametricBinaryCrossEntropy(None, [[0, 1], [1, 1]]), [[9, 8], [1, 2]]
        )


def test_tables_lists_and_entries_that_are_not_labelled() -> None:
    frame = pd.DataFrame(Y, columns=["a", "b", "c"])
    lists = Y.tolist()
    for y in (frame, lists):
        own = classifier().fit(X, y)
        assert np.array_equal(own.predict(X), FITTED.predict(X))
    gaps = Y.astype(float)
    gaps[::9, 1] = np.nan
    minus = np.where(np.isnan(gaps), -1, gaps).astype(int)
    first, second = (classifier().fit(X, y).predict(X) for y in (gaps, minus))
    assert np.array_equal(first, second)
    assert set(np.unique(first)) == {0, 1}


def test_weights_validation_and_own_networks() -> None:
    x, y = table(200, seed=2)
    own = classifier(
        module=lambda num_features, num_classes: nn.Linear(num_features, num_classes),
        objective="macro_f1",
    )
    own.fit(X, Y, sample_weight=np.ones(len(X)), validation=(x, y), test=(x, y))
    assert f1_score(y, own.predict(x), average="macro") > 0.4
    assert classifier(retrain="continue").fit(X, Y).predict(X).shape == Y.shape


def test_evaluation_has_the_errors_that_scikit_learn_measures() -> None:
    x, y = table(900, seed=3)
    gaps = y.copy()
    gaps[:100, 1] = -1
    report, predicted = FITTED.evaluate(x, gaps), FITTED.predict(x)
    for j in range(3):
        known = gaps[:, j] >= 0
        error = 1.0 - balanced_accuracy_score(y[known, j], predicted[known, j])
        assert report["class_errors"][j] == pytest.approx(error)
        assert report["class_n"][j] == y[known, j].sum()
    assert report["balanced_error"] == pytest.approx(np.mean(report["class_errors"]))
    assert report["worst_class_error"] == max(report["class_errors"])
    whole = FITTED.evaluate(x, y)["macro_f1_error"]
    assert whole == pytest.approx(1.0 - f1_score(y, predicted, average="macro"))
    weight = np.r_[np.full(300, 2), np.ones(300), np.zeros(300)]
    again = np.repeat(np.arange(900), weight.astype(int))
    weighed = FITTED.evaluate(x, y, sample_weight=weight)
    assert weighed["sign_wrong"] == FITTED.evaluate(x[again], y[again])["sign_wrong"]


def test_calibration_finds_the_temperature_at_any_frequencies() -> None:
    """Labels drawn from probabilities at a temperature of 2, some of whose positives are then left out."""
    x, _ = table(30_000, seed=4)
    own = copy.deepcopy(FITTED)
    own.temperature_ = 2.0
    p = own.predict_proba(x, prior="training")
    y = (np.random.default_rng(0).random(p.shape) < p).astype(int)
    assert own.calibrate(x, y).temperature_ == pytest.approx(2.0, abs=0.1)
    fewer = (y[:, 0] == 0) | (np.arange(len(y)) % 4 == 0)
    assert own.calibrate(x[fewer], np.where([[True, False, False]], y, -1)[fewer]).temperature_ == (
        pytest.approx(2.0, abs=0.15)
    )


def test_labels_of_a_frame_keep_their_names() -> None:
    own = classifier(recipe=Recipe(epochs=1, min_steps=20))
    assert own.fit(X, pd.DataFrame(Y, columns=["a", "b", "c"])).classes_.tolist() == ["a", "b", "c"]


def test_scikit_learns_tools_take_it() -> None:
    predicted = cross_val_predict(classifier(), X, Y, cv=2)
    assert predicted.shape == Y.shape
    grid = GridSearchCV(classifier(), {"recipe__lr": [0.002]}, scoring="f1_macro", cv=2).fit(X, Y)
    assert grid.best_score_ > 0.3
    assert clone(FITTED).get_params()["objective"] == "balanced_error"


@pytest.mark.parametrize(
    "check",
    [
        check_classifiers_multilabel_output_format_decision_function,
        check_classifiers_multilabel_output_format_predict,
        check_classifiers_multilabel_output_format_predict_proba,
        check_classifiers_multilabel_representation_invariance,
    ],
)
def test_scikit_learns_own_checks(check: Callable[..., None]) -> None:
    check("AutoBalanceClassifier", classifier(recipe=Recipe(epochs=1, min_steps=20)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier().fit(X, 2 * Y), "must be 0, 1"),
        (lambda: classifier().fit(X, Y.astype(str) + "x"), "0 or 1 for each label"),
        (lambda: classifier().fit(X, Y[:-1]), "one entry per example"),
        (lambda: classifier().fit(X, Y, sensitive_features=Y[:, 0]), "one class per example"),
        (lambda: classifier().fit(X, Y, validation=(X, Y[:, :2])), "expected 3"),
        (lambda: classifier().fit(X, Y, validation=(X, Y[:, 0])), "several labels"),
        (lambda: classifier().fit(X, np.c_[Y, np.zeros(len(Y))]), "no positive"),
        (lambda: classifier(objective="worst_group_error").fit(X, Y), "groups"),
        (lambda: FITTED.calibrate(X, Y[:, :2]), "fitted on 3 labels"),
        (lambda: FITTED.evaluate(X, Y[:, 0]), "fitted on 3 labels"),
        (lambda: FITTED.evaluate(X, Y, sensitive_features=Y[:, 0]), "one class per example"),
        (lambda: FITTED.calibrate(X, np.zeros_like(Y)), "both a positive and a negative"),
        (lambda: FITTED.evaluate(X, Y[:-1]), "one entry per example"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_the_page_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/tutorials/multi_label.md").read_text("utf-8")
    names: dict[str, object] = {}  # later blocks go on with what earlier ones made
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "multi_label.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "A loss designed for 3 labels" in printed
    assert "second" in printed

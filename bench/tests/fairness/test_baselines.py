"""Baselines on a table whose groups differ in their classes' frequencies and in their inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autobalance import InputError
from autobalance.bilevel.retraining import retrain
from autobalance.data.array_data import ArrayData
from autobalance.data.splits import stratified_folds
from autobalance.losses.modules import ParametricCrossEntropy
from autobalance.posthoc.expected_errors import evaluate_model, evaluate_probabilities
from autobalance.records.settings import Recipe
from autobalance_bench.comparison.methods import Task
from autobalance_bench.fairness.baselines import (
    METHODS,
    Base,
    _NetworkEstimator,
    exponentiated_gradient,
    group_weights,
    reweighing_weights,
    threshold_optimizer,
)

# Of fairlearn 0.15 with pandas 3.1, within exponentiated gradient.
pytestmark = pytest.mark.filterwarnings("ignore:Setting a:DeprecationWarning")

COUNTS = np.array([[600, 60], [300, 240]])
RECIPE = Recipe(epochs=4, min_steps=80, batch_size=64, lr=0.02)


def table(counts: np.ndarray = COUNTS, seed: int = 0) -> ArrayData:
    """Class means differ along the first input and more so in group 1; the second tells groups."""
    draw = np.random.default_rng(seed)
    cells = np.repeat(np.arange(counts.size), counts.ravel())
    groups, target = cells // counts.shape[1], cells % counts.shape[1]
    inputs = draw.normal(size=(len(cells), 4))
    inputs[:, 0] += 1.2 * target + groups * (0.8 * target + 0.4)
    inputs[:, 1] += 2.0 * groups
    return ArrayData.of(inputs, target, groups=groups)


def task(**changes: Any) -> Task:
    given = {"network": lambda: nn.Linear(4, 2), "data": table(), "recipe": RECIPE}
    return Task(**{**given, **changes})


@pytest.fixture(scope="module")
def unseen() -> ArrayData:
    return table(5 * COUNTS, seed=1)


@pytest.fixture(scope="module")
def unaware(unseen: ArrayData) -> Any:
    """Logit adjustment for the classes, which knows of no groups."""
    loss = ParametricCrossEntropy.logit_adjusted(task().class_counts)
    return evaluate_model(task().train(loss), unseen)


# Losses ---------------------------------------------------------------------------------------


def test_group_weights_by_hand() -> None:
    np.testing.assert_allclose(
        group_weights(np.array([[6, 2], [0, 4]])), [[12 / 18, 12 / 6], [1.0, 12 / 12]]
    )


def test_group_weights_make_all_cells_alike() -> None:
    np.testing.assert_allclose(group_weights(COUNTS) * COUNTS, COUNTS.sum() / 4)


def test_reweighing_by_hand() -> None:
    # P(group) is 0.4 and 0.6, P(class) 0.5 and 0.5.
    np.testing.assert_allclose(
        reweighing_weights(np.array([[3, 1], [2, 4]])),
        [[0.4 * 0.5 / 0.3, 0.4 * 0.5 / 0.1], [0.6 * 0.5 / 0.2, 0.6 * 0.5 / 0.4]],
    )


def test_reweighing_makes_group_and_class_independent_and_keeps_their_frequencies() -> None:
    counts = np.array([[10, 5, 1], [3, 3, 8]])
    mass = reweighing_weights(counts) * counts
    np.testing.assert_allclose(mass.sum(axis=0), counts.sum(axis=0))
    np.testing.assert_allclose(mass.sum(axis=1), counts.sum(axis=1))
    np.testing.assert_allclose(mass, np.outer(mass.sum(axis=1), mass.sum(axis=0)) / mass.sum())


def test_weights_of_empty_cells_are_usable() -> None:
    counts = np.array([[10, 0], [3, 8]])
    for weights in (group_weights(counts), reweighing_weights(counts)):
        assert weights[0, 1] == 1.0
        assert (weights > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_losses_train_any_number_of_classes(name: str) -> None:
    counts = np.array([[60, 30, 0], [20, 40, 10]])
    short = replace(RECIPE, min_steps=5, epochs=0.1)
    three = task(network=lambda: nn.Linear(4, 3), data=table(counts), recipe=short)
    trained = METHODS[name].run(three)
    assert trained.training_runs == 1.0
    assert evaluate_model(trained.model, three.data).errors.shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "weights"), [("group_weights", group_weights), ("reweighing", reweighing_weights)]
)
def test_weights_in_the_loss_are_weights_of_the_examples(
    name: str, weights: Callable[[np.ndarray], np.ndarray]
) -> None:
    problem = task()
    data = problem.data
    assert data.groups is not None
    by_example = torch.tensor(weights(COUNTS)).float()[data.groups, data.target]
    weighted = replace(data, sample_weight=by_example)
    expected = problem.train(ParametricCrossEntropy.cross_entropy(), weighted)
    model = METHODS[name].run(problem).model
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["group_logit_adjustment", "group_weights"])
def test_losses_that_balance_the_cells_spare_the_rare_ones(name: str, unseen: ArrayData) -> None:
    plain = task().train(ParametricCrossEntropy.cross_entropy())
    balanced = evaluate_model(METHODS[name].run(task()).model, unseen)
    before = evaluate_model(plain, unseen)
    assert balanced.group_balanced_error < before.group_balanced_error
    assert balanced.worst_class_and_group_error < before.worst_class_and_group_error - 0.2


# fairlearn's ----------------------------------------------------------------------------------


def test_a_reduction_bounds_the_training_data_s_differences() -> None:
    problem = task()
    bounds = (0.01, 0.1)
    all_found = exponentiated_gradient(problem, bounds, base="logistic")
    for found, eps in zip(all_found, bounds, strict=True):
        at = found.evaluate(problem.data)
        gap = found.details["gap"]
        # The paper's theorem: a violation of at most (1 + 2 gap) / B over the bound, B = 1 / eps.
        assert np.abs(at.errors - at.class_errors).max() <= eps + (1 + 2 * gap) * eps
        assert found.details["fits"] == found.training_runs >= found.details["classifiers"]


@pytest.mark.parametrize("base", ["logistic", "network"])
def test_a_reduction_trades_balanced_error_for_deo(
    base: Base, unseen: ArrayData, unaware: Any
) -> None:
    strict, loose = exponentiated_gradient(task(), (0.01, 0.2), base=base, share=1.0, max_iter=6)
    bound, free = strict.evaluate(unseen), loose.evaluate(unseen)
    assert bound.deo < free.deo - 0.05
    assert bound.deo < unaware.deo - 0.05
    assert bound.balanced_error < 0.4  # a constant prediction has 0.5
    assert free.balanced_error < unaware.balanced_error + 0.05
    assert base in strict.title
    assert strict.details["eps"] == 0.01
    assert strict.model is None


def test_boosting_is_a_base_learner_too() -> None:
    problem = task(data=table(COUNTS // 6))
    [found] = exponentiated_gradient(problem, [0.05], base="boosting", max_iter=1)
    mixture: Any = found.probabilities
    assert type(mixture.reduction.predictors_[0]).__name__ == "HistGradientBoostingClassifier"
    assert found.evaluate(problem.data).balanced_error < 0.2
    assert found.training_runs == found.details["fits"]


def test_a_network_s_cost_is_in_whole_recipes() -> None:
    [found] = exponentiated_gradient(task(), [0.1], base="network", share=0.25, max_iter=2)
    assert found.training_runs == 0.25 * found.details["fits"]


def test_a_reduction_s_probabilities_are_fairlearn_s_and_need_no_groups() -> None:
    problem = task()
    [found] = exponentiated_gradient(problem, [0.02], base="logistic")
    data = replace(problem.data, groups=None, num_groups=None)
    mixture: Any = found.probabilities
    theirs = mixture.reduction._pmf_predict(data.inputs.numpy())
    np.testing.assert_allclose(found.probabilities(data), theirs, atol=1e-12)
    assert not found.needs_groups
    assert found.details["classifiers"] > 1, "else there is nothing to draw"


def test_thresholds_equalise_the_odds(unseen: ArrayData, unaware: Any) -> None:
    found = threshold_optimizer(task(data=table(4 * COUNTS)))
    fair = found.evaluate(unseen)
    assert fair.deo < unaware.deo - 0.1
    assert fair.balanced_error < 0.4
    assert found.needs_groups
    assert "needs groups" in found.title


def test_the_network_under_the_thresholds_did_not_see_the_data_held_out_for_them() -> None:
    problem = task()
    found = threshold_optimizer(problem)
    assert found.model is not None
    generator = torch.Generator().manual_seed(problem.seed)
    fraction = problem.settings.validation_fraction
    [(train, _)] = stratified_folds(problem.data.cells(), fraction, 1, generator)
    split = problem.data.subset(train)
    loss = ParametricCrossEntropy.logit_adjusted(split.counts().sum(axis=0))
    expected = problem.train(loss, split)
    for ours, theirs in zip(found.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_predictions_by_group_need_known_groups(unseen: ArrayData) -> None:
    found = threshold_optimizer(task())
    with pytest.raises(InputError, match="give data with groups"):
        found.evaluate(replace(unseen, groups=None, num_groups=None))
    assert unseen.groups is not None
    with pytest.raises(InputError, match="no threshold for group 2"):
        found.evaluate(replace(unseen, groups=unseen.groups + 1, num_groups=3))


def test_both_are_repeatable(unseen: ArrayData) -> None:
    def results() -> list[np.ndarray]:
        reductions = exponentiated_gradient(task(), [0.05], base="network", share=0.1, max_iter=2)
        made = [*reductions, threshold_optimizer(task())]
        return [one.probabilities(unseen) for one in made]

    for first, second in zip(results(), results(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_base_learner_is_retrain_with_weights() -> None:
    data = table()
    weight = np.linspace(0.1, 2.0, len(data))
    estimator = _NetworkEstimator(lambda: nn.Linear(4, 2), RECIPE, 3, "cpu")
    estimator.fit(data.inputs.numpy(), data.target.numpy(), sample_weight=weight)
    plain = replace(data, groups=None, num_groups=None, sample_weight=torch.tensor(weight).float())
    loss = ParametricCrossEntropy.cross_entropy()
    expected = retrain(lambda: nn.Linear(4, 2), plain, loss, recipe=RECIPE, seed=3, device="cpu")
    one_hot = np.eye(2)[estimator.predict(data.inputs.numpy())]
    np.testing.assert_array_equal(
        evaluate_probabilities(one_hot, data).errors, evaluate_model(expected, data).errors
    )


# Bad input ------------------------------------------------------------------------------------

EVERY: dict[str, Callable[[Task], Any]] = {
    **{name: method.run for name, method in METHODS.items()},
    "exponentiated_gradient": exponentiated_gradient,
    "threshold_optimizer": threshold_optimizer,
}
FAIRLEARN = ["exponentiated_gradient", "threshold_optimizer"]


@pytest.mark.parametrize("name", EVERY)
def test_all_need_groups(name: str) -> None:
    data = replace(table(), groups=None, num_groups=None)
    with pytest.raises(InputError, match="for data with groups"):
        EVERY[name](task(data=data))


@pytest.mark.parametrize("name", FAIRLEARN)
def test_fairlearn_s_are_for_two_classes(name: str) -> None:
    with pytest.raises(InputError, match="two classes; got 3"):
        EVERY[name](task(data=table(np.full((2, 3), 10))))


@pytest.mark.parametrize("name", FAIRLEARN)
def test_without_fairlearn_they_name_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fairlearn", "fairlearn.reductions", "fairlearn.postprocessing"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install fairlearn"):
        EVERY[name](task())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "forest"}, "base must be one of boosting, logistic, network; got 'forest'"),
        ({"eps_values": (0.1, 0.0)}, "eps must lie strictly between 0 and 1; got 0.0"),
        ({"share": 1.5}, r"share must lie in \(0, 1\]; got 1.5"),
        ({"max_iter": 0}, "max_iter must be at least 1; got 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        exponentiated_gradient(task(), **options)


def test_a_reduction_takes_tables() -> None:
    images = replace(table(), inputs=torch.zeros(len(table()), 1, 2, 2))
    with pytest.raises(InputError, match=r"shape \(n, d\); got \(1200, 1, 2, 2\)"):
        exponentiated_gradient(task(data=images))


def test_thresholds_need_every_cell() -> None:
    with pytest.raises(InputError, match=r"in every group; got \[\[20, 0\], \[20, 20\]\]"):
        threshold_optimizer(task(data=table(np.array([[100, 2], [100, 100]]))))

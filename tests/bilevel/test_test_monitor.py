"""Test data watched during a search: what is measured, and that it guides nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from autobalance import AutoBalanceClassifier, Recipe, SearchSettings, search
from autobalance._validation import InputError
from autobalance.bilevel.result import SearchResult
from autobalance.bilevel.test_monitor import LOOKS, ObjectiveMonitor, is_look_due
from autobalance.data.array_data import ArrayData
from autobalance.objectives.registry import NAMED
from helpers import blobs, linear_factory

RECIPE = Recipe(epochs=1, min_steps=45, lr=0.05)


def searched(**given: Any) -> SearchResult:
    settings = SearchSettings(every=5, warmup=0.2)
    return search(
        linear_factory(), blobs(), recipe=RECIPE, settings=settings, seed=3, device="cpu", **given
    )


def test_the_value_is_the_hard_objective_of_all_networks_together() -> None:
    test = blobs((30, 20, 10), seed=5)
    networks = [torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)]
    errors = []
    for c in range(3):
        own = test.target == c
        guesses = [n(test.inputs[own]).argmax(dim=1) for n in networks]
        errors.append(float((torch.cat(guesses) != c).double().mean()))
    for name, expected in (("balanced_error", np.mean(errors)), ("worst_class_error", max(errors))):
        watch = ObjectiveMonitor(test, blobs(), NAMED[name])
        assert watch.evaluate(networks) == pytest.approx(expected)


def test_the_last_upper_step_is_looked_at_and_few_others() -> None:
    for of in (1, 7, 40, 79, 80, 500):
        looked = [step for step in range(1, of + 1) if is_look_due(step, of)]
        assert looked[-1] == of
        assert len(looked) <= 2 * LOOKS


def test_watching_changes_nothing_else_bit_for_bit_and_is_in_the_record() -> None:
    plain, watched = searched(), searched(test=blobs((50, 50, 50), seed=9))
    seen = [r.test_objective for r in watched.history]
    assert all(v is not None and 0.0 <= v <= 1.0 for v in seen)
    assert all(r.test_objective is None for r in plain.history)
    records = [json.loads(r.to_json()) for r in (plain, watched)]
    for record in records:
        del record["seconds"]
        for entry in record["history"]:
            del entry["test_objective"]
    assert records[0] == records[1]
    again = SearchResult.from_json(watched.to_json())
    assert [r.test_objective for r in again.history] == seen
    assert SearchResult.from_json(plain.to_json()).history == plain.history


def test_an_older_record_has_no_test_objective() -> None:
    record = searched().to_dict()
    for entry in record["history"]:
        del entry["test_objective"]
    found = SearchResult.from_dict(record)
    assert found.history[0].test_objective is None


@pytest.mark.parametrize(
    ("test", "objective", "message"),
    [
        (ArrayData.of(torch.zeros(2, 3), [0, 1], num_classes=3), "balanced_error", "same shape"),
        (ArrayData.of(torch.zeros(2, 2), [0, 3], num_classes=4), "balanced_error", "class 3"),
        ("text", "balanced_error", "test must be an ArrayData"),
    ],
)
def test_what_does_not_belong_together_is_refused(test: Any, objective: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        searched(test=test, objective=objective)


def test_an_objective_over_groups_needs_them_in_the_test_data() -> None:
    data = blobs(groups=True)
    with pytest.raises(InputError, match="the test data has none"):
        ObjectiveMonitor(blobs(), data, NAMED["worst_group_error"])
    watch = ObjectiveMonitor(data, data, NAMED["worst_group_error"])
    network = torch.nn.Linear(2, 3)
    wrong = network(data.inputs).argmax(dim=1) != data.target
    by_group = [float(wrong[data.groups == g].double().mean()) for g in (0, 1)]
    assert watch.evaluate([network]) == pytest.approx(max(by_group))


def test_the_estimator_numbers_the_test_data_as_the_training_data() -> None:
    data, other = blobs(), blobs((20, 20, 20), seed=4)
    names = np.array(["c", "a", "b"])
    model = AutoBalanceClassifier(recipe=RECIPE, random_state=0, device="cpu")
    model.fit(
        data.inputs.numpy(),
        names[data.target.numpy()],
        test=(other.inputs.numpy(), names[other.target.numpy()]),
    )
    assert model.result_.history[-1].test_objective is not None
    with pytest.raises(InputError, match=r"test must be \(X, y\)"):
        model.fit(data.inputs.numpy(), names[data.target.numpy()], test="other")

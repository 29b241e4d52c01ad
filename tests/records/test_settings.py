"""Recipes and search settings: the schedule, the records, the refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from autobalance._validation import InputError
from autobalance.records.settings import Recipe, SearchSettings


@pytest.mark.parametrize(
    ("epochs", "min_steps", "examples", "expected"),
    [(2.0, 1, 100, 20), (2.0, 50, 100, 50), (0.5, 1, 101, 6), (1.0, 1, 3, 1)],
)
def test_steps_round_up_and_have_a_floor(
    epochs: float, min_steps: int, examples: int, expected: int
) -> None:
    assert Recipe(epochs=epochs, min_steps=min_steps, batch_size=10).steps(examples) == expected


def test_the_default_of_a_large_table_sees_each_row_less_often() -> None:
    assert Recipe.for_rows(20_000) == Recipe()
    assert Recipe.for_rows(100_000) == Recipe(epochs=12, batch_size=512)
    rows = [10**3, 20_001, 10**5, 10**6, 10**7]
    seen = [round(Recipe.for_rows(n).epochs * n) for n in rows]
    assert seen == sorted(seen)
    million, ten_million = (Recipe.for_rows(n).steps(n) for n in rows[-2:])
    assert ten_million == pytest.approx(10 * million, abs=10)


@given(total=st.integers(1, 500), warmup=st.floats(0.0, 0.99))
def test_learning_rate_rises_to_its_peak_and_falls(total: int, warmup: float) -> None:
    recipe = Recipe(warmup=warmup)
    factors = [recipe.lr_factor(step, total) for step in range(total)]
    rise = max(1, round(warmup * total))
    assert all(0.0 < f <= 1.0 for f in factors)
    assert factors[rise - 1] == 1.0
    assert factors[:rise] == sorted(factors[:rise])
    assert factors[rise - 1 :] == sorted(factors[rise - 1 :], reverse=True)


def test_learning_rate_by_hand() -> None:
    recipe = Recipe(warmup=0.2)
    found = [recipe.lr_factor(step, 10) for step in (0, 1, 2, 6, 9)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0380602], abs=1e-6)


@pytest.mark.parametrize("settings", [Recipe(lr=0.1), SearchSettings(folds=3)], ids=str)
def test_records_go_through_json(settings: Recipe | SearchSettings) -> None:
    record = json.loads(json.dumps(settings.to_dict()))
    assert type(settings)(**record) == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0.0}, "epochs must be a finite number above 0; got 0.0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"lr": float("nan")}, "lr must be a finite number above 0; got nan"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be a finite number above 0"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd; got 'adam'"),
        ({"epochs": "3"}, "epochs must be a number; got '3'"),
        ({"batch_size": 12.5}, "batch_size must be a whole number; got 12.5"),
        ({"min_steps": 0}, "min_steps must be at least 1; got 0"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative; got -0.1"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\); got 1.0"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\); got 1.0"),
    ],
    ids=str,
)
def test_recipes_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction must lie strictly between 0 and 1"),
        ({"lr": 0.0}, "lr must be a finite number above 0"),
        ({"warmup": -0.1}, r"warmup must lie in \[0, 1\); got -0.1"),
        ({"average": 0.0}, r"average must lie in \(0, 1\]; got 0.0"),
        ({"folds": 0}, "folds must be at least 1; got 0"),
        ({"every": 0}, "every must be at least 1; got 0"),
        ({"validation_batch_size": 0}, "validation_batch_size must be at least 1; got 0"),
        ({"folds": 3, "validation_fraction": 0.4}, "3 folds of 0.4 each exceed the data"),
    ],
    ids=str,
)
def test_search_settings_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSettings(**given)


def test_folds_may_use_up_the_data() -> None:
    assert SearchSettings(folds=3, validation_fraction=1 / 3).folds == 3

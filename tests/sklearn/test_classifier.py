"""The scikit-learn face."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn
from torch.utils.data import Dataset

from autobalance import (
    AutoBalanceClassifier,
    BalancedError,
    DatasetData,
    InputError,
    Interrupted,
    Recipe,
    TrainingDiverged,
)
from autobalance.data.table_encoder import TableWarning
from autobalance.networks import TableNetwork
from autobalance.posthoc.fair_decisions import CellDecision, FairDecision
from autobalance.records import settings
from autobalance.records.error_table import ErrorTable
from sklearn import config_context

QUICK = Recipe(epochs=5, min_steps=30)


def classifier(**options: Any) -> AutoBalanceClassifier:
    options = {"recipe": QUICK, "device": "cpu", "random_state": 0, **options}
    return AutoBalanceClassifier(**options)


def imbalanced(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping blobs of 80, 15 and 5 percent."""
    generator = np.random.default_rng(seed)
    y = generator.choice(3, size=n, p=[0.8, 0.15, 0.05])
    y[:9] = np.repeat([0, 1, 2], 3)
    centres = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    return centres[y] + generator.normal(size=(n, 2)), y


EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "stochastic: a weighted example and a repeated one are drawn into different batches"
    )
}


@parametrize_with_checks(
    [classifier(recipe=Recipe(epochs=1, min_steps=20))],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_scikit_learn_checks(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


def test_learns_and_describes_itself() -> None:
    X, y = imbalanced()
    names = np.array(["a", "b", "c"])
    model = classifier(recipe=Recipe(epochs=30, min_steps=300)).fit(X, names[y])
    assert model.classes_.tolist() == ["a", "b", "c"]
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_array_equal(names[probabilities.argmax(axis=1)], model.predict(X))
    recalls = [np.mean(model.predict(X)[y == k] == names[k]) for k in range(3)]
    assert np.mean(recalls) > 0.8
    assert model.loss_.num_classes == 3
    assert model.result_.status == "finished"
    assert isinstance(model.module_, nn.Module)
    assert model.encoder_ is not None


def test_same_seed_same_bits_and_global_state_untouched() -> None:
    X, y = imbalanced()
    before = torch.random.get_rng_state()
    first, second = (classifier().fit(X, y) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    other = classifier(random_state=1).fit(X, y)
    assert np.abs(other.predict_proba(X) - first.predict_proba(X)).max() > 1e-3


def test_mixed_table_with_groups_validation_and_weights() -> None:
    X, y = imbalanced()
    table = pd.DataFrame(X, columns=["u", "v"])
    table["colour"] = np.where(X[:, 0] > 0, "red", None)
    table.loc[:5, "u"] = np.nan
    groups = pd.DataFrame({"sex": np.where(X[:, 1] > 0, "f", "m"), "old": y == 0})
    held = slice(0, 100)
    model = classifier(objective="group_balanced_error").fit(
        table,
        y,
        sensitive_features=groups,
        sample_weight=np.linspace(0.5, 1.5, len(y)),
        validation=(table[held], y[held], groups[held]),
    )
    assert model.groups_ == ["f, False", "f, True", "m, False", "m, True"]
    assert model.loss_.num_groups == 4
    assert model.feature_names_in_.tolist() == ["u", "v", "colour"]
    assert model.predict(table).shape == y.shape
    assert model.result_.settings["examples"] == 300
    assert np.sum(model.result_.settings["validation_counts"]) == 100


def categorical(n: int = 300) -> tuple[pd.DataFrame, np.ndarray]:
    """A table of a number and two columns of categories, one of them with more values than are kept."""
    X, y = imbalanced(n)
    table = pd.DataFrame({"u": X[:, 0]})
    table["sign"] = np.where(X[:, 1] > 0.5, "plus", None)
    table["name"] = [f"n{i % (n - 40)}" for i in range(n)]
    return table, y


def test_categories_as_codes_find_what_one_hot_columns_find() -> None:
    """Up to rounding: the same start, the same batches, the same steps of both levels."""
    table, y = categorical()

    def one_hot(num_features: int, num_classes: int) -> nn.Module:
        return TableNetwork(num_features, num_classes)

    codes, columns = classifier().fit(table, y), classifier(module=one_hot).fit(table, y)
    assert codes.encoder_ is not None
    assert columns.encoder_ is not None
    assert (codes.encoder_.num_features, columns.encoder_.num_features) == (3, 103)
    for name in ("additive", "multiplicative"):
        torch.testing.assert_close(
            getattr(codes.loss_, name), getattr(columns.loss_, name), rtol=1e-3, atol=1e-3
        )
    probabilities = [model.predict_proba(table) for model in (codes, columns)]
    np.testing.assert_allclose(*probabilities, atol=1e-2)


def test_augmented_tables_keep_one_hot_columns() -> None:
    table, y = categorical()
    model = classifier(augment="shared", arms=None).fit(table, y)
    assert model.encoder_ is not None
    assert model.encoder_.one_hot


def test_the_default_recipe_follows_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    table, y = categorical()
    model = classifier(recipe=None)
    model._training_data(table, y, None, None)
    assert model.recipe_ == Recipe()
    monkeypatch.setattr(settings, "MANY_ROWS", 250)
    model._training_data(table, y, None, None)
    assert model.recipe_ == Recipe(epochs=50, batch_size=512)
    for other in (classifier(), classifier(recipe=None, module=nn.Linear(102, 3))):
        other._training_data(table, y, None, None)
        assert other.recipe_ == (other.recipe or Recipe())
    # A batch larger than the data holds all of it.
    monkeypatch.setattr(
        Recipe.__init__, "__kwdefaults__", {**Recipe.__init__.__kwdefaults__, "min_steps": 30}
    )
    model = classifier(recipe=None, arms=None).fit(table, y)
    assert model.result_.settings["recipe"]["batch_size"] == 512
    assert model.predict(table).shape == y.shape


def test_images_with_an_own_module() -> None:
    generator = np.random.default_rng(0)
    y = np.repeat([0, 1], [60, 20])
    X = generator.normal(size=(80, 1, 6, 6)).astype(np.float32) + y[:, None, None, None]
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = classifier(module=network, recipe=Recipe(min_steps=300)).fit(X, y)
    assert model.score(X, y) > 0.9
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert model.encoder_ is None


def test_own_module_factory_is_told_the_sizes() -> None:
    X, y = imbalanced()
    asked = []

    def factory(num_features: int, num_classes: int) -> nn.Module:
        asked.append((num_features, num_classes))
        return nn.Linear(num_features, num_classes)

    classifier(module=factory, arms=None).fit(X, y)
    assert asked == [(2, 3), (2, 3)]  # once for the search, once for retraining


def test_pickle_clone_pipeline_and_grid_search() -> None:
    X, y = imbalanced()
    model = classifier().fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert clone(model).get_params() == model.get_params()
    pipeline = make_pipeline(StandardScaler(), classifier())
    name = "autobalanceclassifier__recipe"
    search = GridSearchCV(pipeline, {name: [QUICK, Recipe(epochs=10, min_steps=40)]}, cv=2)
    assert 0.0 <= search.fit(X, y).score(X, y) <= 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"y": np.r_[np.nan, np.ones(299)]},
            r"y has 1 missing label \(NaN\), the first at position 0",
        ),
        ({"y": np.ones(300)}, "one class only"),
        ({"y": np.array(["a"] * 300)}, "one class only, 'a'"),
        ({"y": np.linspace(0, 1, 300)}, r"y looks continuous \(such as .*pandas.cut"),
        ({"y": pd.Series(np.linspace(0, 1, 300), name="t")}, "target column 't' looks continuous"),
        ({"y": np.ones(299, int)}, "y has 299"),
        ({"X": pd.DataFrame({"a": []}), "y": []}, "X has no rows"),
        ({"X": np.zeros((300, 1, 4, 4))}, "X has 4 dimensions. .* AutoBalanceClassifier.module="),
        ({"X": np.full((300, 2), np.inf)}, r"'x0' has an infinite value \(inf\)"),
        (
            {"sensitive_features": [None] + [1] * 299},
            r"sensitive_features has 1 missing value \(the first at position 0\)",
        ),
        ({"sensitive_features": [1] * 299}, "sensitive_features has 299"),
        ({"sensitive_features": np.arange(300.0)}, "Bin a continuous column"),
        ({"sample_weight": -np.ones(300)}, "never negative"),
        ({"validation": (np.ones((3, 2)), [0, 1, 7])}, "y has a class that training lacks: 7"),
        ({"validation": np.ones((3, 2))}, "validation must be"),
    ],
)
def test_bad_input_to_fit(change: dict[str, Any], message: str) -> None:
    X, y = imbalanced()
    given = {"X": X, "y": y, **change}
    with pytest.raises(InputError, match=message):
        classifier().fit(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "accuracy"}, "objective must be one of balanced_error, .*; got 'accuracy'"),
        ({"objective": "worst_group_error"}, "over groups, but the data has none"),
        ({"random_state": -1}, "random_state must be .*; got -1"),
        (
            {"module": nn.Linear(2, 5)},
            "returns 5 logits for each example, but the data has 3 classes",
        ),
        ({"module": nn.Unflatten(1, (1, 2))}, "no trainable parameter"),
        ({"module": "mlp"}, "module must be a torch.nn.Module"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    X, y = imbalanced()
    with pytest.raises(InputError, match=message):
        classifier(**options).fit(X, y)


def test_non_finite_image_is_refused() -> None:
    X = np.zeros((20, 1, 4, 4), dtype=np.float32)
    X[3, 0, 0, 0] = np.nan
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(
        InputError, match=r"X must be finite in float32; found 1 NaN or infinite value\."
    ):
        classifier(module=network).fit(X, np.arange(20) % 2)


def test_prediction_checks_images_as_fitting_does() -> None:
    y = np.arange(20) % 2
    X = np.zeros((20, 1, 4, 4), dtype=np.float32) + y[:, None, None, None]
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 2))
    model = classifier(module=pooled).fit(X, y)
    assert model.input_shape_ == (1, 4, 4)
    for predict in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(InputError, match=r"found 4 NaN or infinite values\. Fill or drop"):
            predict(np.where(np.arange(4) == 1, np.nan, X)[:1])
        with pytest.raises(InputError, match=r"shape \(1, 8, 8\); .* fitted on \(1, 4, 4\)"):
            predict(np.zeros((3, 1, 8, 8)))
        with pytest.raises(ValueError, match="0 sample"):
            predict(X[:0])
    flat = classifier(module=lambda: nn.Linear(2, 2)).fit(np.ones((20, 2)) * y[:, None], y)
    assert flat.encoder_ is None
    with pytest.raises(InputError, match=r"fitted on \(2,\)"):
        flat.predict(np.zeros((3, 2, 2)))
    assert flat.input_shape_ == (2,)  # a refused prediction changes nothing


def test_one_group_serves_a_class_objective_but_no_group_objective() -> None:
    X, y = imbalanced()
    groups = np.repeat("a", 300)
    with pytest.raises(InputError, match=r"'worst_group_error' compares groups; .* only, 'a'"):
        classifier(objective="worst_group_error").fit(X, y, sensitive_features=groups)
    assert classifier().fit(X, y, sensitive_features=groups).loss_.num_groups == 1


def test_validation_set_that_lacks_a_class_is_warned_of_and_unseen_ones_score_0() -> None:
    X, y = imbalanced()
    kept = y < 2
    with pytest.warns(UserWarning, match="lacks 1 class of 3: 2. The objective says nothing"):
        model = classifier().fit(X, y, validation=(X[kept], y[kept]))
    assert model.score(X, np.full(300, 7)) == 0.0


@pytest.mark.filterwarnings("ignore:overflow")
def test_divergence_keeps_the_last_good_state() -> None:
    X, y = imbalanced()
    wild = Recipe(optimizer="sgd", lr=1e20, momentum=0.0, max_grad_norm=1e30, min_steps=200)
    model = classifier(recipe=wild, arms=None)
    with pytest.raises(TrainingDiverged, match=r"non-finite at step \d+ of \d+ .*lr=1e\+20"):
        model.fit(X, y)
    assert model.result_.status == "diverged"
    assert not hasattr(model, "module_")


def test_interrupt_while_retraining_keeps_loss_and_network() -> None:
    X, y = imbalanced()

    def stop(progress: Any) -> None:
        if progress.phase == "retrain":
            raise KeyboardInterrupt

    model = classifier(progress=stop)
    with pytest.raises(Interrupted):
        model.fit(X, y)
    assert model.result_.status == "finished"
    assert all(bool(torch.isfinite(p).all()) for p in model.module_.parameters())


# Names and positions, as in scikit-learn ------------------------------------------------------


def quick() -> AutoBalanceClassifier:
    """One whose fit costs nothing, for tests of what comes before and after it."""
    return classifier(recipe=Recipe(epochs=1, min_steps=10))


@pytest.mark.parametrize(
    ("fitted", "asked", "warning"),
    [
        (lambda X: pd.DataFrame(X), lambda X: X, None),
        (lambda X: X, lambda X: pd.DataFrame(X), None),
        (lambda X: X, lambda X: pd.DataFrame(X, columns=["a", "b"]), "X has feature names"),
        (lambda X: pd.DataFrame(X, columns=["a", "b"]), lambda X: X, "does not have valid feature"),
        (lambda X: X, lambda X: pl.DataFrame(X, schema=["a", "b"]), "X has feature names"),
        (
            lambda X: pd.DataFrame(X, columns=["a", "b"]),
            lambda X: pl.DataFrame(X, schema=["a", "b"]),
            None,
        ),
        (lambda X: pa.table({"a": X[:, 0], "b": X[:, 1]}), lambda X: X, "not have valid feature"),
        (
            lambda X: pd.DataFrame(X, columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
            lambda X: X,
            None,
        ),
    ],
)
def test_columns_are_matched_by_position(fitted: Any, asked: Any, warning: str | None) -> None:
    X, y = imbalanced()
    model = quick().fit(fitted(X), y)
    expected = quick().fit(X, y).predict_proba(X)
    with contextlib.ExitStack() as stack:
        if warning is not None:
            stack.enter_context(pytest.warns(UserWarning, match=warning))
        found = model.predict_proba(asked(X))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[["b", "a"]], "same order"),
        (lambda t: t.rename(columns={"b": "c"}), "feature names should match"),
        (lambda t: t[["a"]], "feature names should match"),
        (lambda t: t.assign(c=1.0), "feature names should match"),
        (lambda t: t.to_numpy()[:, :1], "1 features"),
    ],
)
def test_other_columns_are_refused_as_in_scikit_learn(change: Any, message: str) -> None:
    X, y = imbalanced()
    table = pd.DataFrame(X, columns=["a", "b"])
    ours, theirs = quick().fit(table, y), LogisticRegression().fit(table, y)
    given = change(table)
    for model in (ours, theirs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=message):
                model.predict(given)


def test_columns_of_one_name_are_refused() -> None:
    X, y = imbalanced()
    table = pd.DataFrame(X, columns=["a", "a"])
    with pytest.raises(InputError, match="'a' appears more than once"):
        quick().fit(table, y)


def test_nested_parameters() -> None:
    X, y = imbalanced()
    grid = {"recipe__lr": [1e-3, 1e-2], "settings__every": [5], "device": ["cpu"]}
    search = GridSearchCV(quick(), grid, cv=2).fit(X, y)
    assert search.best_estimator_.recipe.min_steps == 10
    assert search.best_estimator_.recipe.lr == search.best_params_["recipe__lr"]
    assert search.best_estimator_.settings.every == 5
    model = AutoBalanceClassifier()
    assert model.get_params()["recipe__lr"] == Recipe().lr
    assert model.set_params(recipe=QUICK, recipe__lr=0.5).recipe == replace(QUICK, lr=0.5)
    assert clone(model).recipe == model.recipe
    assert "recipe__lr" not in model.get_params(deep=False)
    with pytest.raises(ValueError, match="Invalid parameter"):
        model.set_params(recipe__speed=1)
    with pytest.raises(ValueError, match="Invalid parameter"):
        model.set_params(module__width=1)
    with pytest.raises(InputError, match="lr"):
        model.set_params(recipe__lr=-1.0)
    pipeline = make_pipeline(StandardScaler(), model)
    pipeline.set_params(autobalanceclassifier__recipe__lr=0.25)
    assert model.recipe.lr == 0.25


# Labels as what they are ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        lambda y: y.astype(float),
        lambda y: y.astype(object),
        lambda y: pd.Series(y, dtype="Int64"),
        lambda y: pd.Series(y, dtype="category"),
        lambda y: pl.Series(y),
        lambda y: pd.Series([Decimal(int(v)) for v in y]),
        lambda y: pd.Series([float(v) if i % 2 else int(v) for i, v in enumerate(y)], dtype=object),
    ],
)
def test_whole_numbers_are_one_label_in_every_type(labels: Any) -> None:
    X, y = imbalanced()
    model, plain = quick().fit(X, labels(y)), quick().fit(X, y)
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    assert plain.evaluate(X, labels(y))["error"] == plain.evaluate(X, y)["error"]
    assert model.evaluate(X, y)["error"] == plain.evaluate(X, y)["error"]


def test_text_that_looks_like_numbers_stays_text() -> None:
    X, y = imbalanced()
    text = np.array(["007", "7", "07"])[y]
    model = quick().fit(X, text)
    assert model.classes_.tolist() == ["007", "07", "7"]
    assert set(model.predict(X)) <= set(text)
    with pytest.raises(
        InputError, match=r"class that training lacks: 7; training has 007, 07, 7 as str"
    ):
        model.evaluate(X, np.full(len(y), 7))
    groups = np.where(X[:, 0] > 0, "01", "1")
    model.fit(X, y, sensitive_features=groups)
    assert model.groups_ == ["01", "1"]
    assert list(model.evaluate(X, y, sensitive_features=groups)["group_errors"]) == ["01", "1"]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1, "a"] * 150, "y holds mixed labels, numbers and text, such as 1 and 'a'"),
        ([1, "1"] * 150, "mixed labels"),
        ([True, "yes"] * 150, "mixed labels, booleans and text"),
        (pd.cut(np.linspace(0, 1, 300), 2), r"holds Interval, .*Make them text: y.astype\(str\)"),
        ([{"a": 1}, {"b": 2}] * 150, "holds dict"),
    ],
)
def test_labels_of_other_kinds_are_refused_in_one_line(y: Any, message: str) -> None:
    X, _ = imbalanced()
    if isinstance(y, list):
        y = pd.Series(y, dtype=object)
    with pytest.raises(InputError, match=message) as refused:
        quick().fit(X, y)
    assert "\n" not in str(refused.value)


def test_groups_of_several_columns_do_not_collide() -> None:
    X, y = imbalanced()
    first = np.where(X[:, 0] > 0, "a, b", "a")
    second = np.where(X[:, 0] > 0, "c", "b, c")
    third = np.where(X[:, 1] > 0, '"', "\\")
    for columns in ((first, second), (first, second, third)):
        groups = pd.DataFrame(dict(enumerate(columns)))
        model = quick().fit(X, y, sensitive_features=groups)
        assert len(model.groups_) == len(groups.drop_duplicates())
    numbers = pd.DataFrame({"a": np.where(X[:, 0] > 0, 1.0, 2.0), "b": X[:, 1] > 0})
    assert quick().fit(X, y, sensitive_features=numbers).groups_ == [
        "1, False",
        "1, True",
        "2, False",
        "2, True",
    ]
    bins = pd.cut(X[:, 0], [-9, 0, 9])
    assert quick().fit(X, y, sensitive_features=bins).groups_ == ["(-9, 0]", "(0, 9]"]
    mixed = pd.Series(np.where(X[:, 0] > 0, 1, 2), dtype=object)
    mixed[:50] = "1"
    with pytest.raises(InputError, match="holds 1 as a number and as text"):
        quick().fit(X, y, sensitive_features=mixed)
    for frame in (pl.DataFrame({"a": first, "b": second}), pa.table({"a": first, "b": second})):
        assert len(quick().fit(X, y, sensitive_features=frame).groups_) == 2


def test_what_the_table_told_is_a_warning_and_an_attribute() -> None:
    X, y = imbalanced()
    table = pd.DataFrame({"x": X[:, 0], "id": np.arange(len(y)), "leak": y})
    with pytest.warns(TableWarning) as told:
        model = quick().fit(table, y)
    notes = [str(w.message) for w in told]
    assert notes == model.encoder_.notes
    assert "'id' looks like a row number" in notes[0]
    assert "'leak' alone decides the target" in notes[1]


# Groups ---------------------------------------------------------------------------------------


def by_site(n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(2)
    X = generator.normal(size=(n, 3))
    y = (X[:, 0] + 0.5 * generator.normal(size=n) > 0.6).astype(int)
    return X, y, np.where(X[:, 1] > 0, "north", "south")


def test_groups_come_in_any_form() -> None:
    X, y, site = by_site()
    rank = (X[:, 2] > 0).astype(int)
    joined = [f"{a}, {b}" for a, b in zip(site, rank, strict=True)]
    forms = [
        site,
        site.tolist(),
        pd.Series(site, index=range(300, 0, -1)),
        pd.Series(site, dtype="category"),
        pd.DataFrame({"site": site}),
    ]
    fitted = [
        classifier(objective="group_balanced_error").fit(X, y, sensitive_features=f) for f in forms
    ]
    assert all(m.groups_ == ["north", "south"] for m in fitted)
    assert all(m.loss_.to_dict() == fitted[0].loss_.to_dict() for m in fitted)
    both = pd.DataFrame({"site": site, "rank": rank})
    for form in (joined, both, np.column_stack([site, rank])):
        model = classifier(objective="group_balanced_error").fit(X, y, sensitive_features=form)
        assert model.groups_ == ["north, 0", "north, 1", "south, 0", "south, 1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sensitive_features": "holes"},
            r'3 missing values \(the first at position 4\).*"unknown"',
        ),
        ({"sensitive_features": "nothing"}, "has missing values only. Leave it out"),
        ({"sensitive_features": "continuous"}, r"300 different values .* \(pandas.cut\)"),
        ({"sensitive_features": "labels"}, "Each group is one class, and each class one group"),
        ({"validation": "new"}, "sensitive_features has a group that training lacks: west"),
        ({"validation": "none"}, "validation needs sensitive_features too"),
    ],
)
def test_groups_refused(change: dict[str, str], message: str) -> None:
    X, y, site = by_site()
    columns: dict[str, Any] = {
        "holes": pd.Series(site).where(~np.isin(np.arange(300), [4, 7, 9])),
        "nothing": [None] * 300,
        "continuous": X[:, 1],
        "labels": np.where(y == 1, "yes", "no"),
        "new": (X, y, np.where(X[:, 2] > 1, "west", site)),
        "none": (X, y),
    }
    given = {"sensitive_features": site} | {key: columns[name] for key, name in change.items()}
    missing = "unknown" if change.get("sensitive_features") == "nothing" else "refused"
    with pytest.raises(InputError, match=message):
        classifier(objective="group_balanced_error", missing_groups=missing).fit(X, y, **given)


def test_a_group_absent_from_validation_is_told_of() -> None:
    X, y, site = by_site()
    north = site == "north"
    with pytest.warns(UserWarning, match="lacks 1 group of 2: south. The objective says nothing"):
        classifier().fit(
            X, y, sensitive_features=site, validation=(X[north], y[north], site[north])
        )


def test_unknown_groups() -> None:
    X, y, site = by_site()
    some = np.where(X[:, 2] > 0.5, None, site)
    model = classifier(objective="group_balanced_error", missing_groups="unknown")
    for validation in (None, (X, y, some)):
        model.fit(X, y, sensitive_features=some, validation=validation)
        assert model.groups_ == ["north", "south"]
        assert model.loss_.num_groups == 3
        assert model.result_.settings["class_counts"][2] == np.bincount(y[X[:, 2] > 0.5]).tolist()
        assert np.shape(model.result_.settings["validation_counts"]) == (2, 2)
    with pytest.raises(InputError, match="missing_groups must be one of refused, unknown"):
        classifier(missing_groups="guess").fit(X, y, sensitive_features=some)


def test_groups_in_validation_only() -> None:
    X, y, site = by_site()
    model = classifier(objective="worst_group_error").fit(X, y, validation=(X, y, site))
    assert model.groups_ is None
    assert model.loss_.num_groups is None
    assert np.shape(model.result_.settings["validation_counts"]) == (2, 2)
    assert model.score(X, y) > 0.5


def test_groups_given_to_predict_are_ignored_and_that_is_said() -> None:
    X, y, site = by_site()
    model = classifier().fit(X, y, sensitive_features=site)
    for name in ("predict", "predict_proba", "decision_function"):
        method = getattr(model, name)
        with pytest.warns(UserWarning, match="need no groups: sensitive_features is ignored"):
            found = method(X, sensitive_features=site)
        np.testing.assert_array_equal(found, method(X))
    with pytest.warns(UserWarning, match="sensitive_features is ignored"):
        assert model.score(X, y, sensitive_features=site) == model.score(X, y)


def test_groups_are_routed_through_a_pipeline_and_a_cross_validation() -> None:
    X, y, site = by_site()
    plain = make_pipeline(StandardScaler(), classifier(objective="worst_group_error"))
    plain.fit(X, y, autobalanceclassifier__sensitive_features=site)
    with config_context(enable_metadata_routing=True):
        step = classifier(objective="worst_group_error").set_fit_request(sensitive_features=True)
        routed = make_pipeline(StandardScaler(), step).fit(X, y, sensitive_features=site)
        with pytest.warns(UserWarning, match="sensitive_features is ignored"):
            found = routed.predict(X, sensitive_features=site)
        scores = cross_val_score(step, X, y, params={"sensitive_features": site}, cv=2)
    assert routed[-1].groups_ == ["north", "south"]
    np.testing.assert_array_equal(found, plain.predict(X))
    assert len(scores) == 2


# The frontier ---------------------------------------------------------------------------------


def by_sex(n: int = 400) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Two classes, the positive one rarer among women; sex is no feature."""
    generator = np.random.default_rng(1)
    sex = generator.choice(["f", "m"], size=n)
    y = np.where(generator.random(n) < np.where(sex == "f", 0.2, 0.5), "high", "low")
    x = generator.normal(size=n) + 1.5 * (y == "high")
    return pd.DataFrame({"x": x, "size": x + 0.5 * (sex == "f")}), y, sex


def test_a_frontier_from_tables_and_the_network_of_a_point() -> None:
    X, y, sex = by_sex()
    model = classifier()
    swept = model.frontier(X, y, sensitive_features=sex, mixes=[0.0, 0.4])
    assert (swept.main, swept.gap) == ("balanced_error", "deo")
    assert not hasattr(model, "module_")
    again = classifier().frontier(X, y, sensitive_features=sex, mixes=[0.0, 0.4])
    assert [vars(p) | {"loss": p.loss.to_dict()} for p in again.points] == [
        vars(p) | {"loss": p.loss.to_dict()} for p in swept.points
    ]
    titles = [b.title for b in model.baselines(swept, X, y, sensitive_features=sex)]
    assert titles == ["cross-entropy", "logit adjustment", "logit adjustment by group"]

    point = swept.points[1]
    assert model.fit_point(swept, point, X, y, sensitive_features=sex) is model
    assert model.groups_ == ["f", "m"]
    assert model.loss_ is point.loss
    assert model.result_.settings["objective"] == "0.6 * balanced_error + 0.4 * deo"
    predicted = model.predict(X)
    assert set(predicted) == {"high", "low"}
    other = classifier().fit_point(swept, swept.points[0], X, y, sensitive_features=sex)
    assert not np.array_equal(other.predict_proba(X), model.predict_proba(X))
    twin = classifier().fit_point(swept, point, X, y, sensitive_features=sex)
    np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize(
    ("options", "groups", "message"),
    [
        ({}, None, "compares groups, but the data has none. Pass groups"),
        ({}, "one", "The gap 'deo' compares groups; sensitive_features has one only, 'one'"),
        ({}, "many", r"400 different values .* Bin a continuous column first \(pandas.cut\)"),
        ({"objective": BalancedError()}, "sex", "main must be one of .*; got BalancedError"),
        ({"objective": "deo"}, "sex", "main must not be a gap"),
    ],
)
def test_a_frontier_refused(options: dict[str, Any], groups: Any, message: str) -> None:
    X, y, sex = by_sex()
    columns = {None: None, "one": ["one"] * 400, "many": X["x"], "sex": sex}
    with pytest.raises(InputError, match=message):
        classifier(**options).frontier(X, y, sensitive_features=columns[groups])


# Decisions under a bound -----------------------------------------------------------------------


def test_a_decision_is_predicted_by_without_groups() -> None:
    draw = np.random.default_rng(0)
    y, group = draw.integers(0, 2, 1200), draw.choice(["a", "b"], 1200)
    own = np.where(group == "a", 2.0, 0.5) * (2 * y - 1) + draw.normal(size=1200)
    X = np.stack([own, (group == "a") + 0.3 * draw.normal(size=1200)], axis=1)
    labels = np.where(y == 1, "yes", "no")
    model = AutoBalanceClassifier(recipe=Recipe(epochs=1, min_steps=60), random_state=0)
    learned = model.cell_posterior(X, labels, sensitive_features=group)
    free = learned.within(2.0)
    bounded = learned.within(0.5 * free.held_out.deo)
    assert bounded.objective.startswith("balanced_error where deo <= ")
    model.fit_decision(learned, bounded)
    assert model.result_.settings["objective"] == bounded.objective
    predicted = model.predict(X)
    assert set(predicted) == {"no", "yes"}
    tables = [
        [(predicted[(group == g) & (labels == c)] != c).mean() for g in "ab"] for c in ("no", "yes")
    ]
    assert sum(abs(a - b) for a, b in tables) < 0.75 * free.held_out.deo
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    network = copy.deepcopy(bounded.network)
    encoded = torch.from_numpy(model.encoder_.transform(pd.DataFrame(X, columns=["x0", "x1"])))
    with torch.no_grad():
        np.testing.assert_allclose(p, network.probabilities(encoded).numpy(), atol=1e-6)
    balanced = model.predict_proba(X, prior="balanced")
    rest = (y == 0).mean() / (y == 1).mean()
    expected = p[:, 1] * rest / (p[:, 1] * rest + p[:, 0])
    np.testing.assert_allclose(balanced[:, 1], expected, atol=1e-6)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict(X) == predicted).all()


def test_a_decision_of_other_data_is_refused() -> None:
    model = AutoBalanceClassifier(recipe=Recipe(epochs=1, min_steps=5))
    decided = FairDecision(
        CellDecision(torch.nn.Linear(2, 6), np.ones((1, 3, 2))),
        ErrorTable.from_rates(np.zeros((3, 2)), np.ones((3, 2))),
        "worst_class_and_group_error",
    )
    learned: Any = None  # not looked at before it is refused
    with pytest.raises(InputError, match="3 groups and 2 classes, the classifier knows 0 and 0"):
        model.fit_decision(learned, decided)
    with pytest.raises(InputError, match="groups"):
        model.cell_posterior(np.eye(4), [0, 1, 0, 1], sensitive_features=None)


def test_frontiers_refuse_an_augmentation_that_they_would_not_use() -> None:
    model = classifier(augment="shared")
    X, y = imbalanced()
    groups = np.arange(len(y)) % 2
    for call in (model.frontier, model.cell_posterior):
        with pytest.raises(InputError, match=r"trains without augmentation, .* augment='shared'"):
            call(X, y, sensitive_features=groups)


class Points(Dataset[Any]):
    """The points of `imbalanced` as a Dataset, which names its classes by numbers."""

    def __init__(self) -> None:
        X, self.targets = imbalanced()
        self.X = torch.from_numpy(X.astype(np.float32))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.X[index], int(self.targets[index])


COLLAPSE = "ignore:At the end of the search the network predicts class"


@pytest.mark.filterwarnings(COLLAPSE)  # quick as they are, these say nothing of what is learned
def test_a_dataset_is_fitted_and_predicted_as_its_arrays() -> None:
    points = Points()
    X, y = points.X.numpy(), points.targets
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    own, ours = (classifier(module=network).fit(*given) for given in ((points,), (X, y)))
    assert own.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(own.predict_proba(points), ours.predict_proba(X))
    np.testing.assert_array_equal(own.predict(points), own.predict(X))
    assert own.score(points) == own.score(X, y)
    assert own.evaluate(points)["balanced_error"] == ours.evaluate(X, y)["balanced_error"]
    workers = classifier(module=network).fit(
        DatasetData.of(points, num_workers=1), validation=points, test=(points, y)
    )
    assert workers.result_.settings["validation_counts"] == np.bincount(y).tolist()


@pytest.mark.filterwarnings(COLLAPSE)
def test_labels_and_groups_beside_a_dataset() -> None:
    points = Points()
    names = np.array(["b", "c", "a"])[points.targets]
    groups = np.where(points.X[:, 1] > 0, "f", "m")
    model = classifier(objective="worst_group_error", module=nn.Linear(2, 3))
    model.fit(points, names, sensitive_features=groups)
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.groups_ == ["f", "m"]
    numbered = DatasetData.of(points, groups=(points.X[:, 1] > 0).long())
    assert classifier(module=nn.Linear(2, 3)).fit(numbered).groups_ == ["0", "1"]
    with pytest.raises(InputError, match=r"label 0 in its item, but 1 in the target"):
        classifier(module=nn.Linear(2, 3)).fit(points, (points.targets + 1) % 3)
    with pytest.raises(InputError, match=r"X is a Dataset.*module="):
        classifier().fit(points)
    with pytest.raises(InputError, match="fitted on a table"):
        classifier().fit(points.X.numpy(), points.targets).predict(points)

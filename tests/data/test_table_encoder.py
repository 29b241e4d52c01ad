"""The encoder between a table and the network."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings, strategies as st

from autobalance._validation import InputError
from autobalance.data import table_encoder
from autobalance.data.table_encoder import MAX_CATEGORIES, TableEncoder, TableWarning
from autobalance.data.tables import read_table


def mixed() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [20.0, 30.0, np.nan, 50.0],
            "income": [1, 2, 3, 4],
            "town": ["A", "B", None, "A"],
            "owner": [True, False, True, False],
        }
    )


def test_encoding_by_hand() -> None:
    numbers = TableEncoder().fit(mixed()).transform(mixed())
    age = np.array([20.0, 30.0, 50.0])
    scaled = (age - age.mean()) / age.std()
    expected_age = [scaled[0], scaled[1], 0.0, scaled[2]]
    np.testing.assert_allclose(numbers[:, 0], expected_age, rtol=1e-6)
    np.testing.assert_allclose(numbers[:, 1], (np.arange(4) - 1.5) / np.std(range(4)), rtol=1e-6)
    np.testing.assert_array_equal(numbers[:, 2], [1, -1, 1, -1])  # a boolean is a number
    np.testing.assert_array_equal(numbers[:, 3], [0, 0, 1, 0])  # age was missing
    # Categories in alphabetical order: <missing>, A, B.
    expected = [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    np.testing.assert_array_equal(numbers[:, 4:], expected)
    assert numbers.dtype == np.float32


def test_state_travels_as_json() -> None:
    encoder = TableEncoder().fit(mixed())
    again = TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    np.testing.assert_array_equal(again.transform(mixed()), encoder.transform(mixed()))
    assert again.num_features == encoder.num_features == 7


@pytest.mark.parametrize("columns", [["age", "income"], ["town", "owner"]])
def test_only_numbers_or_only_categories(columns: list[str]) -> None:
    encoder = TableEncoder().fit(mixed()[columns])
    again = TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    shown = again.transform(mixed()[columns])
    assert shown.shape == (4, encoder.num_features)


def test_unseen_category_and_newly_missing_number_are_no_error() -> None:
    table = mixed()
    encoder = TableEncoder().fit(table)
    other = table.assign(town=["Z"] * 4, income=[np.nan] * 4)
    with pytest.warns(TableWarning, match="100 % of its values") as told:
        numbers = encoder.transform(other)
    assert {re.findall("'(.*)'", str(w.message))[0] for w in told} == {"town", "income"}
    np.testing.assert_array_equal(numbers[:, 4:], 0.0)
    np.testing.assert_array_equal(numbers[:, 1], 0.0)


def test_outliers_are_limited_and_all_missing_columns_are_constant() -> None:
    table = pd.DataFrame({"x": [0.0, 1.0, 2.0], "nothing": [np.nan] * 3})
    encoder = TableEncoder().fit(table)
    numbers = encoder.transform(table.assign(x=[1e30, -1e30, 1.0]))
    np.testing.assert_allclose(numbers[:, 0], [10.0, -10.0, 0.0], atol=1e-6)
    assert np.isfinite(numbers).all()


def test_rare_categories_are_left_out() -> None:
    names = [f"n{i:03d}" for i in range(MAX_CATEGORIES + 20)]
    table = pd.DataFrame({"name": names + names[:MAX_CATEGORIES]})
    encoder = TableEncoder().fit(table)
    assert encoder.categories["name"] == names[:MAX_CATEGORIES]


def test_unusable_columns_are_named() -> None:
    table = mixed()
    encoder = TableEncoder().fit(table)
    with pytest.raises(InputError, match="lacks 2 columns of the training table: age, town"):
        encoder.transform(table.drop(columns=["age", "town"]))
    with pytest.raises(InputError, match="'income' was numeric in training, but now holds text"):
        encoder.transform(table.assign(income=["a", "b", "c", "d"]))
    with pytest.raises(InputError, match=r"'age' has an infinite value \(inf\)"):
        encoder.transform(table.assign(age=np.inf))
    with pytest.raises(InputError, match="no feature column left"):
        TableEncoder().fit(table[[]])
    with pytest.raises(InputError, match="not a table encoder"):
        TableEncoder.from_dict({"format": "other"})


def test_codes_are_the_positions_of_the_one_hot_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_encoder, "BLOCK", 3)  # fewer rows than there are
    one_hot, coded = (TableEncoder(one_hot=kind).fit(mixed()) for kind in (True, False))
    assert coded.code_sizes == [3]
    assert one_hot.code_sizes == []
    other = mixed().assign(town=["B", "Z", None, "Z"])
    columns, codes = one_hot.transform(other), coded.transform(other)
    np.testing.assert_array_equal(codes[:, :4], columns[:, :4])
    np.testing.assert_array_equal(codes[:, 4], [2, -1, 0, -1])
    np.testing.assert_array_equal(columns[:, 4:], codes[:, 4:] == np.arange(3))
    again = TableEncoder.from_dict(json.loads(json.dumps(coded.to_dict())))
    np.testing.assert_array_equal(again.transform(other), codes)
    assert again.num_features == codes.shape[1] == 5
    raw = torch.from_numpy(coded.raw(other))
    np.testing.assert_array_equal(coded.as_module()(raw.float()), codes)


def test_a_column_of_many_values_is_read_at_once() -> None:
    """Had each value its own pass over the rows, this would take hours."""
    n = 100_000
    names = np.array([f"n{i % (n - 50):06d}" for i in range(n)], dtype=object)
    weight = np.where(np.arange(n) < 100, 2.0, 1.0)
    encoder = TableEncoder(one_hot=False).fit(pd.DataFrame({"name": names}), None, weight)
    assert encoder.categories["name"] == names[:MAX_CATEGORIES].tolist()
    codes = encoder.encode(encoder.raw(pd.DataFrame({"name": names[:102]})))
    np.testing.assert_array_equal(codes[:, 0], [*range(100), -1, -1])


def test_equal_objects_of_other_kinds_stay_apart() -> None:
    frame = pd.DataFrame({"a": np.array([1, True, "1", "x", None] * 10, dtype=object)})
    encoder = TableEncoder().fit(frame)
    assert encoder.categories["a"] == ["1", "<missing>", "True", "x"]


# The same rows in any container ----------------------------------------------------------------

Rows = dict[str, list[Any]]


def through_file(rows: Rows, suffix: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table{suffix}"
        frame = pd.DataFrame(rows)
        frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
        return read_table(path)


def as_objects(rows: Rows) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(v, dtype=object) for name, v in rows.items()})


def spelled(rows: Rows, write: Callable[[float], str]) -> pd.DataFrame:
    texts = [None if v is None else write(v) for v in rows["amount"]]
    return as_objects({**rows, "amount": texts})


def arrow(rows: Rows) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in rows.items()})


def comma(text: str) -> str:
    return text.translate(str.maketrans(",.", ".,"))


CONTAINERS: dict[str, Callable[[Rows], Any]] = {
    "pandas": pd.DataFrame,
    "objects": as_objects,
    "nullable": lambda rows: pd.DataFrame(rows).convert_dtypes(),
    "pandas of arrow": lambda rows: arrow(rows).to_pandas(types_mapper=pd.ArrowDtype),
    "categories": lambda rows: pd.DataFrame(rows).astype({"town": "category"}),
    "polars": pl.DataFrame,
    "polars categories": lambda rows: pl.DataFrame(rows).cast({"town": pl.Categorical}),
    "polars decimals": lambda rows: pl.DataFrame(rows).cast({"amount": pl.Decimal(12, 2)}),
    "arrow": arrow,
    "arrow dictionary": lambda rows: arrow(rows).set_column(
        2, "town", pa.array(rows["town"]).dictionary_encode()
    ),
    "Decimal": lambda rows: as_objects(
        {**rows, "amount": [None if v is None else Decimal(f"{v:.2f}") for v in rows["amount"]]}
    ),
    "Parquet": lambda rows: through_file(rows, ".parquet"),
    "strings": lambda rows: spelled(rows, lambda v: f"{v:.2f}"),
    "thousands": lambda rows: spelled(rows, lambda v: f"{v:,.2f}"),
    "decimal commas": lambda rows: spelled(rows, lambda v: comma(f"{v:,.2f}")),
    "dollars": lambda rows: spelled(rows, lambda v: f"${v:,.2f}" if v >= 0 else f"-${-v:,.2f}"),
    "percent": lambda rows: spelled(rows, lambda v: f"{v:.2f} %"),
}


def plain_reference(rows: Rows) -> np.ndarray:
    """The encoded matrix by its definition, value by value."""
    parts = []
    for name in ("amount", "owner"):
        values = [np.nan if v is None else float(v) for v in rows[name]]
        known = np.array([v for v in values if not np.isnan(v)])
        scale = known.std() if len(known) and known.std() > 1e-12 * abs(known.mean()) else 1.0
        parts.append([0.0 if np.isnan(v) else (v - known.mean()) / scale for v in values])
    for name in ("amount", "owner"):
        if None in rows[name]:
            parts.append([float(v is None) for v in rows[name]])
    towns = ["<missing>" if v is None else v for v in rows["town"]]
    parts += [[float(t == town) for t in towns] for town in sorted(set(towns))]
    return np.clip(np.array(parts, dtype=float).T, -10, 10)


amounts = st.integers(-(10**7), 10**7).map(lambda cents: cents / 100)
rows_of_tables = st.lists(
    st.tuples(st.none() | amounts, st.none() | st.booleans(), st.none() | st.sampled_from("abc")),
    min_size=4,
    max_size=12,
).map(
    lambda rows: {
        # One of each kind is known, so that a column has a type in every container.
        "amount": [-1234.5, 7.25, *(r[0] for r in rows)],
        "owner": [True, False, *(r[1] for r in rows)],
        "town": ["a", "b", *(r[2] for r in rows)],
    }
)


@settings(max_examples=25, deadline=None)
@given(rows=rows_of_tables)
def test_the_same_rows_are_the_same_matrix_in_every_container(rows: Rows) -> None:
    expected = TableEncoder().fit(pd.DataFrame(rows)).transform(pd.DataFrame(rows))
    np.testing.assert_allclose(expected, plain_reference(rows), atol=1e-5)
    fitted = TableEncoder().fit(pd.DataFrame(rows))
    for name, build in CONTAINERS.items():
        frame = build(rows)
        encoder = TableEncoder().fit(frame)
        np.testing.assert_array_equal(encoder.transform(frame), expected, err_msg=name)
        if name not in ("thousands", "decimal commas", "dollars", "percent"):
            np.testing.assert_array_equal(fitted.transform(frame), expected, err_msg=name)
        # The program of an exported file is the encoder.
        with torch.no_grad():
            layer = encoder.as_module()(torch.from_numpy(encoder.raw(frame)))
        np.testing.assert_array_equal(layer.numpy(), expected, err_msg=name)


def test_a_file_of_csv_holds_the_same_rows() -> None:
    rows = {
        "amount": [-1234.5, 7.25, None, 3.0],
        "owner": [True, False, None, True],
        "town": ["a", None, "b", "a"],
    }
    expected = TableEncoder().fit(pd.DataFrame(rows)).transform(pd.DataFrame(rows))
    read = through_file(rows, ".csv")
    np.testing.assert_array_equal(TableEncoder().fit(read).transform(read), expected)


# What to be careful about ----------------------------------------------------------------------

N = 40
DRAW = np.random.default_rng(0)
TARGET = (np.arange(N) % 3 == 0).astype(int)


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("id", np.arange(N), "looks like a row number: it counts the rows"),
        ("id", DRAW.permutation(N) + 1, "looks like a row number: it counts the rows"),
        ("", np.arange(N) // 2, "has no name and holds whole numbers"),
        ("Unnamed: 0", 3 * np.arange(N), "has no name and holds whole numbers"),
        ("key", 1000 + 7 * np.arange(N), "looks like a row number or an identifier"),
        ("key", [str(7 * i + 1) for i in range(N)], "looks like a row number or an identifier"),
        ("copy", TARGET, "alone decides the target"),
        ("complement", 1.0 - TARGET, "alone decides the target"),
        ("names", np.where(TARGET == 1, "yes", "no"), "alone decides the target"),
        ("flag", TARGET == 1, "alone decides the target"),
        ("filled", np.where(TARGET == 1, "date", None), "alone decides the target"),
        ("parts", np.where(TARGET == 1, 2, np.arange(N) % 2), "alone decides the target"),
        ("age", np.arange(N) % 17, None),
        ("income", np.linspace(0, 1, N), None),
        ("town", np.array(list("abcd"))[np.arange(N) % 4], None),
        ("day", pd.date_range("2024-01-01", periods=N), "holds times, which are read as days"),
    ],
)
def test_suspicious_columns_are_told_of(name: str, values: Any, told: str | None) -> None:
    notes = TableEncoder().fit(pd.DataFrame({name: values}), TARGET).notes
    if told is None:
        assert notes == []
    else:
        assert any(f"column {name!r} {told}" in note for note in notes)
        assert not (told.startswith("holds times") and len(notes) > 1)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array(["x", "y"])[np.arange(N) % 2], r"'a': 100 % .* categories that training never"),
        (["b"] * 10 + ["x"] * 30, "'a': 75 % of its values are categories"),
        (["b"] * 25 + ["x"] * 15, None),
        ([None] * N, "'a': 100 % of its values are categories"),
    ],
)
def test_new_categories_are_told_by_name_and_share(values: Any, told: str | None) -> None:
    encoder = TableEncoder().fit(pd.DataFrame({"a": np.array(["b", "c"])[np.arange(N) % 2]}))
    if told is None:
        encoder.transform(pd.DataFrame({"a": values}))
    else:
        with pytest.warns(TableWarning, match=told):
            encoder.transform(pd.DataFrame({"a": values}))


def test_numbers_on_another_scale_are_told_of() -> None:
    encoder = TableEncoder().fit(pd.DataFrame({"share": np.linspace(0, 1, N)}))
    with pytest.warns(TableWarning, match="'share': .* lie outside of 0 to 1 of training"):
        encoder.transform(pd.DataFrame({"share": 100 * np.linspace(0.1, 1, N)}))
    with pytest.warns(TableWarning, match="'share': 100 % of its values are missing"):
        encoder.transform(pd.DataFrame({"share": [np.nan] * N}))


def test_days_are_numbers_that_a_csv_has_too() -> None:
    days = [date(2024, 1, 1) + timedelta(days=i * i) for i in range(N)]
    typed = TableEncoder().fit(pd.DataFrame({"day": pd.to_datetime(days)}))
    expected = typed.transform(pd.DataFrame({"day": pd.to_datetime(days)}))
    for frame in (
        pd.DataFrame({"day": days}),
        pl.DataFrame({"day": days}),
        pa.table({"day": days}),
        pd.DataFrame({"day": [d.isoformat() for d in days]}),
        pd.DataFrame({"day": pd.PeriodIndex(days, freq="D")}),
        pd.DataFrame({"day": pd.to_datetime(days).tz_localize("UTC")}),
    ):
        encoder = TableEncoder().fit(frame)
        assert encoder.numeric == ["day"]
        assert "days since 1970-01-01" in encoder.notes[0] or "read as days" in encoder.notes[0]
        np.testing.assert_array_equal(encoder.transform(frame), expected)
        np.testing.assert_array_equal(typed.transform(frame), expected)

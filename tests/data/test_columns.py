"""Columns by their values, in the forms that dataframes come in."""

from __future__ import annotations

import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from autobalance._validation import InputError
from autobalance.data.columns import Column, as_table, numbers_of, read_column


def read(values: Any) -> Column:
    """The only column of a frame, or of a pandas frame of these values."""
    frame = values if as_table(values) is not None else pd.DataFrame({"a": values})
    table = as_table(frame)
    assert table is not None
    return read_column("a", table.columns[0])


NUMBERS = [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "values",
    [
        [True, False, True],
        pd.Series([True, False, True], dtype=object),
        pd.Series([True, False, True], dtype="boolean"),
        pd.arrays.SparseArray([True, False, True]),
        pd.arrays.SparseArray([1, 0, 1]),
        ["True", "False", "true"],
        pd.Series([np.bool_(True), 0, 1.0], dtype=object),
        pd.Series([Decimal(1), Decimal(0), Decimal("1.0")]),
        pd.Series([Fraction(1), Fraction(0), 1], dtype=object),
        pd.Series([np.float32(1), np.int8(0), np.uint16(1)], dtype=object),
        pd.Series([1, 0, 1], dtype="Int8"),
        pd.Series([1, 0, 1], dtype="float16"),
        pd.Series([1, 0, 1], dtype="double[pyarrow]"),
        pd.Series([True, False, True], dtype="bool[pyarrow]"),
        pd.Series([1, "0", 1.0], dtype=object),
        pl.DataFrame({"a": [True, False, True]}),
        pl.DataFrame({"a": pl.Series([1, 0, 1], dtype=pl.UInt8)}),
        pl.DataFrame({"a": pl.Series(["1", "0", "1"])}),
        pl.DataFrame({"a": pl.Series([Decimal(1), Decimal(0), Decimal(1)])}),
        pa.table({"a": [True, False, True]}),
        pa.table({"a": pa.array([1, 0, 1], pa.decimal128(5, 2))}),
        pa.table({"a": pa.chunked_array([[1, 0], [1]])}),
    ],
)
def test_numbers_are_numbers_in_every_form(values: Any) -> None:
    column = read(values)
    assert column.is_numeric
    assert column.values.tolist() == NUMBERS


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1, None, 0], dtype=object),
        pd.Series([1, pd.NA, 0], dtype="Int64"),
        pd.Series([True, None, False], dtype=object),
        pd.Series(["1", np.nan, "0"], dtype=object),
        pd.Series([Decimal(1), Decimal("NaN"), Decimal(0)], dtype=object),
        pl.DataFrame({"a": [1, None, 0]}),
        pl.DataFrame({"a": [True, None, False]}),
        pa.table({"a": [True, None, False]}),
        pa.table({"a": [1, None, 0]}),
    ],
)
def test_a_missing_value_leaves_numbers_numbers(values: Any) -> None:
    np.testing.assert_array_equal(read(values).values, [1, np.nan, 0])


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1,234", "12", "1,234,567.5"], [1234, 12, 1234567.5]),
        (["1.234,5", "12", "0,25"], [1234.5, 12, 0.25]),
        (["12,5", "0,123", "-3,0"], [12.5, 0.123, -3]),
        (["1 234,5", "2\u202f000", "7"], [1234.5, 2000, 7]),
        (["1'234.5", "1\u2019000", "7"], [1234.5, 1000, 7]),
        (["$1,234.50", "-$3", "($2.25)"], [1234.5, -3, -2.25]),
        (["3,20 \u20ac", "1.000 \u20ac", "\u22125 \u20ac"], [3.2, 1000, -5]),
        (["USD 5", "USD 1,000", "USD 7"], [5, 1000, 7]),
        (["45%", "5.5 %", "100%"], [45, 5.5, 100]),
        (["12,5 %", "3,25 %", "0 %"], [12.5, 3.25, 0]),
        (["1e3", "-2.5E-1", " 7 "], [1000, -0.25, 7]),
        ([".5", "1.", "+2"], [0.5, 1, 2]),
        (["1_000", "2_500_000", "3"], [1000, 2500000, 3]),
    ],
)
def test_text_that_agrees_on_one_spelling_is_read_with_a_note(
    texts: list[str], numbers: list[float]
) -> None:
    column = read([*texts, None])
    assert column.values.tolist()[:3] == numbers
    assert column.note is not None
    assert column.spelling is not None
    # New rows are read as in training, a lone value too, and so are numbers as such.
    for i, text in enumerate(texts):
        table = as_table(pd.DataFrame({"a": [text]}))
        assert table is not None
        assert numbers_of("a", table.columns[0], column.spelling)[0] == numbers[i]
    table = as_table(pd.DataFrame({"a": numbers}))
    assert table is not None
    assert numbers_of("a", table.columns[0], column.spelling).tolist() == numbers


@pytest.mark.parametrize(
    ("texts", "note"),
    [
        (["007", "012", "100"], None),
        (["$5", "\u20ac5", "$7"], "more than one way, such as"),
        (["5%", "0.05", "7%"], "more than one way, such as"),
        (["1,5", "2.5", "1,25"], "more than one way, such as"),
        (["red", "green", "3"], None),
        ([*map(str, range(60)), "?", "n.a."], r"looks numeric but for '\?', 'n.a.'"),
        ([f"${i}" for i in range(60)] + ["free"], "looks numeric but for 'free'"),
        ([f"{1 + i % 28}.3.20{i:02d}" for i in range(60)], "looks like dates"),
        ([f"2024-02-{i:02d}" for i in range(1, 32)], "looks like dates"),
        ([f"customer {i}" for i in range(60)], None),
        (["1", "2", "A"] * 20, None),
    ],
)
def test_text_stays_text_and_is_told_of_where_it_was_meant_otherwise(
    texts: list[str], note: str | None
) -> None:
    column = read(texts)
    assert not column.is_numeric
    assert column.values.tolist() == texts
    if note is None:
        assert column.note is None
    else:
        with pytest.raises(AssertionError, match=note):
            raise AssertionError(column.note)


DAY = datetime.date(2024, 1, 1)


@pytest.mark.parametrize(
    ("values", "first"),
    [
        (pd.Series(pd.to_datetime(["2024-01-01T12:00", None])), 19723.5),
        (pd.Series(pd.to_datetime(["2024-01-01T12:00+01:00", None])), 19723 + 11 / 24),
        (pd.Series([DAY, None], dtype=object), 19723),
        (pd.Series([pd.Timestamp(DAY), pd.NaT], dtype=object), 19723),
        (pd.Series([pd.Period("2024-01", "M"), pd.NaT]), 19723),
        (pd.Series([pd.Period("2024-01", "M"), None], dtype=object), 19723),
        (pd.Series([np.datetime64("2024-01-01"), None], dtype=object), 19723),
        (pd.Series(pd.to_timedelta(["36h", None])), 1.5),
        (pd.Series([datetime.timedelta(hours=6), None], dtype=object), 0.25),
        (pd.Series([datetime.time(6, 30), None], dtype=object), 6.5),
        (pl.DataFrame({"a": [DAY, None]}), 19723),
        (pl.DataFrame({"a": [datetime.datetime(2024, 1, 1, 12), None]}), 19723.5),
        (pl.DataFrame({"a": [datetime.timedelta(days=2), None]}), 2),
        (pl.DataFrame({"a": [datetime.time(6, 30), None]}), 6.5),
        (pa.table({"a": pa.array([DAY, None])}), 19723),
        (pd.Series([DAY, None], dtype="date32[pyarrow]"), 19723),
        (["2024-01-01T12:00:00Z", None], 19723.5),
        (["2024-01-01", None], 19723),
        (pd.Series(pd.to_datetime(["9999-12-31", None])), 2932896),
        (["9999-12-31", None], 2932896),
    ],
)
def test_times_are_days(values: Any, first: float) -> None:
    column = read(values)
    assert column.values[0] == pytest.approx(first, abs=1e-9)
    assert np.isnan(column.values[1])
    assert column.note is not None


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [3]],
        [(1, 2), (3,)],
        [np.zeros(2), np.ones(2)],
        [{"a": 1}, {"a": 2}],
        [{1}, {2}],
        [b"1", b"2"],
        [None, [1.0]],
        [1 + 2j, 3j],
        [object(), object()],
        [DAY, datetime.time(6)],
        [f"[{i}, 0.5]" for i in range(40)],
        [f"[{i} 0.5\n 2.5]" for i in range(40)],
        pl.DataFrame({"a": [[1, 2], [3]]}),
        pl.DataFrame({"a": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2))}),
        pl.DataFrame({"a": [{"b": 1}, {"b": 2}]}),
        pa.table({"a": [[1, 2], [3]]}),
        pa.table({"a": [b"1", b"2"]}),
        pd.Series([[1, 2], [3]], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    ],
)
def test_what_is_neither_number_nor_category_is_refused_by_name(values: Any) -> None:
    with pytest.raises(InputError, match="The column 'a' "):
        read(values)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pd.Series([1, 2, 1], dtype="category"), ["1", "2", "1"]),
        (pd.Series([1.0, 2.5, None], dtype="category"), ["1", "2.5", None]),
        (pd.Series(["1", "2", "1"], dtype="category"), ["1", "2", "1"]),
        (pd.cut([1, 5, 9], [0, 4, 10]), ["(0, 4]", "(4, 10]", "(4, 10]"]),
        (pd.Series([1, "a", 2.0], dtype=object), ["1", "a", "2"]),
        (pd.Series([None, None], dtype=object), [None, None]),
        (["[0, 1]", "[1, 2]"], ["[0, 1]", "[1, 2]"]),
        (pl.DataFrame({"a": pl.Series(["1", "2"], dtype=pl.Categorical)}), ["1", "2"]),
        (pl.DataFrame({"a": pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"]))}), ["x", "y"]),
        (pa.table({"a": pa.array(["x", None]).dictionary_encode()}), ["x", None]),
    ],
)
def test_categories_are_text(values: Any, texts: list[str | None]) -> None:
    assert read(values).values.tolist() == texts


def test_names_that_are_equal_are_told_apart_and_lazy_frames_refused() -> None:
    table = as_table(pd.DataFrame([[1, 2, 3]], columns=["a", "a", 0]))
    assert table is not None
    assert table.names == ["a", "a (2)", "0"]
    with pytest.raises(InputError, match="Collect it first"):
        as_table(pl.DataFrame({"a": [1]}).lazy())
    assert as_table(np.zeros((2, 2))) is None
    assert as_table([[1]]) is None

"""Reading tables, and the encoder between a table and the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autobalance._validation import InputError
from autobalance.data.table_encoder import MAX_CATEGORIES, TableEncoder


def mixed() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [20.0, 30.0, np.nan, 50.0],
            "income": [1, 2, 3, 4],
            "town": ["A", "B", None, "A"],
            "owner": [True, False, True, False],
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.xz", ".parquet"])
def test_every_kind_of_file_reads_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    table = mixed()
    table.to_parquet(path) if suffix == ".parquet" else table.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_table(path), table, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "There is no file"),
        ("empty.csv", b"", "is empty"),
        ("header.csv", b"a,b\n", "has no rows"),
        ("broken.parquet", b"not parquet", "cannot be read as a table"),
        ("broken.csv.gz", b"not gzip", "cannot be read as a table"),
        ("broken.csv", b'a,b\n1,2\n"', "cannot be read as a table"),
        ("binary.csv", b"\xff\xfe\x00\x81\n", "cannot be read as a table"),
        ("table.xlsx", b"x", "must end in"),
        ("latin.csv", "a,b\nä,1\n".encode("latin-1"), "not text in UTF-8. Save it as UTF-8"),
        ("text.parquet", b"a,b\n1,2\n3,4\n", "table: it is not in Parquet's format"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", "table: line 3 has 3 fields, the lines before .* 2"),
        ("wide.csv", b"a,b\n1,2,3\n1,2,3\n", "more fields than its header, which has 2"),
        ("semicolon.csv", b"a;b\n1,5;2\n", "looks separated by ';'. Save it with commas"),
        ("tab.csv", b"a\tb\n1\t2\n", r"looks separated by '\\t'"),
        ("twins.csv", b"a,b,a\n1,2,3\n", "the column 'a' more than once"),
    ],
)
def test_unusable_file_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_table(path)


def test_folder_is_refused_and_names_that_only_look_alike_are_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder\. Give the path of a CSV or Parquet table"):
        read_table(tmp_path)
    (tmp_path / "one.csv").write_text("a,a.1\n1,2\n")
    assert read_table(tmp_path / "one.csv").columns.tolist() == ["a", "a.1"]


def test_column_is_named_when_absent_missing_or_doubled() -> None:
    table = mixed()
    with pytest.raises(InputError, match=r"target column 'label' is not in the table.*age, income"):
        column(table, "label", "target")
    with pytest.raises(InputError, match=r"has 1 missing value \(the first in row 3\)"):
        column(table, "town", "group")
    doubled = pd.concat([table, table[["age"]]], axis=1)
    with pytest.raises(InputError, match="more than once"):
        column(doubled, "age", "target")


def test_encoding_by_hand() -> None:
    numbers = TableEncoder().fit(mixed()).transform(mixed())
    age = np.array([20.0, 30.0, 50.0])
    scaled = (age - age.mean()) / age.std()
    expected_age = [scaled[0], scaled[1], 0.0, scaled[2]]
    np.testing.assert_allclose(numbers[:, 0], expected_age, rtol=1e-6)
    np.testing.assert_allclose(numbers[:, 1], (np.arange(4) - 1.5) / np.std(range(4)), rtol=1e-6)
    np.testing.assert_array_equal(numbers[:, 2], [0, 0, 1, 0])  # age was missing
    # Categories in alphabetical order: <missing>, A, B; then False, True.
    expected = [[0, 1, 0, 0, 1], [0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0]]
    np.testing.assert_array_equal(numbers[:, 3:], expected)
    assert numbers.dtype == np.float32


def test_state_travels_as_json() -> None:
    encoder = TableEncoder().fit(mixed())
    again = TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict())))
    np.testing.assert_array_equal(again.transform(mixed()), encoder.transform(mixed()))
    assert again.num_features == encoder.num_features == 8


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
    numbers = encoder.transform(other)
    np.testing.assert_array_equal(numbers[:, 3:6], 0.0)
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
    with pytest.raises(InputError, match="'day' holds times"):
        TableEncoder().fit(pd.DataFrame({"day": pd.to_datetime(["2020-01-01"])}))
    with pytest.raises(InputError, match="no feature column left"):
        TableEncoder().fit(table[[]])
    with pytest.raises(InputError, match="not a table encoder"):
        TableEncoder.from_dict({"format": "other"})


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([f"2024-01-{1 + i % 28:02d} {i % 24:02d}:00" for i in range(60)], "looks like dates"),
        ([f"{1 + i % 28}.3.20{i:02d}" for i in range(60)], "looks like dates"),
        (
            [*map(str, range(60)), "?", "n.a."],
            "looks numeric but for '?', 'n.a.', and is taken as text",
        ),
        ([f"{i},5" for i in range(60)], "looks like numbers with decimal commas"),
        ([f"customer {i}" for i in range(60)], None),
        (["red", "green", "3", "4"] * 20, None),
        (["1", "2"] * 20, None),
    ],
)
def test_text_that_was_meant_otherwise_is_recognised(texts: list[str], said: str | None) -> None:
    found = mistaken_for_text(pd.Series([*texts, None]))
    assert (found is None) == (said is None)
    assert said is None or found is None or said in found
